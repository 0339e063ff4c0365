//! Words for tests of the agent's memory: events in short, effects in short, clients and status.
//! Never asserts but what a test gives it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use firewall_agent::edges::sources::rule_files;
use firewall_core::client::{ClientId, Links, Vif};
use firewall_core::events::{Effect, Event, Installation, Task};
use firewall_core::readings::Readings;
use firewall_core::rules::source::SourceError;
use firewall_core::time::Moment;
use firewall_core::told::status::{ClientStatus, Status};
use firewall_core::world::World;

pub const ACCEPT: &str = "policy = drop\n0000 = action=accept\ncommit\n";
pub const DROP: &str = "policy = drop\ncommit\n";
pub const BROKEN: &str = "policy = drop\n0000 = action=accept";

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A world that has heard from its source, which has no rules yet.
pub fn running() -> World {
    let mut world = World::default();
    assert_eq!(short(&step(&mut world, Event::AllRules(BTreeMap::new()))), [""; 0]);
    world
}

pub fn links(vifs: &[(u32, &str, &[&str])]) -> Event {
    let vif = |(index, name, addresses): &(u32, &str, &[&str])| Vif {
        index: *index,
        name: (*name).to_owned(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
    };
    Event::Links(Links { vifs: vifs.iter().map(vif).collect(), ..Links::default() })
}

pub fn rules(client: &str, text: &str) -> Event {
    let client = address(client);
    let rules = rule_files::ruleset(client, text);
    let origin = "a file".to_owned();
    let rules = rules.map_err(|error| SourceError { origin, error: Box::new(error) });
    Event::Rules { client, rules: Some(rules) }
}

/// Effects in short, without log lines and generations.
pub fn short(effects: &[Effect]) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::ReadLinks => Some("links".to_owned()),
        Effect::SetLocals(locals) => Some(format!("locals {}", locals.len())),
        Effect::Redirect(to) => Some(format!("redirect {}", to.len())),
        Effect::LimitUplinks(to) => Some(format!("uplinks {}", to.clone().unwrap_or_default())),
        Effect::EndWaiting(links) => Some(format!("end what waits but at {links}")),
        Effect::Put { client, installation, .. } => {
            let what = match installation {
                Installation::Waiting => "waiting",
                Installation::Blocked => "blocked",
                Installation::Policy { .. } => "policy",
            };
            Some(format!("{what} {} {}", client.vif, client.address))
        }
        Effect::SetConnected(_) => None,
        // Settling has tests of its own.
        Effect::ReadConnections(_)
        | Effect::NoteOpenings(_)
        | Effect::Disconnect(_)
        | Effect::Settled(_) => None,
        // Every set of rules is handled; a test of its own says so.
        Effect::Handled(_) | Effect::TakenOver(_) => None,
        // What the daemon makes known, and when it rests.
        Effect::Denied(_)
        | Effect::Reloading
        | Effect::Ready
        | Effect::ReloadSource
        | Effect::ResyncSource
        | Effect::Tidy
        | Effect::Prepare => None,
        Effect::LoadGate => Some("gate".to_owned()),
        // Names have tests of their own.
        Effect::Publish { .. }
        | Effect::SetServers(_)
        | Effect::Ask(_)
        | Effect::ReadFlows(_)
        | Effect::Remember(_) => None,
        Effect::AttachUplink { uplink, name } => Some(format!("guard {uplink} {name}")),
        Effect::Audit { client, until } => Some(format!("audit {} {until}", client.address)),
        Effect::Remove(client) => Some(format!("remove {} {}", client.vif, client.address)),
        Effect::Attach { vif, name } => Some(format!("attach {vif} {name}")),
        Effect::Forget { link } => Some(format!("forget {link}")),
        Effect::LeaveToOthers(_) | Effect::LookBetween | Effect::AnswerDenied(_) => None,
        Effect::Tell(_) => None,
    };
    effects.iter().filter_map(line).collect()
}

/// An event, and when it happens: as the machine boots, if nothing else is said.
pub struct When(pub Moment, pub Event);

impl From<Event> for When {
    fn from(event: Event) -> Self {
        Self(Moment::BOOT, event)
    }
}

/// Tells the world.
pub fn step(world: &mut World, event: impl Into<When>) -> Vec<Effect> {
    let When(now, event) = event.into();
    world.step(now, event)
}

/// Everything that the world tells at a time, with counters that counted nothing.
pub fn status_at(world: &World, now: Moment) -> Status {
    world.status(now, &Readings::default(), None)
}

/// All clients, and addresses with rules but no vif.
pub fn clients(world: &World) -> Vec<ClientStatus> {
    status_at(world, Moment::BOOT).clients
}

/// What the kernel's maps do not take.
pub fn refused(client: ClientId, why: &str, may_pass: bool, seconds: u64) -> When {
    let now = Moment::after_boot(Duration::from_secs(seconds));
    When(now, Event::Refused { client, why: why.to_owned(), may_pass })
}

/// Lets all clients settle, as if they had nothing open.
pub fn settle(world: &mut World) {
    step(world, Event::Tried { task: Task::Tidy, outcome: Ok(()) });
    step(world, Event::ConnectionsRead(Ok(())));
    assert_eq!(world.count_settling(), 0);
}

#[track_caller]
pub fn check(world: &mut World, event: impl Into<When>, expected: &[&str]) {
    assert_eq!(short(&step(world, event)), expected);
}

pub fn ruleset(client: &str, text: &str) -> firewall_core::rules::Ruleset {
    rule_files::ruleset(address(client), text).expect("rules")
}
