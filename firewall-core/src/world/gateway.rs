//! A Whonix gateway: what its qubes may do with Tor's services without a rule, who says so, and
//! whether its rules are in force there at all.
//! Never judges a packet, and never knows Tor's ports.

use super::World;
use crate::events::{Effect, Notice};
use crate::told::gateway::GatewayStatus;
use crate::told::status::Mode;
use crate::tor::{Access, Each, Keys, Service};

/// What is known of a Whonix gateway; elsewhere nothing of it counts.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    /// Whether this machine is one.
    is_marked: bool,
    /// What the command line says.
    given: Each<Option<Access>>,
    of_keys: Each<Option<Access>>,
    /// What is wrong with the keys.
    problems: Vec<String>,
}

impl Gateway {
    pub(super) fn new(is_marked: bool, given: Each<Option<Access>>) -> Self {
        Self { is_marked, given, ..Self::default() }
    }

    /// What is in force: whoever denies wins, and what nobody says is denied.
    pub(super) fn in_force(&self) -> Each<Access> {
        let of = |service| Access::both(*self.given.of(service), *self.of_keys.of(service));
        Each { socks: of(Service::Socks), control: of(Service::Control) }
    }

    /// Takes in what keys say; what is wrong in one denies. Returns what is wrong, if that is
    /// something else than before.
    fn read(&mut self, keys: &Keys) -> Option<Vec<String>> {
        let of = |service| keys.of(service).as_ref().copied().unwrap_or(Some(Access::Deny));
        self.of_keys = Each { socks: of(Service::Socks), control: of(Service::Control) };
        let problems = Service::ALL.into_iter().filter_map(|service| {
            let wrong = keys.of(service).as_ref().err()?;
            Some(format!("{}: {wrong}; it counts as `deny`", service.key()))
        });
        let problems: Vec<String> = problems.collect();
        let is_other = problems != self.problems;
        self.problems = problems;
        is_other.then(|| self.problems.clone())
    }
}

impl World {
    /// Whether rules judge all that clients send: this is a Whonix gateway.
    pub(super) fn judges_all(&self) -> bool {
        match self.gate.mode() {
            Mode::Whonix => true,
            Mode::Qubes | Mode::Standalone => false,
        }
    }

    /// Takes in what the gateway's own keys say of Tor's services.
    pub(super) fn tor_services(&mut self, keys: &Keys) -> Vec<Effect> {
        if !self.judges_all() {
            return Vec::new();
        }
        let problems = self.gateway.read(keys).map(Notice::TorProblems).map(Effect::Tell);
        let in_force = self.gateway.in_force();
        let is_other = self.standings.surroundings().gateway.as_ref() != Some(&in_force);
        let told = is_other.then(|| Effect::Tell(Notice::TorServices(in_force.clone())));
        let changes = self.standings.set_gateway(in_force);
        let told: Vec<Effect> = problems.into_iter().chain(told).collect();
        told.into_iter().chain(self.follow_changes(changes)).collect()
    }

    /// What is told of a Whonix gateway; `None` if this is none, and is not taken for one.
    pub(super) fn gateway_status(&self) -> Option<GatewayStatus> {
        let enforced = self.judges_all();
        (enforced || self.gateway.is_marked).then(|| GatewayStatus {
            enforced,
            services: self.gateway.in_force(),
            problems: self.gateway.problems.clone(),
            silent: self.gate.silence().map(str::to_owned),
        })
    }
}
