//! A netvm in a machine with a service manager, with today's firewall in it and traffic around it, and
//! packages of the agent to be installed there.
//! Never installs one itself.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_agent::edges::dataplane::may_cache;
use firewall_tests::machine::{Disk, Machine};
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::{self, PATIENCE};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::stock::Netvm;
use firewall_tests::traffic::probe::OpenFlow;

use super::cycles::{ALLOWED, DENIED, send};
use super::service::masquerade;
use super::world::*;

pub const UNIT: &str = "qubes-ebpf-firewall.service";
pub const TAKEOVER: &str = "qubes-ebpf-firewall-takeover.service";
/// The unit of today's firewall, which is of another package.
pub const TODAY: &str = "qubes-firewall.service";
pub const STANDALONE: &str = "firewall-agent.service";
/// What dom0's `qvm-service NETVM ebpf-firewall on` makes in the netvm.
pub const FLAG: &str = "/run/qubes-service/ebpf-firewall";
/// Where a netvm keeps what was in force as forwarding was switched on.
pub const AT_NETWORK: &str = "/run/at-network";
/// There as soon as today's firewall ran.
pub const TODAY_RAN: &str = "/run/today-ran";

/// Longer than a whole burst of rejects takes to come back, 2,000 at 10,000 a second.
const TO_REFILL: Duration = Duration::from_millis(300);

/// A netvm that is to get a package, and what is around it.
pub struct Scene {
    /// Goes first: its socket is in the directory of the rig.
    pub qubesdb: FakeQubesDb,
    pub world: World,
    denied: EchoServer,
    allowed: EchoServer,
}

