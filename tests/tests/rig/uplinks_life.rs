//! A tunnel, a list of uplinks and an agent that come and go under traffic: nothing of a client is
//! seen beside the tunnel at any moment.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_core::uplinks::KEY;
use firewall_tests::rig::UPLINK;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::{rounds, seed};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::tunnel::{CANARY, TUNNEL, Tunnel};
use super::world::*;

/// Port of a server that only this traffic is for.
const PORT: u16 = 84;
/// Between two packets of a family.
const PAUSE: Duration = Duration::from_micros(200);
/// Packets that meet each state of things.
const ENOUGH: u64 = 20;

/// What can happen to a tunnel and an agent.
#[derive(Clone, Copy, Debug)]
enum Cycle {
    /// The tunnel goes down, and everything is led by the uplink meanwhile.
    Down,
    /// The tunnel is removed and made anew.
    Removed,
    /// The tunnel has another name for a while, and everything is led by that.
    Renamed,
    /// Everything is led by the uplink for a while.
    Led,
    /// resolv.conf changes, so the gate does, while everything is led by the uplink.
    Resolvers,
    /// dom0 writes another list, while everything is led by the uplink.
    Listed,
    /// dom0 writes something wrong, while everything is led by the uplink.
    Wrong,
    /// The agent is killed, and another one starts, while everything is led by the uplink.
    Killed,
    /// The same, and QubesDB hangs up meanwhile.
    KilledBoth,
    /// Somebody flushes the chain `forward`, while everything is led by the uplink.
    Flushed,
}

use Cycle::*;

const CYCLES: [Cycle; 10] =
    [Down, Removed, Renamed, Led, Resolvers, Listed, Wrong, Killed, KilledBoth, Flushed];

struct Scene {
    tunnel: Tunnel,
    db: FakeQubesDb,
    agent: Option<Agent>,
    servers: Vec<EchoServer>,
    round: u32,
}

impl Scene {
    fn go_round(&mut self, cycle: Cycle, sent: &AtomicU64) -> Result<()> {
        self.round += 1;
        match cycle {
            Down => self.tunnel.set(TUNNEL, "down")?,
            Removed => drop(self.tunnel.netvm().ip(&["link", "delete", TUNNEL])?),
            Renamed => {
                self.tunnel.rename(TUNNEL, "elsewhere")?;
                self.tunnel.lead("elsewhere")?;
                self.let_pass(sent)?;
            }
            Led | Resolvers | Listed | Wrong | Killed | KilledBoth | Flushed => {}
        }
        self.tunnel.lead(UPLINK)?;
        self.let_pass(sent)?;
        match cycle {
            Down => self.tunnel.set(TUNNEL, "up")?,
            Removed => self.tunnel.add()?,
            Renamed => self.tunnel.rename("elsewhere", TUNNEL)?,
            Led => {}
            Resolvers => {
                let resolver = Ipv4Addr::from(0xc000_0200 + self.round % 200 + 10);
                let text = format!("nameserver {resolver}\n");
                fs::write(self.tunnel.world.rig.directory().join("resolv.conf"), text)?;
                let agent = self.agent.as_ref().context("no agent")?;
                let resolvers = [IpAddr::from(resolver)];
                agent.wait_for("resolvers", |it| it.agent.resolvers == resolvers)?;
            }
            Listed => self.list(&format!("wg0 tun{}", self.round), "")?,
            Wrong => self.list(&format!("eth0 / {}", self.round), &format!("/ {}", self.round))?,
            Killed => {
                self.agent.take().context("no agent")?.kill()?;
                self.let_pass(sent)?;
            }
            KilledBoth => {
                self.agent.take().context("no agent")?.kill()?;
                self.db.hang_up();
            }
            Flushed => self.tunnel.netvm().nft("flush chain ip qubes-firewall forward")?,
        }
        if self.agent.is_none() {
            self.agent = Some(Agent::start(&self.tunnel.world.rig, &[])?);
        }
        self.let_pass(sent)?;
        self.tunnel.lead(TUNNEL)?;
        self.settle()
    }

    fn list(&self, value: &str, problem: &str) -> Result<()> {
        self.db.write(KEY, value.as_bytes());
        let agent = self.agent.as_ref().context("no agent")?;
        agent.wait_for(value, |status| {
            let found = status.agent.uplinks_problem.as_deref().unwrap_or_default();
            let last = value.split(' ').next_back().unwrap_or_default();
            let names = status.agent.uplinks.iter().flat_map(|it| &it.links);
            let is_in_force = names.clone().any(|it| it.name == last);
            found.contains(problem) && names.count() > 0 && (is_in_force || !problem.is_empty())
        })
    }

    /// Waits until the client has sent some more.
    fn let_pass(&self, sent: &AtomicU64) -> Result<()> {
        let before = sent.load(Ordering::Relaxed);
        let deadline = std::time::Instant::now() + PATIENCE;
        while sent.load(Ordering::Relaxed) < before + ENOUGH {
            ensure!(std::time::Instant::now() < deadline, "the client does not send");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits until all is in force, and what the client sends arrives through the tunnel.
    fn settle(&mut self) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent")?;
        agent.wait_for_vif(self.tunnel.world.client.vif())?;
        for client in [self.tunnel.world.v4, self.tunnel.world.v6] {
            agent.wait_for_state(client, State::Live)?;
        }
        for server in &self.servers {
            let before = server.received().udp_packets;
            let arrives = server.wait_until(|it| it.udp_packets > before + ENOUGH, PATIENCE);
            ensure!(arrives, "nothing arrives at {}", server.address());
        }
        let strays = self.tunnel.strays()?;
        ensure!(strays.is_empty(), "{} packets left in the clear: {strays:?}", strays.len());
        Ok(())
    }
}

/// Sends without end to both servers, whatever comes back.
fn send(from: &Namespace, done: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    from.run(|| {
        let sockets = [UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?];
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        while !done.load(Ordering::Relaxed) {
            for (socket, server) in sockets.iter().zip([SERVER4, SERVER6]) {
                // What an answer to the one before makes fail was not sent.
                if socket.send_to(CANARY, SocketAddr::new(server, PORT)).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

#[test]
fn nothing_leaves_beside_the_tunnel_while_tunnels_lists_and_agents_come_and_go() -> Result<()> {
    let tunnel = Tunnel::new("uplinkcycles")?;
    let db = tunnel.qubesdb()?;
    db.write(KEY, TUNNEL.as_bytes());
    let servers = [SERVER4, SERVER6].map(|server| SocketAddr::new(server, PORT));
    let servers = servers.map(|at| EchoServer::start(tunnel.world.rig.internet(), at));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let from = tunnel.world.client.namespace().clone();
    let agent = Some(tunnel.world.start()?);
    let mut scene = Scene { tunnel, db, agent, servers, round: 0 };
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut random = StdRng::seed_from_u64(seed());
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| send(&from, &done, &sent));
        let mut all_rounds = || -> Result<()> {
            scene.settle().context("at first")?;
            for round in 0..rounds(20, 1000) {
                // Each at least once, then any.
                let next = CYCLES.get(round).or_else(|| CYCLES.choose(&mut random));
                let cycle = *next.context("no cycle")?;
                scene
                    .go_round(cycle, &sent)
                    .with_context(|| format!("round {round}, {cycle:?}"))?;
            }
            Ok(())
        };
        let outcome = all_rounds();
        done.store(true, Ordering::Relaxed);
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        outcome
    })?;
    println!("{} packets, none beside the tunnel", sent.load(Ordering::Relaxed));
    Ok(())
}
