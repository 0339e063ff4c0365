//! A world with names in its rules, and what its kernel would have in force.
//! Never asserts but what a test gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use firewall_agent::edges::sources::rule_files;
use firewall_common::packet::{self, Packet};
use firewall_common::policy::decide;
use firewall_common::verdict::Verdict;
use firewall_core::client::{ClientId, Links, Vif};
use firewall_core::connection::Flow;
use firewall_core::events::{Effect, Event, Installation, Notice, Task};
use firewall_core::names::answer::{Answer, Failure, Outcome};
use firewall_core::readings::Readings;
use firewall_core::rules::check::PolicyTables;
use firewall_core::rules::question::Question;
use firewall_core::rules::source::SourceError;
use firewall_core::rules::{Family, Ruleset};
use firewall_core::time::Moment;
use firewall_core::told::status::NameStatus;
use firewall_core::world::World;
use firewall_tests::packets;

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A connection.
pub fn flow(from: IpAddr, to: IpAddr) -> Flow {
    let packet = Packet::of_addresses(from.into(), to.into());
    Flow { packet, answer: None, family: 2, name: Vec::new() }
}

fn parsed(client: &str, rules: &[&str]) -> (IpAddr, Result<Ruleset, SourceError>) {
    let numbered = rules.iter().enumerate();
    let lines = numbered.map(|(number, rule)| format!("{number:04} = {rule}\n"));
    let text = format!("policy = drop\n{}commit\n", lines.collect::<String>());
    let client = address(client);
    (client, Ok(rule_files::ruleset(client, &text).expect("rules")))
}

/// A world, and what its kernel would have in force.
pub struct Stage {
    pub world: World,
    pub in_force: BTreeMap<ClientId, Installation>,
    asked: Vec<String>,
    pub published: BTreeMap<IpAddr, BTreeMap<String, BTreeSet<IpAddr>>>,
    pub reads_flows: bool,
    /// What stands in the log about names.
    pub told: Vec<String>,
    /// Servers that were set, each time.
    pub servers: Vec<Vec<SocketAddr>>,
    /// Clients whose rules count as handled, each time.
    pub handled: Vec<IpAddr>,
    pub now: Moment,
}

impl Stage {
    pub fn new(clients: &[&str]) -> Self {
        let mut stage = Self::before_rules(clients);
        stage.step(Event::AllRules(BTreeMap::new()));
        stage
    }

    /// A world that has not heard from its source.
    pub fn before_rules(clients: &[&str]) -> Self {
        let mut stage = Self {
            world: World::default(),
            in_force: BTreeMap::new(),
            asked: Vec::new(),
            published: BTreeMap::new(),
            reads_flows: false,
            told: Vec::new(),
            servers: Vec::new(),
            handled: Vec::new(),
            now: Moment::after_boot(seconds(100_000)),
        };
        stage.links(clients);
        stage
    }

    /// Exactly these clients are there.
    pub fn links(&mut self, clients: &[&str]) {
        let vifs = (7..).zip(clients).map(|(index, client)| Vif {
            index,
            name: format!("vif{index}.0"),
            addresses: [address(client)].into(),
        });
        self.step(Event::Links(Links { vifs: vifs.collect(), ..Links::default() }));
    }

    /// Lets all clients settle, as if they had nothing open.
    pub fn settle(&mut self) {
        self.step(Event::Tried { task: Task::Tidy, outcome: Ok(()) });
        self.step(Event::ConnectionsRead(Ok(())));
        assert_eq!(self.world.count_settling(), 0);
    }

    pub fn step(&mut self, event: Event) {
        let effects = self.world.step(self.now, event);
        let effects = effects.into_iter().chain(self.world.step(self.now, Event::Time));
        for effect in effects.collect::<Vec<_>>() {
            match effect {
                Effect::Put { client, installation, .. } => {
                    self.in_force.insert(client, installation);
                }
                Effect::Remove(client) => drop(self.in_force.remove(&client)),
                Effect::Ask(Question { name, family }) => {
                    self.asked.push(format!("{name} {family}"));
                }
                Effect::Publish { client, names } => drop(self.published.insert(client, names)),
                Effect::ReadFlows(_) => self.reads_flows = true,
                Effect::Handled(client) => self.handled.push(client),
                Effect::Tell(Notice::Unanswered { names, .. }) => {
                    let names: Vec<&str> = names.iter().map(|it| it.name.as_str()).collect();
                    self.told.push(format!("no answer yet: {}", names.join(" ")));
                }
                Effect::SetServers(servers) => self.servers.push(servers),
                Effect::Tell(Notice::Name { question, added, gone }) => {
                    self.told.push(format!("{}: +{added:?} -{gone:?}", question.name));
                }
                Effect::Tell(Notice::NameProblem { question, why }) => {
                    let why = why.unwrap_or_else(|| "well".to_owned());
                    self.told.push(format!("{}: {why}", question.name));
                }
                _ => {}
            }
        }
    }

    pub fn rules(&mut self, client: &str, rules: &[&str]) {
        let (client, rules) = parsed(client, rules);
        self.step(Event::Rules { client, rules: Some(rules) });
    }

    /// All rules are read again.
    pub fn all_rules(&mut self, rules: &[(&str, &[&str])]) {
        let rules = rules.iter().map(|(client, rules)| parsed(client, rules));
        self.step(Event::AllRules(rules.collect()));
    }

    pub fn answer(&mut self, name: &str, addresses: &[&str], ttl: u64) {
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(|it| address(it)).collect();
        self.outcome(name, Ok(Answer { addresses, ttl: seconds(ttl) }));
    }

    pub fn fail(&mut self, name: &str) {
        self.outcome(name, Err(Failure::NoAnswer("no answer".to_owned())));
    }

    pub fn outcome(&mut self, name: &str, outcome: Outcome) {
        let question = Question { name: name.to_owned(), family: Family::V4 };
        self.step(Event::Answered(vec![(question, outcome)]));
    }

    /// What the kernel says is open, by a client.
    pub fn in_use(&mut self, client: &str, destinations: &[&str]) {
        let flow = |it: &&str| flow(address(client), address(it));
        self.step(Event::Flows(destinations.iter().map(flow).collect()));
        self.step(Event::FlowsRead(Ok(())));
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.step(Event::Time);
    }

    /// All names that matter.
    pub fn names(&self) -> Vec<NameStatus> {
        self.world.status(self.now, &Readings::default(), None).names
    }

    pub fn take_asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }

    /// Whether a client may send to a TCP port.
    pub fn accepts(&self, client: ClientId, to: IpAddr, port: u16) -> bool {
        let Some(Installation::Policy { policy, .. }) = self.in_force.get(&client) else {
            return false;
        };
        let frame = packets::plain(client.address, to, packets::TCP, port);
        let tables = PolicyTables::new(policy.policy());
        decide(&tables, 1, &packet::parse(frame.as_slice())).verdict == Verdict::Accept
    }

    #[track_caller]
    pub fn check(&self, client: &str, expected: &[(&str, u16, bool)]) {
        for (to, port, expected) in expected {
            let id = self.in_force.keys().find(|it| it.address == address(client));
            let found = self.accepts(*id.expect("a client"), address(to), *port);
            assert_eq!(found, *expected, "{client} to {to} port {port}");
        }
    }
}
