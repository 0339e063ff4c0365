//! TCP through a netvm: connections, single bytes there and back, and bulk in segments as
//! large as offloading makes them.
//! Never waits: one thread on one processor is client and server, and the kernel does its
//! part in between, so that time is processor time.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::Proto;
use firewall_tests::rig::UPLINK_V4;
use firewall_tests::traffic::kernel::{PORT, Processor, alone_on};
use serde_json::{Value, json};
use socket2::SockRef;

use crate::firewalls::{self, Firewall};
use crate::machine::machine;
use crate::peers::{self, Side};
use crate::rounds::{Rounds, set_up, turn};
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<25, 5>,
    /// Only these firewalls, like `nat,stock-10,ours-1000`; any number of rules will do.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Firewall>,
}

/// Connections, or bytes there and back, of one measurement.
const TIMES: usize = 200;
/// How long bulk is sent in one measurement, and before the first one.
const BULK: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_millis(300);
/// Handed to the kernel at once.
const CHUNK: usize = 1 << 18;
/// Fewer bytes in a packet would say that somebody cuts them.
const LARGE: f64 = 8_000.0;

/// A client and a server with a firewall between them.
pub struct Road {
    /// The firewall.
    pub side: Side,
    server: SocketAddr,
    listener: TcpListener,
    /// Open all the time: the client's end and the server's.
    ends: [TcpStream; 2],
    bulk_ends: [TcpStream; 2],
    connect: Quantity,
    exchange: Quantity,
    /// Gigabits in a second.
    bulk: Samples,
    /// Bytes in a packet.
    packet: Samples,
}

/// Nanoseconds of something that was done many times a round.
#[derive(Default)]
pub struct Quantity {
    /// The median of each round.
    pub p50: Samples,
    /// What 99 % of them took at most, each round.
    pub p99: Samples,
}

impl Quantity {
    /// One round.
    pub fn add(&mut self, all: &Samples) {
        self.p50.add(all.median());
        self.p99.add(all.quantile(0.99));
    }

    /// As JSON.
    pub fn report(&self) -> Value {
        json!({
            "p50_min_ns": self.p50.minimum(), "p50_ns": self.p50.median(),
            "p99_ns": self.p99.median(),
        })
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let roads = measure(options)?;
    Ok(Report { text: table(&roads), json: report(&roads) })
}

fn measure(options: &Options) -> Result<Vec<Road>> {
    let mut firewalls =
        if options.only.is_empty() { firewalls::ALL.to_vec() } else { options.only.clone() };
    firewalls.retain(|firewall| firewall.forwards());
    let progress = show::progress(firewalls.len() + options.rounds.count())?;
    let mut roads = set_up(&firewalls, "tcp", &progress, |firewall, label| {
        let side = Side::if_there(firewall, Proto::Tcp, label, &progress)?;
        side.map(Road::new).transpose()
    })?;
    options.rounds.each(&progress, || {
        turn(&mut roads);
        // One quantity after the other, so that firewalls are measured close to each other.
        for measure in [Road::connects, Road::exchanges, Road::sends] {
            for road in &mut roads {
                measure(road).with_context(|| format!("`{}`", road.side.firewall))?;
            }
        }
        progress.inc(1);
        Ok(())
    })?;
    roads.sort_by_key(|road| firewalls.iter().position(|it| *it == road.side.firewall));
    Ok(roads)
}

impl Road {
    /// A server that the last rule is about, and a client.
    pub fn new(side: Side) -> Result<Self> {
        let host = peers::last_host(side.firewall)?;
        side.rig.add_internet_address(host)?;
        let internet = side.rig.internet();
        // Needed without translation only.
        internet.ip(&["route", "add", "10.137.0.0/16", "via", &UPLINK_V4.to_string()])?;
        let server = SocketAddr::new(host, PORT);
        let listener = internet.run(|| Ok(TcpListener::bind(server)?))?;
        let pair = || -> Result<[TcpStream; 2]> {
            let client = side.client.namespace().run(|| Ok(TcpStream::connect(server)?))?;
            client.set_nodelay(true)?;
            let (accepted, _) = listener.accept()?;
            accepted.set_nodelay(true)?;
            Ok([client, accepted])
        };
        let (ends, bulk_ends) = (pair()?, pair()?);
        for end in &bulk_ends {
            end.set_nonblocking(true)?;
        }
        listener.set_nonblocking(true)?;
        let (connect, exchange, bulk, packet) = Default::default();
        let mut road =
            Self { side, server, listener, ends, bulk_ends, connect, exchange, bulk, packet };
        // Windows grow with use.
        road.push(WARM_UP)?;
        Ok(road)
    }

    /// Connections, opened and torn down as long as more are wanted. To be called in the
    /// client's namespace.
    pub fn connect(&self, more: impl Fn(&Samples) -> bool) -> Result<Samples> {
        alone_on(Processor::Last)?;
        let mut all = Samples::default();
        while more(&all) {
            let start = Instant::now();
            let stream = TcpStream::connect(self.server)?;
            all.add(start.elapsed().as_nanos() as f64);
            // A reset leaves nothing behind that could run out.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
            while self.listener.accept().is_ok() {}
        }
        Ok(all)
    }

