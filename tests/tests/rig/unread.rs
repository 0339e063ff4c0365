//! Those who do not read, do not write or do not go: none of them holds the agent up.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::manager::Manager;
use nix::sys::signal::Signal;

use super::world::*;

/// Rules that are wrong and rules that are right, by turns; each has to come into force.
fn alternate(world: &World, agent: &Agent, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let bad = format!("policy = drop\n{round:04} = action=maybe\ncommit\n");
        write_rules(world.rig.directory(), world.v4, &bad)?;
        agent.wait_for_state(world.v4, State::Blocked)?;
        agent.put(world.v4, &Ruleset { default_accept: true, rules: vec![Rule::all(true)] })?;
    }
    Ok(())
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up_and_is_told_later() -> Result<()> {
    let world = World::new("deaf")?;
    world.rig.netvm().sysctl("net/unix/max_dgram_qlen", "10")?;
    let manager = world.rig.netvm().run(|| Manager::listen(world.rig.directory()))?;
    // There is no room left when the agent wants to say that it is ready.
    manager.fill("STATUS=somebody else")?;
    let environment = [manager.environment(), ("WATCHDOG_USEC", "200000".to_owned())];
    let mut agent = Agent::start_in(&world.rig, &[], &environment)?;
    agent.wait_for_vif(world.client.vif())?;
    alternate(&world, &agent, 20)?;
    manager.wait_for("READY", PATIENCE)?;
    manager.wait_for("WATCHDOG", PATIENCE)?;
    manager.fill("STATUS=somebody else")?;
    alternate(&world, &agent, 5)?;
    agent.signal(Signal::SIGTERM)?;
    ensure!(agent.wait()?, "SIGTERM is not a clean end");
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() -> Result<()> {
    let world = World::new("unread")?;
    let environment = [("FIREWALL_LOG", "trace".to_owned())];
    let mut agent = Agent::start_with_log(&world.rig, &[], &environment, Stdio::piped())?;
    agent.wait_for_vif(world.client.vif())?;
    alternate(&world, &agent, 20)?;
    let before = agent.waiting_log()?;
    alternate(&world, &agent, 5)?;
    let after = agent.waiting_log()?;
    ensure!(before == after && before > 16_000, "room was left: {before} bytes, then {after}");
    agent.signal(Signal::SIGTERM)?;
    ensure!(agent.wait()?, "SIGTERM is not a clean end");
    Ok(())
}

#[test]
fn whoever_connects_to_the_control_socket_and_says_nothing_or_never_ends_holds_nothing_up()
-> Result<()> {
    let world = World::new("crowd")?;
    let agent = world.start()?;
    let connect = || UnixStream::connect(agent.socket()).context("no room");
    let mut crowd = Vec::new();
    for number in 0..600 {
        let mut stream = connect()?;
        match number % 6 {
            // Nothing; half a question; half a question, and the end of it.
            0 | 1 => {}
            2 => stream.write_all(b"{\"request\":\"sta")?,
            3 => {
                stream.write_all(b"{\"request\":\"sta")?;
                stream.shutdown(std::net::Shutdown::Write)?;
            }
            // A question whose answer nobody reads, and news that nobody reads.
            4 => stream.write_all(b"{\"request\":\"status\"}\n")?,
            _ => stream.write_all(b"{\"request\":\"monitor\"}\n")?,
        }
        crowd.push(stream);
    }
    // One that never ends its line is hung up on.
    let mut endless = connect()?;
    endless.set_write_timeout(Some(PATIENCE))?;
    let mut sent = 0_usize;
    let hung_up = loop {
        match endless.write_all(&[b'x'; 4096]) {
            Ok(()) => sent += 4096,
            Err(error) => break error,
        }
        ensure!(sent < 64 << 20, "it listens for ever");
    };
    ensure!(hung_up.kind() != ErrorKind::WouldBlock, "it is not its turn: {hung_up}");
    alternate(&world, &agent, 3)?;
    // So many are told the news, and the next one is told why not.
    let mut full = None;
    for stream in crowd.iter().skip(5).step_by(6) {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        ensure!(lines.next().context("no hello")??.contains("hello"));
        let is_left = stream.set_nonblocking(true).is_ok();
        match lines.next() {
            Some(Ok(line)) if is_left => full = Some(line),
            _ => {}
        }
    }
    assert_eq!(full.as_deref(), Some("{\"event\":\"full\",\"readers\":64}"));
    // Those who asked for nothing have been hung up on.
    let mut rest = Vec::new();
    crowd[0].set_read_timeout(Some(PATIENCE))?;
    crowd[0].read_to_end(&mut rest).context("it is never hung up on")?;
    ensure!(agent.terminate()?, "SIGTERM is not a clean end");
    Ok(())
}

#[test]
fn a_pipe_under_the_name_of_a_file_blocks_its_client_and_nobody_else() -> Result<()> {
    let world = World::new("fifo")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let path = agent.rules_of(world.v4);
    std::fs::remove_file(&path)?;
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR)?;
    agent.wait_for_state(world.v4, State::Blocked)?;
    let problem = agent.client(world.v4)?.problem.context("no problem")?;
    ensure!(problem.reason.contains("not a regular file"), "{problem:?}");
    agent.put(world.v6, &Ruleset { default_accept: true, rules: vec![Rule::all(true)] })?;
    world.check("a pipe", ALL_PROHIBITED4, ACCEPTED);
    Ok(())
}
