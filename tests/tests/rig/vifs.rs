//! vifs that come back, that share an address, or that move away.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::oracle::Ruleset;
use firewall_tests::packets;
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{CLIENT_INTERFACE, ClientSpec, GATEWAY_V4, VIF_MAC};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::scene::{NOBODY4, NOBODY6, frame, packet, udp_443};
use super::world::*;

/// UDP to port 443 and to port 80, IPv4 and IPv6: the first is accepted, the second not.
#[track_caller]
fn check_policed(from: &Namespace, name: &str) {
    for (server, prohibited) in [(SERVER4, PROHIBITED4), (SERVER6, PROHIBITED6)] {
        for (port, expected) in [(443, Outcome::Accepted), (80, prohibited)] {
            let outcome = Probe::udp(from, SocketAddr::new(server, port)).run(SILENCE);
            assert_eq!(outcome.expect("a probe"), expected, "{name}: {server} port {port}");
        }
    }
}

/// Index of a vif that has a program.
fn attached(agent: &Agent, name: &str) -> Result<Option<u32>> {
    let vifs = agent.status()?.vifs;
    let found = vifs.iter().find(|vif| vif.name == name && vif.attached.is_some());
    Ok(found.map(|vif| vif.index))
}

#[test]
fn a_vif_of_the_same_name_is_policed_again() -> Result<()> {
    let world = World::new("again")?;
    let agent = world.start()?;
    world.put(&agent, &[udp_443()])?;
    check_policed(world.client.namespace(), "at first");
    let before = attached(&agent, world.client.vif())?;
    world.rig.remove_client(&world.client)?;
    let client = world.rig.add_client(&world.client.spec())?;
    agent.wait_for("attached to the new one", |_| {
        attached(&agent, client.vif()).is_ok_and(|now| now.is_some() && now != before)
    })?;
    for address in [world.v4, world.v6] {
        agent.wait_for_state(address, State::Live)?;
    }
    check_policed(client.namespace(), "the second");
    // Its counters are its own.
    assert_eq!(agent.client(world.v4)?.rules[0].counter.packets, 1);
    Ok(())
}

#[test]
fn two_vifs_with_one_address_have_the_same_rules() -> Result<()> {
    let world = World::new("twovifs")?;
    world.rig.silence_nobody()?;
    let agent = world.start()?;
    world.put(&agent, &[udp_443()])?;
    // As a qube with emulated hardware has them: its own, and its device model's.
    let twin = ClientSpec { number: 14, ..world.client.spec() };
    let twin = world.rig.add_link(&twin)?;
    world.rig.add_addresses(&twin)?;
    world.rig.set_up(&twin)?;
    let netvm = world.rig.netvm();
    for address in [world.v4, world.v6] {
        let address = address.to_string();
        let link = ["lladdr", &twin.mac(), "dev", twin.vif(), "nud", "permanent"];
        netvm.ip(&[&["neighbour", "add", &address][..], &link].concat())?;
    }
    agent.wait_for("both vifs", |status| {
        let on_twin = |address| {
            let mut clients = status.clients.iter();
            clients.any(|it| {
                it.address == address
                    && it.vif.as_deref() == Some(twin.vif())
                    && it.state == State::Live
            })
        };
        [world.v4, world.v6].into_iter().all(on_twin)
            && status.vifs.iter().all(|vif| vif.attached.is_some())
    })?;
    for (from, to) in [(world.v4, NOBODY4.into()), (world.v6, NOBODY6.into())] {
        for client in [&world.client, &twin] {
            let mut arrivals = frames::capture(world.rig.internet(), "eth0")?;
            // The denied one goes first: had it been forwarded, it would arrive first.
            for port in [80, 443] {
                let data = [client.spec().number; 32];
                let datagram = packets::datagram(40000, port, &data);
                let datagram = packet(from, to, packets::UDP, &datagram);
                frames::send_raw(client.namespace(), CLIENT_INTERFACE, &frame(&datagram))?;
            }
            let is_it = |frame: &[u8]| frame.ends_with(&[client.spec().number; 32]);
            let arrival = arrivals.wait_for(is_it, PATIENCE)?.context("nothing arrived")?;
            let transport = arrival.len() - 40;
            assert_eq!(arrival[transport + 2..transport + 4], 443_u16.to_be_bytes(), "{from}");
        }
    }
    let clients = agent.status()?.clients;
    assert_eq!(clients.len(), 4);
    for client in clients {
        assert_eq!(client.rules[0].counter.packets, 1, "{client:?}");
        assert_eq!(client.default_counter.packets, 1, "{client:?}");
    }
    Ok(())
}

