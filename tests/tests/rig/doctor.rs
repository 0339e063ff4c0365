//! What `doctor` says of a netvm: with an agent and without, as it should be and not.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::Rule;
use firewall_tests::rig::agent::{self, write_rules};
use serde_json::Value;

use super::world::*;

/// Runs `doctor` in the netvm; returns its exit code, and what it prints.
fn doctor(world: &World, arguments: &[&str]) -> Result<(i32, String)> {
    let directory = world.rig.directory();
    let mut command = Command::new(agent::binary()?);
    command.arg("doctor").arg("--socket").arg(directory.join("control.sock"));
    command.arg("--pins").arg(world.rig.bpffs().join("firewall"));
    command.arg("--root").arg(directory.join("root")).args(arguments).stdout(Stdio::piped());
    let output = world.rig.netvm().spawn(&mut command)?.wait_with_output()?;
    Ok((output.status.code().context("ended by a signal")?, String::from_utf8(output.stdout)?))
}

/// The health of each subject, as JSON has it.
fn healths(world: &World, arguments: &[&str]) -> Result<(i32, impl Fn(&str) -> String)> {
    let (code, text) = doctor(world, &[arguments, &["--json"]].concat())?;
    let examination: Value = serde_json::from_str(&text)?;
    let checks = examination["checks"].as_array().context("no checks")?.clone();
    let bad = checks.iter().filter(|check| check["health"] == "bad").count();
    ensure!(examination["problems"] == bad, "{text}");
    let health = move |subject: &str| {
        let check = checks.iter().find(|check| check["subject"] == subject);
        check.map_or(format!("no {subject}"), |check| check["health"].to_string())
    };
    Ok((code, health))
}

#[test]
fn doctor_says_what_there_is_and_what_is_wrong() -> Result<()> {
    let world = World::new("doctor")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let (code, health) = healths(&world, &[])?;
    for subject in ["kernel", "features", "programs", "nft", "modules of nftables", "gate", "agent"]
    {
        ensure!(health(subject) == "\"good\"", "{subject}: {}", health(subject));
    }
    ensure!(code == 0, "{code}");
    // What the agent attached still filters: nothing of what was tried stays.
    world.check("after doctor", ACCEPTED, ACCEPTED);
    ensure!(agent.terminate()?, "no clean end");
    let (code, health) = healths(&world, &[])?;
    let found = (code, health("agent"), health("gate"));
    ensure!(found == (1, "\"bad\"".to_owned(), "\"good\"".to_owned()), "{found:?}");
    world.rig.netvm().nft("flush ruleset")?;
    let (code, text) = doctor(&world, &[])?;
    ensure!(code == 1 && text.contains("PROBLEM") && text.contains("OPEN for ip, ip6"), "{text}");
    ensure!(!text.contains('\u{1b}'), "colours in a pipe: {text}");
    Ok(())
}

#[test]
fn doctor_tells_strangers_no_address() -> Result<()> {
    let world = World::new("masked")?;
    let agent = world.start()?;
    world.rig.netvm().nft("table ip others { chain c { type filter hook forward priority 5; ip saddr 10.1.2.3 drop; }; }")?;
    let name = "secret.example";
    let text = format!("policy = drop\n0000 = action=accept dsthost={name}\ncommit\n");
    write_rules(world.rig.directory(), world.v4, &text)?;
    agent.wait_for("a name", |status| status.names.iter().any(|it| it.name == name))?;
    let (_, open) = doctor(&world, &[])?;
    let (_, masked) = doctor(&world, &["--mask"])?;
    for text in [&open, &masked] {
        for secret in [name, &world.v4.to_string(), &world.v6.to_string(), "10.1.2.3"] {
            ensure!(!text.contains(secret), "{secret}: {text}");
        }
    }
    ensure!(masked.contains("table ip others, chain c"), "{masked}");
    Ok(())
}
