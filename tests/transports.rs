//! Every way to a node: WebSocket, TLS, TCP and unix sockets, and tunnels between any two of them,
//! on one node and over two (`src/protocol/README.md`, sections 1 to 3 and 6).

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nymea_remoteproxy::config::{Config, Listen};
use nymea_remoteproxy::node::{LocalAddr, Node, Prepared, StartError};
use support::cluster::Cluster;
use support::stream::{Client, Stream, Way, authenticate, everywhere, ip, socket_of, tcp, tunnel};
use support::{node_with, pattern, soon};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

/// Bytes each way in a tunnel.
const LARGE: usize = 5_000_000;

/// A node that listens in every way, and the folder of its unix socket.
fn node(change: impl FnOnce(&mut Config)) -> (Node, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let node = node_with(|config| {
        everywhere(config, &folder);
        change(config);
    });
    (node, folder)
}

async fn two_nodes() -> (Cluster, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let cluster = Cluster::start_with(2, |config| everywhere(config, &folder)).await;
    (cluster, folder)
}

#[tokio::test]
async fn bad_input_is_answered_and_closed_in_every_way() {
    let (node, _folder) = node(|_| {});
    for way in Way::ALL {
        for (input, id, error) in [
            ("nonsense", -1, "Failed to parse JSON data"),
            (r#"{"id":1 "x"}"#, -1, "Failed to parse JSON data"),
            (r#"{"method":"RemoteProxy.Hello"}"#, -1, "Error parsing command. Missing 'id'"),
            (r#"{"id":7,"method":"Hello"}"#, 7, "Error parsing method"),
            (r#"{"id":7,"method":"No.Such"}"#, 7, "No such namespace"),
            (r#"{"id":7,"method":"RemoteProxy.No"}"#, 7, "No such method"),
            (r#"{"id":7,"method":"RemoteProxy.Hello","params":{"x":1}}"#, 7, "Invalid params"),
            (r#"{"id":7,"method":"Authentication.Authenticate"}"#, 7, "Invalid params"),
        ] {
            let mut client = Client::connect(&node, way).await;
            client.send(input).await;
            let answer = client.json().await;
            assert_eq!(
                (&answer["id"], &answer["status"]),
                (&id.into(), &"error".into()),
                "{way:?}"
            );
            let told = answer["error"].as_str().expect("a text");
            assert!(told.starts_with(error), "{way:?}: {input}: {told}");
            client.ended(1008).await;
        }
        let mut client = Client::connect(&node, way).await;
        let large = format!(r#"{{"id":1,"method":"{}"}}"#, "x".repeat(11_000));
        client.send(&large).await;
        client.ended(1009).await;
    }
}

#[tokio::test]
async fn generations_1_and_2_are_spoken_in_every_way() {
    let (node, _folder) = node(|_| {});
    for way in Way::ALL {
        let mut first = Client::connect(&node, way).await;
        first.send("{\"id\":5,\"method\":\"RemoteProxy.Hello\"}\n").await;
        let hello = first.json().await;
        assert_eq!(hello["params"]["server"], "nymea-remoteproxy", "{way:?}");
        first.send("{\"id\":6,\"method\":\"RemoteProxy.Introspect\"}").await;
        assert!(first.json().await["params"]["methods"].is_object());
        let two = r#""token":"t","uuid":"u1","name":"one","nonce":"n""#;
        let answer = first.authenticate(two).await;
        assert_eq!(answer["params"]["authenticationError"], "AuthenticationErrorNoError");

        let params = r#""token":"t","uuid":"u2","name":"two","nonce":"n""#;
        let mut second = Client::waiting(&node, way, params).await;
        let met = [first.established().await, second.established().await];
        let names = met.each_ref().map(|it| it["params"]["name"].as_str().expect("a name"));
        assert_eq!(names, ["two", "one"], "{way:?}");
        let mut third = Client::waiting(&node, way, params).await;
        third.ended(1008).await;
        first.send("still here").await;
        match &mut second {
            Client::WebSocket(endpoint) => assert_eq!(endpoint.text().await, "still here"),
            Client::Stream(stream) => assert_eq!(stream.exactly(10).await, b"still here"),
        }

        // Generation 1 meets generation 2, each other's loop, and data too early.
        let mut seed = Client::waiting(&node, way, r#""token":"s""#).await;
        let params = r#""token":"s","uuid":"u","name":"n""#;
        let mut later = Client::waiting(&node, way, params).await;
        assert_eq!(seed.established().await["notification"], "Tunnel.Established");
        assert_eq!(later.established().await["params"]["uuid"], "");
        let same = r#""token":"loop","uuid":"u","name":"n""#;
        let mut one = Client::waiting(&node, way, same).await;
        let mut other = Client::waiting(&node, way, same).await;
        one.ended(1008).await;
        other.ended(1008).await;
        let mut early = Client::waiting(&node, way, r#""token":"early""#).await;
        early.send("x").await;
        early.ended(1008).await;
    }
}

#[tokio::test]
async fn requests_may_come_in_any_reads() {
    let (node, _folder) = node(|_| {});
    let request = "{\"id\":1,\"method\":\"RemoteProxy.Hello\"}\n{\"id\":2,\"method\":\"RemoteProxy.Hello\"}  ";
    for at in 0..request.len() {
        let mut stream = Stream::connect(&node, Way::STREAMS[at % 3]).await;
        let (one, other) = request.split_at(at);
        stream.send(one.as_bytes()).await;
        tokio::task::yield_now().await;
        stream.send(other.as_bytes()).await;
        for id in [1, 2] {
            let line = stream.line().await.expect("an answer");
            assert!(line.starts_with(&format!("{{\"id\":{id},")), "{line}");
        }
    }
    let mut stream = Stream::connect(&node, Way::Tcp).await;
    for byte in authenticate(r#""token":"}{\"""#).as_bytes() {
        stream.send(&[*byte]).await;
    }
    assert_eq!(stream.line().await.as_deref(), Some("{\"id\":0,\"status\":\"success\"}\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_pass_both_ways_between_any_two_ways() {
    let (node, _folder) = node(|_| {});
    for one in Way::ALL {
        for other in Way::ALL {
            let (first, second) = tunnel((&node, one), (&node, other), "t").await;
            exchange(first, second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_pass_both_ways_between_any_two_ways_over_two_nodes() {
    let (cluster, _folder) = two_nodes().await;
    for one in Way::ALL {
        for other in Way::ALL {
            let places = ((&cluster.nodes[0], one), (&cluster.nodes[1], other));
            let (first, second) = tunnel(places.0, places.1, "t").await;
            exchange(first, second).await;
            cluster.is_clean().await;
        }
    }
}

/// Sends much both ways at the same time; both leave when they have got it all.
async fn exchange(first: Client, second: Client) {
    tokio::join!(send_and_receive(first, 1, 2), send_and_receive(second, 2, 1));
}

async fn send_and_receive(client: Client, mine: u64, theirs: u64) {
    let (mine, theirs) = (pattern(mine, LARGE), pattern(theirs, LARGE));
    let received = match client {
        Client::WebSocket(endpoint) => {
            let (mut sink, mut stream) = endpoint.ws.split();
            let sending = async {
                for part in mine.chunks(70_000) {
                    sink.send(Message::binary(part.to_vec())).await.expect("open");
                }
            };
            let receiving = async {
                let mut received = Vec::new();
                while received.len() < LARGE {
                    let message = stream.next().await.expect("open").expect("open");
                    assert!(message.is_text() || message.is_binary() || message.is_ping());
                    if !message.is_ping() {
                        received.extend_from_slice(&message.into_data());
                    }
                }
                received
            };
            soon("all data", async { tokio::join!(sending, receiving).1 }).await
        }
        Client::Stream(stream) => {
            let (mut reader, mut writer) = tokio::io::split(stream.io);
            let sending = async {
                writer.write_all(&mine).await.expect("open");
                writer.flush().await.expect("open");
            };
            let receiving = async {
                let mut received = vec![0; LARGE];
                reader.read_exact(&mut received).await.expect("open");
                received
            };
            soon("all data", async { tokio::join!(sending, receiving).1 }).await
        }
    };
    assert!(received == theirs, "the content differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_direction_may_end_while_the_other_goes_on() {
    let (node, _folder) = node(|_| {});
    for one in Way::STREAMS {
        for other in Way::STREAMS {
            let (first, second) = tunnel((&node, one), (&node, other), "t").await;
            question_and_answer(first.stream(), second.stream()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_direction_may_end_while_the_other_goes_on_over_two_nodes() {
    let (cluster, _folder) = two_nodes().await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    for (from, to) in [(Way::Tls, Way::Tcp), (Way::Unix, Way::Tls), (Way::Tcp, Way::Unix)] {
        let (first, second) = tunnel((one, from), (other, to), "t").await;
        question_and_answer(first.stream(), second.stream()).await;
        let (first, second) = tunnel((one, from), (other, to), "t").await;
        question_and_answer(second.stream(), first.stream()).await;
        cluster.is_clean().await;
    }
}

/// The answer begins when all of the question and its end are there.
async fn question_and_answer(mut asking: Stream, mut answering: Stream) {
    let (question, answer) = (pattern(3, LARGE), pattern(4, LARGE));
    let ask = async {
        asking.send(&question).await;
        asking.finish().await;
        assert!(asking.rest().await.expect("an end in order") == answer);
    };
    let reply = async {
        assert!(answering.rest().await.expect("an end in order") == question);
        answering.send(&answer).await;
        answering.finish().await;
    };
    soon("both directions", async { tokio::join!(ask, reply) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_is_closed_behind_the_data_and_heard_to_its_reply() {
    let (cluster, _folder) = two_nodes().await;
    let [one, other] = &cluster.nodes[..] else { panic!("two nodes") };
    for (one, other) in [(one, one), (one, other), (other, one)] {
        let (first, second) = tunnel((one, Way::Tcp), (other, Way::WebSocket), "t").await;
        let (mut stream, mut web_socket) = (first.stream(), second.web_socket());
        let (question, answer) = (pattern(5, LARGE), pattern(6, 700_000));
        let ask = async {
            stream.send(&question).await;
            stream.finish().await;
            assert!(stream.rest().await.expect("an end in order") == answer);
        };
        let reply = async {
            let mut received = Vec::new();
            let mut parts = answer.chunks(10_000);
            loop {
                match web_socket.message().await {
                    Message::Close(frame) => {
                        assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1000));
                        break;
                    }
                    message => received.extend_from_slice(&message.into_data()),
                }
                if let Some(part) = parts.next() {
                    web_socket.send(Message::binary(part.to_vec())).await;
                }
            }
            assert!(received == question);
            assert_eq!(parts.len(), 0, "too few messages to answer all of them");
            while let Some(Ok(_)) = web_socket.next().await {}
        };
        soon("both directions", async { tokio::join!(ask, reply) }).await;
        cluster.is_clean().await;
    }
}

#[tokio::test]
async fn a_web_socket_that_leaves_ends_a_stream_in_order() {
    let (node, _folder) = node(|_| {});
    for way in Way::STREAMS {
        let (first, second) = tunnel((&node, way), (&node, Way::WebSocket), "t").await;
        let (mut stream, mut web_socket) = (first.stream(), second.web_socket());
        web_socket.send(Message::text("last ")).await;
        web_socket.send(Message::binary("words")).await;
        web_socket.leave().await;
        assert_eq!(stream.rest().await.expect("an end in order"), b"last words");
    }
}

#[tokio::test]
async fn who_is_lost_does_not_look_complete() {
    let (node, _folder) = node(|_| {});
    // TLS that is cut says no goodbye, and neither does the node to who had TLS with it.
    let (first, second) = tunnel((&node, Way::Tls), (&node, Way::Tls), "t").await;
    drop(first);
    let cut = second.stream().rest().await.expect_err("not complete");
    assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof);
    let (first, mut second) = tunnel((&node, Way::Tls), (&node, Way::WebSocket), "t").await;
    drop(first);
    second.ended(1001).await;
    let (first, second) = tunnel((&node, Way::WebSocket), (&node, Way::Tls), "t").await;
    drop(first);
    second.stream().rest().await.expect_err("not complete");
}

#[tokio::test]
async fn text_is_text_wherever_it_is_cut() {
    let (node, _folder) = node(|_| {});
    let text = "plain, süß, 水, \u{10FFFF}, 🦀\n";
    let (first, second) = tunnel((&node, Way::Tcp), (&node, Way::WebSocket), "t").await;
    let (mut stream, mut web_socket) = (first.stream(), second.web_socket());
    for at in 1..text.len() {
        stream.send(&text.as_bytes()[..at]).await;
        tokio::task::yield_now().await;
        stream.send(&text.as_bytes()[at..]).await;
        let mut received = String::new();
        while received.len() < text.len() {
            received += &web_socket.text().await;
        }
        assert_eq!(received, text, "cut at {at}");
    }
    stream.send(b"\xff\x00").await;
    assert_eq!(web_socket.message().await, Message::binary(&b"\xff\x00"[..]));
    // The beginning of a character, without its rest.
    stream.send(b"\xe2\x82").await;
    assert_eq!(web_socket.message().await, Message::binary(&b"\xe2\x82"[..]));
    stream.send(b"\xe2").await;
    stream.finish().await;
    assert_eq!(web_socket.message().await, Message::binary(&b"\xe2"[..]));
    web_socket.closed_with(1000).await;
}

#[tokio::test]
async fn the_last_request_is_answered_though_its_client_has_finished() {
    let (node, _folder) = node(|_| {});
    for way in Way::STREAMS {
        for (last, answer) in [
            ("{\"id\":3,\"method\":\"RemoteProxy.Hello\"}", "{\"id\":3,\"status\":\"success\","),
            (&authenticate(r#""token":"t""#), "{\"id\":0,\"status\":\"success\"}\n"),
            ("{\"id\":3,\"meth", "{\"id\":-1,\"status\":\"error\","),
        ] {
            let mut stream = Stream::connect(&node, way).await;
            stream.send(last.as_bytes()).await;
            stream.finish().await;
            let rest = stream.rest().await.expect("an end in order");
            assert!(rest.starts_with(answer.as_bytes()), "{way:?}: {last}");
            let rest = String::from_utf8(rest).expect("UTF-8");
            assert_eq!(rest.matches('\n').count(), 1, "{rest}");
        }
        // An endpoint that ends its stream while it waits has left: its key is free.
        let mut gone = Client::waiting(&node, way, r#""token":"t""#).await.stream();
        gone.finish().await;
        assert_eq!(gone.rest().await.expect("an end in order"), b"");
        let (mut first, mut second) = tunnel((&node, way), (&node, way), "t").await;
        first.send("x").await;
        let Client::Stream(second) = &mut second else { panic!("a stream") };
        assert_eq!(second.exactly(1).await, b"x");
    }
}

#[tokio::test]
async fn a_half_open_tunnel_ends_when_its_other_half_is_gone() {
    let (node, _folder) = node(|config| config.keepalive.interval = Duration::from_millis(200));
    let params = r#""token":"t""#;
    for way in [Way::Tcp, Way::Unix] {
        let first = match way {
            // Closed, so that the node hears of it at once, and not when the system forgets it.
            Way::Tcp => {
                let tcp = tcp(ip(&node, "tcp")).await;
                let socket = socket2::SockRef::from(&tcp);
                socket.set_linger(Some(Duration::ZERO)).expect("a reset in the end");
                Stream::over(Box::new(tcp))
            }
            _ => Stream::connect(&node, way).await,
        };
        let mut first = Client::Stream(first);
        assert_eq!(first.authenticate(params).await["status"], "success");
        let mut second = Client::waiting(&node, way, params).await;
        first.established().await;
        second.established().await;
        let (mut first, mut second) = (first.stream(), second.stream());
        first.finish().await;
        assert_eq!(second.rest().await.expect("an end in order"), b"");
        // The second one has nothing to say, and would not notice.
        drop(first);
        let telemetry = node.telemetry();
        support::redis::until("the tunnel has ended", async || telemetry.tunnels.is_empty()).await;
    }
}

#[tokio::test]
async fn a_unix_socket_is_for_its_group_and_goes_with_the_node() {
    let (node, folder) = node(|_| {});
    let path = socket_of(&node);
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut config = Config::default();
    config.admin.enabled = false;
    config.listen = vec![Listen::Unix { path: path.clone() }];
    let start = |config: &Config| Prepared::new(config.clone()).expect("valid settings").start();
    let refused = start(&config).err().expect("the other node lives");
    assert!(matches!(refused, StartError::UnixSocket(_)), "{refused}");
    assert!(refused.to_string().contains("[[listen]]"), "{refused}");
    soon("the drain", node.drain()).await;
    assert!(!path.exists());

    drop(std::os::unix::net::UnixListener::bind(&path).expect("left behind"));
    let node = start(&config).expect("replaced");
    assert_eq!(node.local_addr(), None);
    assert_eq!(node.url(), format!("unix:{}", path.display()));
    let mut client = Client::waiting(&node, Way::Unix, r#""token":"t""#).await;
    soon("the drain", node.drain()).await;
    client.ended(1001).await;
    drop(folder);
}

#[tokio::test]
async fn nothing_else_is_opened_and_every_place_is_told() {
    let (node, _folder) = node(|config| config.server.port = 1);
    let urls: Vec<_> = node.addresses().iter().map(LocalAddr::url).collect();
    let schemes: Vec<_> = urls.iter().filter_map(|url| url.split(':').next()).collect();
    assert_eq!(schemes, ["wss", "tls", "tcp", "unix"]);
    assert_eq!(node.url(), urls[0]);
    let listen = vec![Listen::Tcp { address: support::FREE, tls: false }; 2];
    let two = Config { listen, ..Config::default() };
    let prepared = Prepared::new(two).expect("valid settings");
    let lines = prepared.summary();
    assert_eq!(lines.iter().filter(|line| line.starts_with("listen on: tcp://")).count(), 2);
    assert!(lines.iter().any(|line| line.starts_with("TLS: off")), "{lines:?}");
}

#[tokio::test]
async fn each_listener_has_a_label_in_the_metrics() {
    let (node, _folder) = node(|_| {});
    let mut clients = Vec::new();
    for way in Way::ALL {
        clients.push(Client::waiting(&node, way, &format!(r#""token":"{way:?}""#)).await);
    }
    let text = node.telemetry().metrics.text();
    for (label, count) in [("websocket", 1), ("tcp", 2), ("unix", 1)] {
        let line =
            format!("remoteproxy_connections_accepted_total{{transport=\"{label}\"}} {count}");
        assert!(text.contains(&line), "{line} is not in:\n{text}");
    }
}
