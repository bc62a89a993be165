//! Gateways without the client library, on every transport. SLIP is written down once more here, so
//! that a fault of the library's own shows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use super::app::judge_refusal;
use super::gateway::{judge_end, judge_loss, name};
use super::{Backoff, gateway_uuid};
use crate::content::{Alphabet, Checker, Ending, HEADER};
use crate::wire::{Reader, Received, Way, Writer, connect};
use crate::world::World;

const END: u8 = 0xC0;
const ESC: u8 = 0xDB;
/// How long an answer to a registration may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Frames that wait to be written.
const OUTBOX: usize = 4096;
/// Between two pings.
const PING: Duration = Duration::from_secs(20);

/// One gateway, until the run is over.
pub(super) async fn run(world: Arc<World>, number: usize) {
    let mut random = world.random();
    let mut backoff = Backoff::default();
    let state = Arc::clone(&world.load.gateways[number]);
    while !world.leaving.is_cancelled() {
        let Some(node) = world.some_node(&mut random) else {
            backoff.pause(&world, &mut random).await;
            continue;
        };
        let way = Way::any(&mut random);
        let registered = tokio::select! {
            registered = Box::pin(register(&world, number, node, way)) => registered,
            () = world.leaving.cancelled() => return,
        };
        match registered {
            Ok(mut halves) => {
                backoff = Backoff::default();
                world.statistics.count("gateways: registered");
                let connection = state.connected(node);
                state.registered();
                let leaves = Duration::from_secs(random.random_range(20..120));
                serve(&world, number, node, way, &mut halves, leaves).await;
                // Known before the apps see it.
                state.disconnected(connection);
            }
            Err(reason) => {
                world.statistics.count(format!("gateways: not registered: {reason}"));
                world.journal.detail(format_args!(
                    "{} on node {}: {reason}",
                    name(number),
                    node + 1
                ));
                backoff.pause(&world, &mut random).await;
            }
        }
    }
}

async fn register(
    world: &World,
    number: usize,
    node: usize,
    way: Way,
) -> Result<(Reader, Writer), String> {
    let connected = connect(way, &world.place(node, way), None, &world.tls).await;
    let mut dialogue = connected.map_err(|error| format!("{error:#}"))?;
    let mut params = json!({
        "serverName": name(number),
        "serverUuid": format!("{{{}}}", gateway_uuid(number)),
    });
    if world.cluster.tokens.of_gateways() {
        params["token"] = format!("soak-gateway-{number}").into();
    }
    let answered = timeout(ANSWER, dialogue.register("TunnelProxy.RegisterServer", &params)).await;
    let answered = answered.map_err(|_| "no answer to the registration".to_owned())?;
    answered.map_err(|refused| judge_refusal(world, &name(number), &refused))?;
    Ok(dialogue.into_halves(way))
}

