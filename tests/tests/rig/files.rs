//! Rule files under a running agent, and what its command line says about them.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, write_rules};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::world::*;

#[test]
fn a_bad_file_blocks_its_own_client_only_and_status_says_what_is_wrong() -> Result<()> {
    let world = World::new("badfile")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    world.check("good files", ACCEPTED, ACCEPTED);
    let path = agent.rules_of(world.v4);
    fs::write(&path, "policy = drop\n0000 = action=accept specialtarget=evil\ncommit\n")?;
    agent.wait_for_state(world.v4, State::Blocked)?;
    world.check("one bad file", ALL_PROHIBITED4, ACCEPTED);
    let problem = agent.client(world.v4)?.problem.context("no problem told")?;
    assert_eq!(problem.origin, path.display().to_string());
    assert_eq!(problem.line, Some(2));
    assert_eq!(problem.text, "action=accept specialtarget=evil");
    assert_eq!(problem.reason, "unknown special target `evil`");
    let output = cli(&agent, &["status"])?;
    assert_eq!(output.0, 1);
    let expected = format!(
        "PROBLEM: 10.137.0.12 is blocked: {}, line 2: unknown special target `evil` \
         in `action=accept specialtarget=evil`",
        path.display()
    );
    assert!(output.1.contains(&expected), "{}", output.1);
    Ok(())
}

/// Exit code and standard output of the agent's command line.
pub fn cli(agent: &Agent, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(firewall_tests::rig::agent::binary()?)
        .args(arguments)
        .arg("--socket")
        .arg(agent.socket())
        .output()?;
    Ok((output.status.code().context("a signal")?, String::from_utf8(output.stdout)?))
}

#[test]
fn show_and_status_tell_what_is_in_force() -> Result<()> {
    let world = World::new("show")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    assert_eq!(Probe::ping(world.client.namespace(), SERVER4).run(SILENCE)?, Outcome::Accepted);
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("clients: 2 live, 0 blocked"), "{text}");
    let (code, text) = cli(&agent, &["show", "10.137.0.12"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("10.137.0.12 on vif12.0: live, generation "), "{text}");
    let line = |number: &str| {
        let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(number));
        lines.by_ref().take(2).map(str::trim).collect::<Vec<_>>().join(" ")
    };
    let ping = line("0001");
    assert!(ping.starts_with("0001  action=accept proto=icmp 1 packet, 58 bytes, last "), "{text}");
    assert!(line("0000").ends_with("dstports=443-443 0 packets, 0 bytes"), "{text}");
    let (_, json) = cli(&agent, &["show", "10.137.0.12", "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(json["schema"], 2);
    assert_eq!(json["clients"][0]["rules"][1]["counter"]["packets"], 1);
    assert_eq!(cli(&agent, &["show", "10.137.0.99"])?.0, 0);
    let socket = agent.socket();
    agent.kill()?;
    let mut command = Command::new(firewall_tests::rig::agent::binary()?);
    command
        .args(["status", "--socket"])
        .arg(socket)
        .arg("--pins")
        .arg(world.rig.bpffs().join("firewall"))
        .stdout(Stdio::piped());
    let output = world.rig.netvm().spawn(&mut command)?.wait_with_output()?;
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout)?;
    assert!(text.contains("1 vif goes on"), "{text}");
    Ok(())
}

#[test]
fn deleting_or_half_writing_a_file_never_opens_anything() -> Result<()> {
    let world = World::new("halffile")?;
    let agent = world.start()?;
    let denied = SocketAddr::new(SERVER4, 80);
    let rules = Ruleset {
        default_accept: true,
        rules: vec![Rule { ports: Some((80, 80)), proto: Some(Proto::Udp), ..Rule::all(false) }],
    };
    agent.put(world.v4, &rules)?;
    assert_eq!(Probe::udp(world.client.namespace(), denied).run(SILENCE)?, PROHIBITED4);
    let counter = EchoServer::start(world.rig.internet(), SocketAddr::new(SERVER4, 81))?;
    let never = SocketAddr::new(SERVER4, 82);
    let watched = EchoServer::start(world.rig.internet(), never)?;
    let done = AtomicBool::new(false);
    let text = {
        let mut rules = rules.clone();
        let udp = Rule { proto: Some(Proto::Udp), ..Rule::all(false) };
        rules.rules.push(Rule { ports: Some((82, 82)), ..udp });
        rules.file()
    };
    // The whole file denies port 82. The client knocks there all the time, while the file
    // is cut at every byte, emptied and deleted.
    agent.put(world.v4, &Ruleset { default_accept: false, rules: Vec::new() })?;
    std::thread::scope(|scope| -> Result<()> {
        let knocking = scope.spawn(|| {
            world.client.namespace().run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                let mut sent = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    // A reject of an earlier one comes back here; it is no failure.
                    let _ = socket.send_to(b"knock", never);
                    sent += 1;
                    if sent.is_multiple_of(64) {
                        std::thread::yield_now();
                    }
                }
                Ok(sent)
            })
        });
        let path = agent.rules_of(world.v4);
        let outcome = (0..text.len()).try_for_each(|length| -> Result<()> {
            fs::write(&path, &text[..length])?;
            if length % 16 == 0 {
                agent.wait_for_state(world.v4, State::Blocked)?;
                fs::remove_file(&path)?;
                agent.wait_for_state(world.v4, State::Waiting)?;
            }
            Ok(())
        });
        let outcome = outcome.and_then(|()| {
            write_rules(world.rig.directory(), world.v4, &text)?;
            agent.wait_for_state(world.v4, State::Live)
        });
        done.store(true, Ordering::Relaxed);
        let sent = knocking.join().expect("no panic")?;
        ensure!(sent > 1000, "only {sent} knocks");
        outcome
    })?;
    assert_eq!(watched.received().udp_packets, 0);
    let open = Probe::udp(world.client.namespace(), SocketAddr::new(SERVER4, 81));
    assert_eq!(open.run(SILENCE)?, Outcome::Accepted);
    assert!(counter.received().udp_packets > 0);
    Ok(())
}
