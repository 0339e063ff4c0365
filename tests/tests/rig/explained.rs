//! What `explain` and `show` say, against what becomes of real packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context as _, Result};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::told::explanation::{Connection, Explained, Outcome as Said};
use firewall_core::told::status::ClientStatus;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::rig::agent::{Agent, PATIENCE, binary};
use firewall_tests::rig::dns::Reply;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{ClientSpec, Rig, UPLINK_V4, UPLINK_V6};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::named::{Named, ONE, TWO};
use super::service::masquerade;
use super::world::*;

/// The agent's command line in the netvm: exit code, standard output and error.
fn cli(rig: &Rig, arguments: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    if arguments.first() != Some(&"check") {
        command.arg("--socket").arg(rig.directory().join("control.sock"));
        command.arg("--pins").arg(rig.bpffs().join("firewall"));
    }
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let output = rig.netvm().spawn(&mut command)?.wait_with_output()?;
    let code = output.status.code().context("a signal")?;
    Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

fn explain(rig: &Rig, from: IpAddr, to: &str) -> Result<(i32, Explained)> {
    let from = from.to_string();
    let (code, json, error) = cli(rig, &["explain", "--from", &from, "--to", to, "--json"])?;
    let explained: Vec<Explained> = serde_json::from_str(&json).with_context(|| error)?;
    Ok((code, explained.into_iter().next().context("nothing")?))
}

/// What decided, by the counters that moved.
fn moved(before: &ClientStatus, after: &ClientStatus) -> Vec<String> {
    let rules = after.rules.iter().zip(&before.rules).map(|(after, before)| {
        (format!("rule {}", after.number), after.counter.packets - before.counter.packets)
    });
    let default = after.default_counter.packets - before.default_counter.packets;
    let mut all: BTreeMap<String, u64> = rules.collect();
    all.insert("default".to_owned(), default);
    for (reason, counter) in &after.counters {
        let known = before.counters.get(reason).map_or(0, |it| it.packets);
        all.insert(reason.to_string(), counter.packets - known);
    }
    all.into_iter().filter(|(_, packets)| *packets > 0).map(|(what, _)| what).collect()
}

/// Explains a packet, sends it, and compares.
fn check(
    rig: &Rig,
    agent: &Agent,
    from: &Namespace,
    client: IpAddr,
    to: IpAddr,
    what: &str,
) -> Result<()> {
    let place = match (what, to) {
        ("icmp", _) => format!("{to}/icmp"),
        (_, IpAddr::V4(_)) => format!("{to}:{what}"),
        (_, IpAddr::V6(_)) => format!("[{to}]:{what}"),
    };
    let (code, said) = explain(rig, client, &place)?;
    let probe = match what.split_once('/') {
        None => Probe::ping(from, to),
        Some((port, "tcp")) => Probe::tcp(from, SocketAddr::new(to, port.parse()?)),
        Some((port, _)) => Probe::udp(from, SocketAddr::new(to, port.parse()?)),
    };
    let before = agent.client(client)?;
    let happened = probe.run(SILENCE)?;
    let after = agent.client(client)?;
    let (outcome, exit) = match happened {
        Outcome::Accepted => (vec![Said::Forwarded, Said::Local], 0),
        Outcome::Silent => (vec![Said::Dropped], 1),
        _ => (vec![Said::Rejected], 1),
    };
    assert!(outcome.contains(&said.outcome), "{place}: {happened:?}, {said:#?}");
    assert_eq!((code, said.agree), (exit, Some(true)), "{place}: {said:#?}");
    let named = match said.agent.context("no agent")?.rule {
        Some(number) => format!("rule {number}"),
        None => said.judgement.reason.name().to_owned(),
    };
    assert_eq!(moved(&before, &after), [named], "{place}");
    Ok(())
}

#[test]
fn the_rule_that_explain_names_is_the_one_whose_counter_moves() -> Result<()> {
    let world = World::new("explained")?;
    let agent = world.start()?;
    let from = world.client.namespace();
    let late = world.rig.add_client(&ClientSpec::numbered(13))?;
    agent.wait_for_vif(late.vif())?;
    let udp_80 = Rule { ports: Some((80, 80)), ..Rule::all(false) };
    for rules in [
        vec![tcp_443(), ping()],
        vec![udp_80, tcp_443(), Rule::all(true)],
        vec![Rule::all(false)],
        vec![],
    ] {
        world.put(&agent, &rules)?;
        for (client, server, gateway) in [
            (world.v4, SERVER4, IpAddr::from(firewall_tests::rig::GATEWAY_V4)),
            (world.v6, SERVER6, IpAddr::from(firewall_tests::rig::GATEWAY_V6)),
        ] {
            // UDP first: no late packet of a TCP connection is in the way.
            for what in ["80/udp", "icmp", "443/tcp", "80/tcp"] {
                check(&world.rig, &agent, from, client, server, what)?;
            }
            check(&world.rig, &agent, from, client, gateway, "icmp")?;
        }
    }
    for (address, server) in
        [(late.spec().v4.map(IpAddr::from), SERVER4), (late.spec().v6.map(IpAddr::from), SERVER6)]
    {
        let address = address.context("no address")?;
        check(&world.rig, &agent, late.namespace(), address, server, "icmp")?;
    }
    Ok(())
}

#[test]
fn explain_sees_connections_other_clients_and_recorded_packets() -> Result<()> {
    let world = World::new("seen")?;
    let agent = world.start()?;
    let rig = &world.rig;
    let other = rig.add_client(&ClientSpec::numbered(13))?;
    agent.wait_for_vif(other.vif())?;
    world.put(&agent, &[Rule::all(true)])?;
    let other: IpAddr = other.spec().v4.context("no address")?.into();
    let (code, said) = explain(rig, world.v4, &format!("{other}:22/tcp"))?;
    assert_eq!((code, said.outcome), (1, Said::Dropped), "{said:#?}");
    let before = explain(rig, world.v4, &format!("{SERVER4}:443/tcp"))?.1;
    assert_eq!(before.connection, None);
    let web = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), web, PATIENCE)?;
    assert!(flow.exchange(PATIENCE)?);
    let after = explain(rig, world.v4, &format!("{SERVER4}:443/tcp"))?.1;
    assert_eq!(after.connection, Some(Connection::Opened), "{after:#?}");
    // The same packet as bytes, a spoofed one, and one with a tag.
    let frame = packets::plain(world.v4, SERVER4, packets::TCP, 443);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let recorded = |frame: &[u8]| -> Result<(i32, Explained)> {
        let (from, hex) = (world.v4.to_string(), hex(frame));
        let (code, json, error) =
            cli(rig, &["explain", "--from", &from, "--packet", &hex, "--json"])?;
        let explained: Vec<Explained> = serde_json::from_str(&json).with_context(|| error)?;
        Ok((code, explained.into_iter().next().context("nothing")?))
    };
    for bytes in [&frame[..], &frame[14..]] {
        let (code, said) = recorded(bytes)?;
        assert_eq!((code, said.agree), (0, Some(true)), "{said:#?}");
        assert_eq!(said.agent.context("no agent")?.rule, Some(0));
    }
    let (code, said) = recorded(&packets::plain(other, SERVER4, packets::TCP, 443))?;
    assert_eq!((code, said.judgement.reason), (1, Reason::UnknownSource), "{said:#?}");
    let tagged = [&frame[..12], &[0x81, 0, 0, 1], &frame[12..]].concat();
    assert_eq!(recorded(&tagged)?.1.judgement.reason, Reason::Tagged);
    for (arguments, teaches) in [
        (["--from", "10.137.0.99", "--to", "1.1.1.1/icmp"], "is no client"),
        (["--from", "10.137.0.12", "--to", "2001:db8::1/icmp"], "use --from fd09:24ef:4179::a89:c"),
        (["--from", "10.137.0.12", "--to", "1.1.1.1/tcp"], "1.1.1.1:443/tcp"),
        (["--from", "10.137.0.12", "--to", "git.example:22/tcp"], "give an address instead"),
        (["--from", "10.137.0.12", "--packet", "xyz"], "neither a file nor a packet"),
    ] {
        let (code, _, error) = cli(rig, &[&["explain"], arguments.as_slice()].concat())?;
        assert_eq!(code, 2, "{arguments:?}");
        assert!(error.contains(teaches), "{arguments:?}: {error}");
    }
    Ok(())
}

