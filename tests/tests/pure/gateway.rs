//! A Whonix gateway: what rules mean there, what of Tor needs no rule, and what Tor gets.

use std::net::IpAddr;

use firewall_agent::edges::sources::rule_files;
use firewall_common::abi::Local;
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::client::{Links, Vif};
use firewall_core::events::{Effect, Event, GateLook, Notice, Why};
use firewall_core::rules::check::{self, PolicyTables};
use firewall_core::rules::lint::lint_in_gateway;
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, IMPLIED, compile};
use firewall_core::time::Moment;
use firewall_core::told::explanation::{Outcome, PacketStatus};
use firewall_core::told::status::Mode;
use firewall_core::told::totals::problems;
use firewall_core::tor::{self, Access, Each, Fate, Keys, Service};
use firewall_core::world::{Settings, World};

use super::memory::{rules, status_at, step};
use super::stage::address;

const CLIENT: &str = "10.137.0.12";
const CLIENT6: &str = "fd09:24ef:4179::a89:c";
const GATEWAY: &str = "10.137.0.9";
const GATEWAY6: &str = "fd09:24ef:4179::a89:9";
const TCP: u8 = 6;
const UDP: u8 = 17;

fn access(socks: Access, control: Access) -> Each<Access> {
    Each { socks, control }
}

/// Whether rules accept a packet, with what a gateway does with services of Tor.
fn accepts(text: &str, services: &Each<Access>, to: &str, protocol: u8, port: u16) -> bool {
    let to = address(to);
    let client = address(if to.is_ipv4() { CLIENT } else { CLIENT6 });
    let known = Surroundings { gateway: Some(services.clone()), ..Surroundings::default() };
    let ruleset = rule_files::ruleset(client, text).expect("rules").in_gateway(services);
    let resolved = resolve::resolve(Family::from(client), &ruleset, &known);
    let policy = compile::compile(&resolved).expect("a policy");
    let policy = check::prove(&resolved, policy).expect("a proof");
    let packet = PacketStatus::plain(client, to, protocol, port).packet();
    let answer = firewall_common::policy::answer(&PolicyTables::new(policy.policy()), 0, &packet);
    answer.expect("an answer").action == firewall_common::abi::ACTION_ACCEPT
}

fn file(default: &str, rules: &[&str]) -> String {
    let lines = rules.iter().enumerate().map(|(number, rule)| format!("{number:04} = {rule}\n"));
    format!("policy = {default}\n{}commit\n", lines.collect::<String>())
}

#[test]
fn in_a_gateway_dns_is_port_53_of_whatever_address() {
    let denied = Each::default();
    let accept = file("drop", &["action=accept specialtarget=dns"]);
    let drop = file("accept", &["action=drop specialtarget=dns"]);
    for to in ["8.8.8.8", "10.139.1.1", GATEWAY, "224.0.0.251", "2001:db8::8", GATEWAY6] {
        for protocol in [TCP, UDP] {
            assert!(accepts(&accept, &denied, to, protocol, 53), "{to} {protocol}");
            assert!(!accepts(&drop, &denied, to, protocol, 53), "{to} {protocol}");
            assert!(!accepts(&accept, &denied, to, protocol, 54), "{to} {protocol}");
            assert!(accepts(&drop, &denied, to, protocol, 54), "{to} {protocol}");
        }
        // The gateway takes questions at its own port as well: dropping DNS drops these.
        assert!(!accepts(&drop, &denied, to, UDP, tor::DNS_PORT), "{to}");
        assert!(!accepts(&accept, &denied, to, UDP, tor::DNS_PORT), "{to}");
    }
    let near = file("drop", &["action=accept dst4=9.9.9.9/32 specialtarget=dns"]);
    assert!(accepts(&near, &denied, "9.9.9.9", UDP, 53));
    assert!(!accepts(&near, &denied, "10.139.1.1", UDP, 53));
    // Who drops the LAN does not drop DNS to Qubes' resolver there, as elsewhere.
    let lan = file("accept", &["action=drop dst4=10.0.0.0/8"]);
    assert!(accepts(&lan, &denied, "10.139.1.1", UDP, 53));
    assert!(!accepts(&lan, &denied, GATEWAY, UDP, 53));
    assert!(!accepts(&lan, &denied, "10.139.1.1", UDP, 54));
}

