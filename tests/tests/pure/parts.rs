//! The smaller parts of the agent's memory: the gate, the source, counters, what is denied, and
//! what a later agent finds.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use firewall_agent::cli::text;
use firewall_common::abi::{Address, Counter, DropRecord};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::client::ClientId;
use firewall_core::events::{Effect, Event, GateLook, Notice, Task, Why};
use firewall_core::readings::{ClientCounters, Counters, Readings};
use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use firewall_core::time::Moment;
use firewall_core::told::added::{AddedRule, Warning};
use firewall_core::told::news::DeniedBy;
use firewall_core::told::screen::on_screen;
use firewall_core::told::status::{CounterStatus, Mode};
use firewall_core::told::totals::problems;
use firewall_core::world::{Settings, World};

use super::memory::{ACCEPT, DROP, When, address, links, rules, running, settle, status_at, step};
use super::stage::Stage;

const CLIENT: &str = "10.137.0.1";

fn client() -> ClientId {
    ClientId { vif: 7, address: address(CLIENT) }
}

fn at(second: u64) -> Moment {
    Moment::after_boot(Duration::from_secs(second))
}

fn of_mode(mode: Mode) -> World {
    World::new(Settings { mode, ..Settings::default() })
}

/// A world with one client that has these rules, and has settled.
fn with(text: &str) -> World {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &[CLIENT])]));
    step(&mut world, rules(CLIENT, text));
    settle(&mut world);
    world
}

/// What concerns the gate, in short.
fn gate(effects: &[Effect]) -> Vec<&'static str> {
    let line = |effect: &Effect| match effect {
        Effect::Tell(Notice::GateChanged(_)) => Some("changed"),
        Effect::Tell(Notice::GateAppended(_)) => Some("appended"),
        Effect::Tell(Notice::AddedRules { .. }) => Some("rules"),
        Effect::Tell(Notice::GateUnknown(_)) => Some("unknown"),
        Effect::Tell(Notice::GateNotLoaded(_)) => Some("not loaded"),
        Effect::LoadGate => Some("load"),
        Effect::Redirect(_) => Some("redirect"),
        _ => None,
    };
    effects.iter().filter_map(line).collect()
}

#[test]
fn a_gate_that_is_not_as_it_is_to_be_is_loaded_until_it_is() {
    let mut world = running();
    let mut check = |event: Event, expected: &[&str], problem: Option<&str>| {
        assert_eq!(gate(&step(&mut world, event)), expected);
        let agent = status_at(&world, Moment::BOOT).agent;
        assert_eq!(agent.gate_problem.as_deref(), problem);
    };
    let changed = || Event::Gate(GateLook::Changed("there is none".to_owned()));
    check(Event::Gate(GateLook::Whole(Vec::new())), &[], None);
    check(changed(), &["changed", "load"], None);
    check(Event::GateLoaded(Ok(())), &[], None);
    check(changed(), &["changed", "load"], None);
    check(Event::GateLoaded(Err(Why::of("no memory"))), &["not loaded"], Some("no memory"));
    // Who changed it has been told; that it is not loaded, each time.
    check(changed(), &["load"], Some("no memory"));
    check(Event::GateLoaded(Err(Why::of("no nft"))), &["not loaded"], Some("no nft"));
    check(Event::Gate(GateLook::Unknown(Why::of("?"))), &["unknown", "load"], Some("no nft"));
    check(Event::GateLoaded(Ok(())), &[], None);
    check(Event::GateLoaded(Err(Why::of("no nft"))), &["not loaded"], Some("no nft"));
    check(Event::Gate(GateLook::Whole(Vec::new())), &[], None);
}

#[test]
fn that_nobody_knows_which_resolvers_are_redirected_is_a_problem_until_it_is_known() {
    let mut world = with("policy = drop\n0000 = action=accept specialtarget=dns\ncommit\n");
    step(&mut world, Event::Servers { of_clients: vec![address("192.0.2.53")], own: Vec::new() });
    let mut check =
        |read: Result<Vec<Ipv4Addr>, &str>, news: &[Option<&str>], left_alone: usize| {
            let read = read.map(|all| all.into_iter().collect()).map_err(Why::of);
            let problem = read.as_ref().err().map(|Why(why)| why.clone());
            let effects = step(&mut world, Event::NotRedirected(read));
            let told = effects.iter().filter_map(|effect| match effect {
                Effect::Tell(Notice::ResolversProblem(why)) => Some(why.as_deref()),
                _ => None,
            });
            assert_eq!(told.collect::<Vec<_>>(), news, "{problem:?}");
            let status = status_at(&world, Moment::BOOT);
            assert_eq!(status.agent.resolvers_problem, problem);
            assert_eq!(problems(&status), usize::from(problem.is_some()), "{problem:?}");
            let text = text::summary(&status);
            assert_eq!(
                text.contains("PROBLEM: nobody knows which virtual"),
                problem.is_some(),
                "{text}"
            );
            // What counts is what was known before.
            let destinations = status.clients[0].rules[0].destinations.len();
            assert_eq!(destinations, 3 - left_alone, "{problem:?}");
        };
    let [first, _] = VIRTUAL_RESOLVERS;
    check(Ok(Vec::new()), &[], 0);
    check(Ok(vec![first]), &[], 1);
    check(Err("no nft"), &[Some("no nft")], 1);
    check(Err("no nft"), &[], 1);
    check(Err("no memory"), &[Some("no memory")], 1);
    check(Ok(vec![first]), &[None], 1);
    check(Ok(Vec::new()), &[], 0);
}

