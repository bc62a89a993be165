//! What clients and the proxy say to each other before a tunnel stands: generations 1 and 2 of
//! the protocol, spoken by every listener. Of generation 3 there are only the frames so far
//! ([`slip`], [`TextOrBinary`]); no listener speaks it yet.
//!
//! Everything in here is pure: no IO, no clock, no randomness of its own. [`Endpoint`] is the
//! state machine of one connection; bytes, verdicts and the time go in, [`Action`]s come out, and
//! [`session`](crate::session) carries them out.

mod chunk;
mod close;
mod endpoint;
mod json_stream;
mod message;
mod methods;
pub mod slip;
mod text_or_binary;
mod token;

pub use chunk::{Chunk, Kind};
pub use close::Close;
pub use endpoint::{Action, Endpoint, Generation, Identity, Profile, Rules, Verdict};
pub use json_stream::{FramingError, JsonStream, MAX_REQUEST};
pub use message::{Refusal, Request, notification, parse_request, request};
pub use methods::{API_VERSION, ServerInfo, introspection};
pub(crate) use methods::{ESTABLISHED_GENERATION_1, ESTABLISHED_GENERATION_2};
pub use text_or_binary::TextOrBinary;
pub use token::{PairingKey, Token};
