//! UDP packets made in the kernel as fast as it can take them (live frames of
//! BPF_PROG_TEST_RUN), and sinks that count what arrives.
//! Never measures anything but the time that sending took.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::{
    ProgramFd, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp,
    XdpMode,
};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::packets::{self, UDP, V4, V6};
use crate::rig::namespace::Namespace;

/// Bytes of every frame, as in firewall-ebpf/src/traffic.rs.
const LENGTH: usize = 64;
/// Frames that the kernel makes before it lets interrupts in; what a network card does.
const BATCH: u32 = 64;
/// All bytes of `struct xdp_md` (uapi/linux/bpf.h), and what of it says how long the frame
/// is and where it comes in.
const CONTEXT: usize = 24;
const CONTEXT_END: usize = 4;
const CONTEXT_INTERFACE: usize = 12;
/// Destination port of what clients send, source port of what answers.
pub const PORT: u16 = 443;

/// Which packets.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The one end.
    pub own: IpAddr,
    /// The other ends, in turn.
    pub hosts: Vec<IpAddr>,
    /// How many flows there are before the first comes again; source ports differ.
    pub flows: u32,
    /// Whether flows come at random or in turn.
    pub at_random: bool,
    /// Hardware address that the packets are for.
    pub to: [u8; 6],
}

/// The way of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From `own` to the hosts.
    Out,
    /// From the hosts to `own`, as answers.
    Back,
}

/// How packets get into the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As if an interface had received them: behind its native XDP, in front of tc.
    ComeIn,
    /// Sent out of an interface: its peer receives them, native XDP first.
    GoOut,
}

/// Packets of one kind, ready to go.
pub struct Sender {
    ebpf: Ebpf,
    namespace: Namespace,
    interface: u32,
    entry: Entry,
    processor: Processor,
    /// Before all ordinary threads.
    first: bool,
}

impl Sender {
    /// Packets at an interface of a namespace. An interface that they come in by must be
    /// [open](Native::open), as must the peer of one that they go out of.
    pub fn new(
        traffic: &Traffic,
        direction: Direction,
        entry: Entry,
        namespace: &Namespace,
        interface: &str,
    ) -> Result<Self> {
        let interface = namespace.run(|| Ok(if_nametoindex(interface)?))?;
        let out_of = if entry == Entry::GoOut { interface } else { 0 };
        let (frame, checksum_at) = traffic.frame(direction)?;
        let back = direction == Direction::Back;
        let (address_at, port_at): (u32, u32) = match (traffic.own, back) {
            (IpAddr::V4(_), false) => (30, 34),
            (IpAddr::V4(_), true) => (26, 36),
            (IpAddr::V6(_), false) => (50, 54),
            (IpAddr::V6(_), true) => (34, 56),
        };
        let hosts = u32::try_from(traffic.hosts.len())?;
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("FRAME", &frame[..], true)
            .override_global("ADDRESS_AT", &address_at, true)
            .override_global("PORT_AT", &port_at, true)
            .override_global("CHECKSUM_AT", &checksum_at, true)
            .override_global("FLOWS", &traffic.flows, true)
            .override_global("AT_RANDOM", &u32::from(traffic.at_random), true)
            .override_global("HOST_COUNT", &hosts, true)
            .override_global("OUT_OF", &out_of, true)
            .load(&object()?)?;
        fill(&mut ebpf, &traffic.hosts)?;
        xdp(&mut ebpf, "source")?.load()?;
        let (namespace, processor) = (namespace.clone(), Processor::Last);
        Ok(Self { ebpf, namespace, interface, entry, processor, first: true })
    }

    /// Sends from another processor than the last one.
    #[must_use]
    pub fn on(mut self, processor: Processor) -> Self {
        self.processor = processor;
        self
    }

    /// Sends as an ordinary thread.
    #[must_use]
    pub fn yielding(mut self) -> Self {
        self.first = false;
        self
    }

    /// Sends so many packets, and returns the mean time that one took, all the way to a sink,
    /// by the kernel's own clock: beginning and end of a test run take milliseconds.
    pub fn send(&mut self, count: u32) -> Result<Duration> {
        let mut context = [0; CONTEXT];
        let end = u32::try_from(LENGTH)?;
        context[CONTEXT_END..][..4].copy_from_slice(&end.to_ne_bytes());
        if self.entry == Entry::ComeIn {
            context[CONTEXT_INTERFACE..][..4].copy_from_slice(&self.interface.to_ne_bytes());
        }
        let (processor, first) = (self.processor, self.first);
        let program = xdp(&mut self.ebpf, "source")?;
        self.namespace.run(|| {
            stay_on(processor)?;
            if first {
                go_first()?;
            }
            let options = TestRunOptions {
                data_in: Some(&[0; LENGTH]),
                ctx_in: Some(&context),
                repeat: count,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            Ok(program.test_run(options)?.duration)
        })
    }
}

impl Traffic {
    /// The template, and where its header has a checksum.
    fn frame(&self, direction: Direction) -> Result<([u32; LENGTH / 4], u32)> {
        let (source, destination) = match direction {
            Direction::Out => (0, PORT),
            Direction::Back => (PORT, 0),
        };
        let payload = |length| packets::datagram(source, destination, &vec![0; length]);
        let first = *self.hosts.first().context("no host to send to")?;
        let (from, to) = match direction {
            Direction::Out => (self.own, first),
            Direction::Back => (first, self.own),
        };
        // Only the first host's upper bytes are in use: hosts differ in their last four.
        let (mut frame, checksum_at) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let zero = Ipv4Addr::UNSPECIFIED;
                let (from, to) = match direction {
                    Direction::Out => (from, zero),
                    Direction::Back => (zero, to),
                };
                (V4::new(from, to, UDP, &payload(22)).frame(), 24)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => (V6::new(from, to, UDP, &payload(2)).frame(), 0),
            _ => bail!("{from} and {to} are of different families"),
        };
        frame[..6].copy_from_slice(&self.to);
        ensure!(frame.len() == LENGTH, "a frame of {} bytes", frame.len());
        let mut words = [0; LENGTH / 4];
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into()?);
        }
        Ok((words, checksum_at))
    }
}

