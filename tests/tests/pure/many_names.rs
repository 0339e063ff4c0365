//! Many names over many clients, at random: no client is ever wider than its rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use firewall_core::events::Event;
use firewall_core::names::answer::Failure;
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::stage::{Stage, address, flow, seconds};

/// A rule of the random test, and what its name means as naively as can be.
#[derive(Clone)]
struct Random {
    accept: bool,
    name: Option<usize>,
    ports: (u16, u16),
}

/// What any answer ever said, and the last one.
#[derive(Clone, Default)]
struct Said {
    ever: BTreeSet<IpAddr>,
    last: Option<BTreeSet<IpAddr>>,
}

/// The widest that rules may be: whatever the agent knows or does not know.
fn may_accept(rules: &[Random], said: &[Said], to: IpAddr, port: u16) -> bool {
    for rule in rules.iter().filter(|rule| (rule.ports.0..=rule.ports.1).contains(&port)) {
        let said = rule.name.map(|name| &said[name]);
        let matches = match (said, rule.accept) {
            (None, _) => true,
            (Some(said), true) => said.ever.contains(&to),
            (Some(said), false) => said.last.as_ref().is_none_or(|last| last.contains(&to)),
        };
        if matches {
            return rule.accept;
        }
    }
    false
}

#[test]
fn five_hundred_names_over_fifty_clients_never_make_a_client_wider_than_its_rules() {
    const NAMES: usize = 500;
    let mut random = StdRng::seed_from_u64(seed());
    let clients: Vec<String> = (1..=50).map(|number| format!("10.137.0.{number}")).collect();
    let all: Vec<&str> = clients.iter().map(String::as_str).collect();
    let mut stage = Stage::new(&all);
    let mut said = vec![Said::default(); NAMES];
    let mut rules: Vec<Vec<Random>> = Vec::new();
    let pool: Vec<IpAddr> = (1..=12).map(|last| IpAddr::from([198, 51, 100, last])).collect();
    let text = |rule: &Random| {
        let action = if rule.accept { "accept" } else { "drop" };
        let name = rule.name.map(|name| format!(" dsthost=n{name}.example")).unwrap_or_default();
        format!("action={action}{name} proto=tcp dstports={}-{}", rule.ports.0, rule.ports.1)
    };
    let some_rules = |random: &mut StdRng, client: usize| {
        let rule = |random: &mut StdRng| {
            let first = random.random_range(1..6);
            Random {
                accept: random.random_bool(0.6),
                // Each has names of its own, and some that others have too.
                name: random.random_bool(0.9).then(|| {
                    let own = client * 10 + random.random_range(0..10);
                    if random.random_bool(0.8) { own } else { random.random_range(0..NAMES) }
                }),
                ports: (first, random.random_range(first..7)),
            }
        };
        (0..12).map(|_| rule(random)).collect::<Vec<_>>()
    };
    for (index, client) in all.iter().enumerate() {
        let own = some_rules(&mut random, index);
        let texts: Vec<String> = own.iter().map(text).collect();
        stage.rules(client, &texts.iter().map(String::as_str).collect::<Vec<_>>());
        rules.push(own);
    }
    let mut accepted = 0;
    let rounds = rounds(1_000, 50_000);
    for _ in 0..rounds {
        let index = random.random_range(0..NAMES);
        let name = format!("n{index}.example");
        match random.random_range(0..20) {
            0 if random.random_bool(0.5) => stage.fail(&name),
            0 => stage.outcome(&name, Err(Failure::NoSuchName)),
            1 => stage.pass(seconds(random.random_range(0..400))),
            2 => {
                let client = all[random.random_range(0..all.len())];
                let used = pool.iter().filter(|_| random.random_bool(0.3));
                let flows = used.map(|to| flow(address(client), *to)).collect();
                stage.step(Event::Flows(flows));
                stage.step(Event::FlowsRead(Ok(())));
            }
            3 => {
                let client = random.random_range(0..all.len());
                rules[client] = some_rules(&mut random, client);
                let texts: Vec<String> = rules[client].iter().map(text).collect();
                stage.rules(all[client], &texts.iter().map(String::as_str).collect::<Vec<_>>());
            }
            _ => {
                let count = random.random_range(0..4);
                let some: Vec<IpAddr> = pool.choose_multiple(&mut random, count).copied().collect();
                let texts: Vec<String> = some.iter().map(IpAddr::to_string).collect();
                let is_wanted = stage.names().iter().any(|it| it.name == name);
                stage.answer(&name, &texts.iter().map(String::as_str).collect::<Vec<_>>(), 60);
                if is_wanted {
                    said[index].ever.extend(&some);
                    said[index].last = Some(some.into_iter().collect());
                }
            }
        }
        // What nobody wants is forgotten, and begins anew.
        let wanted: BTreeSet<String> = stage.names().into_iter().map(|it| it.name).collect();
        for (index, said) in said.iter_mut().enumerate() {
            if !wanted.contains(&format!("n{index}.example")) {
                *said = Said::default();
            }
        }
        for _ in 0..20 {
            let client = random.random_range(0..all.len());
            let id = *stage.in_force.keys().nth(client).expect("a client");
            let index = all.iter().position(|it| address(it) == id.address).expect("its rules");
            let (to, port) = (*pool.choose(&mut random).expect("one"), random.random_range(0..8));
            if stage.accepts(id, to, port) {
                accepted += 1;
                let allowed = may_accept(&rules[index], &said, to, port);
                assert!(allowed, "{id:?} to {to} port {port}");
            }
        }
    }
    assert!(accepted > rounds / 3, "only {accepted} were accepted: nothing was tried");
}
