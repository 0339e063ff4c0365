//! What of Ethernet a client can say to its vif: tags, types, hardware addresses, and who it is to
//! its neighbours.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_tests::oracle::Rule;
use firewall_tests::packets::family::PerFamily as _;
use firewall_tests::packets::{self, ICMPV6, V6, VIF};
use firewall_tests::rig::CLIENT_INTERFACE;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::traffic::frames;

use super::scene::*;

#[test]
fn a_tagged_frame_is_neither_answered_nor_forwarded_even_by_a_bare_accept() -> Result<()> {
    let scene = Scene::new("vlan", &[Rule::all(true)])?;
    for ends in scene.families() {
        let inner = ends.family.ethertype();
        // The tag's second half is the type of what follows.
        let tag = |identifier: u16, next: u16, payload: &[u8]| {
            [&identifier.to_be_bytes(), &next.to_be_bytes(), payload].concat()
        };
        for packet in [ends.ping(ends.gateway), ends.udp(443, &[1; 32])] {
            let single = tag(0, inner, &packet);
            let double = tag(0, 0x8100, &single);
            let cases: [(&str, u16, Vec<u8>); 7] = [
                ("802.1Q 0", 0x8100, single.clone()),
                ("802.1ad 0", 0x88a8, single),
                ("802.1Q 0 in 802.1Q 0", 0x8100, double.clone()),
                ("802.1Q 0 in 802.1ad 0", 0x88a8, double.clone()),
                ("three", 0x8100, tag(0, 0x8100, &double)),
                ("802.1Q 5", 0x8100, tag(5, inner, &packet)),
                ("802.1Q 0 in 802.1Q 5", 0x8100, tag(5, 0x8100, &tag(0, inner, &packet))),
            ];
            for (name, ethertype, payload) in cases {
                let name = format!("{name} from {}", ends.from);
                let frame = frame_of(ethertype, &payload);
                let expected = Expected::silence(&[("stray tagged", 1)]);
                scene.check_frames(&name, ends.family, &[frame], &expected);
            }
        }
    }
    Ok(())
}

#[test]
fn foreign_ethertypes_are_dropped_even_by_a_bare_accept() -> Result<()> {
    let scene = Scene::new("ethertypes", &[Rule::all(true)])?;
    for ends in scene.families() {
        for packet in [ends.ping(ends.gateway), ends.udp(443, &[1; 32])] {
            // PPPoE discovery and session, MPLS, LLC, MACsec, EAPOL, experimental.
            for ethertype in [0x8863, 0x8864, 0x8847, 0x0004, 0x88e5, 0x888e, 0x88b6] {
                let frame = frame_of(ethertype, &packet);
                let expected = Expected::silence(&[("stray foreign-ethertype", 1)]);
                scene.check_frames(&format!("{ethertype:#06x}"), ends.family, &[frame], &expected);
            }
        }
        // The packet of the other family.
        let other = ends.family.of([0x86dd, 0x0800]);
        let frame = frame_of(other, &ends.ping(ends.gateway));
        let expected = Expected::silence(&[("stray malformed", 1)]);
        scene.check_frames("the other family", ends.family, &[frame], &expected);
    }
    Ok(())
}

#[test]
fn hardware_addresses_open_nothing() -> Result<()> {
    let scene = Scene::new("macs", &[Rule::all(true)])?;
    for ends in scene.families() {
        let udp = ends.udp(443, &[1; 32]);
        // To another machine, from another machine, to all.
        let mut other = frame(&udp);
        other[..6].copy_from_slice(&[0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x63]);
        let expected = Expected::silence(&[("stray other-host", 1)]);
        scene.check_frames("to another", ends.family, &[other], &expected);
        let mut forged = frame(&udp);
        forged[6..12].copy_from_slice(&[0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x63]);
        let expected = Expected::forwarded(1, &[("rule 0", 1)]);
        scene.check_frames("from another", ends.family, &[forged], &expected);
        let mut everybody = frame(&udp);
        everybody[..6].fill(0xff);
        let expected = Expected::silence(&[("stray malformed", 1)]);
        scene.check_frames("to all", ends.family, &[everybody], &expected);
    }
    Ok(())
}

#[test]
fn arp_is_answered_whatever_rules_say() -> Result<()> {
    let scene = Scene::new("arp", &[])?;
    let client = scene.world.client.namespace();
    let mac = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 12];
    for asked in [[10, 137, 0, 1], [203, 0, 113, 9]] {
        let mut back = frames::capture(client, CLIENT_INTERFACE)?;
        let header = [0, 1, 8, 0, 6, 4, 0, 1];
        let request = [&header[..], &mac, &[10, 137, 0, 12], &[0; 6], &asked].concat();
        let mut frame = frame_of(0x0806, &request);
        frame[..6].fill(0xff);
        frames::send_raw(client, CLIENT_INTERFACE, &frame)?;
        // A reply, from the vif's hardware address, about the address that was asked for.
        let is_reply = |frame: &[u8]| {
            frame.get(12..22) == Some(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2])
                && frame.get(22..32) == Some(&[&VIF[..], &asked].concat())
        };
        ensure!(back.wait_for(is_reply, PATIENCE)?.is_some(), "no reply about {asked:?}");
    }
    Ok(())
}

#[test]
fn a_client_finds_its_gateway_from_its_own_address_only() -> Result<()> {
    let scene = Scene::new("solicit", &[])?;
    let client = scene.world.client.namespace();
    let [_, ends] = scene.families();
    let (IpAddr::V6(own), IpAddr::V6(gateway)) = (ends.from, ends.gateway) else {
        bail!("not IPv6");
    };
    let group: Ipv6Addr = "ff02::1:ff00:1".parse()?;
    let mut back = frames::capture(client, CLIENT_INTERFACE)?;
    let link_local = || -> Result<u64> {
        Ok(scene.agent.status()?.strays.get("link-local").map_or(0, |it| it.packets))
    };
    let before = link_local()?;
    // The first two would be answered before the third if they were answered at all.
    for from in ["fe80::216:3eff:fe5e:6c0c".parse()?, Ipv6Addr::UNSPECIFIED, own] {
        let option = [1, 1, 0x00, 0x16, 0x3e, 0x5e, 0x6c, 12];
        let option = if from == Ipv6Addr::UNSPECIFIED { &[][..] } else { &option };
        let question = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &gateway.octets(), option].concat();
        let question = packets::sealed(from.into(), group.into(), ICMPV6, &question);
        let question = V6 { hop_limit: 255, ..V6::new(from, group, ICMPV6, &question) };
        let mut frame = frame(&question.packet());
        frame[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0, 0, 1]);
        frames::send_raw(client, CLIENT_INTERFACE, &frame)?;
    }
    let is_answer = |frame: &[u8]| {
        frame.get(12..14) == Some(&[0x86, 0xdd])
            && frame.get(54) == Some(&136)
            && frame.get(6..12) == Some(&VIF)
    };
    let answer = back.wait_for(is_answer, PATIENCE)?.context("no answer")?;
    assert_eq!(answer[38..54], own.octets());
    ensure!(link_local()? >= before + 2);
    Ok(())
}
