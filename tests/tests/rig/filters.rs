//! Filters of clsact: ours are known by their place, and those of others are left alone.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use firewall_tests::oracle::Rule;
use firewall_tests::program::Program;
use firewall_tests::rig::UPLINK;
use firewall_tests::rig::agent::{self, Agent};
use firewall_tests::rig::namespace::Namespace;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::world::*;

/// Every packet, in the byte order of the network (`ETH_P_ALL`).
const ALL_PROTOCOLS: u32 = 0x0300;

/// Has the filter at a vif as it is on a kernel that keeps no names of programs.
fn take_name_away(netvm: &Namespace, vif: &str) -> Result<()> {
    let shown = filters(netvm, vif, "ingress")?;
    let id = shown.split(" id ").nth(1).and_then(|rest| rest.split(' ').next());
    let id: u32 = id.with_context(|| format!("no program in {shown}"))?.parse()?;
    let mut programs = loaded_programs().filter_map(Result::ok);
    let program = programs.find(|it| it.id() == id).context("no such program")?.fd()?;
    let header = TcHeader {
        index: netvm.run(|| Ok(nix::net::if_::if_nametoindex(vif)?))?.cast_signed(),
        handle: TcHandle { major: 0, minor: 1 },
        parent: TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS },
        info: 1 << 16 | ALL_PROTOCOLS,
        ..TcHeader::default()
    };
    let options = [
        TcFilterBpfOption::ProgFd(program.as_fd().as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = TcAttribute::Options(options.map(TcOption::Bpf).to_vec());
    let attributes = vec![TcAttribute::Kind("bpf".to_owned()), options];
    let message = TcMessage::from_parts(header, attributes);
    let payload = NetlinkPayload::from(RouteNetlinkMessage::NewTrafficFilter(message));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    netvm.run(|| {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&bytes, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })?;
    let shown = filters(netvm, vif, "ingress")?;
    ensure!(
        shown.contains(&format!(" id {id} ")) && !shown.contains("from_client direct"),
        "{shown}"
    );
    Ok(())
}

/// On a kernel without tracing, aya gives programs and filters no names.
#[test]
fn a_filter_without_a_name_is_found_and_goes_when_it_has_to() -> Result<()> {
    if !has_tcx() {
        firewall_tests::skip(
            "a_filter_without_a_name_is_found_and_goes_when_it_has_to",
            "the kernel has no tcx",
        )?;
        return Ok(());
    }
    let world = World::new("nameless")?;
    let (netvm, vif) = (world.rig.netvm(), world.client.vif());
    let begin = || -> Result<()> {
        let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
        agent.wait_for_vif(vif)?;
        world.put(&agent, &[Rule::all(true)])?;
        world.check("by clsact", ACCEPTED, ACCEPTED);
        agent.kill()?;
        take_name_away(netvm, vif)?;
        world.check("without a name", ACCEPTED, ACCEPTED);
        Ok(())
    };
    begin()?;
    // It would have the last word behind a program of tcx that denies.
    let agent = Agent::start(&world.rig, &["--attach", "tcx"])?;
    agent.wait_for_vif(vif)?;
    ensure!(!filters(netvm, vif, "ingress")?.contains("bpf"), "the filter is still there");
    world.put(&agent, &[])?;
    world.check("by tcx", ALL_PROHIBITED4, ALL_PROHIBITED6);
    agent.kill()?;
    // A later agent takes it over, and one that opens takes it away.
    begin()?;
    let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
    agent.wait_for_vif(vif)?;
    world.put(&agent, &[])?;
    world.check("taken over", ALL_PROHIBITED4, ALL_PROHIBITED6);
    agent.kill()?;
    take_name_away(netvm, vif)?;
    let mut command = Command::new(agent::binary()?);
    command.args(["hand-over", "--pins"]).arg(world.rig.bpffs().join("firewall"));
    ensure!(netvm.spawn(&mut command)?.wait()?.success());
    ensure!(!filters(netvm, vif, "ingress")?.contains("bpf"), "the filter is still there");
    Ok(())
}

#[test]
fn a_filter_of_somebody_else_is_left_alone_even_at_our_place() -> Result<()> {
    let world = World::new("foreign")?;
    let netvm = world.rig.netvm();
    let mut program = Program::load()?;
    let pin = world.rig.bpffs().join("somebodys");
    program.pin("baseline", &pin)?;
    for direction in ["ingress", "egress"] {
        let mut tc = Command::new("tc");
        let text = format!("qdisc replace dev {UPLINK} clsact");
        ensure!(netvm.spawn(tc.args(text.split(' ')))?.wait()?.success());
        let mut tc = Command::new("tc");
        let text = format!(
            "filter add dev {UPLINK} {direction} prio 1 handle 1 bpf da object-pinned {}",
            pin.display()
        );
        ensure!(netvm.spawn(tc.args(text.split(' ')))?.wait()?.success());
    }
    let before = filters(netvm, UPLINK, "ingress")? + &filters(netvm, UPLINK, "egress")?;
    ensure!(before.matches(" id ").count() == 2, "{before}");
    for &how in ways() {
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for_vif(world.client.vif())?;
        let unguarded = agent.status()?.agent.unguarded_uplinks;
        match how {
            "tcx" => ensure!(unguarded.is_empty(), "{unguarded:?}"),
            _ => ensure!(unguarded[UPLINK].contains("a filter of somebody else"), "{unguarded:?}"),
        }
        agent.kill()?;
        let mut command = Command::new(agent::binary()?);
        command.args(["hand-over", "--pins"]).arg(world.rig.bpffs().join("firewall"));
        ensure!(netvm.spawn(&mut command)?.wait()?.success());
        let after = filters(netvm, UPLINK, "ingress")? + &filters(netvm, UPLINK, "egress")?;
        assert_eq!(after, before, "{how}");
    }
    Ok(())
}

#[test]
fn what_keeps_clsact_away_is_told_with_the_modules_that_it_needs() -> Result<()> {
    let world = World::new("noclsact")?;
    // It has the place of clsact and no egress.
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "add", "dev", UPLINK, "ingress"]).stderr(Stdio::inherit());
    ensure!(world.rig.netvm().spawn(&mut tc)?.wait()?.success());
    let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
    agent.wait_for("unguarded", |status| !status.agent.unguarded_uplinks.is_empty())?;
    let why = agent.status()?.agent.unguarded_uplinks.remove(UPLINK).context("another link")?;
    for part in ["clsact's qdisc: ", "its filter: ", "sch_ingress", "cls_bpf"] {
        ensure!(why.contains(part), "{why}");
    }
    Ok(())
}

/// What `tc` shows.
pub fn filters(netvm: &Namespace, link: &str, direction: &str) -> Result<String> {
    let mut tc = Command::new("tc");
    tc.args(["filter", "show", "dev", link, direction]).stdout(Stdio::piped());
    Ok(String::from_utf8(netvm.spawn(&mut tc)?.wait_with_output()?.stdout)?)
}
