//! What is under test, and how a tunnel through it is made: one node, two nodes, or any relay that
//! takes TLS and connects to a backend, which this program plays then.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_util::either::Either;
use uuid::Uuid;

use crate::backend::{Backend, GREETING};
use crate::endpoint::{Endpoint, Stream};
use crate::node::Started;
use crate::tls::{self, Trust};
use crate::usage::Processes;
use crate::wire::Kind;

/// Tunnels that are set up at the same time, where that is not measured: nodes limit strangers.
const AT_ONCE: u32 = 50;
/// For one tunnel, on a machine that is busy with many.
const PATIENCE: Duration = Duration::from_mins(1);
/// Connections from one address to another one: far fewer than there are ports, as the kernel tries one
/// after the other until it finds a free one. With two thirds of them in use that takes longer than a
/// handshake.
const PER_SOURCE: u64 = 5_000;
/// 127.128.0.0/10, where each run has 256 addresses.
const SOURCES: u32 = 0x7F80_0000;

#[derive(Debug, Args)]
#[command(next_help_heading = "What is measured")]
pub(crate) struct TargetOptions {
    /// The node: wss:// or, without TLS, ws:// [default: one is started for this]. With the URLs of
    /// several nodes of a cluster, the ends of each tunnel are at two neighbours in this list
    #[arg(long)]
    url: Vec<String>,
    /// A process of the node on this machine, for its CPU time and memory; repeatable
    #[arg(long, requires = "url")]
    pid: Vec<u32>,
    /// Measure a relay that is no node: --url is then tls://host:port or tcp://host:port, and the
    /// relay's backend is this address, where this program listens with TLS or without
    #[arg(long, value_name = "HOST:PORT", requires = "url", value_parser = clap::value_parser!(SocketAddr))]
    direct: Option<SocketAddr>,
    /// Trust the certificates in this file and those signed by them, not the system's
    #[arg(long, value_name = "PEM", requires = "url")]
    ca: Option<PathBuf>,
    /// Trust the certificate with this SHA-256
    #[arg(long, value_name = "SHA256", requires = "url", conflicts_with = "ca")]
    fingerprint: Option<String>,
    /// Trust any certificate
    #[arg(short, long, requires = "url", conflicts_with_all = ["ca", "fingerprint"])]
    ignore_ssl: bool,
}

/// Something that makes tunnels.
pub(crate) struct Target {
    addresses: Vec<Address>,
    tls: TlsConnector,
    backend: Option<Backend>,
    processes: Processes,
    /// Tokens of this run begin with it, and addresses on loopback come from it.
    run: Uuid,
    tunnels: AtomicU64,
    buffer: usize,
    _started: Option<Started>,
}

/// The two ends of an established tunnel, and the time to establish it.
pub(crate) struct Tunnel {
    pub(crate) ends: [Endpoint; 2],
    /// From the first connection.
    pub(crate) since_first: Duration,
    /// From the second one, when the first endpoint was already waiting. Through a relay that is no
    /// node, the same as the other.
    pub(crate) since_second: Duration,
}

impl Target {
    /// The ends of its tunnels read up to `buffer` bytes at once.
    pub(crate) async fn new(options: &TargetOptions, buffer: usize) -> anyhow::Result<Self> {
        let started = match options.url[..] {
            [] => Some(Started::new().await?),
            _ => None,
        };
        let mut addresses = Vec::new();
        for url in started.iter().map(|node| &node.url).chain(&options.url) {
            addresses.push(Address::parse(url, options.direct.is_some()).await?);
        }
        let backend = match options.direct {
            Some(backend) => Some(Backend::start(backend, addresses[0].is_tls, buffer)?),
            None => None,
        };
        let own = started.as_ref().map(|node| node.pid);
        Ok(Self {
            tls: tls::connector(&options.trust(own.is_some()))?,
            addresses,
            backend,
            processes: Processes::new(own.into_iter().chain(options.pid.clone()).collect()),
            run: Uuid::new_v4(),
            tunnels: AtomicU64::new(0),
            buffer,
            _started: started,
        })
    }

    pub(crate) fn processes(&self) -> &Processes {
        &self.processes
    }

    /// How messages go through it.
    pub(crate) fn kind(&self, is_text: bool) -> Kind {
        match (&self.backend, is_text) {
            (Some(_), _) => Kind::Bytes,
            (None, true) => Kind::Text,
            (None, false) => Kind::Binary,
        }
    }

