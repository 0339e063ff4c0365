//! What is explained is what the kernel does: the agent's memory, and the tables read back
//! from the kernel, against the program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use firewall_common::abi::Local;

use anyhow::{Context as _, Result};
use firewall_agent::edges::dataplane::inspect::Inspection;
use firewall_agent::edges::dataplane::maps::Maps;
use firewall_agent::edges::sources::rule_files;
use firewall_common::packet::{self, Fragment, Frame};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::client::{Links, Vif};
use firewall_core::events::{Effect, Event, Task};
use firewall_core::rules::source::SourceError;
use firewall_core::time::Moment;
use firewall_core::told::explanation::{Explanation, Judgement, PacketStatus};
use firewall_core::world::World;
use firewall_tests::oracle::Ruleset;
use firewall_tests::oracle::generate::Generator;
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program, VIF};
use firewall_tests::{rounds, seed};
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::common::*;

const LOCAL4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 137, 0, 1));

/// The clock by which audits end.
fn now() -> Moment {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    Moment::after_boot(since.into())
}

/// The agent's memory and the kernel, side by side.
struct Scene {
    world: World,
    program: Program,
    tables: Inspection,
}

impl Scene {
    fn new() -> Result<Self> {
        let program = Program::load()?;
        let tables = Inspection::of_program(program.id()?)?;
        let mut scene = Self { world: World::default(), program, tables };
        scene.happens(Event::AllRules(BTreeMap::new()))?;
        let of_clients = known().resolvers;
        scene.happens(Event::Servers { of_clients, own: Vec::new() })?;
        let addresses = BTreeSet::from([CLIENT4, CLIENT6]);
        let vifs = vec![Vif { index: VIF, name: "lo".to_owned(), addresses }];
        let locals = [(LOCAL4, Local::One)].into();
        scene.happens(Event::Links(Links { vifs, locals, ..Links::default() }))?;
        Ok(scene)
    }

    /// Does what the daemon would, as far as it is about tables.
    fn happens(&mut self, event: Event) -> Result<()> {
        self.perform(event)?;
        self.perform(Event::Tried { task: Task::Tidy, outcome: Ok(()) })?;
        self.perform(Event::ConnectionsRead(Ok(())))
    }

    fn perform(&mut self, event: Event) -> Result<()> {
        let maps = &mut self.program.maps;
        for effect in self.world.step(now(), event) {
            match effect {
                Effect::Put { client, installation, generation, settles } => {
                    let put = if settles { Maps::put } else { Maps::widen };
                    put(maps, client, &installation, generation)?;
                }
                Effect::Settled(client) => maps.settle(client)?,
                Effect::Audit { client, until } => maps.audit(client, until)?,
                Effect::SetLocals(locals) => maps.set_locals(locals)?,
                _ => {}
            }
        }
        Ok(maps.tidy()?)
    }

    fn rules(&mut self, client: IpAddr, text: Option<&str>) -> Result<()> {
        let rules = text.map(|text| {
            let origin = "a file".to_owned();
            let rules = rule_files::ruleset(client, text);
            rules.map_err(|error| SourceError { origin, error: Box::new(error) })
        });
        self.happens(Event::Rules { client, rules })
    }

    fn explain(&self, client: IpAddr, packet: &PacketStatus) -> Result<Explanation> {
        let explained = self.world.explain(now(), client, &packet.packet());
        explained.into_iter().next().context("no client")
    }

    /// Sends a frame and holds all that is said about it against what the kernel does.
    fn check(&mut self, client: IpAddr, frame: &[u8]) -> Result<Judgement> {
        let parsed = packet::parse(frame);
        let by_tables = self.tables.decide(VIF, &parsed)?;
        let explained = match &parsed {
            Ok(Frame::Ip(packet)) => {
                let explanation = self.explain(client, &packet.into())?;
                // The list of rules that were tried ends with the one that decides.
                let last = explanation.tried.last().filter(|it| it.differs.is_empty());
                assert_eq!(last.map(|it| it.number), explanation.rule, "{explanation:?}");
                explanation.judgement
            }
            Ok(Frame::Arp { .. }) | Err(_) => Judgement::from(&by_tables),
        };
        assert_eq!(explained, Judgement::from(&by_tables), "{parsed:?}");
        let Judgement { mut verdict, mut reason, .. } = explained;
        // What was sent before is not known to the one that explains.
        let is_handed_on = !matches!(verdict, Verdict::Drop | Verdict::Reject);
        let fragment = match &parsed {
            Ok(Frame::Ip(packet)) => packet.fragment,
            Ok(Frame::Arp { .. }) | Err(_) => Fragment::WHOLE,
        };
        if is_handed_on && (reason != Reason::Rule || fragment.is_fragment()) {
            self.program.rest()?;
        }
        if fragment.is_later() && is_handed_on {
            (verdict, reason) = (Verdict::Drop, Reason::StrayFragment);
        } else if fragment.is_fragment() && verdict == Verdict::Reject {
            verdict = Verdict::Drop;
        }
        let count = |program: &Program| match (explained.rule_index, reason) {
            (_, Reason::StrayFragment) => program.counted(Some(client), reason),
            (Some(rule), _) => program.counted_rule(client, rule),
            (None, reason) if reason_without_client(reason) => program.counted(None, reason),
            (None, reason) => program.counted(Some(client), reason),
        };
        let before = count(&self.program).packets;
        let outcome = self.program.send(frame)?;
        assert_eq!(count(&self.program).packets, before + 1, "{explained:?}: {parsed:?}");
        let expected = match verdict {
            Verdict::Accept | Verdict::Audit => Outcome::ACCEPTED,
            Verdict::Related => Outcome::RELATED,
            Verdict::Reject | Verdict::Pass => Outcome::NOT_PERMITTED,
            Verdict::Drop => Outcome::DROPPED,
        };
        assert_eq!(outcome, expected, "{explained:?}: {parsed:?}");
        if reason == Reason::StrayFragment {
            return Ok(Judgement { verdict, reason, ..explained });
        }
        Ok(explained)
    }
}

