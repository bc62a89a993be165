//! Strangers, each in a thread of its own, that send the same again and again, and connect again
//! when they are closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::tls::{self, Trust};

/// What is written at once.
const BLOCK: usize = 64 * 1024;
/// How long anything may take that is no flood.
const PATIENCE: Duration = Duration::from_secs(30);
/// A flood that is not taken for so long is looked at again.
const GLANCE: Duration = Duration::from_millis(50);

/// A way to keep a node busy.
#[derive(Debug)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    via: Via,
    who: Who,
    /// Sent once.
    begin: &'static [u8],
    /// Sent again and again.
    flood: &'static [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    WebSocket,
    Tcp,
    /// One record for each flood.
    Tls,
}

/// What the attacker is when it begins.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// Connected to the port.
    Connection,
    /// Connected to the protocol, without any request.
    Stranger,
    /// Authenticated, and waiting.
    Waiting,
    /// An endpoint with a tunnel to another one that reads.
    Endpoint,
    /// A gateway without apps.
    Gateway,
}

const fn attack(
    name: &'static str,
    via: Via,
    who: Who,
    begin: &'static [u8],
    flood: &'static [u8],
) -> Attack {
    Attack { name, via, who, begin, flood }
}

/// The masks change nothing.
pub(super) const ATTACKS: &[Attack] = &{
    use Via::{Tcp, Tls, WebSocket};
    use Who::{Connection, Endpoint, Gateway, Stranger, Waiting};
    const TEXT: &[u8] = b"\x81\x80\0\0\0\0";
    const BLANK: &[u8] = b"\x81\x81\0\0\0\0 ";
    const BINARY: &[u8] = b"\x82\x80\0\0\0\0";
    const BEGIN: &[u8] = b"\x01\x81\0\0\0\0 ";
    const MORE: &[u8] = b"\x00\x80\0\0\0\0";
    const MORE_BLANK: &[u8] = b"\x00\x81\0\0\0\0 ";
    const PING: &[u8] = b"\x89\x80\0\0\0\0";
    const PONG: &[u8] = b"\x8a\x80\0\0\0\0";
    const CLOSE: &[u8] = b"\x88\x80\0\0\0\0";
    const REQUEST: &[u8] = b"{\"id\":1,\"method\":\"RemoteProxy.Introspect\"}";
    [
        attack("messages of a blank", WebSocket, Stranger, b"", BLANK),
        attack("empty messages", WebSocket, Stranger, b"", TEXT),
        attack("empty binary messages", WebSocket, Stranger, b"", BINARY),
        attack("empty fragments", WebSocket, Stranger, BEGIN, MORE),
        attack("fragments of a blank", WebSocket, Stranger, BEGIN, MORE_BLANK),
        attack("pings", WebSocket, Stranger, b"", PING),
        attack("pongs", WebSocket, Stranger, b"", PONG),
        attack("closes", WebSocket, Stranger, b"", CLOSE),
        attack("an endless request head", WebSocket, Connection, b"GET / HTTP/1.1\r\n", b"a:b\r\n"),
        attack("white space", Tcp, Stranger, b"", b" \n"),
        attack("white space in small records", Tls, Stranger, b"", b" "),
        attack("requests", Tcp, Stranger, b"", REQUEST),
        attack("white space while waiting", Tcp, Waiting, b"", b"\r\n"),
        attack("pings while waiting", WebSocket, Waiting, b"", PING),
        attack("empty messages in a tunnel", WebSocket, Endpoint, b"", TEXT),
        attack("empty fragments in a tunnel", WebSocket, Endpoint, BEGIN, MORE),
        attack("pings in a tunnel", WebSocket, Endpoint, b"", PING),
        attack("bytes in small records in a tunnel", Tls, Endpoint, b"", b"x"),
        attack("data in a tunnel", Tcp, Endpoint, b"", &[b'x'; 4096]),
        attack("empty frames of a gateway", Tcp, Gateway, b"", b"\xc0"),
        attack("frames of a gateway without an address", Tcp, Gateway, b"", b"\0\xc0"),
        attack("bad escapes of a gateway", Tcp, Gateway, b"", b"\xdb\0\xc0"),
        attack("blanks of a gateway for the proxy", Tcp, Gateway, b"", b"\0\0 \xc0"),
        attack("nothing of a gateway for the proxy", Tcp, Gateway, b"", b"\0\0\xc0"),
        attack("data of a gateway for no app", Tcp, Gateway, b"", b"\0\x09x\xc0"),
        attack("empty frames of a gateway in messages", WebSocket, Gateway, b"", EMPTY_FRAMES),
    ]
};
const EMPTY_FRAMES: &[u8] =
    b"\x82\x90\0\0\0\0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0\xc0";

/// Where the node listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) web_socket: SocketAddr,
    pub(super) tcp: SocketAddr,
    pub(super) tls: SocketAddr,
}

/// What attackers share.
#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    connections: AtomicU64,
    bytes: AtomicU64,
}

