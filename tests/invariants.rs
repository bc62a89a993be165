//! Invariants that are violated from outside, by a rendezvous that pairs more than two: the tunnel
//! that is one too many ends as a fault, with an entry in the metrics, and all others go on.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::accept::{self, LastDescriptors, Listening, Manners, Owner, Room};
use nymea_remoteproxy::auth::AcceptAny;
use nymea_remoteproxy::config::{Config, Proxies};
use nymea_remoteproxy::ids::{NodeId, OfferId};
use nymea_remoteproxy::lifecycle::Lifecycle;
use nymea_remoteproxy::observability::{Series, Telemetry};
use nymea_remoteproxy::protocol::{PairingKey, ServerInfo};
use nymea_remoteproxy::rendezvous::{Answer, MemoryRendezvous, Offer, Rendezvous};
use nymea_remoteproxy::session::{Listener, Shared, serve};
use nymea_remoteproxy::transport::Patience;
use nymea_remoteproxy::transport::websocket::WebSocketTransport;
use support::redis::until;
use support::soon;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// A rendezvous that can lose all its entries, and does not notice.
#[derive(Default)]
struct Forgetful(Mutex<Arc<MemoryRendezvous>>);

impl Forgetful {
    fn memory(&self) -> Arc<MemoryRendezvous> {
        Arc::clone(&self.0.lock().expect("no panic"))
    }

    fn forget(&self) {
        *self.0.lock().expect("no panic") = Arc::default();
    }
}

impl Rendezvous for Forgetful {
    fn offer(self: Arc<Self>, offer: Offer) -> BoxFuture<'static, Answer> {
        self.memory().offer(offer)
    }

    fn release(&self, key: PairingKey, offer: OfferId) {
        self.memory().release(key, offer);
    }

    fn give_back(&self, key: PairingKey, owner: OfferId, claimer: OfferId) {
        self.memory().give_back(key, owner, claimer);
    }

    fn stands(&self, offer: Offer) -> bool {
        self.memory().stands(offer)
    }

    fn epoch(&self) -> watch::Receiver<u64> {
        self.memory().epoch()
    }

    fn lost(&self, offer: Offer, epoch: watch::Receiver<u64>) -> BoxFuture<'static, ()> {
        self.memory().lost(offer, epoch)
    }

    fn has(&self, offer: OfferId) -> bool {
        self.memory().has(offer)
    }
}

/// The sessions of a node, on WebSockets without TLS.
struct Sessions {
    address: SocketAddr,
    shared: Arc<Shared>,
    rendezvous: Arc<Forgetful>,
}

type Client = WebSocketStream<TcpStream>;

impl Sessions {
    async fn start() -> Self {
        let (config, rendezvous) = (Config::default(), Arc::<Forgetful>::default());
        let patience =
            Patience { ping_interval: config.keepalive.interval, stalled: config.timeouts.stalled };
        let node = NodeId::started("node");
        let telemetry = Telemetry::start(&config.telemetry, &node, "node").expect("telemetry");
        let shared = Arc::new(Shared::new(
            Arc::new(AcceptAny),
            (Arc::clone(&rendezvous) as _, Arc::<MemoryRendezvous>::default()),
            None,
            ServerInfo { name: "node".into(), version: "1".into() },
            (Lifecycle::default(), telemetry),
            (config.timeouts, config.limits, config.tunnel_proxy),
        ));
        let listening = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listening.local_addr().expect("bound");
        let manners = Manners {
            who: "clients",
            room: Room::new(100, 100),
            first_byte: support::DEADLINE,
            last_descriptors: LastDescriptors::Taken,
        };
        let transport = WebSocketTransport::new(None, patience, Proxies::default());
        let listener = Arc::new(Listener { transport, is_local: true });
        let sessions = Arc::clone(&shared);
        let handle = move |guest| serve(guest, Arc::clone(&listener), Arc::clone(&sessions));
        let owner = Owner::Node(shared.lifecycle.clone());
        let listening = Listening::Tcp(listening);
        shared.lifecycle.spawn(accept::serve(listening, manners, owner, handle));
        Self { address, shared, rendezvous }
    }

    /// An endpoint that waits for its partner.
    async fn endpoint(&self, token: &str) -> Client {
        let tcp = TcpStream::connect(self.address).await.expect("TCP");
        let upgrade = tokio_tungstenite::client_async("ws://localhost/", tcp);
        let (mut client, _) = soon("the upgrade", upgrade).await.expect("upgraded");
        let request = format!(
            r#"{{"id":0,"method":"Authentication.Authenticate","params":{{"token":"{token}"}}}}"#
        );
        client.send(Message::text(request)).await.expect("sent");
        assert!(text(&mut client).await.contains("success"));
        client
    }

    fn violations(&self) -> Vec<(String, u64)> {
        let series = self.shared.telemetry.metrics.series();
        let sums = Series::sums(&series, "remoteproxy_invariants_violated_total", "invariant");
        sums.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

async fn text(client: &mut Client) -> String {
    match soon("a message", client.next()).await.expect("open").expect("a message") {
        Message::Text(text) => text.to_string(),
        other => panic!("not a text: {other:?}"),
    }
}

async fn is_closed_with(client: &mut Client, code: u16) {
    match soon("a close", client.next()).await.expect("open").expect("a message") {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), code, "{}", frame.reason),
        other => panic!("not a close: {other:?}"),
    }
}

async fn established(clients: [&mut Client; 2]) {
    for client in clients {
        assert!(text(client).await.contains("Established"));
    }
}

#[tokio::test]
async fn a_second_tunnel_of_a_key_ends_as_a_fault_and_the_first_goes_on() {
    let sessions = Sessions::start().await;
    let (mut first, mut second) = (sessions.endpoint("t").await, sessions.endpoint("t").await);
    established([&mut first, &mut second]).await;
    assert_eq!(sessions.violations(), []);

    sessions.rendezvous.forget();
    let (mut third, mut fourth) = (sessions.endpoint("t").await, sessions.endpoint("t").await);
    is_closed_with(&mut third, 1011).await;
    is_closed_with(&mut fourth, 1011).await;
    assert_eq!(sessions.violations(), [("two_legs_per_key".to_owned(), 1)]);

    first.send(Message::text("still here")).await.expect("sent");
    assert_eq!(text(&mut second).await, "still here");
    let (mut one, mut other) = (sessions.endpoint("u").await, sessions.endpoint("u").await);
    established([&mut one, &mut other]).await;
}

#[tokio::test]
async fn a_key_that_is_free_again_is_no_violation() {
    let sessions = Sessions::start().await;
    for _ in 0..20 {
        let (mut first, mut second) = (sessions.endpoint("t").await, sessions.endpoint("t").await);
        established([&mut first, &mut second]).await;
        first.close(None).await.expect("closed");
        is_closed_with(&mut second, 1000).await;
    }
    until("no tunnel", async || sessions.shared.telemetry.tunnels.is_empty()).await;
    assert_eq!(sessions.violations(), []);
}