#[test]
fn explain_and_kernel_agree_on_random_packets() -> Result<()> {
    let seed = seed();
    let (mut generator, mut random) = (Generator::new(seed), StdRng::seed_from_u64(seed));
    let mut scene = Scene::new()?;
    let mut said: BTreeMap<(Verdict, Reason), u32> = BTreeMap::new();
    // Each kind of installation comes once in 50 rounds, an audit five times.
    for round in 0..rounds(250, 2_500).max(50) {
        for client in [CLIENT4, CLIENT6] {
            let rules = generator.ruleset(client.into(), if round % 20 == 0 { 300 } else { 12 });
            let length = Duration::from_secs(if round % 10 == 9 { 3600 } else { 0 });
            match round % 50 {
                7 => scene.rules(client, None)?,
                8 => scene.rules(client, Some("policy = drop\n"))?,
                _ => scene.rules(client, Some(&rules.file()))?,
            }
            scene.happens(Event::Audit { client, length })?;
            for _ in 0..200 {
                let frame = frame(&mut generator, &mut random, client, &rules);
                let judgement = scene.check(client, &frame)?;
                *said.entry((judgement.verdict, judgement.reason)).or_default() += 1;
            }
        }
    }
    println!("{said:?}");
    for (verdict, reason) in [
        (Verdict::Accept, Reason::Rule),
        (Verdict::Reject, Reason::Rule),
        (Verdict::Accept, Reason::Default),
        (Verdict::Reject, Reason::Default),
        (Verdict::Audit, Reason::Rule),
        (Verdict::Audit, Reason::Default),
        (Verdict::Reject, Reason::Blocked),
        (Verdict::Drop, Reason::Waiting),
        (Verdict::Pass, Reason::Local),
        (Verdict::Drop, Reason::StrayFragment),
        (Verdict::Drop, Reason::UnknownSource),
        (Verdict::Drop, Reason::Malformed),
        (Verdict::Drop, Reason::Truncated),
    ] {
        let is_there = said.contains_key(&(verdict, reason));
        assert!(is_there, "no random packet met {verdict:?}, {reason:?}");
    }
    Ok(())
}

/// Mostly a packet near the edges of rules; at times one that is odd in some way.
fn frame(
    generator: &mut Generator,
    random: &mut StdRng,
    client: IpAddr,
    rules: &Ruleset,
) -> Vec<u8> {
    let probe = generator.probe(client.into(), rules);
    let (mut source, mut destination) = (client, probe.destination);
    match random.random_range(0..40) {
        0 => source = if client.is_ipv4() { SERVER4.into() } else { SERVER6.into() },
        1 if client.is_ipv4() => destination = LOCAL4,
        _ => {}
    }
    let mut frame = packets::plain(source, destination, probe.protocol, probe.port);
    match random.random_range(0..20) {
        0 => {
            let at = random.random_range(12..frame.len());
            frame[at] = random.random();
        }
        // A later fragment, where the field is in the fixed header.
        1 if client.is_ipv4() => {
            frame[21] = 1;
            frame[24..26].fill(0);
            let sum = packets::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        // The kernel refuses to test-run less than the headers of Ethernet and IP.
        2 => {
            let headers = if client.is_ipv4() { 34 } else { 54 };
            frame.truncate(random.random_range(headers..=frame.len()));
        }
        _ => {}
    }
    frame
}

#[test]
fn what_the_kernel_counted_can_be_read_without_the_agent() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.rules(CLIENT4, Some("policy = drop\n0000 = action=accept proto=icmp\ncommit\n"))?;
    let ping = packets::plain(CLIENT4, SERVER4.into(), packets::ICMP, 8);
    let https = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    for frame in [&ping, &ping, &https] {
        scene.check(CLIENT4, frame)?;
    }
    let clients = scene.tables.clients()?;
    assert_eq!(clients.len(), 2, "{clients:?}");
    let of_client = clients.iter().find(|(key, _)| IpAddr::from(key.address) == CLIENT4);
    let (_, client) = of_client.context("the client is not there")?;
    let (reasons, rules) = scene.tables.counted(client);
    let rules: Vec<(u32, u64)> = rules.into_iter().map(|(rule, it)| (rule, it.packets)).collect();
    assert_eq!(rules, [(0, 2)]);
    let reasons: Vec<(Reason, u64)> =
        reasons.into_iter().map(|(reason, it)| (reason, it.packets)).collect();
    assert_eq!(reasons, [(Reason::Default, 1)]);
    Ok(())
}
