//! The agent of qrexec in a netvm, as far as services can tell: it starts the scripts of the package
//! with the environment that qrexec gives them.
//! Never asks a policy: that is dom0's business.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::Rig;
use super::agent::{Agent, binary};

/// A namespace of mounts in which files are where the package has them: the program in `/usr/bin`, the
/// agent's socket in `/run`, pins in the bpf file system.
const IN_PLACE: &str = "mount -t overlay overlay -o lowerdir=\"$1\":/usr/bin /usr/bin
mount -t tmpfs tmpfs /run
mkdir /run/firewall-agent
ln -s \"$2\" /run/firewall-agent/control.sock
mount -t tmpfs tmpfs /sys/fs/bpf
ln -s \"$3\" /sys/fs/bpf/firewall-agent
shift 3
exec \"$@\"";

/// A user of the netvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the package's `rpc-config` says.
    Root,
    /// As qrexec would do without that.
    Nobody,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the caller gets.
    pub said: Vec<u8>,
    /// The exit code that the caller gets.
    pub code: i32,
}

impl Answer {
    /// What the caller gets, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }
}

/// Calls services in a rig's netvm.
pub struct Qrexec<'a> {
    rig: &'a Rig,
    programs: PathBuf,
    socket: PathBuf,
}

impl<'a> Qrexec<'a> {
    /// Calls for an agent.
    pub fn new(rig: &'a Rig, agent: &Agent) -> Result<Self> {
        let programs = rig.directory().join("usr-bin");
        fs::create_dir(&programs)?;
        symlink(binary()?, programs.join("firewall-agent"))?;
        Ok(Self { rig, programs, socket: agent.socket() })
    }

    /// Has a qube call a service as root, with an argument if it is not empty.
    pub fn call(&self, caller: &str, service: &str, argument: impl AsRef<OsStr>) -> Result<Answer> {
        self.call_as(User::Root, caller, service, argument)
    }

    /// Has a qube call a service.
    pub fn call_as(
        &self,
        user: User,
        caller: &str,
        service: &str,
        argument: impl AsRef<OsStr>,
    ) -> Result<Answer> {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/qubes-rpc").join(service);
        let argument = argument.as_ref();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", IN_PLACE, "sh"]);
        command.arg(&self.programs).arg(&self.socket).arg(self.rig.bpffs().join("firewall"));
        if user == User::Nobody {
            command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        }
        command.arg(script.canonicalize()?);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("QREXEC_REMOTE_DOMAIN", caller);
        command.env("QREXEC_SERVICE_FULL_NAME", service);
        if !argument.is_empty() {
            // qubes-rpc-multiplexer of qubes-core-qrexec gives it in both ways.
            command.arg(argument).env("QREXEC_SERVICE_ARGUMENT", argument);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self.rig.netvm().spawn(&mut command)?;
        // Something may be read, and the end never comes: whoever waits for it hangs.
        let mut stdin = child.stdin.take().context("no standard input")?;
        // A service that ends at once leaves it unread.
        let _ = stdin.write_all(b"status\n");
        let mut said = Vec::new();
        child.stdout.take().context("no standard output")?.read_to_end(&mut said)?;
        let code = child.wait()?.code().context("a signal ended it")?;
        drop(stdin);
        Ok(Answer { said, code })
    }
}
