//! Each kind of traffic of a qube behind a Whonix gateway, under each kind of rules: a table that was
//! written by hand, and what becomes of real packets.
//! Never asks the product what is right.

use std::cell::Cell;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::{ESP, GRE, TCP, UDP};
use firewall_tests::rig::agent::{Agent, write_rules};
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Odd::*;
use firewall_tests::whonix::kinds::Place::*;
use firewall_tests::whonix::kinds::What::*;
use firewall_tests::whonix::kinds::{Kind, Odd, Place, What};
use firewall_tests::whonix::sent::{Answer, Came};
use firewall_tests::whonix::tables::{DNS_PORT, TRANS_PORT};
use firewall_tests::whonix::watch::Delivery;

/// The columns of the table: who judges. `today` is the gateway without us.
pub const COLUMNS: [&str; 9] =
    ["today", "all", "none", "host", "port", "dns", "socks", "control", "lan"];

/// A line: what it is; where to; what; what is odd about it; and what becomes of it in each column.
///
/// | | it |
/// |---|---|
/// | T | comes to Tor's TransPort |
/// | D | comes to Tor's DNSPort |
/// | S | comes to the port that was written: SOCKS, HTTP, the filter of the control port |
/// | - | comes to nobody, and nothing is said |
/// | x | comes to nobody, and the qube is told "administratively prohibited" |
///
/// Two with a slash between are those of IPv4 and of IPv6.
type Line = (&'static str, Place, What, Odd, &'static str);

/// What people close who close their LAN (RFC 1918, RFC 4193). Tor's own ports and onion services are
/// at such addresses, and so is Qubes' resolver, whose DNS a network of many does not take along.
const LAN: [(IpAddr, u8); 4] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

/// Protocol number of SCTP.
const SCTP: u8 = 132;
/// Protocol number of IPv4 in IP.
const IP_IN_IP: u8 = 4;