#[test]
fn a_vif_that_moved_away_is_nobodys_and_its_stand_in_is_policed() -> Result<()> {
    let world = World::new("moved")?;
    let agent = world.start()?;
    world.put(&agent, &[udp_443()])?;
    let before = attached(&agent, world.client.vif())?;
    // As Qubes does it for a qube that is shown another address: the vif moves into a
    // namespace that translates, and another link takes its name. The internet's
    // namespace will do here: it is not the netvm's.
    let (netvm, elsewhere) = (world.rig.netvm(), world.rig.internet());
    let vif = world.client.vif();
    netvm.ip(&["link", "set", vif, "netns", elsewhere.name()])?;
    netvm.ip(&[
        "link",
        "add",
        vif,
        "address",
        VIF_MAC,
        "type",
        "veth",
        "peer",
        "name",
        "inside",
        "netns",
        elsewhere.name(),
    ])?;
    netvm.ip(&["address", "add", &format!("{GATEWAY_V4}/32"), "dev", vif])?;
    let link = ["lladdr", "00:16:3e:5e:6c:0f", "dev", vif, "nud", "permanent"];
    netvm.ip(&[&["neighbour", "add", &world.v4.to_string()][..], &link].concat())?;
    netvm.ip(&["link", "set", vif, "up"])?;
    netvm.ip(&["route", "add", &world.v4.to_string(), "dev", vif])?;
    elsewhere.ip(&["link", "set", "inside", "up"])?;
    agent.wait_for("attached to the stand-in", |_| {
        attached(&agent, vif).is_ok_and(|now| now.is_some() && now != before)
    })?;
    agent.wait_for_state(world.v4, State::Live)?;
    let mut arrivals = frames::capture(elsewhere, "eth0")?;
    for port in [80, 443] {
        let datagram = packets::datagram(40000, port, &[15; 32]);
        let datagram = packet(world.v4, SERVER4, packets::UDP, &datagram);
        frames::send_raw(elsewhere, "inside", &frame(&datagram))?;
    }
    let is_it = |frame: &[u8]| frame.ends_with(&[15; 32]);
    let arrival = arrivals.wait_for(is_it, PATIENCE)?.context("nothing arrived")?;
    assert_eq!(arrival[36..38], 443_u16.to_be_bytes());
    let status = agent.client(world.v4)?;
    assert_eq!((status.rules[0].counter.packets, status.default_counter.packets), (1, 1));
    // Behind the vif that moved, the client has an address that no rule knows.
    let client = world.client.namespace();
    elsewhere.ip(&["address", "add", "192.168.1.1/24", "dev", vif])?;
    elsewhere.ip(&["link", "set", vif, "up"])?;
    client.ip(&["address", "add", "192.168.1.128/24", "dev", CLIENT_INTERFACE])?;
    let ping = Probe::ping(client, "192.168.1.1".parse()?).run(PATIENCE)?;
    ensure!(ping == Outcome::Accepted, "the program is still on the vif that moved: {ping}");
    Ok(())
}

/// Has `ip` do many things at once in a namespace.
fn ip_batch(netvm: &Namespace, lines: &str) -> Result<()> {
    let mut ip = std::process::Command::new("ip");
    let mut child = netvm.spawn(ip.args(["-batch", "-"]).stdin(std::process::Stdio::piped()))?;
    child.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "ip cannot do it");
    Ok(())
}