#[test]
fn what_goes_on_without_an_agent_is_shown_and_explained() -> Result<()> {
    goes_on("without", "auto")
}

#[test]
fn what_goes_on_by_clsact_is_shown_and_explained_as_well() -> Result<()> {
    goes_on("withoutcl", "clsact")
}

fn goes_on(label: &str, attach: &str) -> Result<()> {
    let world = World::new(label)?;
    masquerade(&world.rig)?;
    let agent = Agent::start(&world.rig, &["--attach", attach])?;
    agent.wait_for_vif(world.client.vif())?;
    let rules = Ruleset { default_accept: false, rules: vec![tcp_443(), ping()] };
    agent.put(world.v4, &rules)?;
    let from = world.client.namespace();
    assert_eq!(Probe::ping(from, SERVER4).run(SILENCE)?, Outcome::Accepted);
    let generation = agent.client(world.v4)?.generation;
    agent.kill()?;
    let directory = world.rig.directory().join("rules");
    let directory = directory.to_str().context("a path")?;
    let (code, json, _) =
        cli(&world.rig, &["show", "10.137.0.12", "--json", "--rules", directory])?;
    assert_eq!(code, 3);
    let shown: serde_json::Value = serde_json::from_str(&json)?;
    let client = &shown["vifs"][0]["clients"][0];
    assert_eq!(client["state"], "live", "{shown:#}");
    assert_eq!(client["generation"].as_u64(), generation.map(u64::from));
    assert_eq!(client["rules"][1]["text_now"], "action=accept proto=icmp");
    assert_eq!(client["rules"][1]["counter"]["packets"], 1);
    let (code, text, _) = cli(&world.rig, &["show"])?;
    assert_eq!(code, 3);
    assert!(text.contains("1 vif goes on") && text.contains("cannot tell"), "{text}");
    assert!(text.contains("nothing else is forwarded"), "{text}");
    let (code, said) = explain(&world.rig, world.v4, &format!("{SERVER4}/icmp"))?;
    assert_eq!((code, said.outcome), (0, Said::Forwarded), "{said:#?}");
    assert_eq!(said.judgement.rule_index, Some(1));
    let (code, said) = explain(&world.rig, world.v4, &format!("{SERVER4}:80/tcp"))?;
    assert_eq!((code, said.judgement.reason), (1, Reason::Default), "{said:#?}");
    // Without the gate, what is rejected is forwarded, and so it is said.
    world.rig.netvm().nft("delete table ip qubes-firewall")?;
    let to = format!("{SERVER4}:80/udp");
    assert_eq!(Probe::udp(from, (SERVER4, 80).into()).run(SILENCE)?, Outcome::Accepted);
    let (code, said) = explain(&world.rig, world.v4, &to)?;
    assert_eq!((code, said.outcome), (0, Said::Forwarded), "{said:#?}");
    assert!(said.agent_problem.is_some_and(|why| why.contains("OPEN")));
    let (code, text, _) = cli(&world.rig, &["show"])?;
    assert_eq!(code, 1);
    assert!(text.contains("OPEN: the gate is not there (ip)"), "{text}");
    assert!(!text.contains("nothing else is forwarded"), "{text}");
    let (code, json, _) = cli(&world.rig, &["status", "--json"])?;
    let shown: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!((code, &shown["gate"], &shown["gate_problem"]), (1, &"open".into(), &"ip".into()));
    let file = format!("{directory}/10.137.0.12");
    let (code, text, _) = cli(&world.rig, &["explain", "--rules", &file, "--to", "1.1.1.1/icmp"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Because rule 0001 is the first that matches"), "{text}");
    assert_eq!(cli(&world.rig, &["check", &file])?.0, 0);
    std::fs::write(&file, "policy = drop\n0000 = action=accept dstports=80\ncommit\n")?;
    assert_eq!(cli(&world.rig, &["check", &file])?.0, 1);
    assert_eq!(cli(&world.rig, &["check", "/nowhere/10.137.0.12"])?.0, 2);
    Ok(())
}

#[test]
fn an_answer_to_a_connection_towards_a_client_is_explained_as_one() -> Result<()> {
    let world = World::new("answers")?;
    // Without NAT, and with a way back, the internet can open connections to the client.
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[])?;
    let internet = world.rig.internet();
    let netvm = [UPLINK_V4.to_string(), UPLINK_V6.to_string()];
    internet.ip(&["route", "add", &world.v4.to_string(), "via", &netvm[0]])?;
    internet.ip(&["-6", "route", "add", &world.v6.to_string(), "via", &netvm[1]])?;
    for client in [world.v4, world.v6] {
        let address = SocketAddr::new(client, 7);
        let _server = EchoServer::start(world.client.namespace(), address)?;
        let flow = internet.run(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?))?;
        let (code, said) = explain(&world.rig, client, &format!("{}/tcp", flow.local_addr()?))?;
        assert_eq!(said.connection, Some(Connection::Answers), "{said:#?}");
        assert_eq!((code, said.outcome, said.agree), (0, Said::Forwarded, Some(true)));
        assert_eq!(said.judgement.verdict, Verdict::Reject);
        // What the client opens itself to the same port is no answer.
        let (code, said) = explain(&world.rig, client, &format!("{}/udp", flow.local_addr()?))?;
        assert_eq!((code, said.outcome), (1, Said::Rejected), "{said:#?}");
    }
    Ok(())
}