#[rustfmt::skip]
pub const MATRIX: &[Line] = &[
    //                                                                       today all none host port dns socks control lan
    ("tcp to a host",                     Host,       Open(443),     Plain,     "T T x T T x x x T"),
    ("tcp to its other port",             Host,       Open(80),      Plain,     "T T x T x x x x T"),
    ("tcp to another host",               Elsewhere,  Open(443),     Plain,     "T T x x T x x x T"),
    ("tcp to another host's other port",  Elsewhere,  Open(80),      Plain,     "T T x x x x x x T"),
    ("tcp to a LAN",                      Lan,        Open(80),      Plain,     "T T x x x x x x x"),
    ("tcp to a LAN's web",                Lan,        Open(443),     Plain,     "T T x x T x x x x"),
    ("tcp to an onion service",           Onion,      Open(80),      Plain,     "T T x x x x x x x"),
    ("tcp to an onion service's web",     Onion,      Open(443),     Plain,     "T T x x T x x x x"),
    ("tcp with ECN",                      Host,       OpenEcn(443),  Plain,     "T T x T T x x x T"),
    ("tcp to another qube",               Disposable, Open(80),      Plain,     "T T x x x x x x x"),
    ("tcp to the gateway",                Gateway,    Open(80),      Plain,     "T T x x x x x x x"),
    ("tcp to the gateway's web",          Gateway,    Open(443),     Plain,     "T T x x T x x x x"),
    ("tcp to ssh of the gateway",         Gateway,    Open(22),      Plain,     "T T x x x x x x x"),
    ("tcp to Tor's own control port",     Gateway,    Open(9052),    Plain,     "T T x x x x x x x"),
    ("tcp to TransPort itself",           Gateway,    Open(9040),    Plain,     "T T x x x x x x x"),
    ("tcp to TransPort at the vif",       Vif,        Open(9040),    Plain,     "T T x x x x x x x"),
    ("tcp to the uplink's address",       Uplink,     Open(80),      Plain,     "T T x x x x x x T"),
    ("tcp to the uplink's TransPort",     Uplink,     Open(9040),    Plain,     "T T x x x x x x T"),
    ("tcp to loopback",                   Loopback,   Open(9052),    Plain,     "T/- T/- x x x x x x T/-"),
    ("tcp to port 0",                     Host,       Open(0),       Plain,     "T T x T x x x x T"),

    ("dns by udp to a host",              Host,       Udp(53),       Plain,     "D D x D x D x x D"),
    ("dns by udp to another host",        Elsewhere,  Udp(53),       Plain,     "D D x x x D x x D"),
    ("dns by udp to the gateway",         Gateway,    Udp(53),       Plain,     "D D x x x D x x x"),
    ("dns by udp to the vif",             Vif,        Udp(53),       Plain,     "D D x x x D x x x"),
    ("dns by udp to Qubes' resolver",     Resolver,   Udp(53),       Plain,     "D D x x x D x x D"),
    ("dns by tcp to a host",              Host,       Open(53),      Plain,     "T T x T x T x x T"),
    ("dns by tcp to another host",        Elsewhere,  Open(53),      Plain,     "T T x x x T x x T"),
    ("dns by tcp to the gateway",         Gateway,    Open(53),      Plain,     "T T x x x T x x x"),
    ("dns by tcp to Qubes' resolver",     Resolver,   Open(53),      Plain,     "T T x x x T x x T"),
    ("dns by udp to everybody",           Broadcast,  Udp(53),       Plain,     "D D - - - D - - D"),
    ("dns by udp to a group",             Group,      Udp(53),       Plain,     "D D - - - D - - D"),
    ("mDNS",                              Group,      Udp(5353),     Plain,     "- - - - - - - - -"),
    ("udp to DNSPort itself",             Gateway,    Udp(5300),     Plain,     "D D x x x x x x x"),
    ("udp to DNSPort at the vif",         Vif,        Udp(5300),     Plain,     "D D x x x x x x x"),
    ("udp to the uplink's DNSPort",       Uplink,     Udp(5300),     Plain,     "D D x x x x x x D"),
    ("udp to a host's 5300",              Host,       Udp(5300),     Plain,     "- - x - x x x x -"),
    ("udp to a host",                     Host,       Udp(443),      Plain,     "- - x - x x x x -"),
    ("udp to TransPort's number",         Gateway,    Udp(9040),     Plain,     "- - x x x x x x x"),
    ("udp to the gateway",                Gateway,    Udp(123),      Plain,     "- - x x x x x x x"),

    ("SOCKS 9050",                        Gateway,    Open(9050),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9100, a first",               Gateway,    Open(9100),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9111, a last",                Gateway,    Open(9111),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9112",                     Gateway,    Open(9112),    Plain,     "T T x x x x x x x"),
    ("no SOCKS 9113",                     Gateway,    Open(9113),    Plain,     "T T x x x x x x x"),
    ("SOCKS 9114",                        Gateway,    Open(9114),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9115",                        Gateway,    Open(9115),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9116",                     Gateway,    Open(9116),    Plain,     "T T x x x x x x x"),
    ("SOCKS 9117",                        Gateway,    Open(9117),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9118",                        Gateway,    Open(9118),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9119",                     Gateway,    Open(9119),    Plain,     "T T x x x x x x x"),
    ("SOCKS 9122, a first",               Gateway,    Open(9122),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9125, a last",                Gateway,    Open(9125),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9149",                     Gateway,    Open(9149),    Plain,     "T T x x x x x x x"),
    ("SOCKS 9150, Tor Browser's",         Gateway,    Open(9150),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9151",                     Gateway,    Open(9151),    Plain,     "T T x x x x x x x"),
    ("SOCKS 9152, a first",               Gateway,    Open(9152),    Plain,     "S S x x x x S x x"),
    ("SOCKS 9229, a last",                Gateway,    Open(9229),    Plain,     "S S x x x x S x x"),
    ("no SOCKS 9230",                     Gateway,    Open(9230),    Plain,     "T T x x x x x x x"),
    ("SOCKS at a disposable's address",   Disposable, Open(9050),    Plain,     "S S x x x x S x x"),
    ("SOCKS at the fixed address",        Fixed,      Open(9150),    Plain,     "S S x x x x S x x"),
    ("SOCKS's number at a host",          Host,       Open(9050),    Plain,     "T T x T x x x x T"),
    ("SOCKS's number at another host",    Elsewhere,  Open(9050),    Plain,     "T T x x x x x x T"),
    ("SOCKS's number at the uplink",      Uplink,     Open(9050),    Plain,     "T T x x x x x x T"),
    ("SOCKS's number by udp",             Gateway,    Udp(9050),     Plain,     "- - x x x x x x x"),
    ("the control port",                  Gateway,    Open(9051),    Plain,     "S S x x x x x S x"),
    ("the control port, fixed address",   Fixed,      Open(9051),    Plain,     "S S x x x x x S x"),
    ("the control port's number, a host", Elsewhere,  Open(9051),    Plain,     "T T x x x x x x T"),

    ("a segment of no connection",        Host,       Segment(443),  Plain,     "- - x - - x x x -"),
    ("a segment to TransPort",            Gateway,    Segment(9040), Plain,     "S S x x x x x x x"),
    ("a segment to SOCKS",                Gateway,    Segment(9050), Plain,     "S S x x x x S x x"),
    ("ping of a host",                    Host,       Echo,          Plain,     "- - x - x x x x -"),
    ("ping of the gateway",               Gateway,    Echo,          Plain,     "- - x x x x x x x"),
    ("GRE",                               Host,       Protocol(GRE), Plain,     "- - x - x x x x -"),
    ("ESP to the gateway",                Gateway,    Protocol(ESP), Plain,     "- - x x x x x x x"),
    ("SCTP",                              Host,       Protocol(SCTP), Plain,    "- - x - x x x x -"),
    // The kernel answers only what it can check: nf_reject_verify_csum, include/net/netfilter/nf_reject.h.
    ("IP in IP",                          Gateway,    Protocol(IP_IN_IP), Plain, "- - - - - - - - -"),

    ("one hop: tcp",                      Elsewhere,  Open(80),      OneHop,    "T T x x x x x x T"),
    ("one hop: SOCKS",                    Gateway,    Open(9050),    OneHop,    "S S x x x x S x x"),
    ("one hop: dns",                      Elsewhere,  Udp(53),       OneHop,    "D D x x x D x x D"),
    ("one hop: udp to DNSPort",           Gateway,    Udp(5300),     OneHop,    "D D x x x x x x x"),
    ("one hop: udp",                      Elsewhere,  Udp(443),      OneHop,    "- - x x x x x x -"),
    ("one hop: ping",                     Elsewhere,  Echo,          OneHop,    "- - x x x x x x -"),
    ("fragments: dns",                    Elsewhere,  Udp(53),       Fragments, "D D - - - D - - D"),
    ("fragments: udp to DNSPort",         Gateway,    Udp(5300),     Fragments, "D D - - - - - - -"),
    ("fragments: ping",                   Elsewhere,  Echo,          Fragments, "- - - - - - - - -"),
    ("the last fragment alone",           Gateway,    Udp(5300),     OnlyLast,  "- - - - - - - - -"),
    ("options: tcp",                      Elsewhere,  Open(80),      Options,   "T T x x x x x x T"),
    ("options: SOCKS",                    Gateway,    Open(9150),    Options,   "S S x x x x S x x"),
    ("options: dns",                      Elsewhere,  Udp(53),       Options,   "D D x x x D x x D"),
];

/// What becomes of packets of one kind, by its letter.
fn expected(kind: &Kind, letter: &str, source: SocketAddr) -> Result<Came> {
    let family = Family::from(source.ip());
    let to = SocketAddr::new(kind.destination(family)?, kind.port().unwrap_or_default());
    let protocol = if matches!(kind.what, Udp(_)) { UDP } else { TCP };
    let at = |port| Came {
        delivered: vec![Delivery { source, protocol, port, original: to }],
        answers: match kind.what {
            Open(_) | OpenEcn(_) => vec![Answer::SynAck(to)],
            Segment(_) => vec![Answer::Reset(to)],
            Udp(_) | Echo | Protocol(_) => Vec::new(),
        },
    };
    let told = |answers| Came { delivered: Vec::new(), answers };
    Ok(match letter {
        "T" => at(TRANS_PORT),
        "D" => at(DNS_PORT),
        "S" => at(to.port()),
        "-" => told(Vec::new()),
        "x" => told(vec![family.of([Answer::Icmp(3, 13), Answer::Icmp(1, 1)])]),
        other => anyhow::bail!("`{other}` is no letter of the table"),
    })
}

/// The letter of a line in a column.
fn letter<'a>(line: &'a Line, column: &str, family: Family) -> Result<&'a str> {
    let at = COLUMNS.iter().position(|it| *it == column).context("no such column")?;
    let letters: Vec<&str> = line.4.split_whitespace().collect();
    ensure!(letters.len() == COLUMNS.len(), "`{}` has {} letters", line.0, letters.len());
    let both = letters.get(at).context("no letter")?;
    Ok(both.split_once('/').map_or(*both, |(v4, v6)| family.of([v4, v6])))
}