#[test]
fn a_thousand_vifs_that_come_and_go_leave_nothing() -> Result<()> {
    const VIFS: usize = 1000;
    let world = World::new("thousand")?;
    let agent = world.start()?;
    world.put(&agent, &[udp_443()])?;
    let (pins_before, memory) = (world.pins("")?.len(), agent.memory("RssAnon")?);
    let address = |number: usize| format!("10.138.{}.{}", number / 250, number % 250 + 1);
    let rules = Ruleset { default_accept: false, rules: vec![udp_443()] };
    for number in (0..VIFS).step_by(10) {
        write_rules(world.rig.directory(), address(number).parse()?, &rules.file())?;
    }
    // All in one group, in which they can be removed at once.
    let elsewhere = world.rig.internet().name();
    let come: String = (0..VIFS)
        .map(|number| {
            let (vif, address) = (format!("vif{}.0", 1000 + number), address(number));
            format!(
                "link add {vif} group 77 type veth peer name p{number} netns {elsewhere}\n\
                 neighbour add {address} lladdr 00:16:3e:5e:6c:00 dev {vif} nud permanent\n\
                 link set {vif} up\n"
            )
        })
        .collect();
    for waits in [true, false] {
        ip_batch(world.rig.netvm(), &come)?;
        if waits {
            agent.wait_for("all attached", |status| {
                let mut vifs = status.vifs.iter();
                status.vifs.len() == VIFS + 1 && vifs.all(|vif| vif.attached.is_some())
            })?;
            let status = agent.status()?;
            let count = |state| status.clients.iter().filter(|it| it.state == state).count();
            assert_eq!((count(State::Live), count(State::Waiting)), (102, 900));
            println!("{VIFS} vifs: {} KiB", agent.memory("RssAnon")?);
        }
        ip_batch(world.rig.netvm(), "link delete group 77\n")?;
        agent.wait_for("all gone", |status| {
            let in_force = status.clients.iter().filter(|it| it.generation.is_some());
            status.vifs.len() == 1 && in_force.count() == 2
        })?;
    }
    check_policed(world.client.namespace(), "after them");
    assert_eq!(world.pins("")?.len(), pins_before);
    // The agent gives memory back now and then.
    agent.wait_for("as little memory as before", |_| {
        agent.memory("RssAnon").is_ok_and(|now| now < memory + 4096)
    })?;
    println!("before: {memory} KiB, after: {} KiB", agent.memory("RssAnon")?);
    Ok(())
}

#[test]
fn a_vif_is_policed_in_whatever_order_it_comes_and_under_another_name_too() -> Result<()> {
    let world = World::new("orders")?;
    let agent = world.start()?;
    let netvm = world.rig.netvm();
    let rules = Ruleset { default_accept: false, rules: vec![udp_443()] };
    // Link, address and rules in every order; 20 to 25.
    let orders = ["lar", "lra", "alr", "arl", "rla", "ral"];
    for (order, number) in orders.iter().zip(20..) {
        let spec = ClientSpec::numbered(number);
        let client = world.rig.add_link(&spec)?;
        for step in order.chars() {
            match step {
                'l' => world.rig.set_up(&client)?,
                'a' => world.rig.add_addresses(&client)?,
                _ => spec.addresses().into_iter().try_for_each(|address| {
                    write_rules(world.rig.directory(), address, &rules.file())
                })?,
            }
        }
        // The neighbour entry by which the agent knows the client comes last, with the routes.
        world.rig.add_routes(&client)?;
        agent.wait_for_vif(client.vif())?;
        for address in spec.addresses() {
            agent.wait_for_state(address, State::Live)?;
        }
        check_policed(client.namespace(), order);
    }
    world.put(&agent, &[udp_443()])?;
    check_policed(world.client.namespace(), "before");
    let before = attached(&agent, world.client.vif())?;
    netvm.ip(&["link", "set", world.client.vif(), "name", "vif99.7"])?;
    agent.wait_for("the new name", |_| {
        attached(&agent, "vif99.7").is_ok_and(|now| now.is_some() && now == before)
    })?;
    check_policed(world.client.namespace(), "renamed");
    Ok(())
}