    fn connects(&mut self) -> Result<()> {
        let inside = self.side.client.namespace();
        let all = inside.run(|| self.connect(|all| all.count() < TIMES))?;
        self.connect.add(&all);
        Ok(())
    }

    fn exchanges(&mut self) -> Result<()> {
        let [client, server] = &mut self.ends;
        let all = self.side.client.namespace().run(|| {
            alone_on(Processor::Last)?;
            let mut all = Samples::default();
            let mut byte = [0];
            for _ in 0..TIMES {
                let start = Instant::now();
                client.write_all(&byte)?;
                server.read_exact(&mut byte)?;
                server.write_all(&byte)?;
                client.read_exact(&mut byte)?;
                all.add(start.elapsed().as_nanos() as f64);
            }
            Ok(all)
        })?;
        self.exchange.add(&all);
        Ok(())
    }

    fn sends(&mut self) -> Result<()> {
        let before = self.received()?;
        let (bytes, time) = self.push(BULK)?;
        let packets = self.received()? - before;
        let packet = bytes as f64 / packets as f64;
        // A veth makes no large packets for a peer with a program in native XDP.
        let is_offloaded = packet > LARGE || self.side.firewall.is_in_xdp();
        ensure!(is_offloaded, "{packet:.0} bytes in a packet: no offloading");
        self.packet.add(packet);
        self.bulk.add(bytes as f64 * 8.0 / time.as_nanos() as f64);
        Ok(())
    }

    /// Sends as much as fits into a time: bytes that arrived, and the time it took.
    fn push(&mut self, time: Duration) -> Result<(u64, Duration)> {
        let [client, server] = &mut self.bulk_ends;
        self.side.client.namespace().run(|| {
            alone_on(Processor::Last)?;
            let mut buffer = vec![0; CHUNK];
            let mut received = 0;
            let start = Instant::now();
            while start.elapsed() < time {
                match client.write(&buffer) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
                while let Ok(length) = server.read(&mut buffer) {
                    ensure!(length > 0, "the connection ended");
                    received += length as u64;
                }
            }
            Ok((received, start.elapsed()))
        })
    }

    /// Packets that the internet got.
    fn received(&self) -> Result<u64> {
        let table = self.side.rig.internet().run(|| Ok(fs::read("/proc/thread-self/net/dev")?))?;
        let table = String::from_utf8_lossy(&table).into_owned();
        let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let count = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        count.context("no counter of packets")
    }
}

fn find(roads: &[Road], firewall: Firewall) -> Option<&Road> {
    roads.iter().find(|road| road.side.firewall == firewall)
}

fn table(roads: &[Road]) -> String {
    let nat = find(roads, Firewall::Nat);
    let row = |road: &Road| {
        let to = |of: fn(&Road) -> &Samples| {
            nat.map_or_else(String::new, |nat| format!("{:.3}", of(road).ratio(of(nat))))
        };
        let microseconds = |samples: &Samples| format!("{:.1}", samples.median() / 1000.0);
        vec![
            road.side.firewall.to_string(),
            format!("{:.0}", 1e9 / road.connect.p50.median()),
            microseconds(&road.connect.p50),
            microseconds(&road.connect.p99),
            to(|road| &road.connect.p50),
            microseconds(&road.exchange.p50),
            microseconds(&road.exchange.p99),
            to(|road| &road.exchange.p50),
            format!("{:.1}", road.bulk.median()),
            to(|road| &road.bulk),
            format!("{:.0}", road.packet.median()),
        ]
    };
    let header = [
        "tcp",
        "connects/s",
        "p50 us",
        "p99 us",
        "to nat",
        "echo p50 us",
        "p99 us",
        "to nat",
        "Gbit/s",
        "to nat",
        "bytes a packet",
    ];
    show::table(header, roads.iter().map(row).collect()).to_string()
}

fn report(roads: &[Road]) -> Value {
    let nat = find(roads, Firewall::Nat);
    let row = |road: &Road| {
        let to = |of: fn(&Road) -> &Samples| nat.map(|nat| of(road).ratio(of(nat)));
        json!({
            "firewall": road.side.firewall.to_string(),
            "connect": road.connect.report(),
            "connect_to_nat": to(|road| &road.connect.p50),
            "echo": road.exchange.report(),
            "echo_to_nat": to(|road| &road.exchange.p50),
            "bulk_gbit_s": road.bulk.median(),
            "bulk_max_gbit_s": road.bulk.quantile(1.0),
            "bulk_to_nat": to(|road| &road.bulk),
            "bytes_a_packet": road.packet.median(),
        })
    };
    let rows: Vec<Value> = roads.iter().map(row).collect();
    json!({ "machine": machine(), "tcp": rows })
}
