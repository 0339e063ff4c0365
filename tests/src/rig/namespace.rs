//! A named network namespace, and how to do something inside it.
//! Never makes or removes one: that is the rig's business.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{panic, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace that `ip netns` knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of this name, which need not exist yet.
    pub fn named(name: String) -> Self {
        Self { name }
    }

    /// As `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs a closure on a thread of its own inside the namespace. Sockets it opens stay
    /// in the namespace and may be handed out.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = self.open()?;
        let inside = || {
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the namespace `{}`", self.name))?;
            work()
        };
        thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Starts a program inside the namespace. Unlike `ip netns exec` it leaves all mounts
    /// as they are, so the program sees the same `/sys` and the rig's bpf file system.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let file = self.open()?;
        let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call, and its error
        // is a number: it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        command.spawn().with_context(|| {
            format!("cannot start {:?} in the namespace `{}`", command.get_program(), self.name)
        })
    }

    /// Loads nftables rules in the namespace, as `nft -f` reads them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = Command::new("nft");
        let mut child = self.spawn(command.args(["-f", "-"]).stdin(Stdio::piped()))?;
        child.stdin.take().context("no pipe to nft")?.write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft refuses {rules}");
        Ok(())
    }

    /// Runs `ip -n <name>` with these arguments, and returns what it printed.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> =
            ["-n", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        ip(&all)
    }

    /// Sets a kernel parameter of the namespace: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // The files below `/proc/sys/net` are those of the thread that opens them.
        self.run(|| {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("cannot set `{key}` to `{value}`"))
        })
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("there is no namespace `{}`", self.name))
    }
}

/// Runs `ip`, and returns what it printed.
pub fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().context("cannot run `ip`")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}`: {}", arguments.join(" "), error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
