#![doc = include_str!("README.md")]
//!
//! # In code
//!
//! Nothing here does IO, reads a clock or creates random numbers. [`Endpoint`] is the state machine of one
//! connection until its tunnel is established or it is registered: chunks, verdicts and the time go
//! in, [`Action`]s come out, and [`session`](crate::session) carries them out. [`GatewayControl`] is
//! the state machine for the requests of a registered gateway, between the [frames](slip) of its
//! apps.

mod call;
mod chunk;
mod close;
mod endpoint;
mod gateway_control;
mod json_stream;
mod message;
mod methods;
pub mod slip;
mod terms;
mod text_or_binary;
mod token;
mod tunnel_proxy;

pub(crate) use chunk::without_its_block;
pub use chunk::{Chunk, Kind};
pub use close::Close;
pub use endpoint::Endpoint;
pub use gateway_control::{ControlAction, GatewayControl};
pub use json_stream::{FramingError, JsonStream, MAX_REQUEST};
pub use message::{Refusal, Request, notification, parse_request, request};
pub use methods::{API_VERSION, API_VERSION_TUNNEL_PROXY, ServerInfo};
pub(crate) use methods::{
    CLIENT_CONNECTED, CLIENT_DISCONNECTED, CLIENT_RECEIVED, ESTABLISHED_GENERATION_1,
    ESTABLISHED_GENERATION_2,
};
pub use terms::{Action, Generation, Identity, Profile, Rules, Verdict};
pub use text_or_binary::TextOrBinary;
pub use token::{PairingKey, Token};
pub use tunnel_proxy::{
    APP_ADDRESSES, App, FRAME_OVERHEAD, Gateway, Role, TunnelProxyError, braced, parse_uuid,
};