#[test]
fn rules_that_others_add_are_told_when_they_change_and_what_opens_is_a_problem() {
    let rule = |text: &str, warning| AddedRule {
        table: "ip qubes-firewall".to_owned(),
        chain: "forward".to_owned(),
        text: text.to_owned(),
        warning,
    };
    let [one, late] = [rule("one", None), rule("two", Some(Warning::SeesOnlyDenied))];
    let (never, opens) =
        (rule("x", Some(Warning::NeverReached)), rule("x", Some(Warning::OpensAll)));
    let mut world = running();
    let mut check = |look: GateLook, told: &[&str], expected: &[&AddedRule], wrong: usize| {
        assert_eq!(gate(&step(&mut world, Event::Gate(look.clone()))), told, "{look:?}");
        let status = status_at(&world, Moment::BOOT);
        let found: Vec<&AddedRule> = status.agent.added_rules.iter().collect();
        assert_eq!(found, expected, "{look:?}");
        assert_eq!(problems(&status), wrong, "{look:?}");
    };
    let whole = |rules: &[&AddedRule]| GateLook::Whole(rules.iter().copied().cloned().collect());
    check(whole(&[]), &[], &[], 0);
    check(whole(&[&one]), &["rules"], &[&one], 0);
    check(whole(&[&one]), &[], &[&one], 0);
    check(whole(&[&late, &one]), &["rules"], &[&late, &one], 0);
    // The order is told, but is no news.
    check(whole(&[&one, &late]), &[], &[&one, &late], 0);
    // What is being mended keeps them.
    check(GateLook::Appended("there".to_owned()), &["appended", "load"], &[&one, &late], 0);
    check(GateLook::Changed("it".to_owned()), &["changed", "load"], &[&one, &late], 0);
    check(whole(&[&one, &never]), &["rules"], &[&one, &never], 0);
    check(whole(&[&one, &opens]), &["rules"], &[&one, &opens], 1);
    check(whole(&[]), &["rules"], &[], 0);
}

#[test]
fn the_gate_is_loaded_for_other_resolvers_if_it_is_what_leads_to_them() {
    let check = |mode: Mode, expected: [&[&str]; 3]| {
        let mut world = of_mode(mode);
        let mut servers = |servers: &[&str]| {
            let of_clients: Vec<IpAddr> = servers.iter().map(|it| address(it)).collect();
            gate(&step(&mut world, Event::Servers { of_clients, own: Vec::new() }))
        };
        assert_eq!(servers(&["192.0.2.53"]), expected[0], "{mode:?}");
        // DNS of clients over IPv6 is not redirected.
        assert_eq!(servers(&["192.0.2.53", "2001:db8::53"]), expected[1], "{mode:?}");
        assert_eq!(servers(&["192.0.2.54"]), expected[2], "{mode:?}");
    };
    check(Mode::Qubes, [&["redirect"], &["redirect"], &["redirect"]]);
    check(Mode::Standalone, [&["redirect", "load"], &["redirect"], &["redirect", "load"]]);
}

#[test]
fn the_service_manager_is_told_once_that_the_source_has_answered() {
    let mut world = World::default();
    let mut is_ready = |event: Event| {
        let is_it = |it: &&Effect| matches!(it, Effect::Ready);
        let first = [event, Event::Time, Event::Done { has_replaced: false }];
        for event in first {
            assert_eq!(step(&mut world, event).iter().filter(is_it).count(), 0, "too early");
        }
        let last = step(&mut world, Event::Resting { is_prepared: true });
        last.iter().filter(is_it).count()
    };
    assert_eq!(is_ready(rules(CLIENT, ACCEPT)), 0, "these are not all rules");
    assert_eq!(is_ready(Event::Source(None)), 0);
    assert_eq!(is_ready(Event::AllRules([].into())), 1);
    assert_eq!(is_ready(Event::AllRules([].into())), 0);
    assert_eq!(is_ready(Event::Reload), 0);
    assert_eq!(is_ready(Event::Source(Some("gone".to_owned()))), 1, "that is an answer, too");
    let effects = step(&mut world, Event::Reload);
    assert!(matches!(effects[..], [Effect::Reloading, Effect::ReloadSource]), "{effects:?}");
}

