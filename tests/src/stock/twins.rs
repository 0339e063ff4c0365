//! Two netvms alike in everything but the firewall, ours and today's; the same frames for
//! both, and what became of each.
//! Never judges a difference.
//!
//! Frames go in behind the client's interface, many at once, and a ping of the gateway
//! after them: on one processor the kernel handles them in order, so its answer says that
//! all of them are through. Nothing answers on the internet's side, and nothing is
//! established.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::oracle::{Probe, Ruleset};
use crate::packets::VIF;
use crate::packets::family::{Family, PerFamily as _};
use crate::rig::agent::{Agent, PATIENCE, write_rules};
use crate::rig::{
    CLIENT_INTERFACE, Client, ClientSpec, GATEWAY_V4, GATEWAY_V6, INTERNET_V4, INTERNET_V6, Rig,
    UPLINK, UPLINK_V4, UPLINK_V6,
};
use crate::stock::shots::{Places, Shape, Shot};
use crate::stock::sightings::{Event, Outcome, arriving, leaving};
use crate::stock::{Netvm, VIF_GROUP, VIRTUAL_RESOLVERS};
use crate::traffic::frames::{Capture, Sender, capture};

/// Token of the ping at the end; those of probes are below it.
const LAST: u16 = u16::MAX;
const FIRST_TOKEN: u16 = 1024;

/// Networks that the netvm has no route to.
const UNROUTABLE: [&str; 2] = ["203.0.113.0/24", "2001:db8:dead::/48"];
/// Networks behind a narrow path, with its MTU.
const NARROW: [(&str, &str); 2] = [("8.8.8.0/24", "1000"), ("fd09:24ef::/112", "1280")];
/// The link-local address of the uplink, which could be seen and would be random.
const UPLINK_LINK_LOCAL: &str = "fe80::2/64";
const INTERNET_MAC: &str = "02:00:00:00:00:01";

/// Both netvms.
pub struct Twins {
    agent: Agent,
    ours: Side,
    stock: Side,
    netvm: Netvm,
    in_force: BTreeMap<IpAddr, Ruleset>,
    token: u16,
}

impl Twins {
    /// With these lines in `resolv.conf`. The calling thread stays on one processor.
    pub fn new(label: &str, resolvers: &[IpAddr]) -> Result<Self> {
        stay_on_one_processor()?;
        let (us, other) = (ClientSpec::numbered(12), ClientSpec::numbered(13));
        let vif = |spec: &ClientSpec| (format!("vif{}.0", spec.number), spec.addresses());
        let netvm = Netvm {
            vifs: vec![vif(&us), vif(&other)],
            absent: ClientSpec::numbered(14).addresses(),
            resolvers: resolvers.to_vec(),
        };
        let ours = Side::new(&format!("{label}_ours"), &netvm)?;
        let stock = Side::new(&format!("{label}_stock"), &netvm)?;
        let lines = resolvers.iter().map(|it| format!("nameserver {it}\n"));
        fs::write(ours.rig.directory().join("resolv.conf"), lines.collect::<String>())?;
        for absent in &netvm.absent {
            // What dom0 writes for a client that does not run.
            write_rules(ours.rig.directory(), *absent, "policy = drop\ncommit\n")?;
        }
        let agent = Agent::start(&ours.rig, &["--mode", "qubes", "--local-rate", "1000000"])?;
        agent.wait_for_vif(ours.client.vif())?;
        stock.rig.netvm().nft(&netvm.stock())?;
        let mut twins =
            Self { agent, ours, stock, netvm, in_force: BTreeMap::new(), token: FIRST_TOKEN };
        twins.warm_up()?;
        Ok(twins)
    }

    /// What today's rules depend on.
    pub fn netvm(&self) -> &Netvm {
        &self.netvm
    }

    /// Address of the client that probes.
    pub fn client(&self, family: Family) -> Result<IpAddr> {
        own(&self.ours.client, family)
    }