/// Serves apps until the connection is lost, or given up.
async fn serve(
    world: &Arc<World>,
    number: usize,
    node: usize,
    way: Way,
    (reader, writer): &mut (Reader, Writer),
    leaves: Duration,
) {
    let (outbox, mut frames) = mpsc::channel::<Vec<u8>>(OUTBOX);
    let mut apps =
        Apps { world, number, node, outbox, attached: HashMap::new(), frame: Frame::default() };
    let reading = async {
        loop {
            match reader.read(16 * 1024).await {
                Received::Data(bytes) => {
                    if let Err(what) = apps.receive(&bytes).await {
                        return world.journal.violation("content", what);
                    }
                }
                Received::End(closing) => {
                    let how = format!("{way:?}: {closing}");
                    return judge_loss(world, number, node, &how);
                }
            }
        }
    };
    let writing = async {
        let mut pings = interval(PING);
        loop {
            let frame = tokio::select! {
                Some(frame) = frames.recv() => frame,
                _ = pings.tick() => frame(0, &call("Ping", &json!({ "timestamp": 1 }))),
            };
            if writer.write(frame, Alphabet::Binary).await.is_err() {
                // The reader notices.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = sleep(leaves) => {}
        () = world.leaving.cancelled() => {}
    }
}

/// The apps of one registration.
struct Apps<'a> {
    world: &'a Arc<World>,
    number: usize,
    node: usize,
    outbox: mpsc::Sender<Vec<u8>>,
    attached: HashMap<u16, Attached>,
    frame: Frame,
}

/// An attached app.
struct Attached {
    name: String,
    checker: Checker,
    /// How much was answered, header included.
    answered: u64,
}

impl Apps<'_> {
    async fn receive(&mut self, bytes: &[u8]) -> Result<(), String> {
        for (address, data) in self.frame.push(bytes)? {
            if address == 0 {
                let message = serde_json::from_slice(&data)
                    .map_err(|_| format!("no JSON: {:?}", String::from_utf8_lossy(&data)))?;
                self.message(&message)?;
            } else {
                self.data(address, &data).await?;
            }
        }
        Ok(())
    }

    fn message(&mut self, message: &Value) -> Result<(), String> {
        let params = &message["params"];
        let address = params["socketAddress"].as_u64().and_then(|it| u16::try_from(it).ok());
        match (message["notification"].as_str(), address) {
            (Some("TunnelProxy.ClientConnected"), Some(address)) => {
                let name = params["clientName"].as_str().unwrap_or_default().to_owned();
                if !name.ends_with(&super::gateway::name(self.number)) {
                    return Err(format!("{name:?} attached to gateway {}", self.number));
                }
                let app = Attached { name, checker: Checker::default(), answered: 0 };
                if self.attached.insert(address, app).is_some() {
                    return Err(format!("address {address} was given twice"));
                }
            }
            (Some("TunnelProxy.ClientDisconnected"), Some(address)) => {
                let app = self.attached.remove(&address);
                let app = app.ok_or_else(|| format!("{address} left, and was not there"))?;
                self.disconnected(&app);
            }
            (Some(_), _) => return Err(format!("{message}")),
            // Answers to pings and disconnections.
            (None, _) => {}
        }
        Ok(())
    }

    fn disconnected(&self, app: &Attached) {
        if let Some(stream) = app.checker.stream() {
            judge_end(self.world, self.node, stream, app.checker.received());
        }
    }

    /// Checks data, and answers as much as is due.
    async fn data(&mut self, address: u16, data: &[u8]) -> Result<(), String> {
        let number = self.number;
        let app = self.attached.get_mut(&address);
        let app = app.ok_or_else(|| format!("gateway {number}: data of nobody, {address}"))?;
        app.checker.push(data, &self.world.streams, &app.name)?;
        let Some(answer) = app.checker.stream().and_then(|stream| stream.answer().cloned()) else {
            return Ok(());
        };
        let mut frames = Vec::new();
        if app.answered == 0 {
            frames.push(frame(address, &answer.stream.header()));
            app.answered = HEADER as u64;
        }
        let received = app.checker.received();
        let due = answer.length * received / answer.question_bytes.max(1);
        if due > app.answered {
            let more = usize::try_from(due - app.answered).unwrap_or_default();
            frames.push(frame(address, &answer.stream.next(more)));
            app.answered = due;
        }
        if received == answer.question_bytes && answer.closed_by_gateway {
            answer.stream.end(Ending::Orderly(answer.stream.offered()));
            let params = json!({ "socketAddress": address });
            frames.push(frame(0, &call("DisconnectClient", &params)));
        }
        for frame in frames {
            // With the writer, the whole connection has ended.
            let _ended = self.outbox.send(frame).await;
        }
        Ok(())
    }
}

fn call(method: &str, params: &Value) -> Vec<u8> {
    let request = json!({ "id": 7, "method": format!("TunnelProxy.{method}"), "params": params });
    format!("{request}\n").into_bytes()
}

/// A frame, by the book (RFC 1055).
fn frame(address: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(data.len() + data.len() / 64 + 4);
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
struct Frame {
    bytes: Vec<u8>,
    escaped: bool,
}

impl Frame {
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, String> {
        let mut frames = Vec::new();
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, 0xDC) => self.bytes.push(END),
                (true, 0xDD) => self.bytes.push(ESC),
                (true, other) => return Err(format!("{other:x} behind ESC")),
                (false, ESC) => self.escaped = true,
                (false, END) => {
                    let frame = std::mem::take(&mut self.bytes);
                    if let [high, low, data @ ..] = &frame[..] {
                        frames.push((u16::from_be_bytes([*high, *low]), data.to_vec()));
                    }
                }
                (false, byte) => self.bytes.push(byte),
            }
        }
        Ok(frames)
    }
}