/// Sends what the table has, and notes what became of it.
pub struct Runner<'a> {
    pub gateway: &'a Gateway,
    port: Cell<u16>,
}

impl<'a> Runner<'a> {
    pub fn new(gateway: &'a Gateway) -> Self {
        Self { gateway, port: Cell::new(20_000) }
    }

    /// Sends one kind, from a port that nothing else was sent from; none if there is no such place.
    pub fn send(&self, kind: &Kind, family: Family) -> Result<Option<(SocketAddr, Came)>> {
        let port = self.port.get();
        self.port.set(port.checked_add(1).context("no ports are left")?);
        let source = SocketAddr::new(self.gateway.of_qube(0, family)?, port);
        let packets = kind.packets(source.ip(), port)?;
        if packets.is_empty() {
            return Ok(None);
        }
        Ok(Some((source, self.gateway.send(0, port, &packets)?)))
    }

    /// Holds a whole column against what becomes of packets.
    pub fn check(&self, column: &str) -> Result<()> {
        let (mut wrong, mut right) = (String::new(), 0);
        for line in MATRIX {
            let kind = Kind { to: line.1, what: line.2, odd: line.3 };
            for family in Family::BOTH {
                let Some((source, came)) = self.send(&kind, family)? else { continue };
                let letter = letter(line, column, family)?;
                if came == expected(&kind, letter, source)? {
                    right += 1;
                } else {
                    writeln!(wrong, "{column}: {} ({family:?}): not {letter}: {came:?}", line.0)?;
                }
            }
        }
        self.gateway.forget()?;
        ensure!(wrong.is_empty(), "{right} are right, and not:\n{wrong}");
        ensure!(right > 150, "only {right} lines");
        self.nothing_else_passed()
    }

