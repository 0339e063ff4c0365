//! What comes before the service: the closed gate, a place for pins, and the scripts of the
//! netvm's administrator. It runs outside of the service's sandbox, which such scripts know
//! nothing of.
//! Never reads a rule, and never loads a program.
//!
//! Source of the order, the directories and the exception: `qubes-firewall` of
//! qubes-core-agent-linux, which runs scripts once at its start, after its tables are there
//! and before any rule is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};
use firewall_core::uplinks::{BadUplinks, KEY, Uplinks};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::{debug, error, info, warn};

use crate::edges::gate::{self, Gate, Mode};
use crate::edges::sources::qubesdb::Ended;

/// Directories of scripts, and a script.
const OF_TEMPLATE: &str = "etc/qubes/qubes-firewall.d";
const OF_NETVM: &str = "rw/config/qubes-firewall.d";
const OF_USER: &str = "rw/config/qubes-firewall-user-script";
/// With this, only chosen parts of /rw are the netvm's own; scripts are none of them.
const CUSTOM_PERSIST: &str = "run/qubes-service/custom-persist";
/// Where the service manager tells of a directory that belongs to the service's user.
pub const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// What came of reading the netvm's own key that lists uplinks.
pub type ListRead = Result<Result<Option<Uplinks>, BadUplinks>, Ended>;

/// Loads the gate, with what QubesDB behind a socket says of it, mounts a BPF file system for pins if
/// there is none, makes their directory, and in modes `qubes` and `whonix` runs the administrator's
/// scripts below `root`. An error if there is no place for pins, or no gate; scripts that fail are told
/// of in the log, and hinder nothing.
pub async fn prepare(
    mut gate: Gate,
    of_key: Option<ListRead>,
    pins: &Path,
    root: &Path,
) -> Result<()> {
    // Nothing leaves a Whonix gateway.
    if let Some(read) = of_key.filter(|_| gate.mode != Mode::Whonix) {
        let of_key = uplinks(read).await?;
        gate.uplinks = Uplinks::both(gate.uplinks.as_ref(), of_key.as_ref());
    }
    gate.load().await.context("cannot load the gate")?;
    info!(mode = gate.mode.name(), "the gate is closed");
    place_for_pins(pins)?;
    if gate.mode != Mode::Standalone {
        scripts(root).iter().for_each(|script| run(script));
    }
    Ok(())
}

fn place_for_pins(pins: &Path) -> Result<()> {
    if let Some(directory) = pins.parent() {
        mount_bpffs(directory).with_context(|| {
            format!("cannot mount a BPF file system on {}", directory.display())
        })?;
    }
    // The sandbox of the service lets nothing be written beside it.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(pins);
    made.with_context(|| format!("cannot make {}", pins.display()))?;
    let Some(of_service) = std::env::var_os(RUNTIME_DIRECTORY) else {
        return Ok(());
    };
    let given = fs::metadata(of_service).and_then(|it| give(pins, it.uid(), it.gid()));
    given.with_context(|| format!("cannot give {} to the service's user", pins.display()))
}

/// Has a directory, and all in it, belong to a user and a group. Links are not followed.
fn give(path: &Path, user: u32, group: u32) -> io::Result<()> {
    lchown(path, Some(user), Some(group))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

/// By which links alone clients' packets may leave, as QubesDB says. If it does not, what is in force
/// stays; after a boot that is nothing, and nothing but the gate is in force then.
async fn uplinks(read: ListRead) -> Result<Option<Uplinks>> {
    let before = gate::uplinks_in_force().await.context("cannot look at the gate")?;
    Ok(match read {
        Ok(Ok(uplinks)) => uplinks,
        Ok(Err(bad)) => {
            warn!("{KEY}: {bad}");
            Some(bad.instead(before.as_ref()))
        }
        Err(error) => {
            warn!(%error, "{KEY} cannot be read; the service will read it");
            before
        }
    })
}

/// The service manager gives a unit with a sandbox mounts of its own, also for a command with
/// `+` (`apply_mount_namespace` in src/core/execute.c of systemd), and what is mounted there
/// ends with the command. So it is mounted where process 1 sees it, and comes here from there.
fn mount_bpffs(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let is_mounted =
        || -> Result<bool> { Ok(statfs(directory)?.filesystem_type() == BPF_FS_MAGIC) };
    if is_mounted()? {
        return Ok(());
    }
    let for_all = || -> Result<()> {
        let first = File::open("/proc/1/ns/mnt")?;
        // Threads share what setns(2) changes, and may not while they do.
        unshare(CloneFlags::CLONE_FS)?;
        setns(first, CloneFlags::CLONE_NEWNS)?;
        mount_here(directory)
    };
    let outcome = thread::scope(|scope| scope.spawn(for_all).join());
    if !is_mounted()? {
        debug!(?outcome, "not mounted where process 1 sees it");
        mount_here(directory)?;
    }
    info!(directory = %directory.display(), "mounted a BPF file system");
    Ok(())
}

fn mount_here(directory: &Path) -> Result<()> {
    Ok(mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), Some("mode=700"))?)
}

/// The administrator's scripts below `root`, in the order in which they run.
pub fn scripts(root: &Path) -> Vec<PathBuf> {
    let mut found = executables(&root.join(OF_TEMPLATE));
    if !root.join(CUSTOM_PERSIST).exists() {
        found.extend(executables(&root.join(OF_NETVM)));
        found.extend(Some(root.join(OF_USER)).filter(|script| is_executable(script)));
    }
    found
}

fn executables(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_executable(path)).collect();
    found.sort();
    found
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// Runs a script to its end, however long it takes: what comes after may depend on it. The
/// standard library gives it the default signals and an empty signal mask.
fn run(script: &Path) {
    let name = script.display();
    info!(script = %name, "running");
    match Command::new(script).status() {
        Ok(status) if status.success() => {}
        Ok(status) => error!(script = %name, %status, "failed"),
        Err(error) => error!(script = %name, %error, "cannot be run"),
    }
}
