//! What operators ask over HTTP, with real nodes, tunnels and Redis.

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use nymea_remoteproxy::config::{Config, Secret};
use nymea_remoteproxy::node::{Node, Prepared};
use nymea_remoteproxy::observability::LogControl;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::redis::until;
use support::{Endpoint, FREE, soon, tunnel, tunnel_between};
use tokio_tungstenite::tungstenite::Message;

/// A log of which only the filter is there.
#[derive(Default)]
struct Log(Mutex<String>);

impl LogControl for Log {
    fn filter(&self) -> String {
        self.0.lock().expect("no panic").clone()
    }

    fn set_filter(&self, directives: &str) -> Result<(), String> {
        if directives == "nonsense" {
            return Err("expected something else".into());
        }
        directives.clone_into(&mut self.0.lock().expect("no panic"));
        Ok(())
    }

    fn dropped(&self) -> u64 {
        0
    }
}

fn node_with(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::default();
    config.server.port = 0;
    config.node.name = "node1".into();
    config.admin.listen = Some(FREE);
    change(&mut config);
    let prepared = Prepared::new(config).expect("valid settings").log(Arc::new(Log::default()));
    prepared.start().expect("free ports")
}

fn node() -> Node {
    node_with(|_| {})
}

fn url(node: &Node, path: &str) -> String {
    format!("http://{}{path}", node.admin_addr().expect("an admin listener"))
}

async fn ask(node: &Node, method: Method, path: &str) -> Response {
    let request = Client::new().request(method, url(node, path));
    soon("an answer", request.send()).await.expect("an answer")
}

async fn get(node: &Node, path: &str) -> Response {
    ask(node, Method::GET, path).await
}

