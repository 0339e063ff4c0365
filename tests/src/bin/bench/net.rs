//! The whole way of a packet through a netvm, for each kind of traffic and each firewall.
//! Never takes a figure for good whose packets did not go where they should.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::Proto;
use firewall_tests::packets::VIF;
use firewall_tests::rig::connections;
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK, UPLINK_V4};
use firewall_tests::traffic::kernel::{Direction, Entry, Native, Sender, Sink, Traffic};
use serde_json::json;

use crate::firewalls::{ALL, Firewall};
use crate::machine::machine;
use crate::peers::{DENIED, Side, UPLINK_MAC, WITHOUT_RULES, hosts};
use crate::rounds::{Rounds, set_up, turn};
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<40, 7>,
    /// Only these firewalls, like `nat,stock-10,ours-1000`; any number of rules will do.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Firewall>,
    /// Only these kinds of traffic.
    #[arg(long, value_delimiter = ',')]
    traffic: Vec<Kind>,
    /// How long one measurement shall take, in milliseconds.
    #[arg(long, default_value_t = 10)]
    sample: u64,
    /// Let packets go through the whole veth of the client, native XDP included, and not
    /// only from where its driver hands them to the stack.
    #[arg(long)]
    whole_veth: bool,
}

/// Kinds of traffic. All of it is UDP without payload to speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// One flow that was answered, to the host of the last rule.
    Established,
    /// 1,024 of them at random, to up to as many hosts of all rules.
    Flows,
    /// Each packet a new flow to the host of the last rule.
    New,
    /// Each packet a new flow, to up to 1,024 hosts of all rules in turn.
    Spread,
    /// Each packet a new flow to a host that no rule names.
    Denied,
    /// Each packet a new flow to a host that no rule names, out of the client: through the whole veth, native XDP first.
    Flood,
}

const KINDS: [Kind; 6] =
    [Kind::Established, Kind::Flows, Kind::New, Kind::Spread, Kind::Denied, Kind::Flood];
const MANY: u32 = 1_024;
/// Packets of one measurement: enough for full batches, and not more new flows than ports.
const PACKETS: (u32, u32) = (256, 20_000);
/// Packets that are sent to find out how many a measurement shall have.
const TRIAL: u32 = 256;
/// Of the packets that should arrive, this part has to. (Others than ours may come in.)
const ARRIVING: (f64, f64) = (0.999, 1.01);
/// More than the agent and the kernel answer at once.
const BURST: u32 = 4_096;

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Flows => "flows",
            Self::New => "new",
            Self::Spread => "spread",
            Self::Denied => "denied",
            Self::Flood => "flood",
        }
    }

    fn is_answered(self) -> bool {
        match self {
            Self::Established | Self::Flows => true,
            Self::New | Self::Spread | Self::Denied | Self::Flood => false,
        }
    }

    fn is_denied(self) -> bool {
        matches!(self, Self::Denied | Self::Flood)
    }

    /// Whether a firewall has such traffic.
    fn is_for(self, firewall: Firewall) -> bool {
        match firewall {
            Firewall::Drop => self.is_denied(),
            Firewall::XdpDrop => self == Self::Flood,
            _ => firewall.rules().is_some() || !self.is_denied(),
        }
    }

    fn traffic(self, side: &Side) -> Traffic {
        let all = hosts(side.firewall.rules().unwrap_or(WITHOUT_RULES));
        let last = all.last().copied().into_iter().collect();
        let step = all.len().div_ceil(MANY as usize).max(1);
        let spread = all.into_iter().step_by(step).collect();
        let (hosts, flows) = match self {
            Self::Established => (last, 1),
            Self::Flows => (spread, MANY),
            Self::New => (last, u32::MAX),
            Self::Spread => (spread, u32::MAX),
            Self::Denied | Self::Flood => (vec![DENIED], u32::MAX),
        };
        Traffic { own: side.address, hosts, flows, at_random: self == Self::Flows, to: VIF }
    }
}

/// A firewall under one kind of traffic.
struct Lane {
    kind: Kind,
    sender: Sender,
    /// What goes both ways before a measurement, so that all flows are established.
    greeting: Option<[Sender; 2]>,
    packets: u32,
    nanoseconds: Samples,
    sent: u64,
    arrived: u64,
}

