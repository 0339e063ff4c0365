//! What a kernel is without, for real, as the virtual machines of `cargo xtask vm` leave it out: it is
//! named, and what cannot be enforced is closed. On a kernel that has all, that nothing is named.
//! Never pretends: `closed.rs` does.

use std::env;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_core::told::status::{ClientStatus, State, Status};
use firewall_tests::oracle::Ruleset;
use firewall_tests::rig::agent::{self, Agent, write_rules};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{ClientSpec, Rig, UPLINK_V4, UPLINK_V6, has_v6};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::world::*;

/// The module that the kernel is without, or how else it is odd; nothing if it has all that the agent
/// can use.
const VARIABLE: &str = "FIREWALL_WITHOUT";

/// A world whose clients get answers although nobody translates their addresses.
fn routed_world() -> Result<World> {
    let world = World::new("kernel")?;
    let ways = [(world.v4, UPLINK_V4.to_string()), (world.v6, UPLINK_V6.to_string())];
    for (client, netvm) in ways {
        world.rig.internet().ip(&["route", "add", &client.to_string(), "via", &netvm])?;
    }
    Ok(world)
}

/// Runs a command of the agent to its end: exit code, standard output and error.
fn cli(rig: &Rig, mut command: Command) -> Result<(i32, String, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = rig.netvm().spawn(&mut command)?.wait_with_output()?;
    let code = output.status.code().context("a signal")?;
    Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// No gate: neither `prepare` nor `run` is content, and nothing of a client leaves.
fn refuses_the_gate(mode: &str, named: &str) -> Result<()> {
    let world = routed_world()?;
    world.check("before", ACCEPTED, ACCEPTED);
    for name in ["prepare", "run"] {
        let command = agent::command(&world.rig, name, &["--mode", mode])?;
        let (code, _, says) = cli(&world.rig, command)?;
        assert_eq!(code, 2, "{name}: {says}");
        ensure!(says.contains(named) && says.contains("modprobe"), "{name}: {says}");
        world.check(name, SILENT, SILENT);
    }
    Ok(())
}

/// The agent runs; something of its status names what the kernel is without.
fn runs_and_names(named: &str) -> Result<(World, Agent)> {
    let world = routed_world()?;
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    for client in [world.v4, world.v6] {
        // That a client has settled is not waited for.
        let rules = Ruleset { default_accept: false, rules: vec![tcp_443()] };
        write_rules(world.rig.directory(), client, &rules.file())?;
        let is_live = |it: &ClientStatus| it.address == client && it.state == State::Live;
        agent.wait_for("the rules", |status| status.clients.iter().any(is_live))?;
    }
    let names = |status: &Status| format!("{status:?}").contains(named);
    agent.wait_for(named, names)?;
    Ok((world, agent))
}

/// The programs cannot be: `run` says why in one sentence, `status` as well, and the gate is closed.
fn is_too_old() -> Result<()> {
    let world = routed_world()?;
    let sentence = "cannot run the programs of this firewall: it lacks the function \
                    bpf_ktime_get_coarse_ns (since 5.11), atomic exchange in BPF (since 5.12), so it \
                    has to be 5.12 at least";
    let socket = world.rig.directory().join("control.sock");
    let prepare = agent::command(&world.rig, "prepare", &["--mode", "qubes"])?;
    assert_eq!(cli(&world.rig, prepare)?.0, 0);
    world.check("prepared", ALL_PROHIBITED4, ALL_PROHIBITED6);
    world.rig.netvm().nft("flush ruleset")?;
    let mut run = agent::command(&world.rig, "run", &["--mode", "qubes"])?;
    run.arg("--socket").arg(&socket);
    let (code, _, says) = cli(&world.rig, run)?;
    assert_eq!(code, 2, "{says}");
    assert_eq!(says.matches(sentence).count(), 1, "{says}");
    let errors: Vec<&str> = says.lines().filter(|it| it.starts_with("firewall-agent: ")).collect();
    ensure!(errors.len() == 1 && errors[0].ends_with(sentence), "{says}");
    ensure!(!says.contains("processed ") && says.lines().count() <= 3, "{says}");
    println!("it says: {}", errors[0]);
    world.check("no agent", ALL_PROHIBITED4, ALL_PROHIBITED6);
    for name in ["status", "show"] {
        let mut command = Command::new(agent::binary()?);
        command.arg(name).arg("--socket").arg(&socket);
        command.arg("--pins").arg(world.rig.bpffs().join("firewall"));
        let (code, text, _) = cli(&world.rig, command)?;
        assert_eq!(code, 3, "{text}");
        ensure!(
            text.contains("No agent can run here. Linux ") && text.contains(sentence),
            "{text}"
        );
        ensure!(text.contains("nothing is forwarded from any client but answers"), "{text}");
    }
    let mut explain = Command::new(agent::binary()?);
    explain.args(["explain", "--from", "10.137.0.12", "--to", "198.51.100.7:443/tcp", "--socket"]);
    explain.arg(&socket).arg("--pins").arg(world.rig.bpffs().join("firewall"));
    let (code, text, says) = cli(&world.rig, explain)?;
    println!("explain: {code} {text}{says}");
    assert_eq!(code, 3, "{text}{says}");
    Ok(())
}

/// IPv4 is filtered as ever, and nothing is found to be wrong.
fn works_without_v6() -> Result<()> {
    ensure!(!has_v6(), "the kernel has IPv6");
    let rig = Rig::new("nov6")?;
    rig.add_internet_address(SERVER4)?;
    let _server = EchoServer::start(rig.internet(), (SERVER4, 443).into())?;
    let client = rig.add_client(&ClientSpec { v6: None, ..ClientSpec::numbered(12) })?;
    let address = client.spec().v4.context("no address")?.into();
    for &attach in ways() {
        let agent = Agent::start(&rig, &["--attach", attach])?;
        agent.wait_for_vif(client.vif())?;
        let rules = vec![tcp_443()];
        agent.put(address, &Ruleset { default_accept: attach == "tcx", rules })?;
        let from = client.namespace();
        assert_eq!(Probe::tcp(from, (SERVER4, 443).into()).run(SILENCE)?, Outcome::Accepted);
        let rest = if attach == "tcx" { Outcome::Accepted } else { PROHIBITED4 };
        assert_eq!(Probe::ping(from, SERVER4).run(SILENCE)?, rest, "{attach}");
        let status = agent.status()?;
        let problems = firewall_core::told::totals::problems(&status);
        ensure!(problems == 0, "{status:#?}\n{}", agent.log());
        agent.kill()?;
    }
    Ok(())
}

/// Nothing is found to be wrong, and rules are in force. What the kernel has not, and need not have,
/// is refused in one sentence if somebody asks for it.
fn all_works() -> Result<()> {
    let world = routed_world()?;
    if !has_tcx() {
        let command = agent::command(&world.rig, "run", &["--mode", "qubes", "--attach", "tcx"])?;
        let (code, _, says) = cli(&world.rig, command)?;
        let sentence =
            "cannot run --attach tcx: it lacks tcx (since 6.6), so it has to be 6.6 at least";
        assert_eq!((code, says.matches(sentence).count()), (2, 1), "{says}");
        world.check("no tcx", ALL_PROHIBITED4, ALL_PROHIBITED6);
    }
    let agent = world.start_with(&["--mode", "qubes"])?;
    world.put(&agent, &[tcp_443()])?;
    agent.wait_for_settled()?;
    let status = agent.status()?;
    ensure!(status.agent.gate_problem.is_none(), "{status:?}");
    ensure!(status.vifs.iter().all(|vif| vif.problem.is_none()), "{status:?}");
    let (v4, v6) = WEB;
    world.check("all is there", v4, v6);
    Ok(())
}

/// What stands in a file of the kernel.
fn says(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[test]
fn what_the_kernel_is_without_is_named_and_what_cannot_be_enforced_is_closed() -> Result<()> {
    use Outcome::{Accepted, Silent};
    let without = env::var(VARIABLE).unwrap_or_default();
    match without.as_str() {
        "" => all_works()?,
        "floor" => is_too_old()?,
        "ipv6" => works_without_v6()?,
        "jit" => {
            assert_eq!(says("/proc/sys/net/core/bpf_jit_enable")?.trim(), "0");
            all_works()?;
        }
        "integrity" | "confidentiality" => {
            let lockdown = says("/sys/kernel/security/lockdown")?;
            ensure!(lockdown.contains(&format!("[{without}]")), "{lockdown}");
            all_works()?;
        }
        "nft_ct" => refuses_the_gate("qubes", "nft_ct")?,
        "nft_reject" => refuses_the_gate("qubes", "nft_reject_ipv4")?,
        "nft_masq" => refuses_the_gate("standalone", "nft_masq")?,
        "cls_bpf" => {
            // Where there is no tcx either, no program can be attached, and the gate rejects.
            let (world, _agent) = runs_and_names("cls_bpf")?;
            world.check("no program", ALL_PROHIBITED4, ALL_PROHIBITED6);
        }
        "nf_conntrack_netlink" => {
            // What rules deny may be open, so the client settles for ever, and is denied silently.
            let (world, agent) = runs_and_names("nf_conntrack_netlink")?;
            let expected = [Accepted, Silent, Silent, Silent];
            world.check("settling", expected, expected);
            ensure!(agent.client(world.v4)?.settling, "the client has settled");
        }
        other => bail!("nobody knows what is to become of `{other}` ({VARIABLE})"),
    }
    Ok(())
}
