//! Who is the firewall of a netvm: the qube's service flag alone says so at each boot, and in a netvm
//! that runs it can be switched either way.

use anyhow::{Result, ensure};
use firewall_tests::machine::Machine;

use super::installed::*;

/// A line for each script of the administrator that ran: its name, and whether the gate was there.
const TOLD: &str = "/run/told";
const SCRIPT: &str = "#!/bin/sh\nnft list chain ip qubes-firewall qubes-forward > /run/gate \
    && echo \"$(basename $0)\" >> /run/told\n";

/// A unit's state.
fn state(machine: &Machine, unit: &str) -> Result<String> {
    machine.property(unit, "ActiveState")
}

/// That today's firewall is the only one, with nothing of ours in the kernel.
#[track_caller]
fn is_todays(scene: &Scene, machine: &Machine) -> Result<()> {
    for (unit, expected) in [(TODAY, "active"), (UNIT, "inactive"), (TAKEOVER, "inactive")] {
        assert_eq!(state(machine, unit)?, expected, "{unit}");
    }
    scene.check("today's firewall");
    let tables = machine.run(&["nft", "list", "ruleset"])?;
    assert!(!tables.contains("in eBPF"), "{tables}");
    let pins = machine.run(&["ls", "/sys/fs/bpf"])?;
    assert!(!pins.contains("firewall-agent"), "{pins}");
    Ok(())
}

/// That our firewall is the only one.
#[track_caller]
fn is_ours(scene: &Scene, machine: &Machine) -> Result<()> {
    running(machine, UNIT)?;
    for (unit, expected) in [(TODAY, "inactive"), (UNIT, "active"), (TAKEOVER, "active")] {
        assert_eq!(state(machine, unit)?, expected, "{unit}");
    }
    scene.check("ours");
    Ok(())
}

#[test]
fn with_the_flag_ours_is_there_from_boot_on_and_todays_never_runs() -> Result<()> {
    let scene = Scene::new("flagon")?;
    let disk = scene.netvm(true)?;
    packages(&disk, "0.1.0")?;
    disk.run(&["dpkg", "-i", &deb("0.1.0")])?;
    for name in ["etc/qubes/qubes-firewall.d/20-b", "etc/qubes/qubes-firewall.d/10-a"] {
        disk.write(name, SCRIPT)?;
    }
    disk.write("rw/config/qubes-firewall.d/05-c", SCRIPT)?;
    disk.write("rw/config/qubes-firewall-user-script", SCRIPT)?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    is_ours(&scene, &machine)?;
    assert!(machine.run(&["cat", TODAY_RAN]).is_err(), "today's firewall ran");
    // Closed by our gate before forwarding is switched on.
    let at_network = machine.run(&["cat", AT_NETWORK])?;
    assert!(at_network.contains("hook forward priority filter; policy drop;"), "{at_network}");
    assert!(at_network.contains("in eBPF"), "{at_network}");
    // The administrator's scripts run once, in today's order.
    let told = machine.run(&["cat", TOLD])?;
    assert_eq!(told, "10-a\n20-b\n05-c\nqubes-firewall-user-script\n");
    Ok(())
}

#[test]
fn without_the_flag_todays_is_there_as_if_nothing_was_installed() -> Result<()> {
    let scene = Scene::new("flagoff")?;
    let disk = scene.netvm(false)?;
    let before = files(&disk)?;
    packages(&disk, "0.1.0")?;
    disk.run(&["dpkg", "-i", &deb("0.1.0")])?;
    // What is there besides is ours, and nothing that was there is another.
    let mut after = files(&disk)?;
    after.retain(|path, _| before.contains_key(path));
    are_same(&after, &before);
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    is_todays(&scene, &machine)?;
    // Whoever starts it without the flag starts nothing, and stops nothing.
    scene.unbroken_while("a start without the flag", || {
        machine.run(&["systemctl", "start", UNIT]).map(drop)
    })?;
    is_todays(&scene, &machine)?;
    scene.unbroken_while("removal", || {
        machine.run(&["dpkg", "--purge", "firewall-agent"]).map(drop)
    })?;
    assert_eq!(state(&machine, TODAY)?, "active");
    are_same(&files(machine.disk())?, &before);
    Ok(())
}

#[test]
fn a_switch_in_either_direction_leaks_nothing_and_breaks_nothing() -> Result<()> {
    let scene = Scene::new("switch")?;
    let disk = scene.netvm(false)?;
    packages(&disk, "0.1.0")?;
    disk.run(&["dpkg", "-i", &deb("0.1.0")])?;
    let machine = disk.boot(&scene.world.rig.directory().join("qubes"))?;
    is_todays(&scene, &machine)?;
    for round in 0..2 {
        machine.run(&["touch", FLAG])?;
        scene.kept_while("to ours", || machine.run(&["systemctl", "start", UNIT]))?;
        is_ours(&scene, &machine)?;
        if round == 0 {
            // A stop is no switch: nobody follows, and the policies stay in force.
            scene.unbroken_while("a stop and a start", || {
                machine.run(&["systemctl", "stop", UNIT])?;
                ensure!(state(&machine, TODAY)? == "inactive", "today's firewall runs");
                machine.run(&["systemctl", "start", UNIT]).map(drop)
            })?;
            is_ours(&scene, &machine)?;
        } else {
            // Nor has it to run for today's to follow.
            machine.run(&["systemctl", "stop", UNIT])?;
        }
        machine.run(&["rm", FLAG])?;
        scene.kept_while("to today's", || machine.run(&["systemctl", "start", TODAY]))?;
        is_todays(&scene, &machine)?;
    }
    Ok(())
}
