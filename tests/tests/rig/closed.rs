//! Closed means closed: a kernel that cannot take the whole gate, and gates that lost a part.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::rig::Rig;
use firewall_tests::rig::agent::{self, Agent, PATIENCE, write_rules};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};
use nix::sys::signal::Signal;

use super::life::list_ruleset;
use super::service::masquerade;
use super::world::*;

/// An `nft` in front of the real one that refuses what this kernel shall lack, with the words
/// of the real one. Everything else is the real one's.
pub struct Lacking {
    directory: PathBuf,
}

impl Lacking {
    /// What is refused is an extended regular expression for a line.
    pub fn new(rig: &Rig, refused: &str) -> Result<Self> {
        let directory = rig.directory().join("lacking");
        fs::create_dir_all(&directory)?;
        let real = real_nft()?;
        let script = format!(
            "#!/bin/sh\ncd {directory}\n\
             refuse() {{ echo \"Error: Could not process rule: $1\" >&2; exit 1; }}\n\
             case \"$*\" in\n*\"-f -\"*) ;;\n\
             *) echo \"$*\" | grep -Eqf unlisted && refuse 'Out of memory'; exec {real} \"$@\" ;;\n\
             esac\n\
             text=$(tee -a told)\n\
             is_in() {{ printf '%s\\n' \"$text\" | grep -Eqf $1; }}\n\
             is_in refused && refuse 'No such file or directory'\n\
             is_in once && sed -i 1d once && refuse 'No such file or directory'\n\
             printf '%s\\n' \"$text\" | {real} \"$@\"\n",
            directory = directory.display(),
            real = real.display()
        );
        let nft = directory.join("nft");
        fs::write(&nft, script)?;
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
        let lacking = Self { directory };
        lacking.refuse(refused)?;
        lacking.refuse_so_often("", 0)?;
        lacking.refuse_to_list("")?;
        Ok(lacking)
    }

    /// What is refused from now on; without a line, nothing is.
    pub fn refuse(&self, refused: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("refused"), refused)?)
    }

    /// What is refused this many times, beside that.
    pub fn refuse_so_often(&self, refused: &str, times: usize) -> Result<()> {
        Ok(fs::write(self.directory.join("once"), format!("{refused}\n").repeat(times))?)
    }

    /// What is not listed from now on, by the arguments; without a line, all is.
    pub fn refuse_to_list(&self, arguments: &str) -> Result<()> {
        Ok(fs::write(self.directory.join("unlisted"), arguments)?)
    }

    /// All that `nft` was to load.
    pub fn told(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("told"))?)
    }

    pub fn environment(&self) -> Result<(&'static str, String)> {
        let path = std::env::var("PATH")?;
        Ok(("PATH", format!("{}:{path}", self.directory.display())))
    }
}

fn real_nft() -> Result<PathBuf> {
    let path = std::env::var("PATH")?;
    let mut places = std::env::split_paths(&path).map(|directory| directory.join("nft"));
    places.find(|place| place.is_file()).context("no nft")
}

/// What only the bare gate says.
const BARE: &str = "The whole gate is not there";

/// Runs a command of the agent to its end, whatever that is.
fn run(rig: &Rig, mut command: Command, environment: &[(&str, String)]) -> Result<Output> {
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(rig.netvm().spawn(&mut command)?.wait_with_output()?)
}

/// Without `nft_ct`, without `nft_reject`, without what translates addresses.
const LACKS: [(&str, &str, &str, &str); 4] = [
    ("qubes", "\tct |[{ ]ct (state|direction) ", "no nft_ct:", "ct"),
    ("qubes", "reject with icmp", "no nft_reject_ipv4, nft_reject_ipv6:", "reject"),
    ("standalone", "masquerade", "no nft_masq:", "masquerade"),
    ("standalone", "type nat ", "no nft_chain_nat:", "nat"),
];

