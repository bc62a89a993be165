//! Mutual TLS between the nodes: both ends show a certificate of the cluster's own CA.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::either::Either;

use super::peer::CountGuard;
use crate::transport::tls::{TlsError, read_chain, read_pair};

/// Read at once from a connection between nodes; rustls asks for 4 KiB each time.
const READ_BUFFER: usize = 64 * 1024;

type Tls = TlsStream<BufReader<TcpStream>>;

/// Why the bridge cannot be secured.
#[derive(Debug, Error)]
pub enum BridgeTlsError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    File(#[from] TlsError),
    /// rustls does not like what is in them.
    #[error("cannot set up TLS for the bridge")]
    Setup(#[source] rustls::Error),
    /// The CA file holds nothing to verify other nodes with.
    #[error("bridge.ca: cannot verify certificates with {file}: {why}")]
    Ca {
        /// The file.
        file: String,
        /// The reason.
        why: String,
    },
}

/// The credentials of this node, for both roles.
#[derive(Clone)]
pub struct BridgeTls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl BridgeTls {
    /// Reads the CA, and the certificate and key of this node, from PEM files.
    pub fn from_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, BridgeTlsError> {
        let provider = Arc::new(provider());
        let unusable = |why: String| BridgeTlsError::Ca { file: ca.display().to_string(), why };
        let mut roots = RootCertStore::empty();
        for root in read_chain(ca)? {
            roots.add(root).map_err(|error| unusable(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(error.to_string()))?;
        let (chain, key) = read_pair(certificate, key)?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(BridgeTlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(BridgeTlsError::Setup)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = client_config(provider, roots)
            .with_client_auth_cert(chain, key)
            .map_err(BridgeTlsError::Setup)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }

    pub(super) async fn accept(&self, tcp: TcpStream) -> io::Result<BridgeStream> {
        let tls = self.acceptor.accept(buffered(tcp)).await?;
        Ok(BridgeStream::secure(tls.into()))
    }

    pub(super) async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<BridgeStream> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let tls = self.connector.connect(name, buffered(tcp)).await?;
        Ok(BridgeStream::secure(tls.into()))
    }
}

impl fmt::Debug for BridgeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgeTls").finish_non_exhaustive()
    }
}

/// Nodes are servers, which have AES in hardware: with keys of 128 bits it costs least.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    provider
}

fn client_config(
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc has cipher suites for TLS 1.3")
        .with_root_certificates(roots)
}

fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BUFFER, tcp)
}

/// Whether anything has come in lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// Whether anything has come in since this was asked last.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A connection between two nodes.
pub(super) struct BridgeStream {
    stream: Either<TcpStream, Box<Tls>>,
    heard: Heard,
    /// Counts it as long as it lives.
    _counted: Option<CountGuard>,
}

impl BridgeStream {
    /// Without TLS.
    pub(super) fn plain(tcp: TcpStream) -> Self {
        Self { stream: Either::Left(tcp), heard: Heard::default(), _counted: None }
    }

    fn secure(tls: Tls) -> Self {
        Self { stream: Either::Right(Box::new(tls)), heard: Heard::default(), _counted: None }
    }

    /// The same, counted.
    pub(super) fn counted(self, count: CountGuard) -> Self {
        Self { _counted: Some(count), ..self }
    }

    /// Returns the record of received data.
    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Either<TcpStream, Box<Tls>>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl AsyncRead for BridgeStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, this) = (buf.filled().len(), self.get_mut());
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.heard.0.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for BridgeStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