    /// Where probes may come from and go to.
    pub fn places(&self, family: Family) -> Result<Places> {
        let own = self.client(family)?;
        let mut foreign: Vec<IpAddr> = vec![
            UPLINK_V4.into(),
            UPLINK_V6.into(),
            GATEWAY_V4.into(),
            GATEWAY_V6.into(),
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 168, 1, 1).into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 12).into(),
        ];
        foreign.extend(self.netvm.vifs.iter().flat_map(|(_, addresses)| addresses));
        foreign.extend(&self.netvm.absent);
        let mut special = foreign.clone();
        let more = ["203.0.113.9", "8.8.8.8", "224.0.0.251", "255.255.255.255", "192.0.2.255"];
        special.extend(more.iter().filter_map(|it| it.parse::<IpAddr>().ok()));
        let more = ["2001:db8:dead::9", "fd09:24ef::2", "ff02::fb", "ff0e::1", "::ffff:192.0.2.9"];
        special.extend(more.iter().filter_map(|it| it.parse::<IpAddr>().ok()));
        special.extend([IpAddr::from(INTERNET_V4), IpAddr::from(INTERNET_V6)]);
        let mut resolvers = self.netvm.resolvers.clone();
        resolvers.extend(VIRTUAL_RESOLVERS.map(IpAddr::from));
        foreign.retain(|it| *it != own);
        for list in [&mut foreign, &mut special, &mut resolvers] {
            list.retain(|it| Family::from(*it) == family);
        }
        Ok(Places { own, foreign, resolvers, special })
    }

    /// Puts a client's rules in force on both sides.
    pub fn put(&mut self, client: IpAddr, ruleset: &Ruleset) -> Result<()> {
        // The agent would see no change and show no new generation.
        if self.in_force.get(&client) == Some(ruleset) {
            return Ok(());
        }
        let text = self.netvm.rules(client, ruleset);
        self.stock.rig.netvm().nft(&text)?;
        self.agent.put(client, ruleset)?;
        self.in_force.insert(client, ruleset.clone());
        Ok(())
    }

    /// Sends the same probes on both sides: what happened here, and what happens today.
    pub fn send(&mut self, shots: &[Shot]) -> Result<Vec<(Outcome, Outcome)>> {
        let tokens: Vec<u16> = shots.iter().map(|_| self.next_token()).collect();
        let ours = self.ours.send(shots, &tokens).context("our side")?;
        let stock = self.stock.send(shots, &tokens).context("the stock side")?;
        Ok(ours.into_iter().zip(stock).collect())
    }

    fn next_token(&mut self) -> u16 {
        let token = self.token;
        self.token = if token + 1 == LAST { FIRST_TOKEN } else { token + 1 };
        token
    }

    /// The first packets of a kernel may wait for other things than the firewall.
    fn warm_up(&mut self) -> Result<()> {
        for family in Family::BOTH {
            let shot = ping_of_the_gateway(self.client(family)?);
            self.send(&[shot])?;
        }
        Ok(())
    }
}

/// One netvm with its surroundings.
struct Side {
    client: Client,
    sender: Sender,
    at_client: Capture,
    at_uplink: Capture,
    at_other: Capture,
    // Behind the captures, so that it goes last.
    rig: Rig,
}

