//! Rules that must hold in the memory of a node and in Redis alike.

/// Runs each rule in memory, and in a Redis that must have nothing in it afterwards.
macro_rules! rules {
    ($($rule:ident),* $(,)?) => {
        mod memory {
            use nymea_remoteproxy::rendezvous::MemoryRendezvous;
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(std::sync::Arc::<MemoryRendezvous>::default()).await;
                }
            )*
        }

        mod redis {
            $(
                #[tokio::test]
                async fn $rule() {
                    let server = crate::support::redis::Server::start().await;
                    let node = crate::support::redis::joined(&server, "node").await;
                    super::$rule(std::sync::Arc::clone(&node)).await;
                    node.close().await;
                    assert!(server.keys().await.is_empty());
                }
            )*
        }
    };
}
