//! A way to a TCP server on which what the server sends arrives late.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Forwards to `server`; its replies arrive later by `delay`. Ends when dropped.
pub struct SlowReplies {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl SlowReplies {
    pub async fn start(server: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind(super::FREE).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut forwards = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                forwards.spawn(forward(client, server, delay));
            }
        });
        Self { address, _tasks: tasks }
    }

    pub fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

async fn forward(client: TcpStream, server: u16, delay: Duration) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    #[expect(clippy::disallowed_methods, reason = "holds what is sent during one delay")]
    let (sender, mut late) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let requests = async {
        let _ended = copy(&mut from_client, &mut to_server).await;
    };
    let replies = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let sent = sender.send((Instant::now() + delay, buffer[..count].to_vec()));
            sent.expect("a receiver");
        }
    };
    let delivery = async {
        while let Some((due, data)) = late.recv().await {
            sleep_until(due).await;
            if to_client.write_all(&data).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
        () = delivery => {}
    }
}