/// A port of each service, and of neither, at addresses of gateways and elsewhere.
const PORTS: [(u16, Option<Service>); 22] = [
    (9049, None),
    (9050, Some(Service::Socks)),
    (9051, Some(Service::Control)),
    (9052, None),
    (9099, None),
    (9100, Some(Service::Socks)),
    (9111, Some(Service::Socks)),
    (9112, None),
    (9113, None),
    (9114, Some(Service::Socks)),
    (9115, Some(Service::Socks)),
    (9116, None),
    (9117, Some(Service::Socks)),
    (9118, Some(Service::Socks)),
    (9121, None),
    (9122, Some(Service::Socks)),
    (9126, None),
    (9150, Some(Service::Socks)),
    (9151, None),
    (9152, Some(Service::Socks)),
    (9229, Some(Service::Socks)),
    (9230, None),
];
const GATEWAYS: [&str; 7] = [
    "10.137.0.0",
    "10.137.255.255",
    "10.138.7.9",
    "10.152.152.10",
    "fd09:24ef:4179::a89:9",
    "fd09:24ef:4179::a8a:ffff",
    "fd19:c33d:88bc::10",
];
const ELSEWHERE: [&str; 7] = [
    "10.136.255.255",
    "10.139.0.0",
    "10.152.152.11",
    "8.8.8.8",
    "fd09:24ef:4179::a8b:1",
    "fd19:c33d:88bc::11",
    "2001:db8::8",
];

#[test]
fn tors_services_need_a_rule_unless_the_gateway_allows_them() {
    use Access::{Allow, Deny};
    for (socks, control) in [(Deny, Deny), (Allow, Deny), (Deny, Allow), (Allow, Allow)] {
        let services = access(socks, control);
        for (port, service) in PORTS {
            for to in GATEWAYS {
                let allowed = service.is_some_and(|service| *services.of(service) == Allow);
                let accepted = accepts(&file("drop", &[]), &services, to, TCP, port);
                assert_eq!(accepted, allowed, "{services:?} {to} {port}");
                assert!(!accepts(&file("drop", &[]), &services, to, UDP, port));
                // Rules always come first.
                let rules = ["action=drop proto=tcp dstports=9050-9051"];
                let accepted = accepts(&file("drop", &rules), &services, to, TCP, port);
                assert_eq!(accepted, allowed && ![9050, 9051].contains(&port), "{to} {port}");
            }
            for to in ELSEWHERE {
                assert!(!accepts(&file("drop", &[]), &services, to, TCP, port), "{to} {port}");
            }
        }
    }
}

#[test]
fn a_default_of_accept_accepts_all_in_a_gateway_whatever_it_says_of_services() {
    use Access::{Allow, Deny};
    let text = file("accept", &[]);
    for services in [access(Deny, Deny), access(Allow, Allow)] {
        for to in GATEWAYS.into_iter().chain(ELSEWHERE).chain(["224.0.0.1", "ff02::1"]) {
            for port in PORTS.map(|(port, _)| port).into_iter().chain([0, 53, 5300, 65535]) {
                for protocol in [TCP, UDP, 47] {
                    assert!(accepts(&text, &services, to, protocol, port), "{to} {port}");
                }
            }
        }
        let parsed = rule_files::ruleset(address(CLIENT), &text).expect("rules");
        assert_eq!(parsed.in_gateway(&services), parsed);
    }
}