#[test]
fn what_is_known_about_names_is_written_when_it_changed() {
    let mut stage = Stage::new(&[CLIENT]);
    let is_written = |stage: &mut Stage, event: Event| {
        let effects = stage.world.step(stage.now, event);
        effects.iter().any(|it| matches!(it, Effect::Remember(names) if names.len() == 1))
    };
    stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
    assert!(!is_written(&mut stage, Event::Resync), "nothing is known");
    stage.answer("a.example", &["192.0.2.1"], 60);
    assert!(is_written(&mut stage, Event::Resync));
    assert!(!is_written(&mut stage, Event::Resync), "it stands there already");
    stage.answer("a.example", &["192.0.2.2"], 60);
    assert!(is_written(&mut stage, Event::Stopping { opens: true }));
}

#[test]
fn the_kernel_is_not_asked_for_connections_while_it_answers() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
    stage.answer("a.example", &["192.0.2.1"], 3600);
    stage.answer("a.example", &["192.0.2.2"], 3600);
    let mut reads = |seconds| {
        stage.pass(Duration::from_secs(seconds));
        std::mem::take(&mut stage.reads_flows)
    };
    assert!(reads(600));
    assert!(!reads(60), "it is being asked");
    stage.step(Event::FlowsRead(Err(Why::of("busy"))));
    stage.pass(Duration::from_secs(1));
    assert!(std::mem::take(&mut stage.reads_flows), "what did not work is tried again");
    stage.in_use(CLIENT, &["192.0.2.1"]);
    stage.check(CLIENT, &[("192.0.2.1", 80, true)]);
}

#[test]
fn room_is_made_when_something_was_replaced_or_a_client_waits_for_that() {
    let mut world = with(ACCEPT);
    let is_done = |world: &mut World, has_replaced| {
        let effects = step(world, Event::Done { has_replaced });
        matches!(effects[..], [Effect::Tidy])
    };
    assert!(!is_done(&mut world, false));
    assert!(is_done(&mut world, true));
    step(&mut world, rules(CLIENT, DROP));
    assert!(is_done(&mut world, false), "it settles");
    settle(&mut world);
    step(&mut world, Event::Tried { task: Task::Tidy, outcome: Err(Why::of("busy")) });
    assert!(is_done(&mut world, false), "it did not work");
    let prepares = |world: &mut World, is_prepared| {
        let effects = step(world, Event::Resting { is_prepared });
        effects.iter().any(|it| matches!(it, Effect::Prepare))
    };
    assert!(!prepares(&mut world, true));
    step(&mut world, Event::Tried { task: Task::Prepare, outcome: Err(Why::of("busy")) });
    assert!(prepares(&mut world, true));
}

#[test]
fn maps_are_put_in_order_a_moment_later_and_never_while_somebody_waits() {
    let mut world = with(ACCEPT);
    let at = |milliseconds| Moment::after_boot(Duration::from_millis(milliseconds));
    let prepares = |world: &mut World, milliseconds, event| {
        let effects = step(world, When(at(milliseconds), event));
        effects.iter().any(|it| matches!(it, Effect::Prepare))
    };
    let rests = |is_prepared| Event::Resting { is_prepared };
    assert!(!prepares(&mut world, 1000, rests(true)));
    assert_eq!(world.next_time(), None);
    assert!(!prepares(&mut world, 1000, rests(false)));
    // What goes on meanwhile does not put it off for ever.
    assert!(!prepares(&mut world, 1040, rests(false)));
    assert_eq!(world.next_time(), Some(at(1050)));
    assert!(!prepares(&mut world, 1049, Event::Time));
    assert!(prepares(&mut world, 1050, Event::Time));
    assert!(!prepares(&mut world, 1050, Event::Time), "once");
    // While connections are looked through, and the source was not told yet, it waits.
    step(&mut world, rules(CLIENT, DROP));
    assert!(!prepares(&mut world, 2000, rests(false)));
    assert!(!prepares(&mut world, 2001, Event::Tried { task: Task::Tidy, outcome: Ok(()) }));
    assert_eq!(world.next_time(), None);
    assert!(!prepares(&mut world, 3000, Event::Time));
    assert!(!prepares(&mut world, 3000, Event::ConnectionsRead(Ok(()))));
    assert!(!prepares(&mut world, 3000, Event::Time));
    assert_eq!(world.next_time(), Some(at(3050)));
    assert!(prepares(&mut world, 3050, Event::Time));
}

