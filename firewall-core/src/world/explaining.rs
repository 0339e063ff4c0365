//! Which rule decides about a packet, by the function that the kernel runs.
//! Never changes anything.

use std::net::IpAddr;

use firewall_common::abi::{
    Address, Class, Client, ClientKey, Local, SETTLING, STATE_BLOCKED, STATE_POLICY, STATE_WAITING,
    Segment,
};
use firewall_common::packet::{Frame, Packet, Protocol};
use firewall_common::policy::{Tables, decide};
use firewall_common::verdict::Reason;

use super::{Live, Standing, World};
use crate::client::ClientId;
use crate::rules::check::PolicyTables;
use crate::rules::explain::{Trial, tries};
use crate::rules::resolve::{self, ResolvedRuleset, Surroundings};
use crate::rules::{Family, Ruleset};
use crate::told::explanation::{DifferenceStatus, Explanation, Judgement, TriedStatus};
use crate::told::status::Mode;

/// What the world does not know by itself.
#[derive(Clone, Copy)]
pub struct Circumstances {
    /// Whether ARP and neighbour discovery are judged.
    pub guards_neighbours: bool,
    /// Who translates addresses.
    pub mode: Mode,
    /// Whole seconds since the machine booted.
    pub seconds: u64,
}

impl World {
    /// What becomes of a packet that a client sends, for each vif that leads to it; or as if
    /// it had one, if it only has rules. Nothing if it is no client.
    pub fn explain(
        &self,
        client: IpAddr,
        packet: &Packet,
        circumstances: &Circumstances,
    ) -> Vec<Explanation> {
        let live = self.live(client);
        let standings = self.standings().into_iter().filter(|(address, _)| *address == client);
        let explanations = standings.map(|(_, present)| {
            let (state, problem) = self.state(client, present);
            let vif = present.map(|(vif, _)| vif);
            let tables = Known { world: self, circumstances, client, vif, live: tables(live) };
            let decision = decide(&tables, vif.unwrap_or(0), &Ok(Frame::Ip(*packet)));
            let judgement = Judgement::from(&decision);
            let tried = live.filter(|_| is_judged_by_rules(decision.reason)).map(|live| {
                let family = Family::from(client);
                let resolved = resolve::resolve(family, &live.ruleset, &self.surroundings);
                tried(&live.ruleset, &resolved, packet)
            });
            let is_settling = |vif| self.is_settling(ClientId { vif, address: client });
            Explanation {
                client,
                vif: vif.and_then(|vif| self.link_name(vif)).map(str::to_owned),
                vif_index: vif,
                state,
                problem,
                settling: vif.is_some_and(is_settling),
                guards_neighbours: circumstances.guards_neighbours,
                rule: number(live.map(|live| &live.ruleset), &judgement),
                judgement,
                tried: tried.unwrap_or_default(),
                rules: live.map_or(0, |live| live.ruleset.rules.len()),
                default: live.map(|live| live.ruleset.default),
                mode: Some(circumstances.mode),
                to_client: self.connected.contains(&packet.destination.into()),
                redirected_to: redirected(&self.surroundings, packet),
            }
        });
        explanations.collect()
    }
}

fn tables(live: Option<&Live>) -> Option<PolicyTables<'_>> {
    live.map(|live| PolicyTables::new(live.policy.policy()))
}

/// Whether rules had a say.
pub fn is_judged_by_rules(reason: Reason) -> bool {
    matches!(reason, Reason::Rule | Reason::Default)
}

/// The rules that are tried for a packet, in order.
pub fn tried(ruleset: &Ruleset, resolved: &ResolvedRuleset, packet: &Packet) -> Vec<TriedStatus> {
    let trials = tries(ruleset, resolved, packet).into_iter();
    let tried = trials.filter_map(|Trial { rule, differs }| {
        let rule = ruleset.rules.get(rule)?;
        let differs = differs.into_iter().map(|(aspect, why)| DifferenceStatus { aspect, why });
        Some(TriedStatus {
            number: rule.number,
            text: rule.text.clone(),
            differs: differs.collect(),
        })
    });
    tried.collect()
}

/// Key number of the rule that a judgement names.
pub fn number(ruleset: Option<&Ruleset>, judgement: &Judgement) -> Option<u16> {
    let index = usize::try_from(judgement.rule_index?).ok()?;
    Some(ruleset?.rules.get(index)?.number)
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
    circumstances: &'a Circumstances,
    client: IpAddr,
    vif: Option<u32>,
    live: Option<PolicyTables<'a>>,
}

impl Tables for Known<'_> {
    fn client(&self, key: &ClientKey) -> Option<Client> {
        let id = ClientId { vif: key.vif, address: key.address.into() };
        let in_force = self.world.clients.get(&id);
        if in_force.is_none() && (self.vif.is_some() || id.address != self.client) {
            return None;
        }
        let state = match self.world.standings.get(&id.address) {
            _ if in_force.is_some_and(|it| it.refused.is_some()) => STATE_BLOCKED,
            None | Some(Standing::Waiting) => STATE_WAITING,
            Some(Standing::Blocked(_)) => STATE_BLOCKED,
            Some(Standing::Live(_)) => STATE_POLICY,
        };
        let settling = if self.world.is_settling(id) { SETTLING } else { 0 };
        let generation = in_force.map_or(0, |it| it.generation);
        let until =
            self.world.audited_until(id.address).map_or(0, |until| until.since_boot().as_secs());
        let audit_until = u32::try_from(until).unwrap_or(u32::MAX);
        Some(Client { state: state | settling, generation, audit_until, ..Client::default() })
    }

    fn guards_neighbours(&self) -> bool {
        self.circumstances.guards_neighbours
    }

    fn local(&self, address: &Address) -> Option<Local> {
        self.world.locals.get(&IpAddr::from(*address)).copied()
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

    fn seconds(&self) -> u64 {
        self.circumstances.seconds
    }
}
