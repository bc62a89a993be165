//! A network that holds back what is under way on the connections of now, and lets later ones
//! through.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::soon;

/// What becomes of the data of clients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Held,
}

/// See the module. The answers of the server are never held back.
pub struct HeldBack {
    port: u16,
    /// Of the connections of now.
    way: Arc<watch::Sender<watch::Sender<Way>>>,
    held: std::sync::Mutex<Option<watch::Sender<Way>>>,
}

impl HeldBack {
    /// In front of a server on this machine.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let way = Arc::new(watch::Sender::new(watch::Sender::new(Way::Open)));
        let of_now = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.expect("a server");
                let way = of_now.borrow().subscribe();
                let (from_server, to_server) = server.into_split();
                let (from_client, to_client) = client.into_split();
                tokio::spawn(pass(from_client, to_server, way));
                let open = watch::Sender::new(Way::Open);
                let answers = open.subscribe();
                tokio::spawn(async move {
                    let _open = open;
                    pass(from_server, to_client, answers).await;
                });
            }
        });
        Self { port, way, held: std::sync::Mutex::default() }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Holds everything back, on new connections, too.
    pub fn hold(&self) {
        self.way.borrow().send_replace(Way::Held);
    }

    /// From now on, new connections are let through; those before are still held back.
    pub fn pass_new(&self) {
        let before = self.way.send_replace(watch::Sender::new(Way::Open));
        *self.held.lock().expect("no panic") = Some(before);
    }

    /// Delivers what was held back, and waits until it has arrived.
    pub async fn deliver(&self) {
        let held = self.held.lock().expect("no panic").take().expect("something is held");
        held.send_replace(Way::Open);
        soon("all is delivered", held.closed()).await;
        sleep(Duration::from_millis(200)).await;
    }
}

/// Passes data on as long as the way is open; at its end, what was held back is delivered first.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
) {
    let mut buffer = vec![0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if way.wait_for(|way| *way == Way::Open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _open = way.wait_for(|way| *way == Way::Open).await;
}
