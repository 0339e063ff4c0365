//! The packages, in machines with a service manager: installed, upgraded and removed under
//! traffic, beside today's firewall and without it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
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

const UNIT: &str = "qubes-firewall.service";
const STANDALONE: &str = "firewall-agent.service";
/// What `systemd-analyze security` may find, in tenths of its points.
const EXPOSURE: &str = "--threshold=25";

/// Longer than a whole burst of rejects takes to come back, 2,000 at 10,000 a second.
const TO_REFILL: Duration = Duration::from_millis(300);

/// A netvm that is to get a package, and what is around it.
struct Scene {
    /// Goes first: its socket is in the directory of the rig.
    qubesdb: FakeQubesDb,
    world: World,
    denied: EchoServer,
    allowed: EchoServer,
}

impl Scene {
    /// The client may use port 443 of TCP and port 83 of UDP.
    fn new(label: &str) -> Result<Self> {
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

    fn clients(&self) -> [IpAddr; 2] {
        [self.world.v4, self.world.v6]
    }

    /// A netvm of Qubes OS with today's firewall in it, which opens when it is told to stop.
    fn netvm(&self) -> Result<Disk> {
        let disk = Disk::new(&self.world.rig)?;
        disk.write("usr/share/qubes/marker-vm", "")?;
        disk.write("etc/tmpfiles.d/qubes.conf", "f /run/qubes-service/qubes-firewall\n")?;
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
            "#!/bin/bash\ntrap 'nft \"delete table ip qubes-firewall; delete table ip6 \
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
        disk.run(&["systemctl", "enable", UNIT])?;
        Ok(disk)
    }

    /// Does something while the client sends what it may not send, and nothing of it passes.
    fn closed_while<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let pause = Duration::from_micros(200);
        let (outcome, _) = while_sending(&self.world.client, DENIED, pause, work)?;
        let leaked = self.denied.received().udp_packets;
        ensure!(leaked == 0, "{what}: {leaked} packets leaked");
        Ok(outcome)
    }