impl Scene {
    /// The client may use port 443 of TCP and port 83 of UDP.
    pub fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        masquerade(&world.rig)?;
        let denied = EchoServer::start(world.rig.internet(), DENIED)?;
        let allowed = EchoServer::start(world.rig.internet(), ALLOWED)?;
        let qubesdb = FakeQubesDb::start(&world.rig.directory().join("qubes/qubesdb.sock"))?;
        let scene = Self { qubesdb, world, denied, allowed };
        for client in scene.clients() {
            let rules = rules();
            let rules: Vec<(String, String)> = rules
                .rules
                .iter()
                .enumerate()
                .map(|(number, rule)| (format!("{number:04}"), rule.text()))
                .collect();
            let rules: Vec<(&str, &[u8])> =
                rules.iter().map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
            scene.qubesdb.reload(&client.to_string(), "drop", &rules);
        }
        Ok(scene)
    }

    pub fn clients(&self) -> [IpAddr; 2] {
        [self.world.v4, self.world.v6]
    }

    /// A netvm of Qubes OS with today's firewall in it, which opens when it is told to stop. The
    /// flag of ours is on or off.
    pub fn netvm(&self, is_on: bool) -> Result<Disk> {
        let disk = Disk::new(&self.world.rig)?;
        disk.write("usr/share/qubes/marker-vm", "")?;
        let flag = if is_on { format!("f {FLAG}\n") } else { String::new() };
        let flags = format!("f /run/qubes-service/qubes-firewall\n{flag}");
        disk.write("etc/tmpfiles.d/qubes.conf", &flags)?;
        disk.write("usr/local/bin/notify-send", "#!/bin/sh\nlogger -t told \"$(id -u) $*\"\n")?;
        let mut users = fs::read_to_string(disk.path("etc/passwd"))?;
        if !users.contains(":1000:") {
            users += "user:x:1000:1000::/home/user:/bin/sh\n";
        }
        disk.write("etc/passwd", &users)?;
        let vifs = vec![(self.world.client.vif().to_owned(), self.clients().to_vec())];
        let stock = Netvm { vifs, absent: Vec::new(), resolvers: Vec::new() };
        let in_force = self.clients().map(|client| stock.rules(client, &rules()));
        disk.write("usr/share/stock.nft", &(stock.stock() + &in_force.concat()))?;
        disk.write(
            "usr/sbin/qubes-firewall",
            // No program waits for it: where cgroups are of version 1, the service manager may
            // miss that one ended, and take the service for one that is still being stopped.
            "#!/bin/bash\ntouch /run/today-ran\ntrap 'nft \"delete table ip qubes-firewall; delete table ip6 \
             qubes-firewall\"; exit' TERM\nnft -f /usr/share/stock.nft && systemd-notify --ready\n\
             mkfifo /run/silence\nwhile :; do read -t 0.1; done <> /run/silence\n",
        )?;
        disk.write(
            "usr/lib/systemd/system/qubes-firewall.service",
            "[Unit]\nConditionPathExists=/var/run/qubes-service/qubes-firewall\n\
             After=qubes-iptables.service\nBefore=qubes-network.service\n\
             [Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/sbin/qubes-firewall\n\
             Restart=on-failure\nRestartSec=5s\n[Install]\nWantedBy=multi-user.target\n",
        )?;
        disk.write(
            "usr/lib/systemd/system/qubes-network.service",
            "[Unit]\nBefore=network.target\nAfter=qubes-iptables.service\n\
             [Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/bin/sh -c 'nft list ruleset > /run/at-network'\n\
             [Install]\nWantedBy=multi-user.target\n",
        )?;
        disk.run(&["systemctl", "enable", TODAY, "qubes-network.service"])?;
        Ok(disk)
    }

    /// Does something while the client sends what it may not send, and nothing of it passes.
    pub fn closed_while<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let pause = Duration::from_micros(200);
        let (outcome, _) = while_sending(&self.world.client, DENIED, pause, work)?;
        let leaked = self.denied.received().udp_packets;
        ensure!(leaked == 0, "{what}: {leaked} packets leaked");
        Ok(outcome)
    }

    /// Does something while the client sends what it may not send, of which nothing passes, and goes
    /// on with a connection, which does not break.
    pub fn kept_while<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let to = std::net::SocketAddr::new(SERVER4, 443);
        let mut flow = OpenFlow::open(self.world.client.namespace(), to, PATIENCE)?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let going_on = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    ensure!(flow.exchange(PATIENCE)?, "{what} broke a connection");
                    count += 1;
                    // Not so fast that nobody else gets a turn.
                    std::thread::sleep(Duration::from_millis(1));
                }
                ensure!(flow.exchange(PATIENCE)?, "{what} broke a connection at its end");
                Ok(count)
            });
            let outcome = self.closed_while(what, work);
            done.store(true, Ordering::Relaxed);
            let count = going_on.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            ensure!(count > 0, "{what}: nothing was exchanged");
            // As above.
            std::thread::sleep(TO_REFILL);
            outcome
        })
    }

    /// Does something while the client sends also what it may send, and all of it passes.
    pub fn unbroken_while(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let to = std::net::SocketAddr::new(SERVER4, 443);
        let mut flow = OpenFlow::open(self.world.client.namespace(), to, PATIENCE)?;
        let before = self.allowed.received().udp_packets;
        let (done, sent) = (AtomicBool::new(false), AtomicU64::new(before));
        std::thread::scope(|scope| -> Result<()> {
            let sending = scope.spawn(|| send(&self.world.client, &self.allowed, &done, &sent));
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            outcome
        })?;
        let sent = sent.load(Ordering::Relaxed);
        ensure!(sent > before, "{what}: no traffic");
        let arrives = self.allowed.wait_until(|it| it.udp_packets == sent, PATIENCE);
        ensure!(arrives, "{what}: {sent} allowed, {:?} arrived", self.allowed.received());
        ensure!(flow.exchange(PATIENCE)?, "{what} broke a connection");
        let leaked = self.denied.received().udp_packets;
        ensure!(leaked == 0, "{what}: {leaked} packets leaked");
        // So much was denied that the client's budget of rejects is used up, and what is denied
        // next is to be answered.
        std::thread::sleep(TO_REFILL);
        Ok(())
    }

    /// Whether the rules decide about real packets, whoever enforces them.
    #[track_caller]
    pub fn check(&self, name: &str) {
        use firewall_tests::traffic::probe::Outcome::Accepted;
        let v4 = [Accepted, PROHIBITED4, PROHIBITED4, PROHIBITED4];
        let v6 = [Accepted, PROHIBITED6, PROHIBITED6, PROHIBITED6];
        self.world.check(name, v4, v6);
    }
}

pub fn rules() -> Ruleset {
    let udp = Rule { proto: Some(Proto::Udp), ports: Some((83, 83)), ..Rule::all(true) };
    Ruleset { default_accept: false, rules: vec![tcp_443(), udp] }
}