    /// Sets one tunnel up.
    pub(crate) async fn open(&self) -> anyhow::Result<Tunnel> {
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed);
        let made = async {
            match &self.backend {
                Some(backend) => self.through_relay(backend, number).await,
                None => self.through_node(number).await,
            }
        };
        timeout(PATIENCE, made).await.context("a tunnel was not established in time")?
    }

    /// Sets many up.
    pub(crate) async fn open_many(&self, count: u32) -> anyhow::Result<Vec<Tunnel>> {
        let mut tunnels = Vec::new();
        let workers = (0..AT_ONCE.min(count)).map(|worker| async move {
            let mut opened = Vec::new();
            for _ in (worker..count).step_by(AT_ONCE as usize) {
                opened.push(self.open().await?);
            }
            anyhow::Ok(opened)
        });
        for opened in futures_util::future::try_join_all(workers).await? {
            tunnels.extend(opened);
        }
        Ok(tunnels)
    }

    /// Idle tunnels, for as long as the set exists. A task ends with the error of
    /// its tunnel.
    pub(crate) async fn idle(&self, count: u32) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
        let mut standing = JoinSet::new();
        for tunnel in self.open_many(count).await? {
            for mut end in tunnel.ends {
                standing.spawn(async move {
                    let code = end.ended().await?;
                    bail!("an idle tunnel ended ({})", crate::report::close_code(code))
                });
            }
        }
        Ok(standing)
    }

    async fn through_node(&self, number: u64) -> anyhow::Result<Tunnel> {
        let token = format!("{}-{number}", self.run);
        let first = Instant::now();
        let mut one = self.endpoint(number, number).await?;
        one.authenticate(&token).await?;
        let second = Instant::now();
        let mut other = self.endpoint(number + 1, number).await?;
        other.authenticate(&token).await?;
        tokio::try_join!(one.established(), other.established())?;
        Ok(Tunnel {
            ends: [one, other],
            since_first: first.elapsed(),
            since_second: second.elapsed(),
        })
    }

    async fn endpoint(&self, node: u64, number: u64) -> anyhow::Result<Endpoint> {
        let address = &self.addresses[usize::try_from(node)? % self.addresses.len()];
        let stream = address
            .connect(self.run, 2 * number / self.addresses.len() as u64, &self.tls, self.buffer)
            .await?;
        let mut endpoint = Endpoint::new(stream, self.buffer);
        endpoint.upgrade(&address.host).await?;
        Ok(endpoint)
    }

    async fn through_relay(&self, backend: &Backend, number: u64) -> anyhow::Result<Tunnel> {
        let first = Instant::now();
        let (greeting, arrival) = backend.expect(number);
        let stream = self.addresses[0].connect(self.run, number, &self.tls, self.buffer).await?;
        let mut one = Endpoint::new(stream, self.buffer);
        one.write(&greeting).await?;
        let mut other = arrival.await.context("the relay did not connect")?;
        other.write(&greeting).await?;
        ensure!(one.bytes(GREETING).await? == greeting, "the relay connects others");
        let time = first.elapsed();
        Ok(Tunnel { ends: [one, other], since_first: time, since_second: time })
    }
}

/// What an end needs to read at once if it hardly reads.
pub(crate) const SMALL: usize = 4096;
/// What it reads at once under load.
pub(crate) const LARGE: usize = 64 * 1024;

impl TargetOptions {
    fn trust(&self, is_own: bool) -> Trust {
        match (&self.ca, &self.fingerprint) {
            (Some(file), _) => Trust::Roots(file.clone()),
            (_, Some(fingerprint)) => Trust::Fingerprint(fingerprint.clone()),
            _ if self.ignore_ssl || is_own => Trust::Anything,
            _ => Trust::System,
        }
    }
}

/// Where endpoints connect to.
struct Address {
    is_tls: bool,
    /// Without its port.
    name: String,
    /// As in the URL.
    host: String,
    socket: SocketAddr,
}

