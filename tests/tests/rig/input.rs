//! What never reaches the gate: packets for the netvm itself, and frames that are
//! dropped before it could see them.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::oracle::Rule;
use firewall_tests::packets::family::PerFamily as _;
use firewall_tests::packets::{self, TCP, UDP};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{ClientSpec, INTERNET_V4, INTERNET_V6};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::scene::*;
use super::world::*;

/// A UDP port that the tests' own nft table watches.
const WATCHED: u16 = 7777;

/// Counts what comes for the watched port, before and at the input hook.
const WATCH: &str = "table inet watch {
    counter prerouting {}
    counter input {}
    chain prerouting {
        type filter hook prerouting priority -500; policy accept;
        udp dport 7777 counter name prerouting
    }
    chain input {
        type filter hook input priority -500; policy accept;
        udp dport 7777 counter name input
    }
}";

/// What a user writes to let all clients use a service of the netvm.
const REDIRECT: &str = "table inet own {
    chain towards {
        type nat hook prerouting priority dstnat; policy accept;
        iifname \"vif*\" meta l4proto { tcp, udp } th dport 7000 redirect to :7
    }
}";

/// Runs `nft` in the netvm, and returns what it printed.
fn nft(scene: &Scene, arguments: &[&str]) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(arguments).stdout(Stdio::piped());
    let output = scene.world.rig.netvm().spawn(&mut nft)?.wait_with_output()?;
    ensure!(output.status.success(), "`nft {}` failed", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// Packets that the two hooks saw so far: prerouting, input.
fn watched(scene: &Scene) -> Result<[u64; 2]> {
    let count = |name: &str| -> Result<u64> {
        let text = nft(scene, &["list", "counter", "inet", "watch", name])?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        Ok(words.nth(1).context("no counter")?.parse()?)
    };
    Ok([count("prerouting")?, count("input")?])
}

#[test]
fn a_client_whose_rules_drop_everything_still_talks_to_the_netvm() -> Result<()> {
    let scene = Scene::new("ownaddress", &[])?;
    for ends in scene.families() {
        let (reply, unreachable) = match ends.from {
            IpAddr::V4(_) => (Answer::Icmp(0, 0), Answer::Icmp(3, 3)),
            IpAddr::V6(_) => (Answer::Icmp(129, 0), Answer::Icmp(1, 4)),
        };
        for own in [ends.gateway, ends.uplink] {
            let counted = &[("local", 1)];
            let name = format!("{} to {own}", ends.from);
            scene.check(&name, &[ends.ping(own)], &Expected::answered(&[reply], counted));
            let closed = packet(ends.from, own, UDP, &packets::datagram(40000, 9, &[1; 32]));
            scene.check(&name, &[closed], &Expected::answered(&[unreachable], counted));
            let server = SocketAddr::new(own, 7);
            let _server = EchoServer::start(scene.world.rig.netvm(), server)?;
            let client = scene.world.client.namespace();
            for probe in [Probe::tcp(client, server), Probe::udp(client, server)] {
                assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "{probe:?}");
            }
            assert_eq!(scene.agent.client(ends.from)?.default_counter.packets, 0);
        }
    }
    // So does one whose rules are not known yet.
    let waiting = scene.world.rig.add_client(&ClientSpec::numbered(13))?;
    for address in waiting.spec().addresses() {
        scene.agent.wait_for_state(address, State::Waiting)?;
    }
    for ends in scene.families() {
        let ping = Probe::ping(waiting.namespace(), ends.gateway);
        assert_eq!(ping.run(SILENCE)?, Outcome::Accepted);
    }
    Ok(())
}

