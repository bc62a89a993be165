//! Moves data between a gateway's leg and the lanes of its apps. Polled by the gateway's task.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::time::{Sleep, sleep_until};

use super::hub::{Hub, Newcomer};
use super::lane::{Goodbye, Lane, Pushed, Up};
use super::overflow::{Closed, Cost, Patience, Waited};
use crate::ids::OfferId;
use crate::observability::{AppRecord, Fact, Telemetry};
use crate::protocol::slip::{self, Decoder, PROXY_ADDRESS};
use crate::protocol::{Chunk, Close, ControlAction, GatewayControl, TunnelProxyError};
use crate::transport::{End, Leg};
use crate::turn::{Turn, yield_turn};

/// Frames are put together up to this many bytes, and then sent as one message.
const BLOCK: usize = 64 * 1024;
/// What an app may send in one turn, in bytes; then it is the next one's turn.
const TURN: usize = 16 * 1024;
/// While the gateway waits for an app, this often is looked at what that costs it.
const LOOK: Duration = Duration::from_millis(50);
/// When there is nothing to wait for.
const FAR_AWAY: Duration = Duration::from_hours(1);

/// Why a gateway is over.
pub(super) enum GatewayEnd {
    /// It has ended its connection, or that broke.
    Ended(End),
    /// It is to be closed with this.
    Closed(Close),
}

/// See the module.
pub(super) struct Driver<'a> {
    leg: &'a mut dyn Leg,
    hub: Arc<Hub>,
    telemetry: &'a Telemetry,
    control: GatewayControl,
    /// The gateway's requests are answered; only then the next one is read.
    answered: bool,
    apps: HashMap<u16, Attached>,
    decoder: Decoder,
    /// What has come from the gateway and is not taken apart yet.
    input: Bytes,
    /// The app that the gateway has to wait for.
    full: Option<Wait>,
    patience: Patience,
    /// What is left of the work in one poll.
    turn: Turn,
    /// Frames for the gateway.
    out: BytesMut,
    flushed: bool,
    closing: Option<Close>,
    timer: Pin<Box<Sleep>>,
    /// The node drains: once it has no app, it is closed.
    closes_when_empty: bool,
}

struct Attached {
    lane: Arc<Lane>,
    record: Arc<AppRecord>,
    /// What waiting for it has cost the gateway.
    cost: Cost,
}

