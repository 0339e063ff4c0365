//! Replacing a client's rules while its packets come: how long until the new ones are in
//! force, and whether a packet ever sees anything but the old or the new.
//! Never asks a firewall whether it is done: packets tell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::{Proto, Ruleset};
use firewall_tests::packets::{self, UDP, V4, VIF};
use firewall_tests::rig::agent::write_rules;
use firewall_tests::rig::connections;
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::kernel::{
    Direction, Entry, Native, PORT, Processor, Sender, Sink, Traffic,
};
use serde_json::{Value, json};

use crate::firewalls::Firewall;
use crate::machine::machine;
use crate::peers::{DENIED, Side, last_host, ruleset};
use crate::rounds::{Rounds, set_up};
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<10, 3>,
    /// Swaps of two policies under load, in which no packet may be misjudged.
    #[arg(long, default_value_t = 1_000)]
    swaps: usize,
}

const FIREWALLS: [Firewall; 8] = [
    Firewall::Stock(10),
    Firewall::Stock(100),
    Firewall::Stock(1_000),
    Firewall::Stock(10_000),
    Firewall::Ours(10),
    Firewall::Ours(100),
    Firewall::Ours(1_000),
    Firewall::Ours(10_000),
];
/// Rules of the policies that are swapped under load.
const SWAPPED: usize = 100;
/// Packets that are sent at once under load.
const LOAD: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A firewall, and how long changes took.
struct Place {
    side: Side,
    sender: frames::Sender,
    sink: Sink,
    port: u16,
    /// Milliseconds from the new rules' text to the first packet that they deny, or accept.
    tightened: Samples,
    loosened: Samples,
    /// KiB that the agent takes.
    memory: Option<u64>,
}

/// What came of swaps under load.
struct Swapped {
    swaps: usize,
    /// Packets that both policies accept: sent and arrived.
    accepted: (u64, u64),
    /// Packets that both policies deny: sent and arrived.
    denied: (u64, u64),
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let Options { rounds, swaps } = options;
    let swaps = if rounds.quick { (*swaps).min(100) } else { *swaps };
    let places = replace(rounds)?;
    let swapped = swap(swaps)?;
    Ok(Report { text: table(&places, &swapped), json: report(&places, &swapped) })
}

fn replace(rounds: &Rounds<10, 3>) -> Result<Vec<Place>> {
    let progress = show::progress(FIREWALLS.len() + rounds.count())?;
    let mut places = set_up(&FIREWALLS, "up", &progress, |firewall, label| {
        Place::new(Side::new(firewall, Proto::Udp, label)?).map(Some)
    })?;
    rounds.each(&progress, || {
        for place in &mut places {
            let firewall = place.side.firewall;
            place.measure().with_context(|| format!("`{firewall}`"))?;
        }
        progress.inc(1);
        Ok(())
    })?;
    for place in &mut places {
        place.memory = place.side.agent.as_ref().map(|it| it.memory("VmRSS")).transpose()?;
    }
    Ok(places)
}

impl Place {
    fn new(side: Side) -> Result<Self> {
        let sender = frames::Sender::open(side.client.namespace(), CLIENT_INTERFACE)?;
        let sink = Sink::new(side.rig.internet(), "eth0")?;
        let (tightened, loosened) = Default::default();
        Ok(Self { side, sender, sink, port: 0, tightened, loosened, memory: None })
    }

    /// To rules that lack the last one, and back.
    fn measure(&mut self) -> Result<()> {
        let whole = ruleset(self.side.firewall.rules().unwrap_or_default(), Proto::Udp);
        let mut tight = whole.clone();
        tight.rules.pop();
        let time = self.until(&tight, false)?;
        self.tightened.add(time);
        let time = self.until(&whole, true)?;
        self.loosened.add(time);
        Ok(())
    }

    /// Milliseconds from new rules to the first packet that meets them.
    fn until(&mut self, rules: &Ruleset, accepted: bool) -> Result<f64> {
        if let Some(agent) = &self.side.agent {
            // It answers when it has done with the rules before.
            agent.status()?;
        }
        ensure!(self.passes()? != accepted, "the rules before say the same");
        connections::forget(self.side.rig.netvm())?;
        let start = Instant::now();
        let (side, text) = (&self.side, rules.file());
        let client = side.address;
        thread::scope(|scope| {
            let putting = scope.spawn(move || match &side.agent {
                Some(_) => write_rules(side.rig.directory(), client, &text),
                None => side.put_stock(rules),
            });
            while Self::passes_by(side, &self.sender, &self.sink, &mut self.port)? != accepted {
                ensure!(start.elapsed() < PATIENCE, "new rules are never in force");
            }
            let time = start.elapsed();
            putting.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            Ok(time.as_secs_f64() * 1000.0)
        })
    }

    fn passes(&mut self) -> Result<bool> {
        Self::passes_by(&self.side, &self.sender, &self.sink, &mut self.port)
    }