#[test]
fn a_name_is_explained_by_each_address_that_the_agent_knows() -> Result<()> {
    let named = Named::new("explname")?;
    named.dns.say("a.example", Reply::addresses("a.example", 3600, &[ONE, TWO]));
    named.rules(&["action=drop proto=udp", "action=accept dsthost=a.example proto=tcp"])?;
    named.leads("a.example", &[ONE, TWO])?;
    let client = named.world.v4.to_string();
    for (to, code, outcome) in
        [("a.example:443/tcp", 0, Said::Forwarded), ("a.example:443/udp", 1, Said::Rejected)]
    {
        let arguments = ["explain", "--from", &client, "--to", to, "--json"];
        let (exit, json, error) = cli(&named.world.rig, &arguments)?;
        let all: Vec<Explained> = serde_json::from_str(&json).with_context(|| error)?;
        assert_eq!(exit, code, "{to}");
        let to = all.iter().filter_map(|it| Some(it.packet.as_ref()?.destination.to_string()));
        assert_eq!(to.collect::<Vec<_>>(), [ONE, TWO]);
        for explained in all {
            assert_eq!(explained.name.as_deref(), Some("a.example"));
            assert_eq!((explained.outcome, explained.agree), (outcome, Some(true)));
        }
    }
    named.check("as it was said", &[(ONE, Outcome::Accepted), (TWO, Outcome::Accepted)]);
    Ok(())
}
