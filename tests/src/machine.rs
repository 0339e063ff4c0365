//! A machine with a service manager of its own: systemd as process 1 of a container, in the
//! netvm of a rig. Its programs are those of this machine; what is written stays inside.
//! Never starts a service that somebody enabled on this machine.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::Rig;

/// How long a machine may take to start.
const TO_BOOT: Duration = Duration::from_secs(60);
/// What of /etc programs cannot do without. No unit is among it.
const OF_ETC: [&str; 13] = [
    "alternatives",
    "dpkg",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "login.defs",
    "nsswitch.conf",
    "pam.d",
    "passwd",
    "protocols",
    "security",
    "services",
];
/// Directories that are this machine's, with changes that nobody else sees.
const OVERLAID: [&str; 2] = ["usr", "var/lib/dpkg"];

/// The files of a machine that does not run yet.
pub struct Disk {
    directory: PathBuf,
    namespace: PathBuf,
}

impl Disk {
    /// Lays out a machine in the netvm of a rig.
    pub fn new(rig: &Rig) -> Result<Self> {
        let directory = rig.directory().join("machine");
        let disk = Self { directory, namespace: rig.netvm().path() };
        for name in ["dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var/lib"] {
            fs::create_dir_all(disk.path(name))?;
        }
        for name in OVERLAID {
            fs::create_dir_all(disk.path(name))?;
            fs::create_dir_all(disk.changes(name))?;
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(Path::new("usr").join(name), disk.path(name))?;
        }
        symlink("../run", disk.path("var/run"))?;
        // Looked for before the overlays are there.
        fs::copy("/usr/lib/os-release", disk.path("etc/os-release"))?;
        let mut copy = Command::new("cp");
        let etc = OF_ETC.map(|name| Path::new("/etc").join(name));
        copy.arg("-a").args(etc.iter().filter(|path| path.exists())).arg(disk.path("etc"));
        ensure!(copy.status()?.success(), "cannot copy parts of /etc");
        // A machine that has a number does not take this for its first boot, at which it
        // would enable whatever is installed.
        disk.write("etc/machine-id", &format!("{:032x}\n", rand::random::<u128>()))?;
        disk.write("etc/hostname", "netvm\n")?;
        disk.write("etc/resolv.conf", "")?;
        // Process 1 does this itself where it is not in a container.
        disk.write(
            "etc/systemd/system/bpffs.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\n\
             RemainAfterExit=yes\nExecStart=/bin/mkdir -p /sys/fs/bpf\n\
             ExecStart=/bin/mount -t bpf -o mode=700 bpf /sys/fs/bpf\n",
        )?;
        let wants = disk.path("etc/systemd/system/sysinit.target.wants");
        fs::create_dir_all(&wants)?;
        symlink("../bpffs.service", wants.join("bpffs.service"))?;
        Ok(disk)
    }

    /// Where a file of the machine is; not for those below /usr.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join("root").join(name)
    }

    /// Where changes to an overlaid directory are.
    pub fn changes(&self, name: &str) -> PathBuf {
        self.directory.join("changes").join(name)
    }

    /// Writes a file, anywhere.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let of_usr = name.strip_prefix("usr/");
        let path = of_usr.map_or_else(|| self.path(name), |rest| self.changes("usr").join(rest));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path.parent().context("no directory")?)?;
        fs::write(&path, text)?;
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    }

    /// No two machines that run at once may have one name.
    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.namespace.file_name().unwrap_or_default().to_string_lossy()
    }

    /// A container with these files.
    fn container(&self) -> Command {
        let mut command = Command::new("systemd-nspawn");
        command
            .args(["--quiet", "--register=no", "--keep-unit", "--console=pipe"])
            .args(["--capability=all", "--system-call-filter=bpf", "--resolv-conf=off"])
            .arg(format!("--machine={}", self.name()))
            .arg("--directory")
            .arg(self.directory.join("root"))
            // A netvm may write to its own /sys.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .stdin(Stdio::null());
        for name in OVERLAID {
            let changes = self.changes(name);
            command.arg(format!("--overlay=/{name}:{}:/{name}", changes.display()));
        }
        command
    }

    /// Runs a program where no service manager runs, as when a template is made.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.container();
        output(command.arg("--private-network").arg("--").args(arguments), arguments)
    }

    /// Starts the machine. The directory appears as /run/qubes in it.
    pub fn boot(self, run_qubes: &Path) -> Result<Machine> {
        let log = self.directory.join("log");
        let to_log = fs::File::create(&log)?;
        let mut command = self.container();
        command.arg("--boot").arg(format!("--bind={}:/run/qubes", run_qubes.display()));
        command.arg("--network-namespace-path").arg(&self.namespace);
        command.args(["--", "systemd.unit=multi-user.target"]);
        command.stdout(to_log.try_clone()?).stderr(to_log);
        let container = command.spawn().context("cannot start systemd-nspawn")?;
        let mut machine = Machine { disk: self, container, first: 0 };
        let deadline = Instant::now() + TO_BOOT;
        while !machine.is_up() {
            let log = fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = machine.container.try_wait()? {
                bail!("the machine ended with {status}:\n{log}");
            }
            ensure!(Instant::now() < deadline, "the machine does not come up:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(machine)
    }
}

/// A machine that runs. It is gone when this is dropped.
pub struct Machine {
    disk: Disk,
    container: Child,
    /// Its process 1, as this machine numbers it.
    first: i32,
}

impl Machine {
    /// Whether process 1 takes orders.
    fn is_up(&mut self) -> bool {
        let path = format!("/proc/{0}/task/{0}/children", self.container.id());
        let children = fs::read_to_string(path).unwrap_or_default();
        let Some(first) = children.split_whitespace().find_map(|pid| pid.parse().ok()) else {
            return false;
        };
        self.first = first;
        let state = self.try_run(&["systemctl", "is-system-running"]);
        state.is_ok_and(|state| ["running", "degraded"].contains(&state.trim()))
    }

    /// Its files.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// A command that runs inside.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]);
        command.args(arguments).env_clear().stdin(Stdio::null());
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
        command.envs([("PATH", path), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
        command
    }

    /// What a program says on standard output, whatever its exit code.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).stderr(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program that must succeed; returns what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments), arguments)
    }

    /// One property of a unit, from `systemctl show`.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let text = self.run(&["systemctl", "show", "--value", "--property", name, unit])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until a program's output is as wanted.
    pub fn wait_for(&self, arguments: &[&str], is_so: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + TO_BOOT;
        loop {
            let output = self.try_run(arguments)?;
            if is_so(&output) {
                return Ok(output);
            }
            ensure!(
                Instant::now() < deadline,
                "`{}` goes on saying {output}\n{}",
                arguments.join(" "),
                self.journal()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The last lines of its journal.
    pub fn journal(&self) -> String {
        self.try_run(&["journalctl", "--no-pager", "--lines=80"]).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 all others of the container go.
        if self.first > 0 {
            let _ = kill(Pid::from_raw(self.first), Signal::SIGKILL);
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

fn output(command: &mut Command, arguments: &[&str]) -> Result<String> {
    let shown = arguments.join(" ");
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("`{shown}`: {:?} is not there", command.get_program());
        }
        output => output.with_context(|| format!("cannot run `{shown}`"))?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{shown}`: {}\n{text}{errors}", output.status);
    Ok(text + &errors)
}
