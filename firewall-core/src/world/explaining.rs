//! Which rule decides about a packet, by the function that the kernel runs.
//! Never changes anything.

use std::net::IpAddr;

use firewall_common::abi::{
    Address, Class, Client, ClientKey, Local, SETTLING, STATE_BLOCKED, STATE_POLICY, STATE_WAITING,
    Segment,
};
use firewall_common::packet::{Frame, Packet, Protocol};
use firewall_common::policy::{Tables, judge};

use super::World;
use super::standings::{Live, Standing};
use crate::client::ClientId;
use crate::rules::check::PolicyTables;
use crate::rules::resolve::Surroundings;
use crate::time::Moment;
use crate::told::explanation::{Explanation, Judgement};
use crate::told::gateway::PacketInGateway;
use crate::told::status::UplinksStatus;
use crate::told::tried::{is_judged_by_rules, number, tried};
use crate::tor::Fate;

impl World {
    /// What becomes of a packet that a client sends, for each vif that leads to the client; or as
    /// if one did, if the client only has rules. Empty if there is no client with this address.
    pub fn explain(&self, now: Moment, client: IpAddr, packet: &Packet) -> Vec<Explanation> {
        let live = self.standings.live(client);
        let presences = self.presences().into_iter().filter(|it| it.address == client);
        let explanations = presences.map(|presence| {
            let (state, problem) = self.state(presence);
            let vif = presence.vif;
            let tables = Known { world: self, now, client, vif, live: tables(live) };
            let decision = judge(&tables, vif.unwrap_or(0), &Ok(Frame::Ip(*packet)));
            let judgement = Judgement::from(&decision);
            let tried = live.filter(|_| is_judged_by_rules(decision.reason)).map(|live| {
                let resolved = self.standings.resolve(client, &live.ruleset);
                tried(&live.ruleset, &resolved, packet)
            });
            Explanation {
                client,
                vif: vif.and_then(|vif| self.links.name(vif)).map(str::to_owned),
                vif_index: vif,
                state,
                problem,
                settling: presence.client().is_some_and(|it| self.is_settling(it)),
                guards_neighbours: self.guards_neighbours,
                rule: number(live.map(|live| &live.ruleset), &judgement),
                judgement,
                tried: tried.unwrap_or_default(),
                rules: live.map_or(0, |live| live.ruleset.rules.len()),
                default: live.map(|live| live.ruleset.default),
                mode: Some(self.gate.mode()),
                added_rules: self.gate.added().len(),
                lost: self.passage.lost().cloned(),
                // Nothing is forwarded in a Whonix gateway, also not to a client.
                to_client: !self.judges_all() && self.connected.contains(packet.destination.into()),
                uplinks: self.uplinks_status().map(UplinksStatus::names),
                redirected_to: redirected(self.standings.surroundings(), packet),
                gateway: self.judges_all().then(|| self.in_gateway(packet)),
            }
        });
        explanations.collect()
    }
}

impl World {
    /// What becomes of a packet in a Whonix gateway.
    fn in_gateway(&self, packet: &Packet) -> PacketInGateway {
        let is_own = self.links.local(packet.destination.into()) == Some(Local::One);
        let silent = !self.is_answered(packet.destination);
        PacketInGateway { fate: Fate::of(packet, is_own), silent }
    }
}

fn tables(live: Option<&Live>) -> Option<PolicyTables<'_>> {
    live.map(|live| PolicyTables::new(live.policy.policy()))
}

/// Where DNS for a virtual resolver is sent.
fn redirected(surroundings: &Surroundings, packet: &Packet) -> Option<IpAddr> {
    let is_dns = matches!(packet.protocol, Protocol::Tcp | Protocol::Udp) && packet.port == 53;
    let to = IpAddr::from(packet.destination);
    let mut redirections = surroundings.redirections().into_iter();
    let found = redirections.find(|(virtual_resolver, _)| is_dns && to == *virtual_resolver);
    found.map(|(_, real)| real.into())
}

/// The world as the evaluator sees it, for one client.
struct Known<'a> {
    world: &'a World,
    now: Moment,
    client: IpAddr,
    vif: Option<u32>,
    live: Option<PolicyTables<'a>>,
}

impl Tables for Known<'_> {
    fn client(&self, key: &ClientKey) -> Option<Client> {
        let id = ClientId { vif: key.vif, address: key.address.into() };
        let installed = self.world.clients.installed();
        if !installed.is_present(id) && (self.vif.is_some() || id.address != self.client) {
            return None;
        }
        let state = match self.world.standings.of(id.address) {
            _ if installed.refusal(id).is_some() => STATE_BLOCKED,
            Standing::Waiting => STATE_WAITING,
            Standing::Blocked(_) => STATE_BLOCKED,
            Standing::Live(_) => STATE_POLICY,
        };
        let settling = if self.world.is_settling(id) { SETTLING } else { 0 };
        let generation = installed.generation(id).unwrap_or(0);
        let audit_until = self.world.clients.audits().seconds(id.address);
        Some(Client { state: state | settling, generation, audit_until, ..Client::default() })
    }

    fn guards_neighbours(&self) -> bool {
        self.world.guards_neighbours
    }

    fn local(&self, address: &Address) -> Option<Local> {
        self.world.links.local(IpAddr::from(*address))
    }

    fn class_of(&self, policy: u32, address: &Address) -> Option<u32> {
        self.live.as_ref()?.class_of(policy, address)
    }

    fn class(&self, index: u32) -> Option<Class> {
        self.live.as_ref()?.class(index)
    }

    fn segment(&self, index: u32) -> Option<Segment> {
        self.live.as_ref()?.segment(index)
    }

    fn asks_others(&self) -> bool {
        self.world.gate.asks_others()
    }

    fn judges_all(&self) -> bool {
        self.world.judges_all()
    }

    fn seconds(&self) -> u64 {
        self.now.since_boot().as_secs()
    }
}
