//! A load balancer in front of the nodes for one gateway, which then need not know where it is
//! registered: each connection goes to some reachable node.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::gateway::GatewayState;
use crate::wire::{Place, Way};
use crate::world::World;

/// Opens the door; its address.
pub(super) async fn open(
    world: &Arc<World>,
    gateway: &Arc<GatewayState>,
    way: Way,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    world.tasks.spawn(serve(Arc::clone(world), Arc::clone(gateway), way, listener));
    Ok(address)
}

async fn serve(world: Arc<World>, gateway: Arc<GatewayState>, way: Way, listener: TcpListener) {
    let mut random = world.random();
    while let Ok((near, _)) = listener.accept().await {
        let Some(node) = world.some_node(&mut random) else { continue };
        let Place::Ip(address) = world.place(node, way) else { return };
        let Ok(far) = TcpStream::connect(address).await else { continue };
        let _slower = (near.set_nodelay(true), far.set_nodelay(true));
        world.tasks.spawn(carry(Arc::clone(&gateway), node, near, far));
    }
}

async fn carry(gateway: Arc<GatewayState>, node: usize, mut near: TcpStream, mut far: TcpStream) {
    let connection = gateway.connected(node);
    if copy_bidirectional(&mut near, &mut far).await.is_err() {
        // What has ended without order ends so on the other side, too.
        let _closed_anyway = (near.set_zero_linger(), far.set_zero_linger());
    }
    gateway.disconnected(connection);
}
