//! What nodes say to each other. The `.proto` files beside this crate are the source, and say what
//! it means.

/// Tunnels between nodes.
pub mod bridge {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("nymea.remoteproxy.bridge.v1");
    }
}