/// A firewall under all kinds of traffic.
struct Road {
    side: Side,
    lanes: Vec<Lane>,
    at_internet: Sink,
    _at_client: Sink,
    _open: Vec<Native>,
}

impl Road {
    fn new(side: Side, kinds: &[Kind], entry: Entry) -> Result<Self> {
        let inside = side.rig.netvm();
        let mut _open = vec![Native::open(inside, UPLINK)?];
        // There is room for one program, and another one does as well.
        if !side.firewall.is_in_xdp() {
            _open.push(Native::open(inside, side.client.vif())?);
        }
        let at_internet = Sink::new(side.rig.internet(), "eth0")?;
        let _at_client = Sink::new(side.client.namespace(), CLIENT_INTERFACE)?;
        let kinds = kinds.iter().filter(|kind| kind.is_for(side.firewall));
        let lanes = kinds.map(|kind| Lane::new(*kind, &side, entry)).collect::<Result<_>>()?;
        Ok(Self { side, lanes, at_internet, _at_client, _open })
    }

    /// One measurement, if this firewall has this kind of traffic.
    fn measure(&mut self, kind: Kind, sample: Duration) -> Result<()> {
        let Self { side, lanes, at_internet, .. } = self;
        let Some(lane) = lanes.iter_mut().find(|lane| lane.kind == kind) else {
            return Ok(());
        };
        lane.measure(at_internet, sample)
            .and_then(|()| connections::forget(side.rig.netvm()))
            .with_context(|| format!("`{}` under `{}`", side.firewall, kind.name()))
    }
}

impl Lane {
    fn new(kind: Kind, side: &Side, entry: Entry) -> Result<Self> {
        let traffic = kind.traffic(side);
        let entry = if kind == Kind::Flood { Entry::GoOut } else { entry };
        let (from, interface) = match entry {
            Entry::ComeIn => (side.rig.netvm(), side.client.vif()),
            Entry::GoOut => (side.client.namespace(), CLIENT_INTERFACE),
        };
        let out = |traffic: &Traffic| Sender::new(traffic, Direction::Out, entry, from, interface);
        let greeting = if kind.is_answered() {
            let inside = side.rig.netvm();
            let traffic = Traffic { at_random: false, ..traffic.clone() };
            let own = if side.firewall.translates() { UPLINK_V4.into() } else { side.address };
            let answers = Traffic { own, to: UPLINK_MAC, ..traffic.clone() };
            let back = Sender::new(&answers, Direction::Back, Entry::ComeIn, inside, UPLINK)?;
            Some([out(&traffic)?, back])
        } else {
            None
        };
        let nanoseconds = Samples::default();
        let sender = out(&traffic)?;
        Ok(Self { kind, sender, greeting, packets: 0, nanoseconds, sent: 0, arrived: 0 })
    }

    fn measure(&mut self, sink: &Sink, sample: Duration) -> Result<()> {
        if let Some(greeting) = &mut self.greeting {
            let flows = if self.kind == Kind::Flows { MANY } else { 1 };
            for sender in greeting {
                sender.send(flows)?;
            }
        }
        // Of a flood not the beginning: what a client may have rejected at once is used up.
        let trial = if self.kind.is_denied() { BURST } else { TRIAL };
        if self.kind.is_denied() {
            self.sender.send(BURST)?;
        }
        if self.packets == 0 {
            let one = self.sender.send(trial)?;
            let fit = sample.as_nanos() / one.as_nanos().max(1);
            self.packets = u32::try_from(fit)?.clamp(PACKETS.0, PACKETS.1) / 64 * 64;
        }
        let before = sink.count()?;
        let duration = self.sender.send(self.packets)?;
        let expected = if self.kind.is_denied() { 0 } else { u64::from(self.packets) };
        let arrived = until_arrived(sink, before, expected)?;
        let part = arrived as f64 / f64::from(self.packets);
        let fits =
            if expected == 0 { arrived == 0 } else { (ARRIVING.0..ARRIVING.1).contains(&part) };
        ensure!(fits, "{arrived} of {} packets arrived, not {expected}", self.packets);
        self.sent += u64::from(self.packets);
        self.arrived += arrived;
        self.nanoseconds.add(duration.as_nanos() as f64);
        Ok(())
    }
}

