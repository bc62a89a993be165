//! Code shared by all loads.

use clap::Args;
use serde_json::{Value, json};

use crate::target::Target;
use crate::wire::{Kind, Message};

pub(crate) const MIB: f64 = 1_048_576.0;
pub(crate) const GIB: f64 = 1024.0 * MIB;

#[derive(Debug, Args)]
pub(crate) struct Shape {
    /// Send text messages, not binary ones
    #[arg(long)]
    text: bool,
}

impl Shape {
    /// The messages of a load: numbered, and otherwise all the same.
    pub(crate) fn message(&self, target: &Target, size: u32) -> Message {
        Message::new(target.kind(self.text), size as usize)
    }
}

impl Message {
    pub(crate) fn fields(&self) -> Value {
        let kind = match self.kind {
            Kind::Text => "text",
            Kind::Binary => "binary",
            Kind::Bytes => "bytes",
        };
        json!({ "message": kind, "message_bytes": self.size() })
    }
}