async fn json_of(node: &Node, path: &str) -> Value {
    let answer = get(node, path).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn health_says_what_is_wrong() {
    let node = node_with(|config| config.limits.connections = 1);
    let ready = async || get(&node, "/readyz").await.status() == StatusCode::OK;
    assert!(ready().await);
    let endpoint = Endpoint::connect(&node).await;
    let answer = get(&node, "/readyz").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = answer.text().await.expect("a text");
    assert_eq!(text, "limits.connections is reached (1)\n");
    drop(endpoint);
    until("room again", ready).await;
    assert_eq!(get(&node, "/healthz").await.text().await.expect("a text"), "alive\n");
    let head = ask(&node, Method::HEAD, "/readyz").await;
    assert_eq!(head.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_node_without_its_redis_is_unready_unless_it_is_told_to_stay_ready() {
    let mut strict = Cluster::start(1).await;
    let mut calm = Cluster::start_with(1, |config| config.admin.ready_without_redis = true).await;
    for cluster in [&mut strict, &mut calm] {
        let node = &cluster.nodes[0];
        until("ready", async || get(node, "/readyz").await.status() == StatusCode::OK).await;
        cluster.redis.kill();
    }
    until("unready", async || {
        let answer = get(&strict.nodes[0], "/readyz").await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
            && answer.text().await.is_ok_and(|why| why.starts_with("Redis is away for"))
    })
    .await;
    assert_eq!(get(&calm.nodes[0], "/readyz").await.status(), StatusCode::OK);
    // It knows, all the same.
    let metrics = get(&calm.nodes[0], "/metrics").await.text().await.expect("a text");
    assert!(metrics.contains("\nremoteproxy_redis_up 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_drain_can_be_taken_back() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "stands").await;
    let mut waiting = Endpoint::waiting(&node, "waits").await;
    for _ in 0..2 {
        let answer = ask(&node, Method::POST, "/api/v1/node/drain").await;
        let state: Value = answer.json().await.expect("JSON");
        assert_eq!((&state["state"], &state["ready"]), (&json!("draining"), &json!(false)));
        assert_eq!(state["unready_because"], json!(["draining"]));
    }
    waiting.closed_with(1001).await;
    assert!(Endpoint::try_connect(&node).await.is_err());
    first.send(Message::text("still there")).await;
    assert_eq!(second.text().await, "still there");
    let answer = ask(&node, Method::POST, "/api/v1/node/undrain").await;
    let state: Value = answer.json().await.expect("JSON");
    assert_eq!((&state["state"], &state["ready"]), (&json!("running"), &json!(true)));
    tunnel(&node, "new").await;
}

#[tokio::test]
async fn tunnels_are_listed_in_pages_and_by_what_is_wanted() {
    let node = node();
    let mut ends = Vec::new();
    for number in 0..5 {
        ends.push(tunnel(&node, &format!("t{number}")).await);
    }
    let mut named = (Endpoint::connect(&node).await, Endpoint::connect(&node).await);
    named.0.authenticate(r#""token":"n","uuid":"u-1","name":"Kitchen <b>""#).await;
    named.1.authenticate(r#""token":"n","uuid":"u-2","name":"Phone""#).await;
    named.0.established().await;

    let mut seen = BTreeSet::new();
    let mut after = String::new();
    loop {
        let page = json_of(&node, &format!("/api/v1/tunnels?limit=4{after}")).await;
        assert_eq!(page["total"], 6);
        for tunnel in page["tunnels"].as_array().expect("tunnels") {
            seen.insert(tunnel["id"].as_str().expect("an id").to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen.len(), 6);

    let count = async |query: &str| {
        let page = json_of(&node, &format!("/api/v1/tunnels?{query}")).await;
        page["tunnels"].as_array().expect("tunnels").len()
    };
    assert_eq!(count("kind=local").await, 6);
    assert_eq!(count("kind=bridged").await, 0);
    assert_eq!(count("client=127.0.0.1").await, 6);
    assert_eq!(count("client=192.0.2.1").await, 0);
    assert_eq!(count("name=kitCHEN").await, 1);
    assert_eq!(count("name=u-2").await, 1);
    let page = json_of(&node, "/api/v1/tunnels?name=kitchen").await;
    let tunnel = &page["tunnels"][0];
    assert_eq!(tunnel["generation"], "2");
    let client = tunnel["first"]["client_address"].as_str().expect("an address");
    assert_eq!(count(&format!("client={client}")).await, 1);
    for wrong in ["limit=0", "limit=1001", "limit=x", "after=x", "kind=x", "client=x", "other=1"] {
        let answer = get(&node, &format!("/api/v1/tunnels?{wrong}")).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{wrong}");
        let error: Value = answer.json().await.expect("JSON");
        let name = wrong.split('=').next().expect("a name");
        assert!(error["error"].as_str().is_some_and(|it| it.contains(name)), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn an_operator_ends_a_tunnel() {
    let node = node();
    let (mut first, mut second) = tunnel(&node, "t").await;
    first.send(Message::text("four")).await;
    assert_eq!(second.text().await, "four");
    let id = json_of(&node, "/api/v1/tunnels").await["tunnels"][0]["id"].clone();
    let path = format!("/api/v1/tunnels/{}", id.as_str().expect("an id"));
    until("the bytes", async || json_of(&node, &path).await["bytes_forth"] == 4).await;
    assert_eq!(ask(&node, Method::DELETE, &path).await.status(), StatusCode::ACCEPTED);
    first.closed_with(1001).await;
    second.closed_with(1001).await;
    until("no tunnel", async || get(&node, &path).await.status() == StatusCode::NOT_FOUND).await;
    assert_eq!(ask(&node, Method::DELETE, &path).await.status(), StatusCode::NOT_FOUND);
    let events = json_of(&node, "/api/v1/events").await;
    let texts = events["events"].to_string();
    for part in ["established, local", "an operator ends tunnel", "ended after 4 bytes: dismissed"]
    {
        assert!(texts.contains(part), "{part} is not in {texts}");
    }
}

#[tokio::test]
async fn all_nodes_of_a_cluster_are_seen_from_each() {
    let mut cluster = Cluster::start(2).await;
    let (mut first, mut second) = tunnel_between(&cluster.nodes[0], &cluster.nodes[1], "t").await;
    first.send(Message::text("x")).await;
    assert_eq!(second.text().await, "x");
    for (index, node) in cluster.nodes.iter().enumerate() {
        let nodes = async || json_of(node, "/api/v1/cluster").await["nodes"].clone();
        // A node refreshes its lease every few seconds.
        until("the load of both nodes", async || {
            let nodes = nodes().await;
            [0, 1].iter().all(|index| nodes[index]["tunnels"] == 1)
        })
        .await;
        let nodes = nodes().await;
        assert_eq!((&nodes[0]["name"], &nodes[1]["name"]), (&json!("node1"), &json!("node2")));
        assert_eq!(nodes[index]["this"], true);
        let tunnel = json_of(node, "/api/v1/tunnels?kind=bridged").await["tunnels"][0].clone();
        let others = [&tunnel["first"]["node"], &tunnel["second"]["node"]];
        let other = format!("node{}", 2 - index);
        assert!(others.contains(&&json!(other)), "{tunnel}");
    }
    let gone = cluster.nodes.remove(1);
    drop((first, second));
    gone.drain().await;
    let nodes = json_of(&cluster.nodes[0], "/api/v1/cluster").await;
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes}");
}

#[tokio::test]
async fn the_token_is_needed_for_all_but_health() {
    let node = node_with(|config| config.admin.token = Some(Secret::new("sesame")));
    for (path, status) in [
        ("/", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 401),
        ("/api/v1/node", 401),
        ("/nothing", 401),
    ] {
        assert_eq!(get(&node, path).await.status(), status, "{path}");
    }
    let answer = get(&node, "/api/v1/node").await;
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    let request = Client::new().get(url(&node, "/api/v1/node")).bearer_auth("sesame");
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn tls_is_spoken_where_there_is_a_certificate() {
    let certificates = support::cluster::Certificates::new();
    let (certificate, key) = certificates.issue("admin");
    let node = node_with(|config| {
        config.admin.certificate = Some(certificate);
        config.admin.certificate_key = Some(key);
    });
    let ca = std::fs::read(certificates.ca()).expect("a CA");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a CA");
    let client = Client::builder().tls_certs_only([ca]).build().expect("a client");
    let url = url(&node, "/readyz").replace("http://", "https://");
    let answer = soon("an answer", client.get(url).send()).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let mut config = Config::default();
    config.admin.certificate = Some("/nowhere".into());
    config.admin.certificate_key = Some("/nowhere".into());
    let error = Prepared::new(config).err().expect("no certificate").to_string();
    assert!(error.contains("admin.certificate"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_answered_says_what_can() {
    let node = node();
    let answer = get(&node, "/nothing").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let error: Value = answer.json().await.expect("JSON");
    assert!(error["error"].as_str().is_some_and(|it| it.contains("/api/v1/tunnels")), "{error}");
    let answer = ask(&node, Method::POST, "/metrics").await;
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.headers()["allow"], "GET,HEAD");
    for body in ["{}", "no json", r#"{"filter":1}"#, r#"{"filter":"nonsense"}"#] {
        let request = Client::new().put(url(&node, "/api/v1/log-level"));
        let request = request.header("content-type", "application/json").body(body);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
    }
}

#[tokio::test]
async fn the_stream_begins_with_what_was_and_goes_on() {
    let node = node();
    let (_first, _second) = tunnel(&node, "t").await;
    let answer = get(&node, "/api/v1/stream").await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut chunks = answer.bytes_stream();
    let mut text = String::new();
    while !text.contains("event: status") || !text.ends_with("\n\n") {
        let chunk = soon("more", chunks.next()).await.expect("no end").expect("a chunk");
        text += std::str::from_utf8(&chunk).expect("UTF-8");
    }
    assert!(text.starts_with("event: history\ndata: ["), "{text}");
    let (_, status) = text.split_once("event: status\ndata: ").expect("a status");
    let status: Value = serde_json::from_str(status.lines().next().expect("it")).expect("JSON");
    assert_eq!(status["sample"]["tunnels"], 1);
    assert_eq!(status["node"]["name"], "node1");
    assert_eq!(status["cluster"][0]["this"], true);
    assert_eq!(status["tunnels"][0]["kind"], "local");
    assert!(status["setup"].to_string().contains("\"step\":\"handshake\""), "{status}");
}

/// Every operation of the document is asked for, and each answer is one that it describes.
#[tokio::test]
async fn the_answers_are_as_the_document_describes_them() {
    let node = node();
    let (_first, _second) = tunnel(&node, "t").await;
    let document = json_of(&node, "/api/v1/openapi.json").await;
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let id = json_of(&node, "/api/v1/tunnels").await["tunnels"][0]["id"].clone();
    let id = id.as_str().expect("an id");
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let asked = url(&node, &path.replace("{id}", id));
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let mut request = Client::new().request(method.clone(), asked);
            if operation.get("requestBody").is_some() {
                request = request.json(&json!({"filter": "info"}));
            }
            let answer = soon("an answer", request.send()).await.expect("an answer");
            check(&document, operation, &format!("{method} {path}"), answer).await;
        }
    }
    let missing = get(&node, "/api/v1/tunnels/none").await;
    let operation = &document["paths"]["/api/v1/tunnels/{id}"]["get"];
    check(&document, operation, "a tunnel that is not there", missing).await;
    let wrong = get(&node, "/api/v1/tunnels?limit=0").await;
    check(&document, &document["paths"]["/api/v1/tunnels"]["get"], "a wrong query", wrong).await;
}

async fn check(document: &Value, operation: &Value, what: &str, answer: Response) {
    let status = answer.status().as_str().to_owned();
    let described = &operation["responses"][&status]["content"];
    let described = described.as_object().unwrap_or_else(|| panic!("{what}: {status}"));
    let (kind, content) = described.iter().next().expect("a content");
    let given = answer.headers()["content-type"].to_str().expect("a text").to_owned();
    assert!(given.starts_with(kind.as_str()), "{what}: {given} is not {kind}");
    if kind != "application/json" {
        return;
    }
    let body: Value = answer.json().await.expect("JSON");
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<_> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{what}: {errors:?} in {body}");
}