    /// Nothing of a qube left by the uplink, or came to a socket that is neither TCP's nor UDP's.
    pub fn nothing_else_passed(&self) -> Result<()> {
        let left = self.gateway.left_by_uplink()?;
        ensure!(left.is_empty(), "left by the uplink: {left:?}");
        assert_eq!(self.gateway.others_delivered()?, 0, "delivered, of another protocol");
        Ok(())
    }
}

#[test]
fn without_us_a_whonix_gateway_is_as_the_table_says() -> Result<()> {
    let gateway = Gateway::new("whonixtoday")?;
    Runner::new(&gateway).check("today")
}

/// An agent, with both of the gateway's qubes on it.
pub fn start(gateway: &Gateway, arguments: &[&str]) -> Result<Agent> {
    let agent = Agent::start(&gateway.rig, &[&["--mode", "whonix"], arguments].concat())?;
    for qube in &gateway.qubes {
        agent.wait_for_vif(qube.vif())?;
    }
    Ok(agent)
}

/// Has a qube's rules in force, of both families.
pub fn put(gateway: &Gateway, agent: &Agent, qube: usize, rules: &[Rule]) -> Result<()> {
    let rules = Ruleset { default_accept: false, rules: rules.to_vec() };
    Family::BOTH.iter().try_for_each(|it| put_one(agent, gateway.of_qube(qube, *it)?, &rules))
}

