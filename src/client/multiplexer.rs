//! One registered connection of a gateway: takes its frames apart for the apps, and puts those of
//! the apps together.
//!
//! Reading and writing do not wait for each other. The unread data of an app is bounded: at the limit,
//! nothing is read for any app, so that the proxy slows them down; an app that is then not read for
//! [`Limits::stalled`] is disconnected, and the others continue.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::{debug, warn};

use super::TunnelError;
use super::app_stream::{AppInfo, AppStream, Inbound, Outbound, Place, Ways};
use super::wire::Wire;
use crate::lock::lock;
use crate::protocol::slip::{Decoder, Event, PROXY_ADDRESS, encode};
use crate::protocol::{
    CLIENT_CONNECTED, CLIENT_DISCONNECTED, CLIENT_RECEIVED, JsonStream, request,
};

/// How much is read from the connection, and written to it, at once.
const BLOCK: usize = 64 * 1024;
/// Frames of all apps together that wait to be written; with more, the apps wait.
const OUTBOUND: usize = 16;
/// The cost of a piece besides its data, in bytes.
const OVERHEAD: usize = 64;

/// The limits of one connection in memory and time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes that may wait to be read by an app.
    pub(super) backlog: usize,
    /// How long an app may leave its backlog full.
    pub(super) stalled: Duration,
    /// From one ping to the next.
    pub(super) ping: Duration,
    /// How long the proxy may be silent.
    pub(super) silence: Duration,
}

/// A registered connection.
pub(super) struct Connection {
    pub(super) wire: Wire,
    /// The bytes that may be sent to each app before it has taken them, if the proxy has flow control.
    pub(super) window: Option<u32>,
}

/// Carries data until the connection ends, and returns the reason.
pub(super) async fn run(
    Connection { wire, window }: Connection,
    limits: Limits,
    accepted: &mpsc::Sender<AppStream>,
) -> io::Error {
    let (from_proxy, to_proxy) = split(wire);
    let (outbound, frames) = mpsc::channel(OUTBOUND);
    #[expect(clippy::disallowed_methods, reason = "each app is in it once at most")]
    let (unwanted, to_disconnect) = mpsc::unbounded_channel();
    let apps = Apps::default();
    let mut reader = Reader {
        apps: &apps,
        limits,
        window: window.map(|window| window as usize),
        accepted,
        outbound,
        unwanted,
        control: JsonStream::default(),
    };
    let mut writer = Writer { apps: &apps, frames, to_disconnect, request: 1 };
    let end = tokio::select! {
        end = reader.run(from_proxy) => end,
        end = writer.run(to_proxy, limits.ping) => end,
    };
    end.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The attached apps by their addresses.
#[derive(Default)]
struct Apps(Mutex<HashMap<u16, App>>);

#[derive(Clone)]
struct App {
    place: Place,
    inbound: mpsc::UnboundedSender<Inbound>,
    room: Arc<Semaphore>,
    /// The window of the app.
    window: Option<Arc<Semaphore>>,
    left: Arc<AtomicBool>,
}

impl Drop for Apps {
    /// Wakes writers that wait for a window.
    fn drop(&mut self) {
        for app in self.lock().values() {
            app.close_window();
        }
    }
}

impl App {
    fn close_window(&self) {
        if let Some(window) = &self.window {
            window.close();
        }
    }

    fn end(&self, end: Result<(), TunnelError>) {
        self.left.store(true, Ordering::Release);
        self.close_window();
        // It fails if the stream was dropped, which needs no end.
        let _sent = self.inbound.send(Inbound::End(end));
    }
}

impl Apps {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, App>> {
        lock(&self.0)
    }

    fn has(&self, place: Place) -> bool {
        self.lock().get(&place.address).is_some_and(|app| app.place == place)
    }

    fn remove(&self, place: Place) -> Option<App> {
        let mut apps = self.lock();
        let is_there = apps.get(&place.address).is_some_and(|app| app.place == place);
        if is_there { apps.remove(&place.address) } else { None }
    }
}

struct Reader<'a> {
    apps: &'a Apps,
    limits: Limits,
    window: Option<usize>,
    accepted: &'a mpsc::Sender<AppStream>,
    outbound: mpsc::Sender<Outbound>,
    unwanted: mpsc::UnboundedSender<Place>,
    control: JsonStream,
}

