//! `floor`: what remains of a relay when everything is left out but TLS. Any relay that is made of
//! the same parts (tokio and rustls) costs at least this.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use rustls::pki_types::ServerName;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

use crate::tls::{self, Trust};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address to accept connections on
    #[arg(long)]
    listen: SocketAddr,
    /// Address to connect to
    #[arg(long)]
    backend: SocketAddr,
    /// Bytes to copy at once
    #[arg(long, default_value_t = 16 * 1024)]
    buffer: usize,
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (acceptor, connector) = (tls::acceptor()?, tls::connector(&Trust::Anything)?);
    let listener = TcpListener::bind(options.listen).await?;
    let (backend, buffer) = (options.backend, options.buffer);
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, connector) = (acceptor.clone(), connector.clone());
        tokio::spawn(async move {
            tcp.set_nodelay(true)?;
            let mut near = acceptor.accept(tcp).await?;
            let tcp = TcpStream::connect(backend).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::IpAddress(backend.ip().into());
            let mut far = connector.connect(name, tcp).await?;
            copy_bidirectional_with_sizes(&mut near, &mut far, buffer, buffer).await
        });
    }
}
