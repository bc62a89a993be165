//! The places where clients meet: one node or two, with a listener of every kind, and every pair
//! of transports.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::Node;
use tempfile::TempDir;

use super::cluster::Cluster;
use super::raw::{Client, Gateway};
use super::{FREE, node_with};

/// How a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Tcp,
    Tls,
    WebSocket,
    Unix,
}

impl Via {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::WebSocket, Self::Unix];
}

/// One node or two, each with a listener of every kind.
pub struct Site {
    nodes: Vec<Node>,
    _cluster: Option<Cluster>,
    directory: TempDir,
}

impl Site {
    /// Gateways and apps on one node.
    pub fn one(change: impl Fn(&mut Config)) -> Self {
        let directory = TempDir::new().expect("a directory");
        let node = node_with(|config| {
            config.node.name = "node1".into();
            listen_everywhere(config, &directory);
            change(config);
        });
        Self { nodes: vec![node], _cluster: None, directory }
    }

    /// Gateways on one node, apps on another.
    pub async fn two(change: impl Fn(&mut Config)) -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut cluster = Cluster::start_with(2, |config| {
            listen_everywhere(config, &directory);
            change(config);
        })
        .await;
        Self { nodes: std::mem::take(&mut cluster.nodes), _cluster: Some(cluster), directory }
    }

    /// Where gateways are.
    pub async fn near(&self, via: Via) -> Client {
        self.connect(0, via).await
    }

    /// Where apps are.
    pub async fn far(&self, via: Via) -> Client {
        self.connect(self.nodes.len() - 1, via).await
    }

    async fn connect(&self, index: usize, via: Via) -> Client {
        let node = &self.nodes[index];
        let address = |index: usize| node.addresses()[index].ip().expect("an IP address");
        match via {
            Via::Tcp => Client::tcp(address(0)).await,
            Via::Tls => Client::tls(address(1)).await,
            Via::WebSocket => Client::web_socket(address(2)).await,
            Via::Unix => {
                Client::unix(&socket(&self.directory, &format!("node{}", index + 1))).await
            }
        }
    }
}

fn listen_everywhere(config: &mut Config, directory: &TempDir) {
    config.listen = vec![
        Listen::Tcp { address: FREE, tls: false },
        Listen::Tcp { address: FREE, tls: true },
        Listen::WebSocket { address: FREE, tls: false },
        Listen::Unix { path: socket(directory, &config.node.name) },
    ];
    config.tunnel_proxy.enabled = Some(true);
}

fn socket(directory: &TempDir, node: &str) -> PathBuf {
    directory.path().join(node)
}

/// Where a check takes place.
pub struct Place<'a> {
    pub site: &'a Site,
    /// How gateways connect.
    pub near: Via,
    /// How apps connect.
    pub far: Via,
}

impl Place<'_> {
    pub async fn near(&self) -> Client {
        self.site.near(self.near).await
    }

    pub async fn far(&self) -> Client {
        self.site.far(self.far).await
    }

    pub async fn gateway(&self, number: u128) -> Gateway {
        self.near().await.gateway(number).await
    }

    pub async fn app(&self, number: u128, gateway: u128) -> Client {
        self.far().await.app(number, gateway).await
    }

    /// A gateway with an app, and the app's address. What they are registered under is given back.
    pub async fn both(&self) -> (Gateway, Client, u16) {
        let number = fresh();
        let mut gateway = self.gateway(number).await;
        let app = self.app(number + 1, number).await;
        let address = gateway.connected().await;
        (gateway, app, address)
    }
}

/// Returns an unused number; the next hundred are free, too.
pub fn fresh() -> u128 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    u128::from(LAST.fetch_add(100, Ordering::Relaxed) + 100)
}

/// Checks with every transport for gateways and for apps, on one node and across two.
pub async fn everywhere(check: impl AsyncFn(Place<'_>)) {
    everywhere_with(|_| {}, check).await;
}

pub async fn everywhere_with(change: impl Fn(&mut Config), check: impl AsyncFn(Place<'_>)) {
    for site in [Site::one(&change), Site::two(&change).await] {
        for near in Via::ALL {
            for far in Via::ALL {
                note(near, far);
                check(Place { site: &site, near, far }).await;
            }
        }
    }
}

/// The same for what takes its time: all at once.
pub async fn everywhere_at_once(check: impl AsyncFn(Place<'_>)) {
    for site in [Site::one(|_| {}), Site::two(|_| {}).await] {
        let pairs = Via::ALL.into_iter().flat_map(|near| Via::ALL.map(|far| (near, far)));
        join_all(pairs.map(|(near, far)| check(Place { site: &site, near, far }))).await;
    }
}

/// Checks what has to do with one connection only: once for each transport, on one node and in a
/// cluster.
pub async fn each(change: impl Fn(&mut Config), check: impl AsyncFn(Place<'_>)) {
    for site in [Site::one(&change), Site::two(&change).await] {
        for via in Via::ALL {
            note(via, via);
            check(Place { site: &site, near: via, far: via }).await;
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown when a test fails")]
fn note(near: Via, far: Via) {
    eprintln!("gateway by {near:?}, app by {far:?}");
}