#[test]
fn a_kernel_that_cannot_take_the_whole_gate_forwards_nothing_and_says_what_it_lacks() -> Result<()>
{
    let world = World::new("lacks")?;
    masquerade(&world.rig)?;
    for (mode, refused, words, name) in LACKS {
        // As if nobody had ever closed it.
        world.rig.netvm().nft(
            "table ip qubes-firewall\ndelete table ip qubes-firewall\n\
             table ip6 qubes-firewall\ndelete table ip6 qubes-firewall",
        )?;
        let lacking = Lacking::new(&world.rig, refused)?;
        let environment = [lacking.environment()?];
        world.check(name, ACCEPTED, ACCEPTED);
        let prepare = agent::command(&world.rig, "prepare", &["--mode", mode])?;
        let output = run(&world.rig, prepare, &environment)?;
        let says = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{says}");
        ensure!(says.contains(words) && says.contains("modprobe"), "{says}");
        ensure!(says.contains("nothing is forwarded from clients"), "{says}");
        world.check(name, SILENT, SILENT);
        // Once the kernel has it, the same netvm is as it should be.
        lacking.refuse("")?;
        let prepare = agent::command(&world.rig, "prepare", &["--mode", mode])?;
        let output = run(&world.rig, prepare, &environment)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world.check(name, ALL_PROHIBITED4, ALL_PROHIBITED6);
        // A whole gate stays when the next one is refused.
        lacking.refuse(refused)?;
        let prepare = agent::command(&world.rig, "prepare", &["--mode", mode])?;
        let output = run(&world.rig, prepare, &environment)?;
        let says = String::from_utf8(output.stderr)?;
        ensure!(says.contains("the one from before stays"), "{says}");
        world.check(name, ALL_PROHIBITED4, ALL_PROHIBITED6);
    }
    Ok(())
}

#[test]
fn an_agent_whose_gate_is_refused_ends_closed_and_one_that_runs_says_so() -> Result<()> {
    let world = World::new("refused")?;
    let lacking = Lacking::new(&world.rig, "")?;
    let environment = [lacking.environment()?];
    let agent = Agent::start_in(&world.rig, &[], &environment)?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    world.check("whole", v4, v6);
    lacking.refuse("reject with icmp")?;
    world.rig.netvm().nft("flush ruleset")?;
    // What is forwarded has a way back.
    masquerade(&world.rig)?;
    agent.wait_for("a refused gate", |status| {
        let problem = status.agent.gate_problem.as_deref().unwrap_or_default();
        // At the second try, the bare gate of the first is what was there before.
        let closed = ["nothing is forwarded from clients", "the gate in force is closed"];
        closed.iter().any(|it| problem.contains(it)) && problem.contains("nft_reject_ipv4")
    })?;
    world.check("bare", SILENT, SILENT);
    lacking.refuse("")?;
    world.rig.netvm().nft("add table ip somebody")?;
    agent.wait_for("the whole gate", |status| status.agent.gate_problem.is_none())?;
    world.check("whole again", v4, v6);
    agent.kill()?;
    lacking.refuse("reject with icmp")?;
    world.rig.netvm().nft("flush ruleset")?;
    masquerade(&world.rig)?;
    let output = run(&world.rig, agent::command(&world.rig, "run", &[])?, &environment)?;
    let says = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{says}");
    ensure!(says.contains("nft_reject_ipv4"), "{says}");
    world.check("no agent", SILENT, SILENT);
    Ok(())
}

#[test]
fn where_nothing_can_be_closed_it_is_said_to_be_open() -> Result<()> {
    let world = World::new("open")?;
    let lacking = Lacking::new(&world.rig, "")?;
    let environment = [lacking.environment()?];
    let mut agent = Agent::start_in(&world.rig, &[], &environment)?;
    agent.wait_for_vif(world.client.vif())?;
    // Not even nf_tables is left.
    lacking.refuse(".")?;
    world.rig.netvm().nft("flush ruleset")?;
    agent.wait_for("OPEN", |status| {
        let problem = status.agent.gate_problem.as_deref().unwrap_or_default();
        problem.starts_with("OPEN, nothing stops what clients send: ")
    })?;
    masquerade(&world.rig)?;
    write_rules(world.rig.directory(), world.v4, "policy = drop\ncommit\n")?;
    agent.wait_for_state(world.v4, State::Live)?;
    let ping = Probe::ping(world.client.namespace(), SERVER4);
    assert_eq!(ping.run(SILENCE)?, Outcome::Accepted, "it is not as open as it is said to be");
    agent.signal(Signal::SIGTERM)?;
    ensure!(agent.wait()?, "SIGTERM is not a clean end");
    ensure!(agent.log().contains("stopped OPEN"), "{}", agent.log());
    ensure!(!agent.log().contains("nothing else is forwarded"), "{}", agent.log());
    Ok(())
}

