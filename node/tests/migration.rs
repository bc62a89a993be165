//! Files of the original server, as its releases ship them, in place of ours: the node listens
//! where they say, and warns by name of what has no meaning here.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nymea_remoteproxy::client::{Connector, Waiting};
use nymea_remoteproxy::protocol::Token;
use support::{DEADLINE, Running, run};
use tempfile::TempDir;
use tokio::time::timeout;

/// Release 1.13, with its files in a folder of this test and on ports that are free.
fn release_1(folder: &Path, web_socket: u16, tcp: u16) -> String {
    let folder = folder.display();
    format!(
        "[ProxyServer]\n\
         name=nymea-remoteproxy\n\
         writeLogs=false\n\
         logFile=/var/log/nymea-remoteproxy.log\n\
         logEngineEnabled=false\n\
         monitorSocket={folder}/monitor.sock\n\
         jsonRpcTimeout=10000\n\
         inactiveTimeout=8000\n\
         \n\
         [SSL]\n\
         enabled=false\n\
         certificate=/etc/ssl/certs/ssl-cert-snakeoil.pem\n\
         certificateKey=/etc/ssl/private/ssl-cert-snakeoil.key\n\
         certificateChain=\n\
         \n\
         [UnixSocketServerTunnelProxy]\n\
         unixSocketFileName={folder}/nymea-remoteproxy.socket\n\
         \n\
         [WebSocketServerTunnelProxy]\n\
         host=127.0.0.1\n\
         port={web_socket}\n\
         \n\
         [TcpServerTunnelProxy]\n\
         host=127.0.0.1\n\
         port={tcp}\n"
    )
}

/// Releases 0.1.x, likewise.
fn release_0_1(folder: &Path, web_socket: u16, tcp: u16) -> String {
    let folder = folder.display();
    format!(
        "[ProxyServer]\n\
         name=nymea-remoteproxy\n\
         writeLogs=true\n\
         logFile={folder}/node.log\n\
         logEngineEnabled=true\n\
         monitorSocket={folder}/monitor.sock\n\
         jsonRpcTimeout=10000\n\
         authenticationTimeout=8000\n\
         inactiveTimeout=8000\n\
         aloneTimeout=8500\n\
         \n\
         [AWS]\n\
         region=eu-west-1\n\
         authorizerLambdaFunction=system-services-authorizer-dev-checkToken\n\
         awsCredentialsUrl=http://169.254.169.254/latest/meta-data/iam/security-credentials/Role\n\
         \n\
         [SSL]\n\
         certificate={folder}/certificate.pem\n\
         certificateKey={folder}/certificate.key\n\
         certificateChain={folder}/chain.pem\n\
         \n\
         [WebSocketServer]\n\
         host=127.0.0.1\n\
         port={web_socket}\n\
         \n\
         [TcpServer]\n\
         host=127.0.0.1\n\
         port={tcp}\n"
    )
}

fn free_ports() -> (u16, u16) {
    let both = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("bound"));
    let [one, other] = both.map(|bound| bound.local_addr().expect("bound").port());
    (one, other)
}

/// What the node answers.
fn ask(stream: impl std::io::Read + Write, request: &str) -> String {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(request.as_bytes()).expect("sent");
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    line
}

fn tcp(port: u16) -> TcpStream {
    let tcp = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    tcp.set_read_timeout(Some(DEADLINE)).expect("TCP");
    tcp
}

#[test]
fn release_1_13_goes_on_with_its_file() {
    let folder = TempDir::new().expect("a folder");
    let (web_socket, port) = free_ports();
    let file = folder.path().join("nymea-remoteproxy.conf");
    fs::write(&file, release_1(folder.path(), web_socket, port)).expect("written");
    let file = file.to_str().expect("UTF-8");

    let checked = run(&["--check", "--config", file]);
    let told = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{told}");
    let socket = folder.path().join("nymea-remoteproxy.socket");
    for part in [
        "warning: [ProxyServer] jsonRpcTimeout: ",
        &format!("listen on: ws://127.0.0.1:{web_socket}"),
        &format!("listen on: tcp://127.0.0.1:{port}"),
        &format!("listen on: unix:{}", socket.display()),
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }

    let node = Running::start(&["--config", file]);
    node.line("[ProxyServer] jsonRpcTimeout: ");
    node.line(&format!("listening on unix:{}", socket.display()));
    let uuid = "{00000000-0000-0000-0000-000000000001}";
    let register = format!(
        r#"{{"id":1,"method":"TunnelProxy.RegisterServer","params":{{"serverName":"s","serverUuid":"{uuid}"}}}}"#
    );
    let gateway = tcp(port);
    let answer = ask(&gateway, &register);
    assert!(answer.contains("\"slipEnabled\":true"), "{answer}");
    let attach = format!(
        r#"{{"id":1,"method":"TunnelProxy.RegisterClient","params":{{"clientName":"c","clientUuid":"{}","serverUuid":"{uuid}"}}}}"#,
        uuid.replace('1', "2")
    );
    let app = UnixStream::connect(&socket).expect("somebody listens");
    app.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let answer = ask(&app, &attach);
    assert!(answer.contains("TunnelProxyErrorNoError"), "{answer}");
    assert!(folder.path().join("monitor.sock").exists());
    node.signal("TERM");
    drop((gateway, app));
    let (code, rest) = node.end();
    assert_eq!(code, Some(0), "{rest}");
    assert!(!socket.exists());
}

#[tokio::test]
async fn release_0_1_goes_on_with_its_file() {
    let folder = TempDir::new().expect("a folder");
    let (web_socket, port) = free_ports();
    let file = folder.path().join("nymea-remoteproxy.conf");
    fs::write(&file, release_0_1(folder.path(), web_socket, port)).expect("written");
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    for (name, content) in [
        ("certificate.pem", made.cert.pem()),
        ("chain.pem", made.cert.pem()),
        ("certificate.key", made.signing_key.serialize_pem()),
    ] {
        fs::write(folder.path().join(name), content).expect("written");
    }

    let node = Running::start(&["--config", file.to_str().expect("UTF-8")]);
    let lines = node.lines_until(&format!("listening on tls://127.0.0.1:{port}"));
    for key in [
        "[ProxyServer] logEngineEnabled",
        "[ProxyServer] jsonRpcTimeout",
        "[SSL] certificateChain",
        "[AWS] region",
        "[AWS] authorizerLambdaFunction",
        "[AWS] awsCredentialsUrl",
    ] {
        let is_told = |line: &&String| line.contains(" WARN ") && line.contains(key);
        assert!(lines.iter().any(|line| is_told(&line)), "{key} is not in:\n{lines:#?}");
    }
    drop(tcp(port));
    let url = format!("wss://127.0.0.1:{web_socket}");
    let waiting = async || -> Waiting {
        let connector = Connector::new(&url).expect("a URL").insecure();
        let connected = timeout(DEADLINE, connector.connect(&Token::new("t"), None)).await;
        connected.expect("in time").expect("authenticated")
    };
    let (first, second) = (waiting().await, waiting().await);
    let met = async { tokio::join!(first.partner(), second.partner()) };
    let (first, second) = timeout(DEADLINE, met).await.expect("in time");
    assert!(first.is_ok() && second.is_ok());
    drop((first, second));
    node.signal("TERM");
    let (code, rest) = node.end();
    assert_eq!(code, Some(0), "{rest}");
    let logged = fs::read_to_string(folder.path().join("node.log")).expect("the log file");
    assert!(logged.contains("[AWS] region"), "{logged}");
}