/// Waits for packets that are still on their way, if there are any.
fn until_arrived(sink: &Sink, before: u64, expected: u64) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_millis(200);
    loop {
        let arrived = sink.count()? - before;
        if arrived >= expected || Instant::now() > deadline {
            return Ok(arrived);
        }
        std::thread::yield_now();
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let firewalls = if options.only.is_empty() { &ALL[..] } else { &options.only };
    let kinds = if options.traffic.is_empty() { &KINDS[..] } else { &options.traffic };
    let entry = if options.whole_veth { Entry::GoOut } else { Entry::ComeIn };
    let progress = show::progress(firewalls.len() + options.rounds.count() * kinds.len())?;
    let mut roads = set_up(firewalls, "bench", &progress, |firewall, label| {
        let side = Side::if_there(firewall, Proto::Udp, label, &progress)?;
        side.map(|side| Road::new(side, kinds, entry)).transpose()
    })?;
    options.rounds.each(&progress, || {
        for kind in kinds {
            turn(&mut roads);
            for road in &mut roads {
                road.measure(*kind, Duration::from_millis(options.sample))?;
            }
            progress.inc(1);
        }
        Ok(())
    })?;
    roads.sort_by_key(|road| firewalls.iter().position(|it| *it == road.side.firewall));
    let text = kinds.iter().map(|kind| table(&roads, *kind)).collect::<Vec<_>>().join("\n\n");
    Ok(Report { text, json: report(&roads, kinds) })
}

/// What firewalls of one kind of traffic are compared with.
fn of(roads: &[Road], kind: Kind, is: impl Fn(Firewall) -> bool) -> Option<&Samples> {
    let road = roads.iter().find(|road| is(road.side.firewall))?;
    Some(&road.lanes.iter().find(|lane| lane.kind == kind)?.nanoseconds)
}

fn lanes(roads: &[Road], kind: Kind) -> impl Iterator<Item = (Firewall, &Lane)> {
    let lane = move |road: &'_ Road| road.lanes.iter().position(|lane| lane.kind == kind);
    roads.iter().filter_map(move |road| Some((road.side.firewall, &road.lanes[lane(road)?])))
}

fn table(roads: &[Road], kind: Kind) -> String {
    let nat = of(roads, kind, |it| it == Firewall::Nat);
    let stock = of(roads, kind, |it| it == Firewall::Stock(10));
    let row = |(firewall, lane): (Firewall, &Lane)| {
        let times = &lane.nanoseconds;
        let ratio = |to: Option<&Samples>| {
            to.map_or_else(String::new, |to| format!("{:.3}", times.ratio(to)))
        };
        vec![
            firewall.to_string(),
            format!("{:.0}", times.minimum()),
            format!("{:.0}", times.median()),
            format!("{:.0}", times.quantile(0.1)),
            format!("{:.0}", times.quantile(0.9)),
            format!("{:.2}", 1000.0 / times.median()),
            ratio(nat),
            ratio(stock),
            format!("{:.1} %", 100.0 * lane.arrived as f64 / lane.sent as f64),
        ]
    };
    let header = [
        kind.name(),
        "min ns",
        "median ns",
        "10 %",
        "90 %",
        "Mpps",
        "to nat",
        "to stock-10",
        "arrived",
    ];
    show::table(header, lanes(roads, kind).map(row).collect()).to_string()
}

fn report(roads: &[Road], kinds: &[Kind]) -> serde_json::Value {
    let of_kind = |kind: &Kind| {
        let nat = of(roads, *kind, |it| it == Firewall::Nat);
        let stock = of(roads, *kind, |it| it == Firewall::Stock(10));
        let rows: Vec<_> = lanes(roads, *kind)
            .map(|(firewall, lane)| {
                let times = &lane.nanoseconds;
                json!({
                    "firewall": firewall.to_string(),
                    "min_ns": times.minimum(),
                    "median_ns": times.median(),
                    "p10_ns": times.quantile(0.1),
                    "p90_ns": times.quantile(0.9),
                    "to_nat": nat.map(|nat| times.ratio(nat)),
                    "to_stock": stock.map(|stock| times.ratio(stock)),
                    "packets_sent": lane.sent,
                    "packets_arrived": lane.arrived,
                })
            })
            .collect();
        json!({ "traffic": kind.name(), "firewalls": rows })
    };
    let kinds: Vec<_> = kinds.iter().map(of_kind).collect();
    json!({ "machine": machine(), "net": kinds })
}
