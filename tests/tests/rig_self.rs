//! Proves the rig and the probes themselves, with plain nft rules whose effect is known.
//! Never runs the firewall. Needs root, and fails without.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{CLIENT_INTERFACE, Client, ClientSpec, GATEWAY_V4, Rig, UPLINK};
use firewall_tests::traffic::frames::{capture, send_raw};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, Protocol, SILENCE};

const PORT: u16 = 7000;
const CLOSED_PORT: u16 = 7001;
const SERVERS: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Ping];
/// Long enough for anything that must happen.
const LONG: Duration = Duration::from_secs(5);

const MASQUERADE: &str = "
    table inet rig_nat { chain out {
        type nat hook postrouting priority srcnat;
        oifname eth0 masquerade
    }; }\n";
const REJECT: &str = "
    table inet rig_filter { chain forward {
        type filter hook forward priority filter;
        iifname vif* reject with icmpx type admin-prohibited
    }; }\n";
const DROP: &str = "
    table inet rig_filter { chain forward {
        type filter hook forward priority filter;
        iifname vif* drop
    }; }\n";

/// A rig with one client and an echo server of each family.
struct Fixture {
    client: Client,
    servers: Vec<EchoServer>,
    rig: Rig,
}

impl Fixture {
    fn new(label: &str, rules: &[&str]) -> Result<Self> {
        let rig = Rig::new(label)?;
        let client = rig.add_client(&ClientSpec::numbered(12))?;
        let mut servers = Vec::new();
        for address in SERVERS {
            let address: IpAddr = address.parse()?;
            rig.add_internet_address(address)?;
            servers.push(EchoServer::start(rig.internet(), SocketAddr::new(address, PORT))?);
        }
        rules.iter().try_for_each(|rules| rig.netvm().nft(rules))?;
        Ok(Self { client, servers, rig })
    }

    fn probe(&self, to: SocketAddr, protocol: Protocol, timeout: Duration) -> Result<Outcome> {
        let from = self.client.namespace().clone();
        Probe { from, to: to.ip(), port: to.port(), protocol }.run(timeout)
    }

    /// Probes all servers with all protocols.
    fn check_all(&self, expected: impl Fn(IpAddr) -> Outcome, timeout: Duration) -> Result<()> {
        for server in &self.servers {
            for protocol in PROTOCOLS {
                let to = server.address();
                let outcome = self.probe(to, protocol, timeout)?;
                let expected = expected(to.ip());
                ensure!(outcome == expected, "{protocol:?} to {to}: {outcome}, not {expected}");
            }
        }
        Ok(())
    }
}

fn admin_prohibited(address: IpAddr) -> Outcome {
    let (icmp_type, icmp_code) = Family::from(address).of([(3, 13), (1, 1)]);
    Outcome::Rejected { icmp_type, icmp_code }
}

#[test]
fn masqueraded_traffic_is_accepted() -> Result<()> {
    let fixture = Fixture::new("accept", &[MASQUERADE])?;
    fixture.check_all(|_| Outcome::Accepted, LONG)?;
    for server in &fixture.servers {
        assert!(server.wait_until(|it| it.connections == 1, LONG), "{:?}", server.received());
        assert_eq!(server.received().udp_packets, 1);
    }
    Ok(())
}

#[test]
fn traffic_without_masquerade_is_silent() -> Result<()> {
    Fixture::new("no_nat", &[])?.check_all(|_| Outcome::Silent, SILENCE)
}

#[test]
fn rejected_traffic_shows_the_icmp_error() -> Result<()> {
    let fixture = Fixture::new("reject", &[MASQUERADE, REJECT])?;
    // Many times: the kernel's limit on ICMP errors must not turn any into silence.
    for _ in 0..20 {
        fixture.check_all(admin_prohibited, LONG)?;
    }
    for server in &fixture.servers {
        assert_eq!(server.received(), Default::default());
    }
    Ok(())
}

#[test]
fn dropped_traffic_is_silent() -> Result<()> {
    let fixture = Fixture::new("drop", &[MASQUERADE, DROP])?;
    fixture.check_all(|_| Outcome::Silent, SILENCE)
}

#[test]
fn a_closed_port_is_refused() -> Result<()> {
    let fixture = Fixture::new("closed", &[MASQUERADE])?;
    for address in SERVERS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(address.parse()?, CLOSED_PORT);
            let outcome = fixture.probe(to, protocol, LONG)?;
            assert_eq!(outcome, Outcome::Refused, "{protocol:?} to {to}");
        }
    }
    Ok(())
}

#[test]
fn an_open_flow_shows_that_it_is_cut() -> Result<()> {
    let fixture = Fixture::new("flow", &[MASQUERADE])?;
    for server in &fixture.servers {
        let mut flow = OpenFlow::open(fixture.client.namespace(), server.address(), LONG)?;
        assert!(flow.exchange(LONG)?);
        assert!(flow.exchange(LONG)?);
        fixture.rig.netvm().nft(DROP)?;
        assert!(!flow.exchange(SILENCE)?);
        fixture.rig.netvm().nft("delete table inet rig_filter")?;
        assert!(flow.exchange(LONG)?, "what TCP sends again must arrive");
    }
    Ok(())
}

