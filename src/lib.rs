//! The clustered nymea remote proxy as a library: two endpoints connect, prove themselves with
//! equal tokens, and from then on every byte of one reaches the other.
//!
//! The modules below stand in the order in which data flows through them:
//!
//! ```text
//! endpoint ──▶ transport ──▶ session ──▶ auth ──▶ rendezvous ──▶ relay ──▶ the other endpoint
//!              TLS, Web-     drives      is it    who else       moves
//!              Socket, TCP   protocol    valid?   has this key?  bytes
//! ```
//!
//! Gateways and their apps go the same way until they are registered: the directory of
//! [`rendezvous`] knows their UUIDs, and a gateway's [`session`] shares its one stream among them.
//!
//! [`node`] wires them together; [`client`] is the other end of the wire, for programs that want
//! to be an endpoint.

pub mod ids;
pub mod printable;
pub mod protocol;
pub mod trace_parent;
mod turn;
pub mod unix_socket;

pub mod config;
pub mod lifecycle;
pub mod observability;

pub mod auth;
pub mod rendezvous;
pub mod transport;

pub mod accept;

pub mod cluster;
pub mod relay;
pub mod session;

pub mod admin;
pub mod monitor;
pub mod node;

pub mod client;