#[test]
fn a_gate_in_force_is_replaced_without_a_moment_of_the_bare_one() -> Result<()> {
    let world = World::new("regated")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let to = std::net::SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
    agent.kill()?;
    let recorder = Lacking::new(&world.rig, "")?;
    let environment = [recorder.environment()?];
    // Another gate than the one in force each time, and at last the first again.
    for vifs in ["vif*", "vi*", "vif*"] {
        let prepare = agent::command(&world.rig, "prepare", &["--vifs", vifs])?;
        let output = run(&world.rig, prepare, &environment)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let told = recorder.told()?;
    ensure!(told.matches("chain qubes-forward").count() == 6, "{told}");
    ensure!(!told.contains(BARE), "the bare gate came between: {told}");
    ensure!(flow.exchange(PATIENCE)?, "what is established broke");
    // Where nothing closes, it comes first.
    world.rig.netvm().nft("delete table ip6 qubes-firewall")?;
    let prepare = agent::command(&world.rig, "prepare", &[])?;
    ensure!(run(&world.rig, prepare, &environment)?.status.success());
    ensure!(recorder.told()?.contains(BARE), "no bare gate");
    Ok(())
}

#[test]
fn a_gate_that_lost_a_part_comes_back_whatever_others_wrote_into_it() -> Result<()> {
    let world = World::new("partly")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    let whole = list_ruleset(&world.rig)?;
    let fooled = "add rule ip qubes-firewall forward counter comment \"policy drop 0x0e514546 \
                  reject, firewall-agent\"\n";
    // What users add is theirs.
    let of_gate = || -> Result<String> {
        let ruleset = list_ruleset(&world.rig)?;
        let lines = ruleset.split_inclusive('\n').filter(|line| !line.contains("counter"));
        Ok(lines.collect())
    };
    for loss in [
        "flush chain ip qubes-firewall forward",
        "flush chain ip qubes-firewall qubes-forward",
        "flush chain ip6 qubes-firewall forward",
        "flush chain inet qubes-firewall-nat translate",
        "delete table inet qubes-firewall-nat",
        "delete rule ip qubes-firewall qubes-forward handle LAST",
        "delete rule ip qubes-firewall forward handle FIRST",
    ] {
        let mut text = String::new();
        if loss.contains(" ip ") {
            text.push_str(fooled);
            text.push_str("insert rule ip qubes-firewall forward counter\n");
        }
        let listed = listed(&world.rig)?;
        let handle = |chain: &str, last: bool| -> Result<String> {
            let of_chain = listed.split(&format!("chain {chain} {{")).nth(1).context("no chain")?;
            let of_chain = of_chain.split("\n\t}").next().unwrap_or_default();
            let mut rules = of_chain.lines().filter(|line| line.contains("; firewall-agent "));
            let rule = if last { rules.next_back() } else { rules.next() };
            let handle = rule.and_then(|rule| rule.rsplit(' ').next()).context("no handle")?;
            Ok(handle.to_owned())
        };
        let loss = loss
            .replace("LAST", &handle("qubes-forward", true)?)
            .replace("FIRST", &handle("forward", false)?);
        text.push_str(&loss);
        let before = agent.log().matches("somebody removed the gate").count();
        world.rig.netvm().nft(&text)?;
        let deadline = Instant::now() + PATIENCE;
        while of_gate()? != whole {
            ensure!(Instant::now() < deadline, "{loss}: never back\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        agent.wait_for(&format!("{loss} told"), |_| {
            agent.log().matches("somebody removed the gate").count() > before
        })?;
        world.check(&loss, v4, v6);
    }
    let before = agent.log().matches("somebody removed the gate").count();
    world.rig.netvm().nft(
        "insert rule ip qubes-firewall forward counter\n\
         add rule ip qubes-firewall qubes-forward counter",
    )?;
    agent.signal(Signal::SIGHUP)?;
    agent.wait_for("all is well", |status| status.agent.gate_problem.is_none())?;
    let after = agent.log().matches("somebody removed the gate").count();
    assert_eq!(after, before, "{}", agent.log());
    let listed = listed(&world.rig)?;
    ensure!(listed.contains("counter packets 0 bytes 0 # handle"), "{listed}");
    Ok(())
}

fn listed(rig: &Rig) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(["-a", "list", "table", "ip", "qubes-firewall"]).stdout(Stdio::piped());
    Ok(String::from_utf8(rig.netvm().spawn(&mut nft)?.wait_with_output()?.stdout)?)
}
