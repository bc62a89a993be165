//! The data sent through a tunnel under load, and its check.
//!
//! A message has a fixed size: a number, then a pattern that is the same in all. It is put into its
//! WebSocket frame once and from then on only the number is changed, so that the generator needs
//! little of the machine it shares with what it measures.

mod check;
mod frame;
mod inbox;
mod message;

pub(crate) use check::Check;
pub(crate) use frame::{Opcode, close, pack, pong};
pub(crate) use inbox::{Inbox, Incoming};
pub(crate) use message::{Kind, Message, Outgoing};
