//! One client floods a netvm with what it must not send; what another one notices.
//! Never lets a packet of the flood out.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use firewall_tests::oracle::Proto;
use firewall_tests::packets::VIF;
use firewall_tests::rig::ClientSpec;
use firewall_tests::traffic::kernel::{Direction, Entry, Native, Processor, Sender, Traffic};
use serde_json::{Value, json};

use crate::firewalls::Firewall;
use crate::machine::machine;
use crate::peers::{DENIED, Side};
use crate::rounds::{Rounds, set_up, turn};
use crate::show::{self, Report};
use crate::statistics::Samples;
use crate::tcp::{Quantity, Road};

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<15, 5>,
    /// Only these firewalls, like `stock-10,ours-1000`; any number of rules will do.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Firewall>,
}

const FIREWALLS: [Firewall; 6] = [
    Firewall::Stock(10),
    Firewall::Stock(1_000),
    Firewall::Hash(10_000),
    Firewall::Ours(10),
    Firewall::Ours(1_000),
    Firewall::OursRejecting(10),
];
/// How long a flood lasts, how long it takes to begin, and how long the other client is
/// watched in it.
const FLOOD: Duration = Duration::from_millis(350);
const BEGINNING: Duration = Duration::from_millis(50);
const WATCH: Duration = Duration::from_millis(200);
/// How often a flood may turn out too short.
const TRIES: usize = 5;
/// Packets that are sent to find out how many a flood has.
const TRIAL: u32 = 20_000;

/// A firewall with the client that is watched, and one that floods.
struct Place {
    road: Road,
    sender: Sender,
    packets: u32,
    /// Nanoseconds of a packet of the flood.
    packet: Samples,
    quiet: Quantity,
    flooded: Quantity,
    _open: Native,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let places = measure(options)?;
    Ok(Report { text: table(&places), json: report(&places) })
}

fn measure(options: &Options) -> Result<Vec<Place>> {
    let firewalls = if options.only.is_empty() { &FIREWALLS[..] } else { &options.only };
    let progress = show::progress(firewalls.len() * (options.rounds.count() + 1))?;
    let mut places = set_up(firewalls, "flood", &progress, |firewall, label| {
        ensure!(firewall.rules().is_some(), "`{firewall}` denies nothing");
        Place::new(Side::new(firewall, Proto::Tcp, label)?).map(Some)
    })?;
    options.rounds.each(&progress, || {
        turn(&mut places);
        for place in &mut places {
            let firewall = place.road.side.firewall;
            place.measure().with_context(|| format!("`{firewall}`"))?;
            progress.inc(1);
        }
        Ok(())
    })?;
    places.sort_by_key(|it| firewalls.iter().position(|one| *one == it.road.side.firewall));
    Ok(places)
}

impl Place {
    fn new(mut side: Side) -> Result<Self> {
        let spec = ClientSpec::numbered(13);
        let flooder = side.rig.add_client(&spec)?;
        let own = spec.v4.context("no IPv4 address")?.into();
        side.deny(&flooder, own)?;
        let inside = side.rig.netvm();
        let _open = Native::open(inside, flooder.vif())?;
        let hosts = vec![DENIED];
        let traffic = Traffic { own, hosts, flows: u32::MAX, at_random: false, to: VIF };
        let vif = flooder.vif();
        let sender = Sender::new(&traffic, Direction::Out, Entry::ComeIn, inside, vif)?;
        let mut sender = sender.on(Processor::First);
        // The first ones are rejected, and cost more.
        sender.send(TRIAL)?;
        let one = sender.send(TRIAL)?;
        let packets = u32::try_from(FLOOD.as_nanos() / one.as_nanos().max(1))?;
        let (packet, quiet, flooded) = Default::default();
        Ok(Self { road: Road::new(side)?, sender, packets, packet, quiet, flooded, _open })
    }

    fn measure(&mut self) -> Result<()> {
        let quiet = self.road.side.client.namespace().run(|| watch(&self.road))?;
        let (flooded, packet) = self.watch_flooded()?;
        self.packet.add(packet.as_nanos() as f64);
        self.quiet.add(&quiet);
        self.flooded.add(&flooded);
        Ok(())
    }

    /// Connections while the flood lasts, and the time that one of its packets took.
    fn watch_flooded(&mut self) -> Result<(Samples, Duration)> {
        let Self { road, sender, packets, .. } = self;
        for _ in 0..TRIES {
            // In the namespace before the flood begins: to enter it would take as long as
            // the flood.
            let (flooded, lasted, packet) = road.side.client.namespace().run(|| {
                thread::scope(|scope| {
                    let flood = scope.spawn(|| sender.send(*packets));
                    thread::sleep(BEGINNING);
                    let flooded = watch(road)?;
                    let lasted = !flood.is_finished();
                    let packet = flood.join().map_err(|_| anyhow!("the flood panicked"))??;
                    Ok((flooded, lasted, packet))
                })
            })?;
            if lasted {
                return Ok((flooded, packet));
            }
            // What was watched was not a flood throughout.
            *packets += *packets / 2;
        }
        bail!("the flood always ends too early")
    }
}

/// Connections for a while, in the client's namespace.
fn watch(road: &Road) -> Result<Samples> {
    let start = Instant::now();
    road.connect(|_| start.elapsed() < WATCH)
}

fn table(places: &[Place]) -> String {
    let row = |place: &Place| {
        let Place { road, packet, quiet, flooded, .. } = place;
        let microseconds = |samples: &Samples| format!("{:.1}", samples.median() / 1000.0);
        vec![
            road.side.firewall.to_string(),
            format!("{:.2}", 1000.0 / packet.median()),
            microseconds(&quiet.p50),
            microseconds(&flooded.p50),
            format!("{:.2}", flooded.p50.ratio(&quiet.p50)),
            microseconds(&quiet.p99),
            microseconds(&flooded.p99),
            format!("{:.2}", flooded.p99.ratio(&quiet.p99)),
        ]
    };
    let header = [
        "another client's connects",
        "flood Mpps",
        "p50 us",
        "flooded",
        "ratio",
        "p99 us",
        "flooded",
        "ratio",
    ];
    show::table(header, places.iter().map(row).collect()).to_string()
}

fn report(places: &[Place]) -> Value {
    let row = |place: &Place| {
        let Place { road, packet, quiet, flooded, .. } = place;
        json!({
            "firewall": road.side.firewall.to_string(),
            "flood_packet_ns": packet.median(),
            "quiet": quiet.report(),
            "flooded": flooded.report(),
            "p50_ratio": flooded.p50.ratio(&quiet.p50),
            "p99_ratio": flooded.p99.ratio(&quiet.p99),
        })
    };
    let rows: Vec<Value> = places.iter().map(row).collect();
    json!({ "machine": machine(), "flood": rows })
}