    /// Does something while the client sends also what it may send, and all of it passes.
    fn unbroken_while(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
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
    fn check(&self, name: &str) {
        use firewall_tests::traffic::probe::Outcome::Accepted;
        let v4 = [Accepted, PROHIBITED4, PROHIBITED4, PROHIBITED4];
        let v6 = [Accepted, PROHIBITED6, PROHIBITED6, PROHIBITED6];
        self.world.check(name, v4, v6);
    }
}

fn rules() -> Ruleset {
    let udp = Rule { proto: Some(Proto::Udp), ports: Some((83, 83)), ..Rule::all(true) };
    Ruleset { default_accept: false, rules: vec![tcp_443(), udp] }
}

/// Makes packages of the agent beside the tests, and puts them where a machine finds them. Those that
/// were made elsewhere are in the directory that FIREWALL_PACKAGES names.
fn packages(disk: &Disk, version: &str) -> Result<()> {
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

fn deb(version: &str) -> String {
    format!("/root/firewall-agent_{version}_amd64.deb")
}

fn rpm(version: &str) -> String {
    format!("/root/firewall-agent-{version}-1.x86_64.rpm")
}

/// rpm on a machine whose packages are Debian's.
const RPM: [&str; 2] = ["rpm", "--nodeps"];

/// The process of the agent that a unit runs. Whoever restarted it need not have waited: until
/// the agent says that it is ready, the process may still be the service manager's.
fn running(machine: &Machine, unit: &str) -> Result<String> {
    let show = ["systemctl", "show", "--value", "--property", "SubState", unit];
    machine.wait_for(&show, |state| state.trim() == "running")?;
    let pid = machine.property(unit, "MainPID")?;
    let program = machine.run(&["readlink", &format!("/proc/{pid}/exe")])?;
    ensure!(program.trim() == "/usr/bin/firewall-agent", "{unit} runs {program}");
    Ok(pid)
}

/// Files of a machine that are not this machine's, as far as packages may touch them.
fn files(disk: &Disk) -> Result<BTreeSet<PathBuf>> {
    fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                walk(&path, found)?;
            } else {
                found.insert(path);
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    for place in [disk.changes("usr"), disk.path("etc/systemd")] {
        walk(&place, &mut found)?;
    }
    Ok(found)
}

#[test]
fn a_deb_is_installed_upgraded_and_removed_in_a_running_netvm_and_nothing_leaks() -> Result<()> {
    let scene = Scene::new("deb")?;
    let disk = scene.netvm()?;
    for version in ["0.1.0", "0.1.1"] {
        packages(&disk, version)?;
    }
    let before = files(&disk)?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    scene.check("today's firewall");
    scene.closed_while("installation", || machine.run(&["dpkg", "-i", &deb("0.1.0")]))?;
    let first = running(&machine, UNIT)?;
    scene.check("installed");
    confined(&machine, UNIT, &["net_admin", "perfmon", "bpf", "setuid", "setgid"])?;
    scene.unbroken_while("upgrade", || {
        machine.run(&["dpkg", "-i", &deb("0.1.1")])?;
        let second = running(&machine, UNIT)?;
        ensure!(first != second, "the old agent still runs");
        Ok(())
    })?;
    scene.check("upgraded");
    scene.closed_while("removal", || machine.run(&["dpkg", "--remove", "firewall-agent"]))?;
    assert_eq!(machine.property(UNIT, "ActiveState")?, "active");
    scene.check("today's firewall again");
    let tables = machine.run(&["nft", "list", "ruleset"])?;
    assert!(!tables.contains("0x10000000"), "{tables}");
    let pins = machine.run(&["ls", "/sys/fs/bpf"])?;
    assert!(!pins.contains("firewall-agent"), "{pins}");
    machine.run(&["dpkg", "--purge", "firewall-agent"])?;
    assert_eq!(files(machine.disk())?, before);
    assert!(!machine.disk().path("etc/firewall-agent").exists());
    assert!(!machine.disk().path("var/lib/firewall-agent").exists());
    Ok(())
}

/// What the kernel says a unit's process may do; `man 7 capabilities` has the numbers.
fn confined(machine: &Machine, unit: &str, capabilities: &[&str]) -> Result<()> {
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
    let verified = machine.run(&["systemd-analyze", "--man=no", "verify", unit])?;
    ensure!(!verified.contains("firewall"), "{verified}");
    machine.run(&["systemd-analyze", "security", "--offline=true", EXPOSURE, unit])?;
    Ok(())
}

/// Has the agent of a unit log all that it does.
fn log_all(disk: &Disk, unit: &str) -> Result<()> {
    let text = "[Service]\nEnvironment=FIREWALL_LOG=firewall_agent=debug\n";
    disk.write(&format!("etc/systemd/system/{unit}.d/91.conf"), text)
}

/// That the agent of a unit, which logs all that it does and has put rules in force, may visit each
/// processor, and did not have the kernel wait.
fn visits(machine: &Machine, unit: &str) -> Result<()> {
    let pid = machine.property(unit, "MainPID")?;
    let environment = machine.run(&["cat", &format!("/proc/{pid}/environ")])?;
    ensure!(environment.contains("FIREWALL_LOG=firewall_agent=debug"), "{unit} does not log all");
    machine.run(&["journalctl", "--sync"])?;
    let log = machine.run(&["journalctl", "--output=cat", "--unit", unit])?;
    ensure!(!may_cache() || !log.contains("has to wait for running programs"), "{log}");
    Ok(())
}

#[test]
fn an_rpm_in_a_template_is_in_force_from_the_first_boot_and_can_go_again() -> Result<()> {
    let scene = Scene::new("rpm")?;
    let disk = scene.netvm()?;
    for version in ["0.1.0", "0.1.1"] {
        packages(&disk, version)?;
    }
    let before = files(&disk)?;
    let install = |file: &str| [&RPM[..], &["--upgrade"], &[file]].concat().join(" ");
    disk.run(&["sh", "-c", &install(&rpm("0.1.0"))])?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    let first = running(&machine, UNIT)?;
    scene.check("installed");
    scene.unbroken_while("upgrade", || {
        machine.run(&["sh", "-c", &install(&rpm("0.1.1"))])?;
        let second = running(&machine, UNIT)?;
        ensure!(first != second, "the old agent still runs");
        Ok(())
    })?;
    let erase = [&RPM[..], &["--erase", "firewall-agent"]].concat();
    scene.closed_while("removal", || machine.run(&erase))?;
    scene.check("today's firewall");
    assert_eq!(files(machine.disk())?, before);
    Ok(())
}

#[test]
fn a_service_in_its_sandbox_reloads_tells_the_desktop_and_is_replaced_when_it_hangs() -> Result<()>
{
    let scene = Scene::new("sandbox")?;
    let disk = scene.netvm()?;
    packages(&disk, "0.1.0")?;
    disk.run(&["dpkg", "-i", &deb("0.1.0")])?;
    // More than a busy machine keeps anybody waiting.
    disk.write(&format!("etc/systemd/system/{UNIT}.d/90.conf"), "[Service]\nWatchdogSec=5s\n")?;
    log_all(&disk, UNIT)?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    let first = running(&machine, UNIT)?;
    // Not in a qube, whoever asks for it.
    machine.run(&["systemctl", "start", STANDALONE])?;
    assert_eq!(machine.property(STANDALONE, "ActiveState")?, "inactive");
    machine.run(&["systemctl", "reload", UNIT])?;
    assert_eq!(running(&machine, UNIT)?, first, "a reload is no restart");
    let bad: &[(&str, &[u8])] = &[("0000", b"action=maybe")];
    scene.qubesdb.reload(&scene.world.v6.to_string(), "drop", bad);
    let told = machine.wait_for(&["journalctl", "--identifier=told", "--output=cat"], |it| {
        it.contains("is blocked")
    })?;
    assert!(told.starts_with("1000 "), "{told}");
    visits(&machine, UNIT)?;
    machine.run(&["kill", "-STOP", &first])?;
    scene.closed_while("a hang", || {
        machine.wait_for(&["systemctl", "show", "--property=NRestarts", UNIT], |it| {
            it.trim() == "NRestarts=1"
        })
    })?;
    assert_ne!(running(&machine, UNIT)?, first);
    Ok(())
}

#[test]
fn a_host_that_is_no_qube_has_its_own_unit_and_stays_closed_when_the_package_goes() -> Result<()> {
    let scene = Scene::new("host")?;
    let disk = Disk::new(&scene.world.rig)?;
    packages(&disk, "0.1.0")?;
    // Nor has process 1 made a place for pins, which it does not in a container.
    fs::remove_file(disk.path("etc/systemd/system/sysinit.target.wants/bpffs.service"))?;
    log_all(&disk, STANDALONE)?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    machine.run(&["dpkg", "-i", &deb("0.1.0")])?;
    assert_eq!(machine.property(STANDALONE, "ActiveState")?, "inactive", "nobody enabled it");
    for client in scene.clients() {
        let path = format!("etc/firewall-agent/rules.d/{client}");
        machine.disk().write(&path, &rules().file())?;
    }
    machine.run(&["systemctl", "enable", "--now", STANDALONE])?;
    running(&machine, STANDALONE)?;
    let kind = machine.run(&["stat", "--file-system", "--format=%T", "/sys/fs/bpf"])?;
    assert_eq!(kind.trim(), "bpf_fs", "not mounted where process 1 sees it");
    scene.check("enabled");
    confined(&machine, STANDALONE, &["net_admin", "perfmon", "bpf"])?;
    visits(&machine, STANDALONE)?;
    let said = scene.closed_while("removal", || machine.run(&["dpkg", "-P", "firewall-agent"]))?;
    assert!(said.contains("stays closed until the next boot"), "{said}");
    scene.check("removed");
    let open = said.split_once("To open it now: ").context("not said how")?.1;
    let open = open.lines().next().context("not said how")?;
    machine.run(&["sh", "-c", open])?;
    scene.world.check("open", ACCEPTED, ACCEPTED);
    Ok(())
}
