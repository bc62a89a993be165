//! Dishonest and impatient clients: they must not harm other endpoints, nor receive data of others.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::gateway_uuid;
use crate::wire::{Closing, Dialogue, Refused, Way, connect};
use crate::world::World;

/// How long any of them waits for an answer, in seconds.
const ANSWER: u64 = 15;
/// How long a gateway must have had no trouble until its UUID cannot be taken, in seconds.
const SETTLED: u64 = 30;

/// What a stranger does.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Nothing at all.
    Silent,
    /// White space, in many small messages.
    Blank,
    /// Shows a token that is not valid.
    WrongToken,
    /// Sends what is no request.
    Garbage,
    /// Waits for a partner, and vanishes.
    Impatient,
    /// Many partners authenticate at once and vanish while they are bridged.
    Fleeting,
    /// Wants the UUID of a gateway that is registered.
    Thief,
}

impl Manner {
    const ALL: [Self; 7] = [
        Self::Silent,
        Self::Blank,
        Self::WrongToken,
        Self::Garbage,
        Self::Impatient,
        Self::Fleeting,
        Self::Thief,
    ];
}

/// Strangers, one after the other.
pub(super) async fn run(world: Arc<World>) {
    let mut random = world.random();
    while !world.leaving.is_cancelled() {
        let manner = Manner::ALL[random.random_range(0..Manner::ALL.len())];
        let Some(node) = world.some_node(&mut random) else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let visit = Visit { world: &world, node, way: Way::any(&mut random), manner };
        tokio::select! {
            outcome = Box::pin(visit.run(&mut random)) => {
                let outcome = if outcome.is_ok() { "done" } else { "failed" };
                world.statistics.count(format!("strangers: {manner:?} {outcome}"));
            }
            () = world.leaving.cancelled() => return,
        }
        sleep(Duration::from_millis(random.random_range(50..1000))).await;
    }
}

struct Visit<'a> {
    world: &'a Arc<World>,
    node: usize,
    way: Way,
    manner: Manner,
}

impl Visit<'_> {
    async fn run(&self, random: &mut StdRng) -> anyhow::Result<()> {
        if matches!(self.manner, Manner::Fleeting) {
            return self.fleeting(random).await;
        }
        let mut dialogue = self.connect(self.node, random).await?;
        match self.manner {
            Manner::Silent => sleep(Duration::from_secs(random.random_range(1..12))).await,
            Manner::Blank => {
                for _ in 0..random.random_range(100..3000) {
                    dialogue.send(if self.way.is_websocket() { " " } else { "\n  \n" }).await?;
                }
            }
            Manner::Garbage => {
                dialogue.send("GET / HTTP/1.1\r\n\r\n{{{{\u{0}").await?;
                timeout(self.limit(), dialogue.closing()).await?;
            }
            Manner::WrongToken => self.wrong_token(&mut dialogue).await?,
            Manner::Impatient => {
                let params = json!({ "token": format!("soak-alone-{}", Uuid::new_v4()) });
                timeout(self.limit(), dialogue.authenticate(&params)).await??;
                sleep(Duration::from_millis(random.random_range(0..3000))).await;
                if random.random_bool(0.5) {
                    dialogue.leave().await?;
                }
            }
            Manner::Thief => self.thief(dialogue, random).await?,
            Manner::Fleeting => {}
        }
        Ok(())
    }

    fn limit(&self) -> Duration {
        self.world.options.within(ANSWER)
    }

    async fn connect(&self, node: usize, random: &mut StdRng) -> anyhow::Result<Dialogue> {
        let [one, other] = [random.random_range(1..255), random.random_range(1..255)];
        let from = SocketAddr::from((Ipv4Addr::new(127, 66, one, other), 0));
        let place = self.world.place(node, self.way);
        connect(self.way, &place, Some(from), &self.world.tls).await
    }

    async fn wrong_token(&self, dialogue: &mut Dialogue) -> anyhow::Result<()> {
        let params = json!({ "token": "not valid" });
        match timeout(self.limit(), dialogue.authenticate(&params)).await? {
            Ok(()) => self.violation("a token that is not valid was accepted"),
            Err(Refused::Answer(_)) => {
                if timeout(self.limit(), dialogue.closing()).await.is_err()
                    && self.world.is_quiet(self.limit(), |_| true)
                {
                    self.violation("a refused connection is not closed");
                }
            }
            Err(Refused::Closed(_)) => {}
        }
        Ok(())
    }

    async fn thief(&self, mut dialogue: Dialogue, random: &mut StdRng) -> anyhow::Result<()> {
        let count = self.world.load.gateways.len();
        if count == 0 {
            return Ok(());
        }
        let number = random.random_range(0..count);
        let gateway = &self.world.load.gateways[number];
        let (epoch, was_registered) = (gateway.epoch(), gateway.is_registered());
        let params = json!({
            "serverName": "thief",
            "serverUuid": gateway_uuid(number).to_string(),
            "token": "soak-thief",
        });
        let registering = dialogue.register("TunnelProxy.RegisterServer", &params);
        if timeout(self.limit(), registering).await?.is_err() {
            return Ok(());
        }
        gateway.robbed(self.node);
        self.world.statistics.count("strangers: got the UUID of a gateway that was away");
        let settled = self.limit() + self.world.options.within(SETTLED);
        dialogue.leave().await?;
        // With time for a connection that had ended to show it.
        sleep(Duration::from_secs(1)).await;
        if was_registered && gateway.epoch() == epoch && self.world.is_quiet(settled, |_| true) {
            self.violation(&format!("the UUID of gateway {number} was stolen"));
        }
        Ok(())
    }

    /// An endpoint waits on one node; many partners connect to another node and vanish at once.
    async fn fleeting(&self, random: &mut StdRng) -> anyhow::Result<()> {
        let Some(other) = self.world.some_node(random) else { return Ok(()) };
        let name = Uuid::new_v4();
        let mut waiting = Vec::new();
        for number in 0..10 {
            let mut dialogue = self.connect(self.node, random).await?;
            let params = json!({ "token": format!("soak-fleeting-{name}-{number}") });
            timeout(self.limit(), dialogue.authenticate(&params)).await??;
            waiting.push(dialogue);
        }
        let mut partners = Vec::new();
        for _ in 0..10 {
            partners.push(self.connect(other, random).await?);
        }
        for (number, partner) in partners.iter_mut().enumerate() {
            let params = json!({ "token": format!("soak-fleeting-{name}-{number}") });
            let request = partner.request("Authentication.Authenticate", &params);
            request.await.map_err(|refused: Refused| anyhow::anyhow!("{refused}"))?;
        }
        sleep(Duration::from_millis(random.random_range(0..20))).await;
        drop(partners);
        for dialogue in &mut waiting {
            let limit = Duration::from_millis(random.random_range(0..300));
            if let Ok(Closing::Reason { code: 1011, reason }) =
                timeout(limit, dialogue.closing()).await
            {
                self.violation(&format!("a fault of the node: {reason}"));
            }
        }
        Ok(())
    }

    fn violation(&self, what: &str) {
        let Self { node, way, manner, world } = self;
        let who = format!("{manner:?} on node {} by {way:?}", node + 1);
        world.journal.violation("stranger", format_args!("{who}: {what}"));
    }
}