impl Reader<'_> {
    async fn run(&mut self, mut from_proxy: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut input = BytesMut::new();
        loop {
            input.reserve(BLOCK);
            match timeout(self.limits.silence, from_proxy.read_buf(&mut input)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
            while let Some(event) = decoder.next_event(&mut input) {
                match event {
                    Event::Data { address: PROXY_ADDRESS, data, last } => {
                        self.hear(&data, last)?;
                    }
                    Event::Data { address, data, .. } => self.hand_over(address, data).await,
                    Event::Abandoned { fault, .. } => return Err(violation(&fault.to_string())),
                }
            }
        }
    }

    /// Handles a message from the proxy itself.
    fn hear(&mut self, data: &[u8], last: bool) -> io::Result<()> {
        self.control.push(data);
        let not_json = |_| violation("it does not speak JSON");
        while let Some(json) = self.control.next_object().map_err(not_json)? {
            let message: Value =
                serde_json::from_slice(&json).map_err(|_| violation("it does not speak JSON"))?;
            let params = &message["params"];
            match message["notification"].as_str() {
                Some(CLIENT_CONNECTED) => self.attach(params)?,
                Some(CLIENT_DISCONNECTED) => {
                    let app = self.apps.lock().remove(&address_of(params)?);
                    if let Some(app) = app {
                        app.end(Ok(()));
                    }
                }
                Some(CLIENT_RECEIVED) => {
                    let bytes = params["byteCount"].as_u64().unwrap_or_default();
                    self.widen(address_of(params)?, bytes);
                }
                // Answers to pings and to what is disconnected anyway.
                Some(_) | None => {}
            }
        }
        if last { self.control.finish().map_err(not_json) } else { Ok(()) }
    }

    /// An app has taken some of what was sent to it.
    fn widen(&self, address: u16, bytes: u64) {
        let apps = self.apps.lock();
        let window = apps.get(&address).and_then(|app| app.window.as_ref());
        if let (Some(window), Some(size)) = (window, self.window) {
            let missing = size.saturating_sub(window.available_permits());
            window.add_permits(usize::try_from(bytes).unwrap_or(usize::MAX).min(missing));
        }
    }

    fn attach(&self, params: &Value) -> io::Result<()> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let place = Place { address: address_of(params)?, number };
        let text = |name: &str| params[name].as_str().unwrap_or_default().to_owned();
        let info = AppInfo {
            name: text("clientName"),
            uuid: text("clientUuid"),
            peer_address: text("clientPeerAddress"),
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by the room below, which all data takes before it is put in"
        )]
        let (inbound, receiver) = mpsc::unbounded_channel();
        let left = Arc::new(AtomicBool::new(false));
        let ways = Ways {
            inbound: receiver,
            outbound: self.outbound.clone(),
            dropped: self.unwanted.clone(),
            window: self.window.map(|size| Arc::new(Semaphore::new(size))),
            left: Arc::clone(&left),
        };
        let window = ways.window.clone();
        let room = Arc::new(Semaphore::new(self.limits.backlog));
        debug!(address = place.address, name = ?info.name, "an app has attached");
        // Dropped where there is no room for it, which disconnects it.
        let stream = AppStream::new(info, place, ways);
        let before =
            self.apps.lock().insert(place.address, App { place, inbound, room, window, left });
        if let Some(before) = before {
            before.end(Ok(()));
        }
        if self.accepted.try_send(stream).is_err() {
            warn!(
                address = place.address,
                "too many apps wait to be accepted, one is disconnected"
            );
        }
        Ok(())
    }

    /// Hands data to an app, as soon as there is room for it.
    async fn hand_over(&mut self, address: u16, data: Bytes) {
        // What is under way to an app that is given up is of no use.
        let Some(app) = self.apps.lock().get(&address).cloned() else { return };
        let size = (data.len() + OVERHEAD).min(self.limits.backlog);
        let room =
            Arc::clone(&app.room).acquire_many_owned(u32::try_from(size).unwrap_or(u32::MAX));
        // An app that is not read any more has room for ever.
        let room = tokio::select! {
            room = timeout(self.limits.stalled, room) => room,
            () = app.inbound.closed() => return,
        };
        if let Ok(Ok(room)) = room {
            // It fails if the stream was dropped: then the data is, too, and its room is free.
            let _taken = app.inbound.send(Inbound::Data(data, room));
        } else {
            warn!(address, "an app is disconnected: its data was not read for too long");
            app.end(Err(TunnelError::TooSlow));
            self.apps.remove(app.place);
            // The connection is over: so is the app.
            let _told = self.unwanted.send(app.place);
        }
    }
}

struct Writer<'a> {
    apps: &'a Apps,
    frames: mpsc::Receiver<Outbound>,
    to_disconnect: mpsc::UnboundedReceiver<Place>,
    /// The id of the last request.
    request: i64,
}

impl Writer<'_> {
    async fn run(
        &mut self,
        mut to_proxy: impl AsyncWrite + Unpin,
        ping: Duration,
    ) -> io::Result<()> {
        let mut pings = interval_at(Instant::now() + ping, ping);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = BytesMut::new();
        loop {
            tokio::select! {
                // The reader has an end of each way and lives as long.
                Some(frame) = self.frames.recv() => self.put(frame, &mut out),
                Some(place) = self.to_disconnect.recv() => self.disconnect(place, &mut out),
                _ = pings.tick() => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    self.call("TunnelProxy.Ping", &json!({ "timestamp": now.as_secs() }), &mut out);
                }
            }
            while out.len() < BLOCK
                && let Ok(frame) = self.frames.try_recv()
            {
                self.put(frame, &mut out);
            }
            to_proxy.write_all_buf(&mut out).await?;
            to_proxy.flush().await?;
        }
    }

    fn put(&mut self, frame: Outbound, out: &mut BytesMut) {
        match frame {
            // Its address may be that of another app by now.
            Outbound::Data(place, _) if !self.apps.has(place) => {}
            Outbound::Data(place, data) => encode(place.address, &data, out),
            Outbound::End(place) => {
                if self.apps.has(place) {
                    self.call_disconnect(place, out);
                }
            }
        }
    }

    /// Has the proxy close an app after its stream was dropped, or its data was not read.
    fn disconnect(&mut self, place: Place, out: &mut BytesMut) {
        if self.apps.remove(place).is_some() || !self.apps.lock().contains_key(&place.address) {
            self.call_disconnect(place, out);
        }
    }

    fn call_disconnect(&mut self, place: Place, out: &mut BytesMut) {
        self.call("TunnelProxy.DisconnectClient", &json!({ "socketAddress": place.address }), out);
    }

    fn call(&mut self, method: &str, params: &Value, out: &mut BytesMut) {
        self.request += 1;
        let message = request(self.request, method, Some(params.clone()));
        encode(PROXY_ADDRESS, message.as_bytes(), out);
    }
}

fn address_of(params: &Value) -> io::Result<u16> {
    let address = params["socketAddress"].as_u64().and_then(|address| address.try_into().ok());
    address.ok_or_else(|| violation("a notification has no socketAddress"))
}

fn violation(what: &str) -> io::Error {
    TunnelError::Protocol(what.to_owned()).into()
}
