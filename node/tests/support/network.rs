//! Networks in which links can be cut without a sign: each node in a network namespace of its own
//! (Linux, as root), all on a switch in another one, together with this machine.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::command;

/// A network, gone when dropped.
pub struct Network {
    name: String,
    subnet: u8,
    nodes: u8,
}

/// Where the tests are, and their endpoints.
const TESTS: u8 = 254;
/// Where Redis is: also on this machine, but links to it can be cut by themselves.
const REDIS: u8 = 253;
/// A hardware address that no interface has.
const NOBODY: &str = "02:00:00:00:00:00";

impl Network {
    /// A network with so many places for nodes, counted from 0.
    pub fn new(nodes: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = process::id() * 2 + COUNT.fetch_add(1, Ordering::Relaxed);
        let subnet = u8::try_from(number % 256).expect("below 256");
        let network = Self { name: format!("rp{number}"), subnet, nodes };
        let name = &network.name;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add switch type bridge"));
        ip(&format!("-n {name} link set switch up"));
        ip(&format!("link add {name} type veth peer name tests netns {name}"));
        ip(&format!("-n {name} link set tests master switch up"));
        ip(&format!("addr add {}/24 dev {name}", network.address(TESTS)));
        ip(&format!("addr add {}/24 dev {name}", network.redis()));
        ip(&format!("link set {name} up"));
        for node in 0..nodes {
            let (space, address) = (network.space(node), network.node(node));
            ip(&format!("netns add {space}"));
            ip(&format!("-n {space} link set lo up"));
            let there = format!("type veth peer name node{node} netns {name}");
            ip(&format!("-n {space} link add eth0 {there}"));
            ip(&format!("-n {name} link set node{node} master switch up"));
            ip(&format!("-n {space} addr add {address}/24 dev eth0"));
            ip(&format!("-n {space} link set eth0 up"));
        }
        network
    }

    /// The address of a node.
    pub fn node(&self, node: u8) -> IpAddr {
        self.address(node + 1)
    }

    /// The address for Redis.
    pub fn redis(&self) -> IpAddr {
        self.address(REDIS)
    }

    /// The program of a node, to be run in its place.
    pub fn command(&self, node: u8) -> Command {
        let program = command(&[]);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(node)]).arg(program.get_program());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// From now on, nothing from one of two nodes reaches the other.
    pub fn cut(&self, one: u8, other: u8) {
        self.lose(one, self.node(other));
        self.lose(other, self.node(one));
    }

    /// Takes [`Network::cut`] back.
    pub fn mend(&self, one: u8, other: u8) {
        self.find(one, self.node(other));
        self.find(other, self.node(one));
    }

    /// From now on, nothing from a node reaches Redis.
    pub fn cut_from_redis(&self, node: u8) {
        self.lose(node, self.redis());
    }

    /// Takes [`Network::cut_from_redis`] back.
    pub fn mend_to_redis(&self, node: u8) {
        self.find(node, self.redis());
    }

    /// Drops what a node sends there, without an error.
    fn lose(&self, node: u8, there: IpAddr) {
        let space = self.space(node);
        ip(&format!("-n {space} neigh replace {there} lladdr {NOBODY} nud permanent dev eth0"));
    }

    fn find(&self, node: u8, there: IpAddr) {
        ip(&format!("-n {} neigh del {there} dev eth0", self.space(node)));
    }

    fn address(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(10, 213, self.subnet, host).into()
    }

    /// The namespace of a node.
    pub fn space(&self, node: u8) -> String {
        format!("{}-{node}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            let _ = Command::new("ip").args(["netns", "del", &self.space(node)]).output();
        }
        // At once, unlike what goes with its namespace.
        let _ = Command::new("ip").args(["link", "del", &self.name]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output();
    let done = done.unwrap_or_else(|error| {
        panic!("cannot run ip ({error}): install iproute2, or use tests/run, which does")
    });
    assert!(
        done.status.success(),
        "this test needs Linux and the right to make network namespaces, as root has it \
         (in Docker: --privileged): ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
