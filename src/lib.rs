#![doc = include_str!("README.md")]

pub mod ids;
mod lock;
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
