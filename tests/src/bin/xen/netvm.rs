//! The agent in dom0, which is the netvm: started, killed, and told rules as by Qubes OS's dom0.
//! Never believes it about packets.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use firewall_agent::edges::control::{self, Request};
use firewall_core::told::status::{State, Status};
use firewall_tests::rig::namespace::ip;
use firewall_tests::rig::qubesdb::FakeQubesDb;

use crate::domain::{Domain, PATIENCE};
use crate::outside::{SERVER, now};
use crate::wait::{every, until};

const DIRECTORY: &str = "/run/netvm";

/// The netvm.
pub struct Netvm {
    db: FakeQubesDb,
    agent: Option<Child>,
}

/// When rules were written, and when they were said to be handled.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    pub written: Duration,
    pub handled: Duration,
}

impl Netvm {
    /// Closes the gate, as before the network comes, and starts the agent.
    pub fn start() -> Result<Self> {
        let socket = PathBuf::from(DIRECTORY).join("root/var/run/qubes/qubesdb.sock");
        let db = FakeQubesDb::start(&socket)?;
        fs::write(format!("{DIRECTORY}/resolv.conf"), "")?;
        let status = command("prepare")?.status()?;
        ensure!(status.success(), "`firewall-agent prepare` ended with {status}");
        let mut netvm = Self { db, agent: None };
        netvm.start_agent()?;
        Ok(netvm)
    }

    /// Starts an agent, and waits until it answers.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(log_path())?;
        let mut run = command("run")?;
        run.args(["--source", "qubesdb", "--socket", &socket()]);
        run.args(["--names", &format!("{DIRECTORY}/names.json")]);
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(run.spawn().context("cannot start the agent")?);
        until("an answer of the agent", PATIENCE, || {
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().transpose());
            if let Some(ended) = ended.transpose()? {
                let text = fs::read_to_string(log_path())?;
                anyhow::bail!("the agent ended with {ended}: {text}");
            }
            Ok(self.status().ok().map(drop))
        })
    }

    /// Kills the agent, without warning.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Whether an agent was started, and not killed since.
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        Ok(kill(Pid::from_raw(agent.id().cast_signed()), signal)?)
    }

    /// What the agent says.
    pub fn status(&self) -> Result<Status> {
        Ok(control::ask(&PathBuf::from(socket()), &Request::Status)?)
    }

    /// Waits until a guest's rules are in force on its vif.
    pub fn wait_for(&self, guest: &Domain) -> Result<()> {
        let vif = guest.vif();
        until(&format!("rules in force on {vif}"), PATIENCE, || {
            let status = self.status()?;
            let is_so = guest.spec.addresses.all().into_iter().all(|address| {
                let mut clients = status.clients.iter().filter(|it| it.address == address);
                clients.any(|it| {
                    it.state == State::Live && it.vif.as_ref() == Some(&vif) && !it.settling
                })
            });
            let is_attached = status.vifs.iter().any(|it| it.name == vif && it.attached.is_some());
            Ok((is_so && is_attached).then_some(()))
        })
    }

    /// Writes rules for both addresses of a guest, and waits until they count as handled.
    pub fn put(&self, guest: &Domain, rules: &[&str]) -> Result<()> {
        let addresses = guest.spec.addresses.all();
        let before = addresses.map(|address| self.handled(address));
        for address in addresses {
            self.write(address, rules);
        }
        let mut waits = addresses.into_iter().zip(before);
        waits.try_for_each(|(address, before)| self.wait_until_handled(address, before))
    }

    /// Writes rules for an address, and waits until they count as handled.
    pub fn put_for(&self, address: IpAddr, rules: &[&str]) -> Result<Changed> {
        let before = self.handled(address);
        let written = now();
        self.write(address, rules);
        self.wait_until_handled(address, before)?;
        Ok(Changed { written, handled: now() })
    }

    /// Waits until rules of an address were handled more often.
    fn wait_until_handled(&self, address: IpAddr, before: u64) -> Result<()> {
        let what = format!("the agent's word that the rules of {address} are handled");
        every(Duration::from_millis(1), &what, PATIENCE, || {
            Ok((self.handled(address) > before).then_some(()))
        })
    }

    /// Writes rules for an address. `SERVER` in a rule stands for the server of its family.
    pub fn write(&self, address: IpAddr, rules: &[&str]) {
        let [dst, all] = if address.is_ipv4() { ["dst4", "32"] } else { ["dst6", "128"] };
        let server = SERVER[usize::from(address.is_ipv6())];
        let text = |rule: &&str| rule.replace("SERVER", &format!("{dst}={server}/{all}"));
        let texts: Vec<String> = rules.iter().map(text).collect();
        let keys: Vec<String> = (0..texts.len()).map(|at| format!("{at:04}")).collect();
        let pairs: Vec<(&str, &[u8])> =
            keys.iter().zip(&texts).map(|(key, it)| (key.as_str(), it.as_bytes())).collect();
        self.db.reload(&address.to_string(), "drop", &pairs);
    }

    /// What may tell why something is not as it should be: the last lines of the agent's log, and
    /// the netvm's neighbours.
    pub fn last_words(&self) -> Vec<String> {
        let mut text = fs::read_to_string(log_path()).unwrap_or_default();
        text += &ip(&["neighbour", "show"]).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().rev().take(30).rev();
        last.map(|line| (*line).to_owned()).collect()
    }

    /// How often rules of an address were handled.
    fn handled(&self, address: IpAddr) -> u64 {
        self.db.get(&key(address)).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Netvm {
    fn drop(&mut self) {
        if self.agent.is_some() {
            let _ = self.kill_agent();
        }
    }
}

fn key(address: IpAddr) -> String {
    format!("/qubes-firewall-handled/{address}")
}

/// Where the agent writes its log.
fn log_path() -> String {
    format!("{DIRECTORY}/agent.log")
}

fn socket() -> String {
    format!("{DIRECTORY}/control.sock")
}

/// A command of the agent that lies beside this program.
fn command(name: &str) -> Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new(own.with_file_name("firewall-agent"));
    command.args([name, "--mode", "standalone"]);
    command.args(["--resolv-conf", &format!("{DIRECTORY}/resolv.conf")]);
    command.args(["--root", &format!("{DIRECTORY}/root")]);
    Ok(command)
}