#[test]
fn multicast_and_broadcast_are_not_forwarded_and_not_answered() -> Result<()> {
    let scene = Scene::new("multicast", &[Rule::all(true)])?;
    let [v4, v6] = scene.families();
    let to4 = ["224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255"];
    let to6 = ["ff02::2", "ff02::fb", "ff05::2", "ff0e::1234"];
    let counted = &[("local", 1)];
    for (ends, destinations) in [(v4, to4), (v6, to6)] {
        for to in destinations {
            let to: IpAddr = to.parse()?;
            let name = format!("{} to {to}", ends.from);
            let datagram = packets::datagram(40000, 5353, &[1; 32]);
            scene.check(
                &name,
                &[packet(ends.from, to, UDP, &datagram)],
                &Expected::silence(counted),
            );
        }
    }
    // The uplink's own broadcast is the netvm's as well.
    let directed = packet(v4.from, "192.0.2.255".parse()?, UDP, &packets::datagram(1, 9, &[1; 32]));
    let came = scene.check("directed", &[directed], &Expected::silence(counted));
    assert!(came.whole().is_none());
    Ok(())
}

#[test]
fn what_nft_redirects_to_the_netvm_arrives_although_rules_drop() -> Result<()> {
    let scene = Scene::new("redirect", &[])?;
    nft(&scene, &[REDIRECT])?;
    let client = scene.world.client.namespace();
    for (ends, server) in scene.families().into_iter().zip([SERVER4, SERVER6]) {
        let address = SocketAddr::new(ends.gateway, 7);
        let local = EchoServer::start(scene.world.rig.netvm(), address)?;
        let to = SocketAddr::new(server, 7000);
        for probe in [Probe::tcp(client, to), Probe::udp(client, to)] {
            assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "{probe:?}");
        }
        assert_eq!(local.received().udp_packets, 1);
        // Rules saw where the client wanted to go, and denied it; there was no gate on
        // its way.
        let status = scene.agent.client(ends.from)?;
        ensure!(status.default_counter.packets >= 4, "{status:?}");
        assert_eq!(status.counters.get("local").map_or(0, |it| it.packets), 0);
        let beside = SocketAddr::new(server, 7001);
        let Answer::Icmp(icmp_type, icmp_code) = ends.prohibited else { continue };
        let rejected = Outcome::Rejected { icmp_type, icmp_code };
        assert_eq!(Probe::udp(client, beside).run(SILENCE)?, rejected);
    }
    Ok(())
}

#[test]
fn a_forged_source_address_is_dropped_before_netfilter_sees_it() -> Result<()> {
    let scene = Scene::new("forged", &[Rule::all(true)])?;
    nft(&scene, &[WATCH])?;
    let other = ClientSpec::numbered(13);
    let other_client = scene.world.rig.add_client(&other)?;
    scene.agent.wait_for_vif(other_client.vif())?;
    let (v4, v6): (IpAddr, IpAddr) =
        (other.v4.context("no IPv4")?.into(), other.v6.context("no IPv6")?.into());
    let forged4 = [v4, [10, 137, 0, 99].into(), [10, 137, 0, 1].into(), [192, 0, 2, 2].into()];
    let more4 = [[203, 0, 113, 9].into(), [127, 0, 0, 1].into(), [0, 0, 0, 0].into()];
    let forged6 = [v6, "fd09:24ef:4179::a89:cc".parse()?, "fd09:24ef:4179::1".parse()?];
    let more6 = ["2001:db8:ffff::2".parse()?, "2001:db8:2::9".parse()?, "::1".parse()?];
    let [ends4, ends6] = scene.families();
    let cases =
        [(ends4, [&forged4[..], &more4].concat()), (ends6, [&forged6[..], &more6].concat())];
    for (ends, forged) in cases {
        for from in forged {
            for to in [ends.gateway, ends.uplink, ends.to] {
                let datagram = packets::datagram(40000, WATCHED, &[1; 32]);
                let name = format!("{from} to {to}");
                let expected = Expected::silence(&[("stray unknown-source", 1)]);
                scene.check(&name, &[packet(from, to, UDP, &datagram)], &expected);
            }
        }
    }
    // What is link-local or unspecified is dropped as well, and counted apart.
    let before = scene.agent.status()?.strays.get("link-local").map_or(0, |it| it.packets);
    for from in ["fe80::216:3eff:fe5e:6c0c", "::"] {
        let from: IpAddr = from.parse()?;
        let datagram = packets::datagram(40000, WATCHED, &[1; 32]);
        let packet = packet(from, ends6.gateway, UDP, &datagram);
        scene.check("link-local", &[packet], &Expected::silence(&[]));
    }
    let after = scene.agent.status()?.strays.get("link-local").map_or(0, |it| it.packets);
    ensure!(after >= before + 2, "{before} then {after}");
    assert_eq!(watched(&scene)?, [0, 0]);
    // The counters do count.
    for ends in [ends4, ends6] {
        let datagram = packets::datagram(40000, WATCHED, &[1; 32]);
        let unreachable = if ends.icmp == 1 { Answer::Icmp(3, 3) } else { Answer::Icmp(1, 4) };
        let expected = Expected::answered(std::slice::from_ref(&unreachable), &[("local", 1)]);
        scene.check("honest", &[packet(ends.from, ends.gateway, UDP, &datagram)], &expected);
    }
    assert_eq!(watched(&scene)?, [2, 2]);
    Ok(())
}