#[test]
fn what_tor_gets_is_as_in_the_table_of_whonix() {
    let check = |to: &str, protocol: u8, port: u16, expected: Fate| {
        let to = address(to);
        let client = address(if to.is_ipv4() { CLIENT } else { CLIENT6 });
        let packet = PacketStatus::plain(client, to, protocol, port).packet();
        let is_own = [GATEWAY, GATEWAY6, "127.0.0.1", "::1"].map(address).contains(&to);
        assert_eq!(Fate::of(&packet, is_own), expected, "{to} {protocol} {port}");
    };
    for (port, service) in PORTS {
        let expected = match service {
            Some(Service::Socks) => Fate::Socks,
            Some(Service::Control) => Fate::Control,
            None => Fate::TransPort,
        };
        GATEWAYS.iter().for_each(|to| check(to, TCP, port, expected));
        ELSEWHERE.iter().for_each(|to| check(to, TCP, port, Fate::TransPort));
        GATEWAYS.iter().chain(&ELSEWHERE).for_each(|to| check(to, UDP, port, Fate::Dropped));
    }
    for to in GATEWAYS.into_iter().chain(ELSEWHERE) {
        for port in [0, 22, 53, 80, 443, 5300, 9040, 65535] {
            check(to, TCP, port, Fate::TransPort);
        }
        check(to, UDP, 53, Fate::DnsPort);
        check(to, UDP, 123, Fate::Dropped);
        check(to, 47, 0, Fate::Dropped);
    }
    check(GATEWAY, UDP, 5300, Fate::DnsPort);
    check(GATEWAY6, UDP, 5300, Fate::DnsPort);
    check("8.8.8.8", UDP, 5300, Fate::Dropped);
    check("8.8.8.8", 1, 8, Fate::Dropped);
    check("2001:db8::8", 58, 128, Fate::Dropped);
    check(GATEWAY6, 58, 135, Fate::Neighbour);
    check("::1", TCP, 80, Fate::Dropped);
    check("::1", UDP, 53, Fate::Dropped);
    check("127.0.0.1", UDP, 5300, Fate::Dropped);
}

/// A gateway with one client at home, and addresses of its own.
fn gateway(given: Each<Option<Access>>) -> World {
    let settings = Settings { mode: Mode::Whonix, tor_services: given, ..Settings::default() };
    let mut world = World::new(Settings { is_gateway: true, ..settings });
    let vif = Vif { index: 7, name: "vif7.0".to_owned(), addresses: [address(CLIENT)].into() };
    let locals = [(address(GATEWAY), Local::One)].into();
    step(&mut world, Event::Links(Links { vifs: vec![vif], locals, ..Links::default() }));
    step(&mut world, Event::AllRules([].into()));
    world
}

fn keys(socks: &str, control: &str) -> Keys {
    Each { socks: Access::parse(socks), control: Access::parse(control) }
}

#[test]
fn whoever_denies_tors_services_wins_and_what_is_wrong_denies() {
    use Access::{Allow, Deny};
    let none = Each::default();
    let allow = Each { socks: Some(Allow), control: Some(Allow) };
    let deny = Each { socks: Some(Deny), control: Some(Deny) };
    let check = |given: &Each<Option<Access>>, socks: &str, control: &str, expected, wrong| {
        let mut world = gateway(given.clone());
        step(&mut world, Event::TorServices(keys(socks, control)));
        let status = status_at(&world, Moment::BOOT);
        let gateway = status.agent.gateway.as_ref().expect("a gateway");
        assert!(gateway.enforced);
        let Each { socks: socks_now, control: control_now } = gateway.services;
        assert_eq!([socks_now, control_now], expected, "{given:?} {socks:?} {control:?}");
        assert_eq!(gateway.problems.len(), wrong, "{:?}", gateway.problems);
        assert_eq!(problems(&status), wrong);
    };
    check(&none, "", "", [Deny, Deny], 0);
    check(&none, "allow", "", [Allow, Deny], 0);
    check(&none, "", "allow", [Deny, Allow], 0);
    check(&none, "deny", "deny", [Deny, Deny], 0);
    check(&allow, "", "", [Allow, Allow], 0);
    check(&allow, "deny", "allow", [Deny, Allow], 0);
    check(&deny, "allow", "allow", [Deny, Deny], 0);
    check(&allow, "Allow", "allow ", [Deny, Deny], 2);
    check(&none, "yes", "allow", [Deny, Allow], 1);
}