#[test]
fn a_raw_frame_is_captured_on_both_sides_of_the_netvm() -> Result<()> {
    let fixture = Fixture::new("frames", &[MASQUERADE])?;
    let netvm = fixture.rig.netvm();
    let mut arriving = capture(netvm, fixture.client.vif())?;
    let mut leaving = capture(netvm, UPLINK)?;
    let payload = b"a frame of the rig's own test";
    let client_mac = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 12];
    let vif_mac = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
    let source = fixture.client.spec().v4.context("no address")?.octets();
    let builder = etherparse::PacketBuilder::ethernet2(client_mac, vif_mac)
        .ipv4(source, [198, 51, 100, 7], 64)
        .udp(4000, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload)?;

    send_raw(fixture.client.namespace(), CLIENT_INTERFACE, &frame)?;

    let contains = |frame: &[u8]| frame.ends_with(payload);
    assert_eq!(arriving.wait_for(contains, LONG)?, Some(frame));
    assert!(leaving.wait_for(contains, LONG)?.is_some());
    assert!(fixture.servers.iter().any(|it| it.wait_until(|it| it.udp_packets == 1, LONG)));
    assert_eq!(leaving.wait_for(|frame| frame.ends_with(b"nothing"), SILENCE / 7)?, None);
    Ok(())
}

#[test]
fn a_client_can_be_made_in_another_order_and_removed() -> Result<()> {
    let fixture = Fixture::new("order", &[MASQUERADE])?;
    let rig = &fixture.rig;
    let spec = ClientSpec { v6: None, ..ClientSpec::numbered(200) };
    let client = rig.add_link(&spec)?;
    rig.set_up(&client)?;
    rig.add_routes(&client)?;
    rig.add_addresses(&client)?;
    let gateway = Probe::ping(client.namespace(), GATEWAY_V4.into());
    assert_eq!(gateway.run(LONG)?, Outcome::Accepted);
    let unreachable = Probe::ping(client.namespace(), SERVERS[1].parse()?);
    assert!(unreachable.run(LONG).is_err(), "a client without IPv6 must not look silent");

    rig.remove_client(&client)?;
    assert!(!client.namespace().exists());
    assert!(!rig.netvm().ip(&["link", "show"])?.contains(client.vif()));
    rig.add_client(&spec)?;
    Ok(())
}

/// Names below `/run/netns` and the temporary directory, and mounts, with that in them.
fn traces(of: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in ["/run/netns".into(), std::env::temp_dir()] {
        for entry in fs::read_dir(directory)? {
            found.push(entry?.path().display().to_string());
        }
    }
    found.extend(fs::read_to_string("/proc/self/mounts")?.lines().map(str::to_owned));
    found.retain(|it| it.contains(of));
    Ok(found)
}

#[test]
fn nothing_remains_of_a_rig() -> Result<()> {
    let stem = format!("fwt-{}-remains", std::process::id());
    let fixture = Fixture::new("remains", &[])?;
    let mut running = fixture.rig.netvm().spawn(Command::new("sleep").arg("1000"))?;
    fs::write(fixture.rig.directory().join("rules"), "policy=drop\n")?;
    assert!(fixture.rig.bpffs().is_dir());
    // Three namespaces (as files and as mounts), a directory, a bpf file system.
    assert!(traces(&stem)?.len() >= 5, "{:?}", traces(&stem)?);
    assert!(Rig::new("remains").is_err(), "a label was given twice");

    drop(fixture);
    assert_eq!(traces(&stem)?, [""; 0]);
    assert!(!running.wait()?.success(), "a process of the rig was not ended");

    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _rig = Rig::new("remains");
        assert!(traces(&stem).is_ok_and(|it| it.is_empty()), "on purpose");
    }));
    assert!(panic.is_err());
    assert_eq!(traces(&stem)?, [""; 0]);
    Ok(())
}

#[test]
fn leftovers_of_a_killed_run_are_removed_and_kept_ones_are_not() -> Result<()> {
    let mut ended = Command::new("true").spawn()?;
    ended.wait()?;
    let pid = ended.id();
    let temporary = std::env::temp_dir();
    for label in ["killed", "kept"] {
        let directory = temporary.join(format!("fwt-{pid}-{label}"));
        let bpf = directory.join("bpf");
        fs::create_dir_all(&bpf)?;
        let added = Command::new("ip")
            .args(["netns", "add", &format!("fwt-{pid}-{label}-netvm")])
            .status()?;
        assert!(added.success());
        if label == "kept" {
            fs::write(directory.join("kept"), "")?;
        }
        assert!(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpf).status()?.success());
    }

    let rig = Rig::new("leftovers")?;
    assert_eq!(traces(&format!("fwt-{pid}-killed"))?, [""; 0]);
    assert!(traces(&format!("fwt-{pid}-kept"))?.len() >= 3);
    drop(rig);

    fs::remove_file(temporary.join(format!("fwt-{pid}-kept/kept")))?;
    let _rig = Rig::new("leftovers")?;
    assert_eq!(traces(&format!("fwt-{pid}-kept"))?, [""; 0]);
    Ok(())
}

#[test]
fn a_kept_rig_says_how_to_remove_it() -> Result<()> {
    let stem = format!("fwt-{}-by_hand", std::process::id());
    let rig = Rig::new("by_hand")?;
    rig.keep()?;
    let text = rig.how_to_enter();
    drop(rig);
    assert!(text.contains(&format!("ip netns exec {stem}-netvm bash")), "{text}");
    assert!(!traces(&stem)?.is_empty());
    let (_, commands) = text.split_once("To remove:").context("no commands")?;
    assert!(Command::new("sh").args(["-e", "-c", commands]).status()?.success(), "{commands}");
    assert_eq!(traces(&stem)?, [""; 0]);
    Ok(())
}

#[test]
fn silence_takes_as_long_as_it_was_told() -> Result<()> {
    let fixture = Fixture::new("time", &[MASQUERADE, DROP])?;
    let start = Instant::now();
    let to = fixture.servers[0].address();
    assert_eq!(fixture.probe(to, Protocol::Udp, SILENCE)?, Outcome::Silent);
    assert!(start.elapsed() >= SILENCE);
    Ok(())
}