/// The gateway waits for an app.
#[derive(Clone, Copy)]
struct Wait {
    address: u16,
    /// Since when, or since the last look.
    since: Instant,
    /// What the app had taken by then.
    taken: u64,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        leg: &'a mut dyn Leg,
        hub: Arc<Hub>,
        control: GatewayControl,
        telemetry: &'a Telemetry,
    ) -> Self {
        Self {
            leg,
            hub,
            telemetry,
            control,
            answered: true,
            apps: HashMap::new(),
            decoder: Decoder::default(),
            input: Bytes::new(),
            full: None,
            turn: Turn::new(),
            patience: Patience::new(Instant::now()),
            out: BytesMut::new(),
            flushed: false,
            closing: None,
            timer: Box::pin(sleep_until((Instant::now() + FAR_AWAY).into())),
            closes_when_empty: false,
        }
    }

    /// Runs until the gateway is over. May be dropped and called again.
    pub(super) async fn run(&mut self) -> GatewayEnd {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Closes the gateway after pending messages to it are sent.
    pub(super) fn close(&mut self, close: Close) {
        self.control.close(close);
    }

    /// Whether it is closed as soon as it has no apps.
    pub(super) fn closes_when_empty(&self) -> bool {
        self.closes_when_empty
    }

    /// It is closed as soon as it has no apps.
    pub(super) fn close_when_empty(&mut self) {
        self.closes_when_empty = true;
    }

    /// Closes all its apps, each after the data that was accepted for it.
    pub(super) fn end(&mut self, why: Goodbye) {
        for (address, app) in self.apps.drain() {
            app.lane.end(why, false);
            app.lane.refuse_up();
            self.hub.record.detached(address);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<GatewayEnd> {
        // First: whatever happens from now on wakes this task.
        self.hub.listen(cx);
        if let Poll::Ready(end) = self.leg.poll_health(cx) {
            return Poll::Ready(GatewayEnd::Ended(end));
        }
        self.turn = Turn::new();
        while !self.turn.is_over() {
            self.turn.spend(0);
            let moved = self.poll_out(cx).and_then(|out| Ok(out | self.poll_in(cx)?));
            match moved {
                Ok(true) => {}
                Ok(false) if self.poll_timer(cx) => {}
                Ok(false) => return Poll::Pending,
                Err(over) => return Poll::Ready(over),
            }
        }
        yield_turn(cx)
    }

    fn due(&self) -> Instant {
        let look = self.full.map(|wait| wait.since + LOOK);
        let due = [self.control.deadline(), look].into_iter().flatten().min();
        due.unwrap_or_else(|| Instant::now() + FAR_AWAY)
    }

    /// Does what is due. True if anything was.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let mut rang = false;
        let due = self.due();
        // Moved only when it must ring earlier: resetting it for each message would cost more than
        // waking up once for nothing.
        if due < self.timer.deadline().into_std() {
            self.timer.as_mut().reset(due.into());
        }
        while self.timer.poll_unpin(cx).is_ready() {
            let now = Instant::now();
            self.control.handle_timeout(now);
            if self.full.is_some_and(|wait| wait.since + LOOK <= now) {
                self.check_wait(now);
            }
            let due = self.due();
            self.timer.as_mut().reset(due.into());
            rang = true;
        }
        rang
    }

    /// Sends what there is for the gateway. True if there was anything.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Result<bool, GatewayEnd> {
        self.fill();
        if !self.out.is_empty() {
            match self.leg.poll_ready(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(end)) => return Err(GatewayEnd::Ended(end)),
                Poll::Ready(Ok(())) => {}
            }
            let block = self.out.split().freeze();
            self.turn.spend(block.len());
            self.hub.record.bytes.add_sent(block.len());
            self.flushed = false;
            self.leg.send(cx, Chunk::binary(block)).map_err(GatewayEnd::Ended)?;
            return Ok(true);
        }
        if !self.flushed
            && let Poll::Ready(flushed) = self.leg.poll_flush(cx)
        {
            flushed.map_err(GatewayEnd::Ended)?;
            self.flushed = true;
            // An idle gateway keeps no buffer.
            self.out = BytesMut::new();
        }
        self.closing.map_or(Ok(false), |close| Err(GatewayEnd::Closed(close)))
    }

    /// Makes frames of what there is, as long as there is room for them.
    fn fill(&mut self) {
        if self.closes_when_empty && self.apps.is_empty() {
            self.control.close(Close::Draining);
        }
        while self.out.len() < BLOCK && self.closing.is_none() {
            if let Some(action) = self.control.poll_action() {
                self.apply_action(action);
                continue;
            }
            self.answered = true;
            if let Some(newcomer) = self.hub.newcomer() {
                self.welcome(newcomer);
            } else if let Some(address) = self.hub.next_ready() {
                self.take_turn(address);
            } else {
                return;
            }
        }
    }

    fn apply_action(&mut self, action: ControlAction) {
        match action {
            ControlAction::Send(message) => {
                self.turn.spend_answer(message.len());
                slip::encode(PROXY_ADDRESS, message.as_bytes(), &mut self.out);
            }
            ControlAction::Disconnect { request, address } => {
                let why = Goodbye::Closed(Close::Disconnected);
                let app = self.apps.get(&address);
                let result = if app.is_some_and(|app| app.lane.end(why, false)) {
                    Ok(())
                } else {
                    Err(TunnelProxyError::UnknownSocketAddress)
                };
                self.control.disconnected(request, result);
            }
            ControlAction::Close(close) => self.closing = Some(close),
        }
    }

    /// Announces an app to the gateway before any data of that app.
    fn welcome(&mut self, newcomer: Newcomer) {
        let Newcomer { app, record, lane } = newcomer;
        let address = record.socket_address;
        // A UUID is one app's: when it attaches again, its former connection is dead, even if the
        // task or the node of that one has not noticed.
        let mut apps = self.apps.values().map(|app| &app.record);
        if let Some(before) = apps.find(|before| before.uuid == record.uuid) {
            self.supersede(before.socket_address);
        }
        self.control.client_connected(&app, &record.peer_address, address);
        self.hub.record.attached(Arc::clone(&record));
        self.apps.insert(address, Attached { lane, record, cost: Cost::default() });
    }

    fn supersede(&mut self, address: u16) {
        let Some(app) = self.apps.get(&address) else { return };
        app.lane.end(Goodbye::Lost, true);
        while let Up::Data(data) = app.lane.take_up() {
            app.record.bytes.add_received(data.len());
            slip::encode(address, &data, &mut self.out);
        }
        app.lane.refuse_up();
        self.forget(address);
    }

    fn take_turn(&mut self, address: u16) {
        let Some(app) = self.apps.get(&address) else { return };
        if let Some(bytes) = app.lane.take_taken() {
            self.control.client_received(address, bytes);
        }
        let mut taken = 0;
        while taken < TURN {
            match app.lane.take_up() {
                Up::Data(data) => {
                    taken += data.len();
                    app.record.bytes.add_received(data.len());
                    slip::encode(address, &data, &mut self.out);
                }
                Up::Nothing => return,
                Up::Gone => return self.forget(address),
            }
        }
        self.hub.requeue(address);
    }

    /// An app is gone, and all it has sent has been taken.
    fn forget(&mut self, address: u16) {
        self.apps.remove(&address);
        self.hub.record.detached(address);
        self.hub.free_address(address);
        self.control.client_disconnected(address);
    }

    /// Reads from the gateway. Returns whether anything arrived.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Result<bool, GatewayEnd> {
        if !self.answered || self.closing.is_some() || self.must_wait() {
            return Ok(false);
        }
        if let Some(event) = self.decoder.next_event(&mut self.input) {
            self.handle(event);
            return Ok(true);
        }
        match self.leg.poll_recv(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(end)) => Err(GatewayEnd::Ended(end)),
            Poll::Ready(Ok(chunk)) => {
                let now = Instant::now();
                self.control.heard(now);
                self.hub.record.heard(now);
                self.hub.record.bytes.add_received(chunk.data.len());
                self.turn.spend(chunk.data.len());
                self.input = chunk.data;
                Ok(true)
            }
        }
    }

    /// Whether the gateway has to wait for an app.
    fn must_wait(&mut self) -> bool {
        let Some(wait) = self.full else { return false };
        let app = self.apps.get(&wait.address);
        if app.is_some_and(|app| !app.lane.has_room()) {
            return true;
        }
        self.charge(wait, Instant::now());
        self.full = None;
        false
    }

    /// Looks at what waiting costs the gateway, and makes room if it costs too much.
    fn check_wait(&mut self, now: Instant) {
        if let Some(Closed { gateway, app }) = self.hub.overflow().relieve(now) {
            self.record_closed_app(gateway, app);
        }
        if let Some(wait) = self.full {
            self.full = self.charge(wait, now);
        }
    }

    /// Charges an app for the time that the gateway has waited for it, and closes it if that is too
    /// much. What there is still to wait for.
    fn charge(&mut self, wait: Wait, now: Instant) -> Option<Wait> {
        let app = self.apps.get_mut(&wait.address)?;
        let taken = app.lane.usage().taken;
        let time = now.saturating_duration_since(wait.since);
        let waited = Waited { time, taken: taken.saturating_sub(wait.taken) };
        if !self.patience.spend(&mut app.cost, waited, now) {
            return Some(Wait { since: now, taken, ..wait });
        }
        if app.lane.end(Goodbye::Closed(Close::Backlog), true) {
            let id = app.record.id;
            self.record_closed_app(self.hub.record.id, id);
        }
        None
    }

    fn record_closed_app(&self, gateway: OfferId, app: OfferId) {
        self.telemetry.record(Fact::AppTooSlow { gateway, app });
    }

    fn handle(&mut self, event: slip::Event) {
        match event {
            slip::Event::Data { address: PROXY_ADDRESS, data, last } => {
                self.answered = false;
                self.control.receive(&data, last);
            }
            slip::Event::Data { address, data, .. } => self.push_to_app(address, data),
            slip::Event::Abandoned { address, passed_on, fault } => {
                let gateway = self.hub.record.id;
                self.telemetry.record(Fact::FrameBroken { gateway, address, fault: &fault });
                match address {
                    Some(PROXY_ADDRESS) if passed_on > 0 => self.control.abandon(),
                    // There is no message by which it could learn that the rest is missing.
                    Some(address) if passed_on > 0 => {
                        if let Some(app) = self.apps.get(&address) {
                            app.lane.end(Goodbye::Lost, false);
                        }
                    }
                    Some(_) | None => {}
                }
            }
        }
    }

    fn push_to_app(&mut self, address: u16, data: Bytes) {
        let Some(app) = self.apps.get(&address).filter(|_| !data.is_empty()) else { return };
        let size = data.len();
        match app.lane.push_down(data) {
            Pushed::Taken => {}
            Pushed::Over => {
                let (gateway, now) = (self.hub.record.id, Instant::now());
                self.hub.overflow().enter(gateway, app.record.id, &app.lane, now);
            }
            Pushed::Full => {
                let (since, taken) = (Instant::now(), app.lane.usage().taken);
                self.full = Some(Wait { address, since, taken });
            }
            // What is still under way to an app that has left.
            Pushed::Gone => return,
        }
        app.record.bytes.add_sent(size);
    }
}