/// A program in native XDP of an interface, until this is dropped.
pub struct Native {
    _ebpf: Ebpf,
}

impl Native {
    fn new(namespace: &Namespace, interface: &str, name: &str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(&object()?)?;
        let program = xdp(&mut ebpf, name)?;
        program.load()?;
        namespace.run(|| Ok(program.attach(interface, XdpMode::Driver)?))?;
        Ok(Self { _ebpf: ebpf })
    }

    /// Opens an interface, so that frames of test runs can come in by it. Its peer makes no
    /// large packets meanwhile.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::new(namespace, interface, "pass")
    }

    /// Drops all that an interface receives.
    pub fn swallow(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::new(namespace, interface, "swallow")
    }
}

/// Counts the UDP packets that an interface receives, and ends all it receives, until this is
/// dropped.
pub struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// From now on.
    pub fn new(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(&object()?)?;
        let program = classifier(&mut ebpf, "sink")?;
        program.load()?;
        namespace.run(|| Ok(program.attach(interface, TcAttachType::Ingress)?))?;
        Ok(Self { ebpf })
    }

    /// UDP packets so far.
    pub fn count(&self) -> Result<u64> {
        let map = self.ebpf.map("ARRIVED").context("no ARRIVED")?;
        let counts: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map)?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

/// One packet whose destination or source is another one whenever it is judged.
pub struct Shuffled {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Shuffled {
    /// A packet, the hosts that it may be for, and the program that judges it.
    pub fn new(frame: &[u8], hosts: &[IpAddr], judge: &ProgramFd) -> Result<Self> {
        Self::at(frame, hosts, judge, [30, 50])
    }

    /// A packet that comes from these hosts, one after another, and the program that judges it.
    pub fn by_source(frame: &[u8], hosts: &[IpAddr], judge: &ProgramFd) -> Result<Self> {
        Self::at(frame, hosts, judge, [26, 34])
    }

    fn at(frame: &[u8], hosts: &[IpAddr], judge: &ProgramFd, [v4, v6]: [u32; 2]) -> Result<Self> {
        let address_at = match hosts.first() {
            Some(IpAddr::V4(_)) => v4,
            Some(IpAddr::V6(_)) => v6,
            None => bail!("no address to put in"),
        };
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("ADDRESS_AT", &address_at, true)
            .override_global("HOST_COUNT", &u32::try_from(hosts.len())?, true)
            .load(&object()?)?;
        fill(&mut ebpf, hosts)?;
        let judges = ebpf.map_mut("JUDGE").context("no JUDGE")?;
        ProgramArray::try_from(judges)?.set(0, judge, 0)?;
        classifier(&mut ebpf, "shuffle")?.load()?;
        Ok(Self { ebpf, frame: frame.to_vec() })
    }

    /// Mean time of one run, harness and shuffling included.
    pub fn time(&mut self, repeat: u32) -> Result<Duration> {
        let data_in = Some(&self.frame[..]);
        let options = TestRunOptions { data_in, repeat, ..TestRunOptions::new() };
        Ok(classifier(&mut self.ebpf, "shuffle")?.test_run(options)?.duration)
    }
}

/// Which of the processors that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// The first.
    First,
    /// The last.
    Last,
}

/// Makes the calling thread stay on one processor, and go before all ordinary threads.
pub fn alone_on(processor: Processor) -> Result<()> {
    stay_on(processor)?;
    go_first()
}

pub(super) fn stay_on(processor: Processor) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut all = (0..CpuSet::count()).filter(|it| allowed.is_set(*it).unwrap_or(false));
    let chosen = match processor {
        Processor::First => all.next(),
        Processor::Last => all.next_back(),
    };
    let mut one = CpuSet::new();
    one.set(chosen.context("no processor")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

fn go_first() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a whole `sched_param`, which is only read.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    Errno::result(outcome).context("no real-time priority")?;
    Ok(())
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
    Ok(program.try_into()?)
}

pub(super) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
    Ok(program.try_into()?)
}

fn fill(ebpf: &mut Ebpf, hosts: &[IpAddr]) -> Result<()> {
    let mut table: Array<&mut MapData, u32> =
        Array::try_from(ebpf.map_mut("HOSTS").context("no HOSTS")?)?;
    for (index, host) in (0..).zip(hosts) {
        table.set(index, last_word(*host), 0)?;
    }
    Ok(())
}

/// The programs, as `cargo xtask build-ebpf` left them.
pub(super) fn object() -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/traffic.o");
    std::fs::read(&path)
        .with_context(|| format!("no {}: run `cargo xtask build-ebpf`", path.display()))
}

/// The last four bytes of an address, as they are in a packet.
fn last_word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            u32::from_ne_bytes([a, b, c, d])
        }
    }
}