    /// Whether one more packet of a new flow to the last host comes through: it is there
    /// when the call that sends it returns, or a moment later.
    fn passes_by(
        side: &Side,
        sender: &frames::Sender,
        sink: &Sink,
        port: &mut u16,
    ) -> Result<bool> {
        *port = port.wrapping_add(1).max(1_024);
        let datagram = packets::datagram(*port, PORT, &[]);
        let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) =
            (side.address, last_host(side.firewall)?)
        else {
            anyhow::bail!("not IPv4");
        };
        let mut frame = V4::new(from, to, UDP, &datagram).frame();
        frame[..6].copy_from_slice(&VIF);
        let before = sink.count()?;
        sender.send(&frame)?;
        let sent = Instant::now();
        while sink.count()? == before {
            if sent.elapsed() > Duration::from_micros(200) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Two policies that differ in all rules but one take turns, while packets come that both
/// accept, and then packets that both deny.
fn swap(swaps: usize) -> Result<Swapped> {
    let progress = show::progress(swaps)?;
    progress.set_message("swaps under load");
    let side = Side::new(Firewall::Ours(SWAPPED), Proto::Udp, "swap")?;
    let agent = side.agent.as_ref().context("no agent")?;
    let one = ruleset(SWAPPED, Proto::Udp);
    // The same rule comes last, and has another number.
    let mut other = ruleset(2 * SWAPPED, Proto::Udp);
    other.rules.drain(..SWAPPED);
    other.rules.extend(one.rules.last().cloned());
    let inside = side.rig.netvm();
    let _open = [Native::open(inside, side.client.vif())?, Native::open(inside, UPLINK)?];
    let sink = Sink::new(side.rig.internet(), "eth0")?;
    let mut counts = Vec::new();
    for host in [last_host(side.firewall)?, DENIED] {
        let traffic =
            Traffic { own: side.address, hosts: vec![host], flows: 1, at_random: false, to: VIF };
        let vif = side.client.vif();
        let sender = Sender::new(&traffic, Direction::Out, Entry::ComeIn, inside, vif)?;
        let mut sender = sender.on(Processor::First).yielding();
        let before = sink.count()?;
        let done = AtomicBool::new(false);
        let sent = thread::scope(|scope| -> Result<u64> {
            let load = scope.spawn(|| -> Result<u64> {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    sender.send(LOAD)?;
                    sent += u64::from(LOAD);
                }
                Ok(sent)
            });
            let swapping = (0..swaps / 2).try_for_each(|swap| {
                progress.inc(1);
                agent.put(side.address, if swap % 2 == 0 { &other } else { &one })
            });
            done.store(true, Ordering::Relaxed);
            let sent = load.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            swapping?;
            Ok(sent)
        })?;
        counts.push((sent, sink.count()? - before));
    }
    progress.finish_and_clear();
    Ok(Swapped { swaps: swaps / 2 * 2, accepted: counts[0], denied: counts[1] })
}

impl Swapped {
    /// Packets that both policies accept and that did not arrive.
    fn lost(&self) -> i128 {
        i128::from(self.accepted.0) - i128::from(self.accepted.1)
    }
}

fn table(places: &[Place], swapped: &Swapped) -> String {
    let row = |place: &Place| {
        let milliseconds = |it: f64| format!("{it:.1}");
        vec![
            place.side.firewall.to_string(),
            milliseconds(place.tightened.median()),
            milliseconds(place.tightened.quantile(1.0)),
            milliseconds(place.loosened.median()),
            milliseconds(place.loosened.quantile(1.0)),
            place.memory.map_or_else(String::new, |kib| format!("{:.1}", kib as f64 / 1024.0)),
        ]
    };
    let header = ["new rules", "tighter ms", "most", "looser ms", "most", "agent MiB"];
    format!(
        "{}\n\n{} swaps under load: of {} packets that both policies accept {} were lost, of {} \
         that both deny {} came through",
        show::table(header, places.iter().map(row).collect()),
        swapped.swaps,
        swapped.accepted.0,
        swapped.lost(),
        swapped.denied.0,
        swapped.denied.1,
    )
}

fn report(places: &[Place], swapped: &Swapped) -> Value {
    let row = |place: &Place| {
        json!({
            "firewall": place.side.firewall.to_string(),
            "tighter_median_ms": place.tightened.median(),
            "tighter_max_ms": place.tightened.quantile(1.0),
            "looser_median_ms": place.loosened.median(),
            "looser_max_ms": place.loosened.quantile(1.0),
            "agent_kib": place.memory,
        })
    };
    let rows: Vec<Value> = places.iter().map(row).collect();
    json!({
        "machine": machine(), "update": rows, "swaps": swapped.swaps,
        "packets_both_accept": swapped.accepted.0, "packets_both_deny": swapped.denied.0,
        "lost": swapped.lost(), "let_through": swapped.denied.1,
    })
}