impl Address {
    async fn parse(url: &str, is_direct: bool) -> anyhow::Result<Self> {
        let (scheme, rest) = url.split_once("://").context("a URL has a scheme")?;
        let is_tls = match (scheme, is_direct) {
            ("wss", false) | ("tls", true) => true,
            ("ws", false) | ("tcp", true) => false,
            ("tls" | "tcp", false) => bail!("{scheme}:// needs --direct"),
            _ => bail!("{scheme}:// is not what this program can talk to"),
        };
        let host = rest.split('/').next().unwrap_or_default();
        let port = if is_tls { 443 } else { 80 };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let full = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let name = full.rsplit_once(':').map_or("", |(name, _)| name);
        let name = name.trim_matches(['[', ']']).to_owned();
        let socket = lookup_host(&full).await.with_context(|| format!("no address of {full}"))?;
        let socket = socket.into_iter().next().with_context(|| format!("no address of {full}"))?;
        Ok(Self { is_tls, name, host: host.to_owned(), socket })
    }

    async fn connect(
        &self,
        run: Uuid,
        number: u64,
        tls: &TlsConnector,
        buffer: usize,
    ) -> anyhow::Result<Stream> {
        let tcp = self.connect_tcp(run, number).await;
        let tcp = tcp.with_context(|| format!("cannot connect to {}", self.socket))?;
        tcp.set_nodelay(true)?;
        if !self.is_tls {
            return Ok(Either::Left(tcp));
        }
        let name = ServerName::try_from(self.name.clone())?;
        // rustls itself reads 4 KiB at a time.
        let tcp = BufReader::with_capacity(buffer, tcp);
        let stream = tls.connect(name, tcp).await.context("TLS")?;
        Ok(Either::Right(Box::new(TlsStream::Client(stream))))
    }

    async fn connect_tcp(&self, run: Uuid, number: u64) -> std::io::Result<TcpStream> {
        let is_loopback = matches!(self.socket, SocketAddr::V4(to) if to.ip().is_loopback());
        // Elsewhere, loopback is one address.
        if !is_loopback || !cfg!(target_os = "linux") {
            return TcpStream::connect(self.socket).await;
        }
        let socket = TcpSocket::new_v4()?;
        socket.bind((source(run, number), 0).into())?;
        socket.connect(self.socket).await
    }
}

/// The source address of a connection to loopback: each run picks one of 16,384 at random, so that
/// concurrent runs hardly ever share an address.
fn source(run: Uuid, number: u64) -> Ipv4Addr {
    let [high, low, ..] = run.into_bytes();
    let of_run = u32::from(u16::from_be_bytes([high & 0x3F, low])) << 8;
    let of_connection = u8::try_from(number / PER_SOURCE).unwrap_or(u8::MAX);
    Ipv4Addr::from(SOURCES | of_run | u32::from(of_connection))
}

/// Two sockets for each tunnel, and some more for everything else.
pub(crate) fn allow_connections(tunnels: u32) -> anyhow::Result<()> {
    let needed = 2 * u64::from(tunnels) + 100;
    let allowed = rlimit::increase_nofile_limit(u64::MAX).context("the limit of open files")?;
    ensure!(allowed >= needed, "{needed} open files are needed, {allowed} are allowed (ulimit -n)");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parsed(url: &str, is_direct: bool) -> anyhow::Result<(bool, String, SocketAddr)> {
        let address = Address::parse(url, is_direct).await?;
        Ok((address.is_tls, address.name, address.socket))
    }

    #[test]
    fn runs_have_source_addresses_of_their_own() {
        let (one, other) = (Uuid::from_u128(0xFFFF << 112), Uuid::from_u128(1 << 112));
        assert_eq!(source(one, 0), Ipv4Addr::new(127, 191, 255, 0));
        assert_eq!(source(one, PER_SOURCE), Ipv4Addr::new(127, 191, 255, 1));
        assert_eq!(source(one, u64::MAX), Ipv4Addr::new(127, 191, 255, 255));
        assert_eq!(source(other, PER_SOURCE - 1), Ipv4Addr::new(127, 128, 1, 0));
    }

    #[tokio::test]
    async fn urls_of_nodes_and_relays_are_read() {
        let (is_tls, name, socket) = parsed("wss://127.0.0.1:1212/", false).await.expect("valid");
        assert!(is_tls && name == "127.0.0.1" && socket.port() == 1212);
        let (is_tls, name, socket) = parsed("ws://[::1]", false).await.expect("valid");
        assert!(!is_tls && name == "::1" && socket.port() == 80);
        assert!(parsed("tls://127.0.0.1:1", true).await.expect("valid").0);
        for (url, is_direct) in
            [("127.0.0.1:1", false), ("tls://127.0.0.1:1", false), ("wss://x", true)]
        {
            assert!(parsed(url, is_direct).await.is_err(), "{url}");
        }
    }
}