#[test]
fn what_keys_say_of_tors_services_is_in_force_at_once_and_told_once() {
    let mut world = gateway(Each::default());
    step(&mut world, rules(CLIENT, &file("drop", &["action=accept dst4=192.0.2.1/32"])));
    let mut says = |socks: &str, puts: usize, tells: usize| {
        let effects = step(&mut world, Event::TorServices(keys(socks, "")));
        let count = |is: fn(&Effect) -> bool| effects.iter().filter(|it| is(it)).count();
        assert_eq!(count(|it| matches!(it, Effect::Put { .. })), puts, "{socks:?}");
        let told = |it: &Effect| matches!(it, Effect::Tell(Notice::TorServices(_)));
        assert_eq!(count(told), tells, "{socks:?}");
        let status = status_at(&world, Moment::BOOT);
        let rules = &status.clients[0].rules;
        rules.iter().map(|rule| (rule.number, rule.effective)).collect::<Vec<_>>()
    };
    assert_eq!(says("", 0, 0), [(0, true)]);
    assert_eq!(says("allow", 1, 1), [(0, true), (IMPLIED, true)]);
    assert_eq!(says("allow", 0, 0), [(0, true), (IMPLIED, true)]);
    assert_eq!(says("deny", 1, 1), [(0, true)]);
}

#[test]
fn names_in_rules_of_a_gateway_are_asked_of_tor_alone() {
    let mut world = gateway(Each::default());
    let clear: Vec<IpAddr> = ["9.9.9.9", "127.0.0.53"].map(address).into();
    let servers = Event::Servers { of_clients: clear.clone(), own: clear };
    let effects = step(&mut world, servers.clone());
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::SetServers(servers) => Some(servers.clone()),
        _ => None,
    });
    assert_eq!(asked.collect::<Vec<_>>(), [vec![tor::DNS_SERVER]]);
    assert!(tor::DNS_SERVER.ip().is_loopback());
    let effects = step(&mut world, servers);
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn in_a_gateway_denied_packets_are_answered_at_each_vif_or_told_as_dropped() {
    let mut world = gateway(Each::default());
    let answers = |effects: &[Effect]| {
        let sets = effects.iter().filter_map(|effect| match effect {
            Effect::AnswerDenied(vifs) => Some(vifs.iter().cloned().collect::<Vec<_>>()),
            _ => None,
        });
        sets.collect::<Vec<_>>()
    };
    let whole = || Event::Gate(GateLook::Whole(Vec::new()));
    assert_eq!(answers(&step(&mut world, whole())), [["vif7.0"]]);
    let outcome = |world: &World, to: &str| {
        let packet = PacketStatus::plain(address(CLIENT), address(to), TCP, 443);
        let explained = world.explain(Moment::BOOT, address(CLIENT), &packet.packet()).remove(0);
        let gateway = explained.gateway.expect("a gateway");
        let (verdict, reason) = (explained.judgement.verdict, explained.judgement.reason);
        (verdict, reason, Outcome::in_gateway(&explained.judgement, gateway, false))
    };
    step(&mut world, rules(CLIENT, &file("drop", &["action=accept dst4=192.0.2.1/32"])));
    step(&mut world, Event::Tried { task: firewall_core::events::Task::Tidy, outcome: Ok(()) });
    step(&mut world, Event::Time);
    step(&mut world, Event::ConnectionsRead(Ok(())));
    let (accept, reject) = (Verdict::Accept, Verdict::Reject);
    let to = outcome;
    assert_eq!(to(&world, "192.0.2.1"), (accept, Reason::Rule, Outcome::Tor));
    assert_eq!(to(&world, GATEWAY), (reject, Reason::Default, Outcome::Rejected));
    assert_eq!(to(&world, "224.0.0.1"), (reject, Reason::Default, Outcome::Dropped));
    let failed = Event::AnswersDenied(Err(Why("no such thing".to_owned())));
    let told = |effects: &[Effect]| {
        effects.iter().filter(|it| matches!(it, Effect::Tell(Notice::Silent(_)))).count()
    };
    assert_eq!(told(&step(&mut world, failed.clone())), 1);
    assert_eq!(told(&step(&mut world, failed)), 0);
    assert_eq!(to(&world, GATEWAY), (reject, Reason::Default, Outcome::Dropped));
    let status = status_at(&world, Moment::BOOT);
    assert_eq!(problems(&status), 0, "silence is no problem");
    let silent = status.agent.gateway.and_then(|gateway| gateway.silent);
    assert_eq!(silent.as_deref(), Some("no such thing"));
    assert_eq!(told(&step(&mut world, Event::AnswersDenied(Ok(())))), 1);
}

