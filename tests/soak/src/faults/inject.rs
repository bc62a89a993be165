//! Injects the faults of the plan, and waits between waves of them until all is well.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::plan::{Fault, Plan};
use super::{Kind, Target};
use crate::health;
use crate::world::World;

/// How often it is looked whether all is well again.
const LOOK: Duration = Duration::from_millis(200);
/// After how many seconds nodes know that they cannot renew their leases.
const LEASE_UNRENEWED: u64 = 8;

/// Injects faults until the time is over.
pub(crate) async fn run(world: &Arc<World>, until: Instant) {
    let options = &world.options;
    let mut plan = Plan::new(options.seed(), usize::from(options.nodes), &options.only);
    while Instant::now() < until {
        for fault in plan.wave() {
            if Instant::now() >= until {
                break;
            }
            inject(world, fault).await;
            sleep(fault.pause).await;
        }
        settle(world).await;
        sleep(Duration::from_secs(2)).await;
    }
}

/// Waits until all honest endpoints have met since the last fault. If they do not, the watch of the
/// load records the violation.
pub(crate) async fn settle(world: &World) {
    let last = world.history.last_ended(world.start);
    let deadline = Instant::now() + world.options.bound() + Duration::from_secs(5);
    let mut unwell = Vec::new();
    while Instant::now() < deadline {
        unwell = world.load.unwell(last);
        if unwell.is_empty() {
            let took = last.elapsed().as_secs_f64();
            world.journal.note(format_args!("all is well {took:.1} s after the last fault"));
            return;
        }
        sleep(LOOK).await;
    }
    world.journal.note(format_args!("not well: {}", unwell.join("; ")));
}

async fn inject(world: &Arc<World>, fault: Fault) {
    let Fault { kind, target, lasts, .. } = fault;
    let name = kind.name();
    world.journal.note(format_args!("fault: {name} of {target}, {:.1} s", lasts.as_secs_f64()));
    let place = world.history.begin(kind, target);
    if let Err(error) = perform(world, fault, place).await {
        world.journal.violation("fault", format_args!("{name} of {target}: {error:#}"));
    }
    world.history.over(place);
    world.journal.detail(format_args!("over: {name} of {target}"));
}

async fn perform(world: &Arc<World>, fault: Fault, place: usize) -> anyhow::Result<()> {
    match fault.target {
        Target::Node(node) => of_node(world, node, fault, place).await,
        Target::Link(from, to) => {
            of_link(world, from, to, fault).await;
            Ok(())
        }
        Target::RedisLink(node) => {
            of_redis_link(world, node, fault).await;
            Ok(())
        }
        Target::Redis => of_redis(world, fault).await,
    }
}

async fn of_node(
    world: &Arc<World>,
    node: usize,
    Fault { kind, lasts, .. }: Fault,
    place: usize,
) -> anyhow::Result<()> {
    let member = &world.cluster.nodes[node];
    match kind {
        Kind::Kill => {
            member.kill().await?;
            // Endpoints can meet on the other nodes from now on.
            world.history.over(place);
            sleep(lasts).await;
            member.start(world).await
        }
        Kind::Drain => {
            world.history.over(place);
            member.drain(world).await?;
            sleep(lasts).await;
            member.start(world).await
        }
        _ => {
            member.freeze().await?;
            sleep(lasts).await;
            member.thaw().await
        }
    }
}

async fn of_link(world: &World, from: usize, to: usize, fault: Fault) {
    let links = &world.cluster.bridges;
    match fault.kind {
        Kind::Cut => links.cut(from, to),
        Kind::Delay => {
            links.delay(from, to, fault.delay);
            links.delay(to, from, fault.delay);
        }
        Kind::OneWay => links.block(from, to),
        _ => {
            links.block(from, to);
            links.block(to, from);
        }
    }
    sleep(fault.lasts).await;
    links.restore(from, to);
    links.restore(to, from);
}

async fn of_redis_link(world: &World, node: usize, fault: Fault) {
    let links = &world.cluster.redis_links;
    let redis = world.cluster.redis_place();
    match fault.kind {
        Kind::RedisCut => links.cut(node, redis),
        Kind::RedisDelay => {
            links.delay(node, redis, fault.delay);
            links.delay(redis, node, fault.delay);
        }
        _ => {
            links.block(node, redis);
            links.block(redis, node);
        }
    }
    sleep(fault.lasts).await;
    links.restore(node, redis);
    links.restore(redis, node);
}

async fn of_redis(world: &World, Fault { kind, lasts, .. }: Fault) -> anyhow::Result<()> {
    let redis = &world.cluster.redis;
    match kind {
        Kind::RedisRestart | Kind::RedisStale | Kind::RedisEmpty => {
            restart_redis(world, kind, lasts).await?;
        }
        Kind::RedisFreeze => {
            redis.freeze().await?;
            sleep(lasts).await;
            redis.thaw().await?;
        }
        Kind::RefusedWrites => {
            redis.command(&["CONFIG", "SET", "maxmemory", "100kb"]).await?;
            sleep(lasts).await;
            if lasts > world.options.within(LEASE_UNRENEWED) {
                health::expect_unready(world).await;
            }
            redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        }
        Kind::ScriptFlush => redis.command(&["SCRIPT", "FLUSH"]).await?,
        Kind::LostKey => {
            let key = redis.lose_a_key().await?;
            world.journal.note(format_args!("lost: {key}"));
        }
        Kind::RedisDisconnects => redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await?,
        _ => redis.command(&["FLUSHALL"]).await?,
    }
    Ok(())
}

async fn restart_redis(world: &World, kind: Kind, lasts: Duration) -> anyhow::Result<()> {
    let redis = &world.cluster.redis;
    match kind {
        Kind::RedisEmpty => redis.forget()?,
        Kind::RedisStale => {
            redis.command(&["SAVE"]).await?;
            // Redis will lose all changes of this time.
            sleep(lasts.mul_f64(0.8)).await;
        }
        _ => redis.command(&["SAVE"]).await?,
    }
    world.cluster.redis_links.refuse_all(true);
    redis.kill().await?;
    if kind == Kind::RedisStale {
        sleep(lasts.mul_f64(0.2)).await;
    } else {
        sleep(lasts).await;
    }
    redis.start().await?;
    world.cluster.redis_links.refuse_all(false);
    Ok(())
}
