//! The real agent, as a process in a rig's netvm.
//! Never ends a process that it did not start.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_agent::edges::control::{self, Request};
use firewall_core::told::status::{ClientStatus, State, Status};
use nix::libc::FIONREAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::oracle::Ruleset;
use crate::rig::Rig;
use crate::whonix::MARKER;

/// How long anything that the agent does may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long an agent may take until it answers: the kernel's verifier walks through its programs
/// first, and machines are emulated.
const STARTING: Duration = Duration::from_secs(90);

/// A running agent.
pub struct Agent {
    child: Child,
    directory: PathBuf,
}

/// The agent's binary, which `cargo xtask test` builds beside the tests.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directories = test.ancestors().skip(1).take(2);
    let mut candidates = directories.map(|directory| directory.join("firewall-agent"));
    candidates
        .find(|candidate| candidate.is_file())
        .context("no firewall-agent beside the tests: `cargo xtask test` makes one")
}

/// A command of the agent for a rig, with what all of them need to leave the machine alone.
pub fn command(rig: &Rig, name: &str, arguments: &[&str]) -> Result<Command> {
    let directory = rig.directory();
    let resolv_conf = directory.join("resolv.conf");
    if !resolv_conf.exists() {
        fs::write(&resolv_conf, "")?;
    }
    let mut command = Command::new(binary()?);
    command.arg(name);
    // Where files say what the machine is, the agent is to see it by itself.
    let is_marked = directory.join("root").join(MARKER).exists();
    if !arguments.contains(&"--mode") && !is_marked {
        command.args(["--mode", "standalone"]);
    }
    command
        .arg("--resolv-conf")
        .arg(resolv_conf)
        .arg("--pins")
        .arg(rig.bpffs().join("firewall"))
        .arg("--root")
        .arg(directory.join("root"))
        .args(arguments);
    Ok(command)
}

impl Agent {
    /// Starts the agent in the rig's netvm and waits until it answers.
    pub fn start(rig: &Rig, arguments: &[&str]) -> Result<Self> {
        Self::start_in(rig, arguments, &[])
    }

    /// Starts the agent with something added to its environment.
    pub fn start_in(rig: &Rig, arguments: &[&str], environment: &[(&str, String)]) -> Result<Self> {
        let directory = rig.directory();
        let log = File::options().create(true).append(true).open(directory.join("agent.log"))?;
        Self::start_with_log(rig, arguments, environment, log.into())
    }

    /// Starts the agent with its log somewhere else; a pipe stays unread.
    pub fn start_with_log(
        rig: &Rig,
        arguments: &[&str],
        environment: &[(&str, String)],
        log: Stdio,
    ) -> Result<Self> {
        let directory = rig.directory().to_owned();
        fs::create_dir_all(directory.join("rules"))?;
        let mut command = command(rig, "run", arguments)?;
        command
            .arg("--rules")
            .arg(directory.join("rules"))
            .arg("--socket")
            .arg(directory.join("control.sock"))
            .arg("--names")
            .arg(directory.join("names.json"))
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = rig.netvm().spawn(&mut command)?;
        let mut agent = Self { child, directory };
        let deadline = Instant::now() + STARTING;
        while agent.status().is_err() {
            if let Some(status) = agent.child.try_wait()? {
                let mut unread = String::new();
                if let Some(pipe) = &mut agent.child.stderr {
                    pipe.read_to_string(&mut unread)?;
                }
                bail!("the agent ended with {status}:\n{}{unread}", agent.log());
            }
            ensure!(Instant::now() < deadline, "the agent does not answer:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// What the agent says about itself.
    pub fn status(&self) -> Result<Status> {
        Ok(control::ask(&self.socket(), &Request::Status)?)
    }

    /// What it says about one client.
    pub fn client(&self, client: IpAddr) -> Result<ClientStatus> {
        let mut status: Status = control::ask(&self.socket(), &Request::Show { client })?;
        status.clients.pop().with_context(|| format!("the agent does not know {client}"))
    }

    /// Waits until the agent says something.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            if is_so(&status) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("never {what}: {status:#?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it has written this to its log.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            ensure!(Instant::now() < deadline, "never `{text}`:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until a client is in this state, on a vif, and what that denies has ended.
    pub fn wait_for_state(&self, client: IpAddr, state: State) -> Result<()> {
        self.wait_for(&format!("{client} {state:?}"), |status| {
            let mut clients = status.clients.iter().filter(|it| it.address == client);
            clients.any(|it| it.state == state && it.vif.is_some() && !it.settling)
        })
    }

    /// Waits until the program is attached to a vif, and what is denied has ended.
    pub fn wait_for_vif(&self, name: &str) -> Result<()> {
        self.wait_for(&format!("attached to {name}"), |status| {
            status.vifs.iter().any(|vif| vif.name == name && vif.attached.is_some())
        })?;
        self.wait_for_settled()
    }

    /// Waits until all that is denied has ended, and denied packets are rejected.
    pub fn wait_for_settled(&self) -> Result<()> {
        self.wait_for("settled", |status| status.clients.iter().all(|client| !client.settling))
    }

    /// Writes a client's rules as a whole and waits until they are in force, and what they
    /// deny has ended.
    pub fn put(&self, client: IpAddr, rules: &Ruleset) -> Result<()> {
        let before = self.client(client).ok().and_then(|status| status.generation);
        write_rules(&self.directory, client, &rules.file())?;
        self.wait_for(&format!("new rules of {client}"), |status| {
            let mut clients = status.clients.iter();
            clients.any(|it| {
                it.address == client
                    && it.state == State::Live
                    && it.generation != before
                    && it.rules.len() == rules.rules.len()
                    && !it.settling
            })
        })
    }

    /// Path of a client's rule file.
    pub fn rules_of(&self, client: IpAddr) -> PathBuf {
        self.directory.join("rules").join(client.to_string())
    }

    /// Path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// How many bytes of its log wait in a pipe.
    pub fn waiting_log(&self) -> Result<usize> {
        let pipe = self.child.stderr.as_ref().context("its log is no pipe")?;
        let mut waiting: nix::libc::c_int = 0;
        // SAFETY: FIONREAD writes one number where it is told to.
        let outcome = unsafe { nix::libc::ioctl(pipe.as_raw_fd(), FIONREAD, &raw mut waiting) };
        nix::errno::Errno::result(outcome)?;
        Ok(usize::try_from(waiting)?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A figure of its memory from /proc/PID/status, like `VmRSS`, in KiB.
    pub fn memory(&self, figure: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("no {figure}"))?.parse()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Waits until it has ended, and returns whether with exit code 0.
    pub fn wait(&mut self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            ensure!(Instant::now() < deadline, "the agent does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it without warning.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and returns whether it did so with exit code 0.
    pub fn terminate(mut self) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a rule file in one step, as whoever writes rules should: aside, then renamed.
pub fn write_rules(directory: &Path, client: IpAddr, text: &str) -> Result<()> {
    let rules = directory.join("rules");
    fs::create_dir_all(&rules)?;
    let aside = rules.join(format!(".{client}.new"));
    fs::write(&aside, text)?;
    fs::rename(aside, rules.join(client.to_string()))?;
    Ok(())
}
