//! The agent as a service: what systemd hears, scripts of the administrator, the desktop,
//! and what a stop leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::desktop;
use firewall_core::told::status::State;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::Rig;
use firewall_tests::rig::agent::{self, Agent, PATIENCE, write_rules};
use firewall_tests::rig::manager::Manager;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rounds;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};
use nix::sys::signal::Signal;

use super::cycles::DENIED;
use super::world::*;

#[test]
fn ready_is_said_when_rules_are_in_force_and_reload_stop_and_life_as_well() -> Result<()> {
    let world = World::new("notify")?;
    let everything = Ruleset { default_accept: true, rules: Vec::new() };
    for client in [world.v4, world.v6] {
        write_rules(world.rig.directory(), client, &everything.file())?;
    }
    let manager = Manager::listen(world.rig.directory())?;
    let watchdog = ("WATCHDOG_USEC", "200000".to_owned());
    let agent = Agent::start_in(&world.rig, &[], &[manager.environment(), watchdog])?;
    manager.wait_for("READY", PATIENCE)?;
    world.check("ready", ACCEPTED, ACCEPTED);
    for _ in 0..3 {
        manager.wait_for("WATCHDOG", PATIENCE)?;
    }
    let before = monotonic()?;
    agent.signal(Signal::SIGHUP)?;
    let reloading = manager.wait_for("RELOADING", PATIENCE)?;
    assert_eq!(reloading.first().map(String::as_str), Some("RELOADING=1"));
    let told = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let told: u128 = told.context("no time of the reload")?.parse()?;
    assert!((before..=monotonic()?).contains(&told), "{told}");
    manager.wait_for("READY", PATIENCE)?;
    write_rules(world.rig.directory(), world.v4, "policy = maybe\ncommit\n")?;
    agent.wait_for_state(world.v4, State::Blocked)?;
    let status = manager.wait_for("STATUS", PATIENCE)?;
    assert_eq!(status, ["STATUS=clients: 1 live, 1 blocked, 0 waiting for rules"]);
    agent.signal(Signal::SIGTERM)?;
    manager.wait_for("STOPPING", PATIENCE)?;
    Ok(())
}

/// Microseconds of CLOCK_MONOTONIC.
fn monotonic() -> Result<u128> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_micros())
}

/// A file with these permissions, and the directories that it is in.
fn script(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Runs `prepare` in mode qubes, and returns what it wrote to its log.
fn prepare(rig: &Rig) -> Result<String> {
    finish(rig, agent::command(rig, "prepare", &["--mode", "qubes"])?)
}

/// Runs a command of the agent in the netvm to its end.
fn finish(rig: &Rig, mut command: Command) -> Result<String> {
    let output = rig.netvm().spawn(command.stderr(Stdio::piped()))?.wait_with_output()?;
    let log = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{log}");
    Ok(log)
}

#[test]
fn scripts_of_the_administrator_run_once_in_order_behind_the_closed_gate() -> Result<()> {
    let world = World::new("scripts")?;
    let root = world.rig.directory().join("root");
    let told = world.rig.directory().join("told");
    // Each tells its name, that it sees the gate, and which signals it would miss. Two that
    // the C library keeps for itself do not count.
    let text = format!(
        "#!/bin/sh\nnft list chain ip qubes-firewall qubes-forward >/dev/null || exit 1\n\
         sigs() {{ echo $((0x$(sed -n \"s/^Sig$1:\\t//p\" /proc/$$/status) & 0x7fffffff)); }}\n\
         echo \"$(basename $0) $(sigs Blk) $(sigs Ign)\" >> {}\n",
        told.display()
    );
    for name in ["etc/qubes/qubes-firewall.d/20-b", "etc/qubes/qubes-firewall.d/10-a"] {
        script(&root.join(name), &text, 0o755)?;
    }
    script(&root.join("etc/qubes/qubes-firewall.d/15-fails"), "#!/bin/sh\nexit 3\n", 0o755)?;
    script(&root.join("etc/qubes/qubes-firewall.d/16-no-script"), "\u{7f}ELF", 0o755)?;
    script(&root.join("etc/qubes/qubes-firewall.d/30-not-executable"), &text, 0o644)?;
    fs::create_dir(root.join("etc/qubes/qubes-firewall.d/40-directory"))?;
    script(&root.join("rw/config/qubes-firewall.d/05-c"), &text, 0o755)?;
    let user = format!("{text}nft add rule ip qubes-firewall qubes-forward counter\n");
    script(&root.join("rw/config/qubes-firewall-user-script"), &user, 0o755)?;
    let log = prepare(&world.rig)?;
    let lines = |path: &PathBuf| -> Result<Vec<String>> {
        Ok(fs::read_to_string(path)?.lines().map(|line| line.trim().to_owned()).collect())
    };
    // None beyond those that whoever runs the tests ignores, like nohup(1) does. The standard
    // library, which ignores SIGPIPE itself, has programs start with its default.
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let ignored = u64::from_str_radix(ignored.context("no signals")?, 16)?;
    let ignored = ignored & 0x7fff_ffff & !(1 << (Signal::SIGPIPE as u32 - 1));
    let clean = format!("0 {ignored}");
    let expected = ["10-a", "20-b", "05-c", "qubes-firewall-user-script"];
    assert_eq!(lines(&told)?, expected.map(|name| format!("{name} {clean}")), "{log}");
    assert!(log.contains("15-fails") && log.contains("exit status: 3"), "{log}");
    assert!(log.contains("16-no-script"), "{log}");
    // What a script added to the gate is still there when the agent runs.
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    let mut list = std::process::Command::new("nft");
    list.args(["list", "chain", "ip", "qubes-firewall", "qubes-forward"]).stdout(Stdio::piped());
    let output = world.rig.netvm().spawn(&mut list)?.wait_with_output()?;
    let listed = String::from_utf8(output.stdout)?;
    assert!(listed.contains("counter packets"), "{listed}");
    // The netvm's own scripts do not run where its administrator chose what persists.
    script(&root.join("run/qubes-service/custom-persist"), "", 0o644)?;
    fs::remove_file(&told)?;
    prepare(&world.rig)?;
    assert_eq!(lines(&told)?, ["10-a", "20-b"].map(|name| format!("{name} {clean}")));
    Ok(())
}

#[test]
fn prepare_closes_a_netvm_that_never_had_an_agent_and_mounts_a_place_for_pins() -> Result<()> {
    let world = World::new("prepare")?;
    nix::mount::umount(world.rig.bpffs())?;
    let client = world.client.namespace();
    masquerade(&world.rig)?;
    let probe = Probe::ping(client, SERVER4);
    assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "nobody closed it yet");
    prepare(&world.rig)?;
    check(client, "prepared", ALL_PROHIBITED4, ALL_PROHIBITED6);
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    Ok(())
}

