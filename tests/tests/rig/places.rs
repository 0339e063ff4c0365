//! What the netvm is without, beside its kernel: a place for pins, a usable `nft`.
//! Never takes either away from anybody but the agent that a test starts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::rig::Rig;
use firewall_tests::rig::agent::{self, PATIENCE};
use nix::mount::umount;

use super::service::masquerade;
use super::world::*;

/// Runs a command of the agent to its end: exit code, and all that it prints.
fn finish(rig: &Rig, mut command: Command, path: Option<&Path>) -> Result<(i32, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(path.map(|path| ("PATH", path)));
    let mut child = rig.netvm().spawn(&mut command)?;
    let deadline = Instant::now() + 3 * PATIENCE;
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that goes on is ended by a signal, and has no exit code then.
    let _ = child.kill();
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stderr)? + &String::from_utf8(output.stdout)?;
    let code = output.status.code().with_context(|| format!("it goes on: {text}"))?;
    Ok((code, text))
}

fn run(rig: &Rig) -> Result<Command> {
    let mut command = agent::command(rig, "run", &["--mode", "qubes"])?;
    command.arg("--socket").arg(rig.directory().join("control.sock"));
    Ok(command)
}

fn status(rig: &Rig) -> Result<Command> {
    let mut command = Command::new(agent::binary()?);
    command.args(["status", "--socket"]).arg(rig.directory().join("control.sock"));
    command.arg("--pins").arg(rig.bpffs().join("firewall"));
    Ok(command)
}

/// A directory whose only program is an `nft` that is this script; nothing is in it without one.
fn programs(rig: &Rig, script: Option<&str>) -> Result<PathBuf> {
    let directory = rig.directory().join("programs");
    fs::create_dir_all(&directory)?;
    let nft = directory.join("nft");
    if let Some(script) = script {
        fs::write(&nft, script)?;
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
    } else if nft.exists() {
        fs::remove_file(nft)?;
    }
    Ok(directory)
}

#[test]
fn without_a_place_for_pins_everything_is_closed_and_the_agent_says_what_to_mount() -> Result<()> {
    let world = World::new("nobpffs")?;
    umount(world.rig.bpffs())?;
    masquerade(&world.rig)?;
    world.check("before", ACCEPTED, ACCEPTED);
    let (code, says) = finish(&world.rig, run(&world.rig)?, None)?;
    assert_eq!(code, 2, "{says}");
    ensure!(says.contains("not on a BPF file system; mount one with `mount -t bpf bpf"), "{says}");
    world.check("run", ALL_PROHIBITED4, ALL_PROHIBITED6);
    let (code, says) = finish(&world.rig, status(&world.rig)?, None)?;
    assert_eq!(code, 3, "{says}");
    // Nor can `prepare` mount one where there is no directory.
    world.rig.netvm().nft("flush ruleset")?;
    masquerade(&world.rig)?;
    world.check("before", ACCEPTED, ACCEPTED);
    let file = world.rig.directory().join("file");
    fs::write(&file, "")?;
    let mut prepare = agent::command(&world.rig, "prepare", &["--mode", "qubes"])?;
    let pins = |it: &std::ffi::OsStr| it == "--pins";
    let arguments: Vec<_> = prepare.get_args().map(ToOwned::to_owned).collect();
    let at = arguments.iter().position(|it| pins(it)).context("no --pins")?;
    prepare = Command::new(agent::binary()?);
    prepare.args(&arguments[..=at]).arg(file.join("bpf/firewall")).args(&arguments[at + 2..]);
    let (code, says) = finish(&world.rig, prepare, None)?;
    assert_eq!(code, 2, "{says}");
    ensure!(says.contains("cannot mount a BPF file system on "), "{says}");
    world.check("prepare", ALL_PROHIBITED4, ALL_PROHIBITED6);
    Ok(())
}

#[test]
fn without_nft_nobody_says_closed_and_a_gate_from_before_stays() -> Result<()> {
    let world = World::new("nonft")?;
    masquerade(&world.rig)?;
    let prepare = || agent::command(&world.rig, "prepare", &["--mode", "qubes"]);
    // None at all, one that refuses everything, and one that does nothing and says nothing.
    let refuses = "#!/bin/sh\necho 'Error: unknown' >&2\nexit 1\n";
    let cases = [
        (None, "is nftables installed?"),
        (Some(refuses), "Error: unknown"),
        (Some("#!/bin/sh\nexit 0\n"), ""),
    ];
    for (script, words) in cases {
        let path = programs(&world.rig, script)?;
        for command in [prepare()?, run(&world.rig)?, status(&world.rig)?] {
            let name = command.get_args().next().context("no command")?.to_owned();
            let expected = if name == "status" { 1 } else { 2 };
            let (code, says) = finish(&world.rig, command, Some(&path))?;
            assert_eq!(code, expected, "{name:?}, {script:?}: {says}");
            ensure!(says.contains("NOT KNOWN") && says.contains(words), "{name:?}: {says}");
            ensure!(!says.contains("the gate is closed"), "{name:?}: {says}");
        }
        world.check("as open as before", ACCEPTED, ACCEPTED);
    }
    // What closes stays, whatever has become of `nft` since.
    let (code, says) = finish(&world.rig, prepare()?, None)?;
    assert_eq!(code, 0, "{says}");
    for (script, _) in cases {
        let path = programs(&world.rig, script)?;
        for command in [prepare()?, run(&world.rig)?] {
            let (code, says) = finish(&world.rig, command, Some(&path))?;
            assert_eq!(code, 2, "{script:?}: {says}");
        }
        world.check("closed before", ALL_PROHIBITED4, ALL_PROHIBITED6);
    }
    Ok(())
}
