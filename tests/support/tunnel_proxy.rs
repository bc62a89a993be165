//! Gateways and apps over WebSocket, byte for byte. SLIP is written down once more here, so that a
//! fault of the node's own shows.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{Endpoint, Listening};

const END: u8 = 0xC0;
const ESC: u8 = 0xDB;

/// The UUID with this number, as clients write it.
pub fn uuid(number: u128) -> String {
    format!("{{{}}}", uuid::Uuid::from_u128(number))
}

/// A frame, by the book (RFC 1055).
pub fn frame(address: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    for byte in address.to_be_bytes().iter().chain(data) {
        match *byte {
            END => frame.extend([ESC, 0xDC]),
            ESC => frame.extend([ESC, 0xDD]),
            byte => frame.push(byte),
        }
    }
    frame.push(END);
    frame
}

/// Takes frames apart, by the book.
#[derive(Default)]
pub struct Frames {
    frame: Vec<u8>,
    escaped: bool,
}

impl Frames {
    pub fn push(&mut self, bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut frames = Vec::new();
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, 0xDC) => self.frame.push(END),
                (true, 0xDD) => self.frame.push(ESC),
                (true, other) => panic!("{other:x} behind ESC"),
                (false, ESC) => self.escaped = true,
                (false, END) => {
                    let frame = std::mem::take(&mut self.frame);
                    if !frame.is_empty() {
                        let address = u16::from_be_bytes([frame[0], frame[1]]);
                        frames.push((address, frame[2..].to_vec()));
                    }
                }
                (false, byte) => self.frame.push(byte),
            }
        }
        frames
    }
}

/// What a registered gateway gets.
#[derive(Debug, PartialEq)]
pub enum Event {
    Message(Value),
    Data(u16, Vec<u8>),
}

/// A registered gateway.
pub struct Gateway {
    pub endpoint: Endpoint,
    frames: Frames,
    events: VecDeque<Event>,
}

/// A request of the tunnel proxy.
pub fn call(method: &str, params: &Value) -> String {
    let request = json!({ "id": 7, "method": format!("TunnelProxy.{method}"), "params": params });
    request.to_string()
}

async fn ask(endpoint: &mut Endpoint, method: &str, params: &Value) -> Value {
    endpoint.send(Message::text(call(method, params))).await;
    let answer = endpoint.json().await;
    assert_eq!((&answer["id"], &answer["status"]), (&json!(7), &json!("success")), "{answer}");
    answer["params"].clone()
}

/// Asks to be a gateway: the connection, and the error.
pub async fn try_gateway(node: &impl Listening, number: u128) -> (Endpoint, String) {
    let mut endpoint = Endpoint::connect(node).await;
    let params = json!({ "serverName": "gateway", "serverUuid": uuid(number) });
    let answer = ask(&mut endpoint, "RegisterServer", &params).await;
    let error = answer["tunnelProxyError"].as_str().expect("a text").to_owned();
    assert_eq!(answer["slipEnabled"], json!(error == "TunnelProxyErrorNoError"));
    (endpoint, error)
}

/// Asks to be an app: the connection, and the error.
pub async fn try_app(node: &impl Listening, number: u128, gateway: u128) -> (Endpoint, String) {
    let mut endpoint = Endpoint::connect(node).await;
    let params = json!({
        "clientName": "app", "clientUuid": uuid(number), "serverUuid": uuid(gateway),
    });
    let answer = ask(&mut endpoint, "RegisterClient", &params).await;
    (endpoint, answer["tunnelProxyError"].as_str().expect("a text").to_owned())
}

/// A registered app.
pub async fn app(node: &impl Listening, number: u128, gateway: u128) -> Endpoint {
    let (endpoint, error) = try_app(node, number, gateway).await;
    assert_eq!(error, "TunnelProxyErrorNoError");
    endpoint
}

/// An app that must be refused with this error, and closed.
pub async fn refused_app(node: &impl Listening, number: u128, gateway: u128, error: &str) {
    let (mut endpoint, told) = try_app(node, number, gateway).await;
    assert_eq!(told, format!("TunnelProxyError{error}"));
    endpoint.close_code().await;
}

/// A gateway that must be refused with this error, and closed.
pub async fn refused_gateway(node: &impl Listening, number: u128, error: &str) {
    let (mut endpoint, told) = try_gateway(node, number).await;
    assert_eq!(told, format!("TunnelProxyError{error}"));
    endpoint.close_code().await;
}

impl Gateway {
    /// A registered gateway.
    pub async fn register(node: &impl Listening, number: u128) -> Self {
        let (endpoint, error) = try_gateway(node, number).await;
        assert_eq!(error, "TunnelProxyErrorNoError");
        Self { endpoint, frames: Frames::default(), events: VecDeque::new() }
    }

    /// Sends a frame.
    pub async fn send(&mut self, address: u16, data: &[u8]) {
        self.raw(&frame(address, data)).await;
    }

    /// Sends bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.endpoint.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends a request of its own.
    pub async fn request(&mut self, method: &str, params: &Value) {
        self.send(0, call(method, params).as_bytes()).await;
    }

    /// The next message or data.
    pub async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            match self.endpoint.message().await {
                Message::Binary(bytes) => {
                    let frames = self.frames.push(&bytes);
                    self.events.extend(frames.into_iter().map(|(address, data)| match address {
                        0 => Event::Message(serde_json::from_slice(&data).expect("JSON")),
                        _ => Event::Data(address, data),
                    }));
                }
                other => panic!("not binary: {other:?}"),
            }
        }
    }

    /// The next must be a message.
    pub async fn message(&mut self) -> Value {
        match self.event().await {
            Event::Message(message) => message,
            Event::Data(address, data) => panic!("{} bytes of {address}", data.len()),
        }
    }

    /// The next must be this notification; its params.
    pub async fn notification(&mut self, name: &str) -> Value {
        let message = self.message().await;
        assert_eq!(message["notification"], format!("TunnelProxy.{name}"), "{message}");
        message["params"].clone()
    }

    /// The next must say that an app is there; its address.
    pub async fn connected(&mut self) -> u16 {
        let params = self.notification("ClientConnected").await;
        let address = params["socketAddress"].as_u64().expect("an address");
        u16::try_from(address).expect("an address")
    }

    /// The next must say that this app is gone.
    pub async fn disconnected(&mut self, address: u16) {
        let params = self.notification("ClientDisconnected").await;
        assert_eq!(params, json!({ "socketAddress": address }));
    }

    /// The data of this app until there is this much of it; nothing else may come.
    pub async fn data(&mut self, address: u16, length: usize) -> Vec<u8> {
        let mut all = self.collect(&[(address, length)]).await;
        all.remove(&address).unwrap_or_default()
    }

    /// The data of these apps until there is this much of each; nothing else may come.
    pub async fn collect(&mut self, wanted: &[(u16, usize)]) -> BTreeMap<u16, Vec<u8>> {
        let mut all: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
        while wanted.iter().any(|(app, length)| all.get(app).map_or(0, Vec::len) < *length) {
            match self.event().await {
                Event::Data(address, data) => all.entry(address).or_default().extend(data),
                Event::Message(message) => panic!("{message}"),
            }
        }
        all
    }
}

/// The payload of the next messages of an app until there is this much.
pub async fn receive(app: &mut Endpoint, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        match app.message().await {
            Message::Text(text) => all.extend_from_slice(text.as_bytes()),
            Message::Binary(bytes) => all.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    all
}