/// Attackers at work.
pub(super) struct Attackers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Attackers {
    pub(super) fn start(
        attack: &'static Attack,
        places: Places,
        count: u16,
    ) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut threads = Vec::new();
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            threads.push(std::thread::spawn(move || {
                while !shared.is_over.load(Ordering::Relaxed) {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    runtime.block_on(flood(attack, places, &shared))?;
                }
                Ok(())
            }));
        }
        Ok(Self { shared, threads })
    }

    /// How many connections there were, and how many bytes were sent on them.
    pub(super) fn stop(self) -> anyhow::Result<(u64, u64)> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("an attacker panicked"))??;
        }
        let Shared { connections, bytes, .. } = &*self.shared;
        Ok((connections.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed)))
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Floods one connection until it ends.
async fn flood(attack: &Attack, places: Places, shared: &Shared) -> anyhow::Result<()> {
    let ready = timeout(PATIENCE, begin(attack, places)).await.context("the node is stuck")?;
    // The node may have closed it already.
    let Ok((io, partner)) = ready else { return Ok(()) };
    let (mut reader, mut writer) = tokio::io::split(io);
    let block = if attack.via == Via::Tls {
        attack.flood.to_vec()
    } else {
        attack.flood.repeat(BLOCK.div_ceil(attack.flood.len()))
    };
    let writing = async {
        let mut at = 0;
        while !shared.is_over.load(Ordering::Relaxed) {
            let Ok(written) = timeout(GLANCE, writer.write(&block[at..])).await else { continue };
            let Ok(written @ 1..) = written else { return };
            shared.bytes.fetch_add(written as u64, Ordering::Relaxed);
            at = (at + written) % block.len();
        }
    };
    let partner_reading = async {
        match partner {
            Some(mut partner) => discard(&mut partner).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = writing => {}
        () = discard(&mut reader) => {}
        () = partner_reading => {}
    }
    Ok(())
}

async fn discard(reader: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; BLOCK];
    while let Ok(1..) = reader.read(&mut buffer).await {}
}

/// The connection at the point where the flood begins, and that of its partner.
async fn begin(
    attack: &Attack,
    places: Places,
) -> anyhow::Result<(Box<dyn Io>, Option<Box<dyn Io>>)> {
    let mut io = connect(attack.via, places).await?;
    let via = attack.via;
    if via == Via::WebSocket && !matches!(attack.who, Who::Connection) {
        upgrade(&mut io).await?;
    }
    let mut partner = None;
    match attack.who {
        Who::Connection | Who::Stranger => {}
        Who::Waiting => ask(&mut io, via, &authenticate(&Uuid::new_v4())).await?,
        Who::Endpoint => {
            let token = Uuid::new_v4();
            ask(&mut io, via, &authenticate(&token)).await?;
            let mut other = connect(via, places).await?;
            if via == Via::WebSocket {
                upgrade(&mut other).await?;
            }
            ask(&mut other, via, &authenticate(&token)).await?;
            // The notification, of which it is the end that counts.
            line(&mut io).await?;
            partner = Some(other);
        }
        Who::Gateway => ask(&mut io, via, &register(Uuid::new_v4())).await?,
    }
    io.write_all(attack.begin).await?;
    Ok((io, partner))
}

async fn connect(via: Via, places: Places) -> anyhow::Result<Box<dyn Io>> {
    let address = match via {
        Via::WebSocket => places.web_socket,
        Via::Tcp => places.tcp,
        Via::Tls => places.tls,
    };
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    if via != Via::Tls {
        return Ok(Box::new(tcp));
    }
    let connector = tls::connector(&Trust::Anything)?;
    Ok(Box::new(connector.connect(ServerName::try_from("localhost")?, tcp).await?))
}

async fn upgrade(io: &mut Box<dyn Io>) -> anyhow::Result<()> {
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    io.write_all(request.as_bytes()).await?;
    while line(io).await?.len() > 2 {}
    Ok(())
}

/// Sends a request, and waits for the end of the answer.
async fn ask(io: &mut Box<dyn Io>, via: Via, request: &str) -> anyhow::Result<()> {
    let length = u16::try_from(request.len())?.to_be_bytes();
    let header = [&[0x81, 0x80 | 0x7e], &length[..], &[0; 4]].concat();
    let header = if via == Via::WebSocket { &header[..] } else { &[] };
    io.write_all(&[header, request.as_bytes()].concat()).await?;
    line(io).await?;
    Ok(())
}

async fn line(io: &mut Box<dyn Io>) -> anyhow::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match io.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) => bail!("the connection ended: {error}"),
        }
    }
    Ok(line)
}

fn authenticate(token: &Uuid) -> String {
    let params = json!({ "token": token.to_string() });
    json!({ "id": 0, "method": "Authentication.Authenticate", "params": params }).to_string()
}

fn register(uuid: Uuid) -> String {
    let params = json!({ "serverName": "attacker", "serverUuid": uuid.to_string() });
    json!({ "id": 0, "method": "TunnelProxy.RegisterServer", "params": params }).to_string()
}
