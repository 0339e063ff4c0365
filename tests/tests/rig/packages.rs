//! The packages, in machines with a service manager: installed, upgraded and removed under
//! traffic, beside today's firewall and without it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use firewall_tests::machine::Disk;
use firewall_tests::rig::dns::{DnsServer, Reply};

use super::installed::*;
use super::named::{DNS, ONE, TWO};
use super::world::*;

#[test]
fn a_deb_is_installed_upgraded_and_removed_in_a_running_netvm_and_nothing_leaks() -> Result<()> {
    let scene = Scene::new("deb")?;
    let disk = scene.netvm(true)?;
    for version in ["0.1.0", "0.1.1"] {
        packages(&disk, version)?;
    }
    let before = files(&disk)?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    scene.check("today's firewall");
    scene.kept_while("installation", || machine.run(&["dpkg", "-i", &deb("0.1.0")]))?;
    let first = running(&machine, UNIT)?;
    scene.check("installed");
    confined(&machine, UNIT, &["net_admin", "perfmon", "bpf"])?;
    scene.unbroken_while("upgrade", || {
        machine.run(&["dpkg", "-i", &deb("0.1.1")])?;
        let second = running(&machine, UNIT)?;
        ensure!(first != second, "the old agent still runs");
        Ok(())
    })?;
    scene.check("upgraded");
    scene.kept_while("removal", || machine.run(&["dpkg", "--remove", "firewall-agent"]))?;
    assert_eq!(machine.property(TODAY, "ActiveState")?, "active");
    scene.check("today's firewall again");
    let tables = machine.run(&["nft", "list", "ruleset"])?;
    assert!(!tables.contains("in eBPF"), "{tables}");
    let pins = machine.run(&["ls", "/sys/fs/bpf"])?;
    assert!(!pins.contains("firewall-agent"), "{pins}");
    machine.run(&["dpkg", "--purge", "firewall-agent"])?;
    are_same(&files(machine.disk())?, &before);
    assert!(!machine.disk().path("etc/firewall-agent").exists());
    for place in ["var/lib/firewall-agent", "var/lib/private/firewall-agent"] {
        assert!(machine.disk().path(place).symlink_metadata().is_err(), "{place}");
    }
    Ok(())
}

#[test]
fn an_rpm_in_a_template_is_in_force_from_the_first_boot_and_can_go_again() -> Result<()> {
    let scene = Scene::new("rpm")?;
    let disk = scene.netvm(true)?;
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
    scene.kept_while("removal", || machine.run(&erase))?;
    scene.check("today's firewall");
    are_same(&files(machine.disk())?, &before);
    Ok(())
}

#[test]
fn a_service_in_its_sandbox_reloads_tells_the_desktop_and_is_replaced_when_it_hangs() -> Result<()>
{
    let scene = Scene::new("sandbox")?;
    let disk = scene.netvm(true)?;
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

/// By UDP, and by TCP where an answer does not fit.
#[test]
fn an_agent_that_can_make_no_socket_of_ip_is_given_some_and_asks_dns() -> Result<()> {
    let scene = Scene::new("given")?;
    scene.world.rig.add_internet_address(DNS.parse()?)?;
    let dns = DnsServer::start(scene.world.rig.internet(), DNS.parse()?)?;
    dns.say("a.example", Reply::addresses("a.example", 60, &[ONE]));
    dns.say("b.example", Reply::addresses("b.example", 60, &[TWO]).large());
    let disk = scene.netvm(true)?;
    packages(&disk, "0.1.0")?;
    disk.run(&["dpkg", "-i", &deb("0.1.0")])?;
    disk.write("etc/resolv.conf", &format!("nameserver {DNS}\n"))?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    running(&machine, UNIT)?;
    let rules: &[(&str, &[u8])] = &[
        ("0000", b"action=accept dsthost=a.example proto=tcp"),
        ("0001", b"action=accept dsthost=b.example proto=tcp"),
    ];
    scene.qubesdb.reload(&scene.world.v4.to_string(), "drop", rules);
    machine.wait_for(&["firewall-agent", "status", "--json"], |status| {
        [ONE, TWO].iter().all(|address| status.contains(&format!("\"{address}\"")))
    })?;
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