/// Makes packages of the agent beside the tests, and puts them where a machine finds them. Those that
/// were made elsewhere are in the directory that FIREWALL_PACKAGES names.
pub fn packages(disk: &Disk, version: &str) -> Result<()> {
    if let Some(made) = std::env::var_os("FIREWALL_PACKAGES") {
        for package in [deb(version), rpm(version)] {
            let name = package.trim_start_matches("/root/");
            fs::copy(Path::new(&made).join(name), disk.path("root").join(name))
                .with_context(|| format!("no {name}"))?;
        }
        return Ok(());
    }
    let agent = agent::binary()?;
    let xtask = agent.with_file_name("xtask");
    let mut command = Command::new(&xtask);
    command.args(["package", "--version", version]);
    command.arg("--agent").arg(&agent).arg("--output").arg(disk.path("root"));
    let output = command.output().with_context(|| format!("cannot start {}", xtask.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub fn deb(version: &str) -> String {
    format!("/root/firewall-agent_{version}_amd64.deb")
}

pub fn rpm(version: &str) -> String {
    format!("/root/firewall-agent-{version}-1.x86_64.rpm")
}

/// rpm on a machine whose packages are Debian's.
pub const RPM: [&str; 2] = ["rpm", "--nodeps"];

/// The process of the agent that a unit runs. Whoever restarted it need not have waited: until
/// the agent says that it is ready, the process may still be the service manager's.
pub fn running(machine: &Machine, unit: &str) -> Result<String> {
    let show = ["systemctl", "show", "--value", "--property", "SubState", unit];
    machine.wait_for(&show, |state| state.trim() == "running")?;
    let pid = machine.property(unit, "MainPID")?;
    let program = machine.run(&["readlink", &format!("/proc/{pid}/exe")])?;
    ensure!(program.trim() == "/usr/bin/firewall-agent", "{unit} runs {program}");
    Ok(pid)
}

/// Files of a machine that are not this machine's, as far as packages may touch them, and what is in
/// them; in a link, where it leads.
pub fn files(disk: &Disk) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let kind = path.symlink_metadata()?.file_type();
            if kind.is_dir() {
                walk(&path, found)?;
            } else {
                let content = match kind.is_symlink() {
                    true => fs::read_link(&path)?.as_os_str().as_bytes().to_vec(),
                    false if kind.is_file() => fs::read(&path)?,
                    false => Vec::new(),
                };
                found.insert(path, content);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    for place in [disk.changes("usr"), disk.path("etc/systemd")] {
        walk(&place, &mut found)?;
    }
    Ok(found)
}

/// That no file is another than before; all are named that are.
#[track_caller]
pub fn are_same(after: &BTreeMap<PathBuf, Vec<u8>>, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let paths: std::collections::BTreeSet<_> = after.keys().chain(before.keys()).collect();
    let changed: Vec<_> =
        paths.into_iter().filter(|it| after.get(*it) != before.get(*it)).collect();
    assert!(changed.is_empty(), "{changed:?}");
}

/// What `systemd-analyze security` may find, in tenths of its points.
fn exposure(unit: &str) -> &'static str {
    if unit == STANDALONE { "--threshold=20" } else { "--threshold=15" }
}

/// What the kernel says a unit's process may do; `man 7 capabilities` has the numbers.
pub fn confined(machine: &Machine, unit: &str, capabilities: &[&str]) -> Result<()> {
    let number = |name: &&str| match *name {
        "setgid" => Ok(6),
        "setuid" => Ok(7),
        "net_admin" => Ok(12),
        "perfmon" => Ok(38),
        "bpf" => Ok(39),
        other => bail!("no number of {other}"),
    };
    let numbers = capabilities.iter().map(number).collect::<Result<Vec<u32>>>()?;
    let expected = numbers.iter().fold(0u64, |all, number| all | 1 << number);
    let pid = machine.property(unit, "MainPID")?;
    let status = machine.run(&["cat", &format!("/proc/{pid}/status")])?;
    for line in [
        format!("CapBnd:\t{expected:016x}"),
        format!("CapEff:\t{expected:016x}"),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
    ] {
        ensure!(status.lines().any(|it| it == line), "no {line} in\n{status}");
    }
    // In a qube it is root no more.
    let user = machine.run(&["stat", "--format=%u", &format!("/proc/{pid}")])?;
    ensure!((user.trim() == "0") == (unit == STANDALONE), "{unit} runs as {user}");
    let verified = machine.run(&["systemd-analyze", "--man=no", "verify", unit])?;
    ensure!(!verified.contains("firewall"), "{verified}");
    machine.run(&["systemd-analyze", "security", "--offline=true", exposure(unit), unit])?;
    Ok(())
}

/// Has the agent of a unit log all that it does.
pub fn log_all(disk: &Disk, unit: &str) -> Result<()> {
    let text = "[Service]\nEnvironment=FIREWALL_LOG=firewall_agent=debug\n";
    disk.write(&format!("etc/systemd/system/{unit}.d/91.conf"), text)
}

/// That the agent of a unit, which logs all that it does and has put rules in force, may visit each
/// processor. On a busy machine a visit can take too long all the same, and the kernel waits.
pub fn visits(machine: &Machine, unit: &str) -> Result<()> {
    let pid = machine.property(unit, "MainPID")?;
    let environment = machine.run(&["cat", &format!("/proc/{pid}/environ")])?;
    ensure!(environment.contains("FIREWALL_LOG=firewall_agent=debug"), "{unit} does not log all");
    machine.run(&["journalctl", "--sync"])?;
    let log = machine.run(&["journalctl", "--output=cat", "--unit", unit])?;
    let mut waits = log.lines().filter(|it| it.contains("has to wait for running programs"));
    let is_refused = waits.any(|it| !it.contains("timed out") && !it.contains("would block"));
    ensure!(!may_cache() || !is_refused, "{log}");
    Ok(())
}