#[test]
fn dns_to_a_virtual_resolver_goes_nowhere_where_there_is_no_real_one() -> Result<()> {
    let scene = Scene::new("nodns", &[Rule::all(true)])?;
    let [ends, _] = scene.families();
    for resolver in ["10.139.1.1", "10.139.1.2"] {
        let query = |protocol, port| {
            let query = match protocol {
                TCP => packets::tcp(40000, port),
                _ => packets::datagram(40000, port, &[1; 32]),
            };
            Ok::<_, anyhow::Error>([packet(ends.from, resolver.parse()?, protocol, &query)])
        };
        for protocol in [TCP, UDP] {
            let counted = &[("rule 0", 1)];
            scene.check(resolver, &query(protocol, 53)?, &Expected::silence(counted));
        }
        // Another port is nobody's business.
        let expected = Expected::forwarded(1, &[("rule 0", 1)]);
        scene.check(resolver, &query(UDP, 54)?, &expected);
    }
    Ok(())
}

#[test]
fn no_stack_of_tags_carries_a_clients_address_in_by_the_uplink() -> Result<()> {
    let scene = Scene::new("uplinktags", &[])?;
    nft(&scene, &[WATCH])?;
    let (netvm, internet) = (scene.world.rig.netvm(), scene.world.rig.internet());
    // Sent to all, so that nobody needs to know a hardware address.
    let send = |ethertype: u16, payload: &[u8]| {
        let mut frame = packets::ethernet(ethertype, payload);
        frame[..6].fill(0xff);
        frames::send_raw(internet, "eth0", &frame)
    };
    netvm.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    let mut honest = 0;
    for (ends, stranger) in
        scene.families().into_iter().zip([INTERNET_V4.into(), INTERNET_V6.into()])
    {
        let inner = ends.family.ethertype();
        let tag = |next: u16, payload: &[u8]| [&[0, 0], &next.to_be_bytes(), payload].concat();
        // First a client's address, which must not pass, then a stranger's, which does.
        for from in [ends.from, stranger] {
            let datagram = packets::datagram(40000, WATCHED, &[1; 32]);
            let packet = packet(from, ends.uplink, UDP, &datagram);
            let single = tag(inner, &packet);
            let double = tag(0x8100, &single);
            send(inner, &packet)?;
            send(0x8100, &single)?;
            send(0x8100, &double)?;
            send(0x88a8, &double)?;
            send(0x8100, &tag(0x8100, &double))?;
        }
        honest += 5;
        let deadline = Instant::now() + PATIENCE;
        while watched(&scene)?[0] < honest {
            ensure!(Instant::now() < deadline, "{:?} of {honest}", watched(&scene)?);
        }
        assert_eq!(watched(&scene)?[0], honest, "{} came in by the uplink", ends.from);
    }
    Ok(())
}
