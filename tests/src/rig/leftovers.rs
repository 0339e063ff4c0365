//! Names of everything a rig makes, and its removal: its own at the end, and that of runs
//! that were killed.
//! Never touches what has another name, or what belongs to a process that still runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::namespace::{DIRECTORY, ip};

/// How long a killed process may take to go.
const TO_END: Duration = Duration::from_secs(5);

/// The stems that rigs of this process own.
static LIVE: Mutex<BTreeSet<Stem>> = Mutex::new(BTreeSet::new());

/// The beginning of all names of one rig: `fwt-<pid>-<label>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stem {
    pid: u32,
    label: String,
}

impl Stem {
    /// Takes a label for a rig of this process, once.
    pub(crate) fn claim(label: &str) -> Result<Self> {
        let stem = Self { pid: process::id(), label: label.to_owned() };
        ensure!(
            Self::parse(&stem.text()).as_ref() == Some(&stem),
            "`{label}` is not a label of letters, digits and underscores"
        );
        ensure!(live().insert(stem.clone()), "there is already a rig `{label}` in this process");
        Ok(stem)
    }

    /// Lets others have the label.
    pub(crate) fn release(&self) {
        live().remove(self);
    }

    /// The stem that a name begins with.
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("fwt-")?.splitn(3, '-');
        let pid = parts.next()?.parse().ok()?;
        let label = parts.next()?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = !label.is_empty() && label.bytes().all(fits);
        fits.then(|| Self { pid, label: label.to_owned() })
    }

    fn text(&self) -> String {
        format!("fwt-{}-{}", self.pid, self.label)
    }

    /// Name of a namespace.
    pub(crate) fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.text())
    }

    /// Names of the namespaces that are there.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        names(Path::new(DIRECTORY)).filter(|it| Self::parse(it).as_ref() == Some(self)).collect()
    }

    /// Directory of everything that is a file.
    pub(crate) fn directory(&self) -> PathBuf {
        env::temp_dir().join(self.text())
    }

    /// Where the bpf file system is mounted.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    /// The file that says: leave it all alone.
    pub(crate) fn keep_mark(&self) -> PathBuf {
        self.directory().join("kept")
    }

    fn is_dead(&self, live: &BTreeSet<Stem>) -> bool {
        // A number may come again, so a name with our own is not ours for that alone.
        if self.pid == process::id() {
            return !live.contains(self);
        }
        !Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// Removes everything of this stem, as far as possible; the error is the first.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut result = Ok(());
        for name in self.namespaces() {
            result = result.and(end_processes(&name));
        }
        result = result.and(unmount(&self.bpffs()));
        for name in self.namespaces() {
            result = result.and(delete_namespace(&name));
        }
        result.and(remove_directory(&self.directory()))
    }
}

/// Removes what runs that no longer exist have left.
pub(crate) fn remove_dead() -> Result<()> {
    let stems: BTreeSet<Stem> = names(Path::new(DIRECTORY))
        .chain(names(&env::temp_dir()))
        .filter_map(|name| Stem::parse(&name))
        .collect();
    // Held throughout: no label that looks dead may be claimed before it is removed.
    let live = live();
    for stem in stems {
        if stem.is_dead(&live) && !stem.keep_mark().exists() {
            stem.remove()
                .with_context(|| format!("cannot remove the leftovers `{}`", stem.text()))?;
        }
    }
    Ok(())
}

fn live() -> MutexGuard<'static, BTreeSet<Stem>> {
    // A set of names is in order whatever its holder did before a panic.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Kills what still runs in a namespace, which only a rig can have started there, and
/// waits until it is gone.
fn end_processes(namespace: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < TO_END {
        let Ok(listed) = ip(&["netns", "pids", namespace]) else { return Ok(()) };
        let others = listed.lines().filter_map(|line| line.trim().parse().ok());
        let others: Vec<i32> = others.filter(|pid| *pid != Pid::this().as_raw()).collect();
        if others.is_empty() {
            return Ok(());
        }
        for pid in others {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => bail!("cannot end process {pid} in `{namespace}`: {error}"),
            }
        }
    }
    bail!("processes in `{namespace}` do not end")
}

fn delete_namespace(name: &str) -> Result<()> {
    match ip(&["netns", "delete", name]) {
        Err(error) if Path::new(DIRECTORY).join(name).exists() => Err(error),
        // Another process may be cleaning up at the same time.
        Err(_) | Ok(_) => Ok(()),
    }
}

fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not there, or not mounted.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", path.display())),
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Err(_) | Ok(()) => Ok(()),
    }
}