/// Has rules of one address in force. The agent may have more of them than there are in the file.
pub fn put_one(agent: &Agent, client: IpAddr, rules: &Ruleset) -> Result<()> {
    let before = agent.client(client)?.generation;
    let directory = agent.rules_of(client);
    let directory = directory.ancestors().nth(2).context("no directory")?;
    write_rules(directory, client, &rules.file())?;
    agent.wait_for(&format!("new rules of {client}"), |status| {
        let mut clients = status.clients.iter().filter(|it| it.address == client);
        clients.any(|it| it.state == State::Live && it.generation != before && !it.settling)
    })
}

/// What the agent counted of the first qube, and wrote.
fn told(gateway: &Gateway, agent: &Agent) -> String {
    let of = |family| agent.client(gateway.of_qube(0, family).ok()?).ok().map(|it| it.counters);
    format!("{:?}\n{}", Family::BOTH.map(of), agent.log())
}

pub fn dns() -> Rule {
    Rule { dns: true, ..Rule::all(true) }
}

#[test]
fn behind_whonix_each_kind_of_traffic_becomes_what_the_rules_say() -> Result<()> {
    let gateway = Gateway::new("whonixrules")?;
    let agent = start(&gateway, &[])?;
    let runner = Runner::new(&gateway);
    for column in ["none", "all", "host", "port", "dns", "lan", "none"] {
        for family in Family::BOTH {
            let host = Host.address(family).map(|it| (it, family.bits()));
            let web = Rule { proto: Some(Proto::Tcp), ports: Some((443, 443)), ..Rule::all(true) };
            let rules = match column {
                "all" => vec![Rule::all(true)],
                "host" => vec![Rule { network: host, ..Rule::all(true) }],
                "port" => vec![web],
                "dns" => vec![dns()],
                "lan" => {
                    let closed = LAN.iter().filter(|(first, _)| Family::from(*first) == family);
                    let closed = closed.map(|it| Rule { network: Some(*it), ..Rule::all(false) });
                    closed.chain([Rule::all(true)]).collect()
                }
                _ => Vec::new(),
            };
            let rules = Ruleset { default_accept: false, rules };
            put_one(&agent, gateway.of_qube(0, family)?, &rules)?;
        }
        runner.check(column).with_context(|| told(&gateway, &agent))?;
    }
    Ok(())
}

#[test]
fn behind_whonix_socks_and_the_control_port_are_what_options_say() -> Result<()> {
    for (column, option) in [("socks", "--tor-socks"), ("control", "--tor-control")] {
        let gateway = Gateway::new(&format!("whonix{column}"))?;
        let runner = Runner::new(&gateway);
        let clients = gateway.qubes[0].spec().addresses();
        // As `qvm-firewall` can leave it, and as the tools of Qubes OS do for a qube that they limit.
        let (bare, limited) = (Vec::new(), vec![Rule::all(false)]);
        for (value, column, rules) in
            [("allow", column, &bare), ("allow", column, &limited), ("deny", "none", &limited)]
        {
            let rules = Ruleset { default_accept: false, rules: rules.clone() };
            for client in &clients {
                write_rules(gateway.rig.directory(), *client, &rules.file())?;
            }
            let agent = start(&gateway, &[option, value])?;
            for client in &clients {
                agent.wait_for_state(*client, State::Live)?;
            }
            runner.check(column).with_context(|| told(&gateway, &agent))?;
        }
    }
    Ok(())
}