#[test]
fn who_still_settles_when_the_agent_ends_is_told_unless_everything_opens() {
    let mut world = with(ACCEPT);
    let unsettled = |world: &mut World, opens| {
        let effects = step(world, Event::Stopping { opens });
        effects.iter().find_map(|effect| match effect {
            Effect::Tell(Notice::Unsettled(clients)) => Some(*clients),
            _ => None,
        })
    };
    assert_eq!(unsettled(&mut world, false), None);
    step(&mut world, rules(CLIENT, DROP));
    assert_eq!(unsettled(&mut world, false), Some(1));
    assert_eq!(unsettled(&mut world, true), None);
}

#[test]
fn status_has_the_counters_that_it_is_given_and_when_they_moved() {
    let mut world = with(ACCEPT);
    assert_eq!(world.counting(), [(client(), 1)].into());
    let counter = |packets| Counter { packets, bytes: packets * 100 };
    let readings = |default, rule| {
        let reasons = [(Reason::Default, default), (Reason::Arp, 5), (Reason::Local, 0)];
        let reasons = reasons.map(|(reason, packets)| (reason, counter(packets))).into();
        let counters = ClientCounters { reasons, rules: vec![counter(rule)] };
        let clients = [(client(), counters)].into();
        let strays = vec![(Reason::UnknownSource, counter(2))];
        Readings { counters: Counters { clients, strays }, ..Readings::default() }
    };
    for (second, default, rule) in [(10, 0, 1), (20, 3, 1)] {
        let decided = readings(default, rule).counters.decided();
        world.step(at(second), Event::Counted(decided));
    }
    let status = world.status(at(30), &readings(3, 1), Some(address(CLIENT)));
    let told = |packets| CounterStatus { packets, bytes: packets * 100 };
    assert_eq!(status.clients.len(), 1);
    let client = &status.clients[0];
    assert_eq!((client.default_counter, client.default_last_seconds_ago), (told(3), Some(10)));
    let rule = &client.rules[0];
    assert_eq!((rule.counter, rule.last_seconds_ago), (told(1), Some(20)));
    // What counted nothing is not told.
    assert_eq!(client.counters.values().copied().collect::<Vec<_>>(), [told(5)]);
    assert_eq!(status.strays.values().copied().collect::<Vec<_>>(), [told(2)]);
    assert_eq!(world.status(at(30), &readings(3, 1), Some(address("10.137.0.2"))).clients.len(), 0);
    // With other rules, counters begin anew.
    step(&mut world, rules(CLIENT, DROP));
    world.step(at(40), Event::Counted(readings(0, 0).counters.decided()));
    let status = world.status(at(50), &readings(0, 0), None);
    assert_eq!(status.clients[0].default_last_seconds_ago, None);
}

#[test]
fn a_denied_packet_is_told_with_its_rule_as_long_as_that_is_in_force() {
    let mut world = with("policy = drop\n0000 = action=drop\ncommit\n");
    let generation = status_at(&world, Moment::BOOT).clients[0].generation.expect("a generation");
    let denied = |world: &mut World, generation| {
        let record = DropRecord {
            vif: 7,
            generation,
            source: Address::from(address(CLIENT)),
            verdict: Verdict::Reject.index(),
            reason: Reason::Rule.index(),
            suppressed: 4,
            ..DropRecord::default()
        };
        let event = Event::Denied { records: vec![record], time_ms: 1 };
        let denied = step(world, event).into_iter().find_map(|effect| match effect {
            Effect::Denied(denied) => Some(*denied),
            _ => None,
        });
        denied.expect("news")
    };
    let told = denied(&mut world, generation);
    let rule = DeniedBy { number: 0, text: "action=drop".to_owned() };
    assert_eq!((told.rule, told.vif.as_str(), told.time_ms), (Some(rule), "vif1.0", 1));
    assert_eq!(
        (told.verdict, told.reason, told.destination),
        (Verdict::Reject, Reason::Rule, None)
    );
    assert_eq!(denied(&mut world, generation + 1).rule, None);
    let agent = status_at(&world, Moment::BOOT).agent;
    assert_eq!((agent.records, agent.records_suppressed), (2, 8));
}

#[test]
fn the_user_sees_what_is_blocked_where_there_is_one() {
    let notice = Notice::Blocked { client: address(CLIENT), why: "no room".to_owned() };
    let text = "10.137.0.1 is blocked: no room";
    assert_eq!(on_screen(&notice, Mode::Qubes).as_deref(), Some(text));
    assert_eq!(on_screen(&notice, Mode::Standalone), None);
    assert_eq!(on_screen(&Notice::Waiting { client: address(CLIENT) }, Mode::Qubes), None);
}
