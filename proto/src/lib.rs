//! The messages between nodes, generated from the `.proto` files of this crate, which document them.

/// Tunnels between nodes.
pub mod bridge {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("nymea.remoteproxy.bridge.v1");
    }
}