/// Leaves the netvm to another firewall.
fn hand_over(rig: &Rig) -> Result<()> {
    let mut command = Command::new(agent::binary()?);
    command.args(["hand-over", "--pins"]).arg(rig.bpffs().join("firewall"));
    finish(rig, command).map(drop)
}

/// A chain that is replaced does not drop by its policy at once, only by its rules.
#[test]
fn nothing_leaks_while_a_gate_comes_and_another_firewall_takes_over() -> Result<()> {
    let world = World::new("handover")?;
    masquerade(&world.rig)?;
    prepare(&world.rig)?;
    let denied = EchoServer::start(world.rig.internet(), DENIED)?;
    let count = rounds(100, 1000);
    let all_rounds = || -> Result<()> {
        for round in 0..count {
            hand_over(&world.rig)?;
            prepare(&world.rig)?;
            let leaked = denied.received().udp_packets;
            ensure!(leaked == 0, "round {round}: {leaked} packets leaked");
        }
        Ok(())
    };
    let ((), sent) = while_sending(&world.client, DENIED, Duration::ZERO, all_rounds)?;
    ensure!(sent > 10 * count as u64, "only {sent} packets");
    Ok(())
}

/// What `table ip qubes` does on Qubes OS.
pub fn masquerade(rig: &Rig) -> Result<()> {
    rig.netvm().nft(
        "table inet others { chain translate { \
         type nat hook postrouting priority srcnat; oifname \"eth0\" masquerade; }; }",
    )
}

#[test]
fn a_stop_keeps_the_firewall_closed_unless_it_was_told_to_open() -> Result<()> {
    let world = World::new("openstop")?;
    masquerade(&world.rig)?;
    for client in [world.v4, world.v6] {
        write_rules(world.rig.directory(), client, "policy = drop\ncommit\n")?;
    }
    for &attach in ways() {
        for (open, option) in [(false, None), (true, Some("--open-on-stop"))] {
            let arguments = ["--mode", "qubes", "--attach", attach];
            let arguments: Vec<&str> = arguments.into_iter().chain(option).collect();
            let agent = Agent::start(&world.rig, &arguments)?;
            agent.wait_for_vif(world.client.vif())?;
            world.check(attach, ALL_PROHIBITED4, ALL_PROHIBITED6);
            ensure!(agent.terminate()?, "SIGTERM is not a clean end");
            if open {
                world.check("stopped", ACCEPTED, ACCEPTED);
            } else {
                world.check("stopped", ALL_PROHIBITED4, ALL_PROHIBITED6);
            }
        }
    }
    let mut wrong = agent::command(&world.rig, "run", &["--open-on-stop"])?;
    let output = wrong.stderr(Stdio::piped()).output()?;
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr)?;
    assert!(error.contains("--open-on-stop goes with mode qubes only"), "{error}");
    Ok(())
}

#[test]
fn a_desktop_that_hangs_delays_nobody() -> Result<()> {
    let world = World::new("desktop")?;
    let directory = world.rig.directory();
    let place = directory.join("root").join(desktop::SOCKET);
    fs::create_dir_all(place.parent().context("no directory")?)?;
    let screen = UnixDatagram::bind(&place)?;
    screen.set_nonblocking(true)?;
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    // More than the kernel keeps for whoever does not read.
    let kept = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen")?;
    let kept: usize = kept.trim().parse()?;
    let rounds = kept + 5;
    for round in 0..rounds {
        let bad = format!("policy = drop\n{round:04} = action=\u{e9}\ncommit\n");
        write_rules(directory, world.v4, &bad)?;
        agent.wait_for_state(world.v4, State::Blocked)?;
        agent.put(world.v4, &Ruleset { default_accept: true, rules: vec![Rule::all(true)] })?;
    }
    let mut buffer = [0; 2 * desktop::MOST];
    let mut count = 0;
    while let Ok(length) = screen.recv(&mut buffer) {
        let line = buffer.get(..length).context("no line")?;
        let is_printable = |it: &u8| it.is_ascii_graphic() || *it == b' ';
        assert!(length <= desktop::MOST && line.iter().all(is_printable), "{line:?}");
        assert!(line.starts_with(b"10.137.0.12 is blocked: "), "{line:?}");
        count += 1;
    }
    assert!((1..rounds).contains(&count), "{count} of {rounds}: {}", agent.log());
    Ok(())
}