impl Side {
    fn new(label: &str, netvm: &Netvm) -> Result<Self> {
        let rig = Rig::new(label)?;
        let clients: Vec<Client> = [12, 13]
            .into_iter()
            .map(|number| rig.add_client(&ClientSpec::numbered(number)))
            .collect::<Result<_>>()?;
        let [client, other] = <[Client; 2]>::try_from(clients).ok().context("two clients")?;
        let inside = rig.netvm();
        for vif in [client.vif(), other.vif()] {
            inside.ip(&["link", "set", vif, "group", VIF_GROUP])?;
            // Or the kernel would drop source routes by itself.
            inside.sysctl(&format!("net/ipv4/conf/{vif}/accept_source_route"), "1")?;
        }
        inside.sysctl("net/ipv4/conf/all/accept_source_route", "1")?;
        inside.ip(&["-6", "address", "flush", "dev", UPLINK, "scope", "link"])?;
        inside.ip(&["address", "add", UPLINK_LINK_LOCAL, "dev", UPLINK, "nodad"])?;
        rig.internet().ip(&["link", "set", "eth0", "address", INTERNET_MAC])?;
        let internet = [INTERNET_V4.to_string(), INTERNET_V6.to_string()];
        for (index, internet) in internet.iter().enumerate() {
            inside.ip(&[
                "neighbour",
                "replace",
                internet,
                "lladdr",
                INTERNET_MAC,
                "dev",
                UPLINK,
                "nud",
                "permanent",
            ])?;
            inside.ip(&["route", "add", "unreachable", UNROUTABLE[index]])?;
            let (network, mtu) = NARROW[index];
            inside.ip(&[
                "route", "add", network, "via", internet, "dev", UPLINK, "mtu", "lock", mtu,
            ])?;
        }
        inside.nft(&netvm.base())?;
        let silence = "table inet silence {
            chain quiet {
                type filter hook prerouting priority -500; policy drop;
            }
        }";
        rig.internet().nft(silence)?;
        Ok(Self {
            sender: Sender::open(client.namespace(), CLIENT_INTERFACE)?,
            at_client: capture(client.namespace(), CLIENT_INTERFACE)?,
            at_uplink: capture(inside, UPLINK)?,
            at_other: capture(inside, other.vif())?,
            client,
            rig,
        })
    }

    fn send(&mut self, shots: &[Shot], tokens: &[u16]) -> Result<Vec<Outcome>> {
        let Some(first) = shots.first() else { return Ok(Vec::new()) };
        for (shot, token) in shots.iter().zip(tokens) {
            for frame in shot.frames(*token) {
                self.sender.send(&frame)?;
            }
        }
        let own = own(&self.client, first.sight.destination.into())?;
        for frame in ping_of_the_gateway(own).frames(LAST) {
            self.sender.send(&frame)?;
        }
        let is_last = |frame: &[u8]| arrived(frame, own) == Some((LAST, Event::Answered));
        let at_client = frames(&mut self.at_client, PATIENCE, is_last)?;
        let at_uplink = frames(&mut self.at_uplink, Duration::ZERO, |_| false)?;
        let at_other = frames(&mut self.at_other, Duration::ZERO, |_| false)?;
        let events = at_client.iter().filter_map(|frame| arrived(frame, own));
        let events = events.chain(at_uplink.iter().filter_map(|frame| leaving(frame)));
        let delivered = at_other.iter().filter_map(|frame| leaving(frame));
        let delivered = delivered.map(|(token, _)| (token, Event::Delivered));
        let mut seen: BTreeMap<u16, Outcome> = BTreeMap::new();
        for (token, event) in events.chain(delivered) {
            seen.entry(token).or_default().0.insert(event);
        }
        ensure!(seen.contains_key(&LAST), "the ping at the end was not answered");
        Ok(tokens.iter().map(|token| seen.remove(token).unwrap_or_default()).collect())
    }
}

/// The frames up to one, or those that are there already.
fn frames(
    capture: &mut Capture,
    timeout: Duration,
    is_last: impl Fn(&[u8]) -> bool,
) -> Result<Vec<Vec<u8>>> {
    let frames = RefCell::new(Vec::new());
    let fits = |frame: &[u8]| {
        frames.borrow_mut().push(frame.to_vec());
        is_last(frame)
    };
    capture.wait_for(fits, timeout)?;
    Ok(frames.into_inner())
}

fn ping_of_the_gateway(own: IpAddr) -> Shot {
    let family = Family::from(own);
    let destination = family.of([GATEWAY_V4.into(), GATEWAY_V6.into()]);
    let sight = Probe { destination, protocol: family.icmp(), port: family.echo().into() };
    Shot { source: own, sight, shape: Shape::Plain }
}

fn own(client: &Client, family: Family) -> Result<IpAddr> {
    client.spec().address(family).context("the client lacks an address")
}

/// A frame that the netvm sent to the client.
fn arrived(frame: &[u8], own: IpAddr) -> Option<(u16, Event)> {
    (frame.get(6..12)? == VIF).then(|| arriving(frame, own))?
}

fn stay_on_one_processor() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut wanted = (0..CpuSet::count()).filter(|it| allowed.is_set(*it).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(wanted.next_back().context("no processor")?)?;
    Ok(sched_setaffinity(this, &one)?)
}