#[test]
fn where_whonix_is_and_the_mode_is_another_that_is_a_problem() {
    for (mode, wrong) in [(Mode::Qubes, 1), (Mode::Standalone, 1), (Mode::Whonix, 0)] {
        let world = World::new(Settings { mode, is_gateway: true, ..Settings::default() });
        let status = status_at(&world, Moment::BOOT);
        assert_eq!(problems(&status), wrong, "{mode:?}");
        let text = firewall_agent::cli::text::summary(&status);
        assert_eq!(text.contains("rules are NOT ENFORCED"), wrong > 0, "{text}");
    }
    let status = status_at(&World::default(), Moment::BOOT);
    assert_eq!(
        (status.agent.gateway, problems(&status_at(&World::default(), Moment::BOOT))),
        (None, 0)
    );
}

#[test]
fn a_drop_rule_that_socks_leads_around_is_said_not_to_hold() {
    use Access::{Allow, Deny};
    let host = "action=drop dst4=192.0.2.1/32";
    let check = |default: &str, rules: &[&str], socks: Access, expected: &[usize]| {
        let text = file(default, rules);
        let ruleset = rule_files::ruleset(address(CLIENT), &text).expect("rules");
        let found = lint_in_gateway(Family::V4, &ruleset, &access(socks, Deny));
        let found: Vec<usize> = found.iter().map(|lint| lint.rule).collect();
        assert_eq!(found, expected, "{default} {rules:?} {socks:?}");
        // What runs says the same.
        let mut world = gateway(Each { socks: Some(socks), control: None });
        step(&mut world, self::rules(CLIENT, &text));
        let status = status_at(&world, Moment::BOOT);
        let rules = status.clients[0].rules.iter().enumerate();
        let bypassed = rules.filter(|(_, rule)| rule.bypassed).map(|(index, _)| index);
        assert_eq!(bypassed.collect::<Vec<_>>(), expected, "{default} {text} {socks:?}");
    };
    check("drop", &[host], Deny, &[]);
    check("drop", &[host], Allow, &[0]);
    check("accept", &[host], Deny, &[0]);
    // As long as nobody knows where the name leads, all is dropped.
    check("accept", &["action=drop dsthost=a.example"], Deny, &[]);
    let named = "action=drop dsthost=a.example proto=tcp dstports=443-443";
    check("accept", &[named], Deny, &[0]);
    check("accept", &["action=drop dst4=192.0.2.1/32 proto=udp"], Deny, &[]);
    check("accept", &["action=drop proto=tcp dstports=9050-9229", host], Deny, &[]);
    check("accept", &["action=drop proto=tcp dstports=9050-9228", host], Deny, &[1]);
    let own = ["10.137.0.0/16", "10.138.0.0/16", "10.152.152.10/32"];
    let own = own.map(|network| format!("action=drop dst4={network} proto=tcp"));
    let [one, two, three] = own.each_ref().map(String::as_str);
    check("accept", &[one, two, three, host], Deny, &[]);
    check("accept", &[one, three, host], Deny, &[2]);
    check("accept", &["action=drop proto=tcp dstports=25-25"], Deny, &[0]);
    check("accept", &["action=drop proto=tcp"], Deny, &[]);
    let hole = "action=accept dst4=10.137.77.0/24 proto=tcp dstports=9150-9150";
    check("accept", &[hole, one, two, three, host], Deny, &[4]);
    check("drop", &["action=accept proto=tcp", host], Deny, &[1]);
}
