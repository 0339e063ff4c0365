//! The kernel program under BPF_PROG_TEST_RUN: a frame goes in, a verdict comes out.
//! Never attaches anything, so no packet of the machine is touched.

pub mod interpreter;
pub mod weight;

use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::Ebpf;
use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::{ProgramFd, ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use firewall_agent::edges::dataplane::maps::Maps;
use firewall_agent::edges::dataplane::{Attach, Options, load_object};
use firewall_agent::edges::sources::rule_files;
use firewall_common::abi::{Counter, DropRecord, OPENING, PERMIT, PERMIT_RELATED};
use firewall_common::fragments::Datagrams;
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_core::rules::check::{self, ProvedPolicy};
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, Ruleset, compile};
use zerocopy::FromBytes as _;

use crate::oracle;

/// Far more than any test sends; one test sets its own.
pub const REJECT_RATE: NonZeroU64 = NonZeroU64::new(1_000_000_000).expect("not zero");
/// As by default.
const LOCAL_RATE: NonZeroU64 = NonZeroU64::new(20).expect("not zero");
/// The loopback device, the vif of these tests.
pub const VIF: u32 = 1;

/// Size of the kernel's `struct __sk_buff` and offsets in it (uapi/linux/bpf.h).
const CONTEXT: usize = 192;
const CONTEXT_MARK: usize = 8;
const CONTEXT_PRIORITY: usize = 32;
const CONTEXT_GSO_SEGMENTS: usize = 164;
/// The packet's mark in these tests, which is others' business.
const MARK: u32 = 0x1000_ca6c;

/// `enum xdp_action` (uapi/linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// A loaded program with its maps.
pub struct Program {
    ebpf: Ebpf,
    /// What the agent writes.
    pub maps: Maps,
    records: RingBuf<MapData>,
    datagrams: Array<MapData, [u8; size_of::<Datagrams>()]>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it was handed on.
    pub handed_on: bool,
    /// The permit with which it was handed on.
    pub permit: Option<[u8; PERMIT.len()]>,
}

impl Outcome {
    /// Handed on with the permit.
    pub const ACCEPTED: Self = Self { handed_on: true, permit: Some(PERMIT) };
    /// Handed on with the permit of ICMP errors.
    pub const RELATED: Self = Self { handed_on: true, permit: Some(PERMIT_RELATED) };
    /// Handed on without a permit.
    pub const NOT_PERMITTED: Self = Self { handed_on: true, permit: None };
    /// Dropped.
    pub const DROPPED: Self = Self { handed_on: false, permit: None };
}

impl Program {
    /// Loads the object, with its program `from_client` and the empty one.
    pub fn load() -> Result<Self> {
        Self::load_with(REJECT_RATE, false)
    }

    /// Loads the object without its caches, as on a machine that does not keep their promises.
    pub fn load_without_caches() -> Result<Self> {
        Self::load_as(REJECT_RATE, false, false, false)
    }

    /// Loads the object with another budget for denied packets of a client in a second, and with
    /// or without the guard of neighbours.
    pub fn load_with(reject_rate: NonZeroU64, guard_neighbours: bool) -> Result<Self> {
        Self::load_as(reject_rate, guard_neighbours, true, false)
    }

    /// Loads the object as a Whonix gateway does: rules judge all.
    pub fn load_strict() -> Result<Self> {
        Self::load_as(REJECT_RATE, false, true, true)
    }

    fn load_as(
        reject_rate: NonZeroU64,
        guard_neighbours: bool,
        caches: bool,
        judge_all: bool,
    ) -> Result<Self> {
        let options = Options {
            pins: PathBuf::new(),
            attach: Attach::Auto,
            xdp: true,
            guard_neighbours,
            judge_all,
            caches,
            reject_rate,
            local_rate: LOCAL_RATE,
        };
        let mut ebpf = load_object(&options).context("cannot load the object, are you root?")?;
        // The product takes its own.
        let Some(Map::Array(datagrams)) = ebpf.map("DATAGRAMS") else { bail!("no DATAGRAMS") };
        let datagrams = MapData::from_fd(datagrams.fd().as_fd().try_clone_to_owned()?)?;
        let datagrams = Array::try_from(Map::Array(datagrams))?;
        let maps = Maps::new(&mut ebpf)?;
        let records = RingBuf::try_from(ebpf.take_map("RECORDS").context("no RECORDS")?)?;
        let mut program = Self { ebpf, maps, records, datagrams };
        for name in ["from_client", "to_client", "from_uplink", "to_uplink", "baseline"] {
            program.classifier(name)?.load()?;
        }
        program.early()?.load()?;
        Ok(program)
    }

    fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        Ok(self.ebpf.program_mut(name).context("no such program")?.try_into()?)
    }

    fn early(&mut self) -> Result<&mut Xdp> {
        Ok(self.ebpf.program_mut("from_client_early").context("no such program")?.try_into()?)
    }

    /// A loaded program, to be called by another.
    pub fn descriptor(&mut self, name: &str) -> Result<&ProgramFd> {
        Ok(self.classifier(name)?.fd()?)
    }

    /// Pins a loaded program.
    pub fn pin(&mut self, name: &str, path: &Path) -> Result<()> {
        Ok(self.classifier(name)?.pin(path)?)
    }

    /// What the kernel tells about a loaded program.
    pub fn info(&self, name: &str) -> Result<ProgramInfo> {
        Ok(self.ebpf.program(name).context("no such program")?.info()?)
    }

    /// Instructions that the verifier walked through.
    pub fn verified_instructions(&mut self) -> Result<u32> {
        let info = self.classifier("from_client")?.info()?;
        info.verified_instruction_count().context("the kernel does not tell")
    }

    /// The number by which the kernel knows the program `from_client`.
    pub fn id(&self) -> Result<u32> {
        Ok(self.info("from_client")?.id())
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<Outcome> {
        self.send_with(frame, 0)
    }

    /// Sends one frame that stands for several segments.
    pub fn send_with(&mut self, frame: &[u8], gso_segments: u32) -> Result<Outcome> {
        self.split()?.0.send(frame, gso_segments)
    }

    /// Sends one frame so often, as fast as the kernel can.
    pub fn send_often(&mut self, frame: &[u8], count: u32) -> Result<()> {
        let options =
            TestRunOptions { data_in: Some(frame), repeat: count, ..TestRunOptions::new() };
        self.classifier("from_client")?.test_run(options)?;
        Ok(())
    }

    /// Sends one frame through another program than `from_client`.
    pub fn send_through(&mut self, program: &str, frame: &[u8]) -> Result<Outcome> {
        let program = self.ebpf.program(program).context("no such program")?;
        Sender(program.try_into()?).send(frame, 0)
    }

    /// Sends one frame through the program of what leaves by the vif, as the first one of a
    /// connection or as a later one.
    pub fn leave(&mut self, frame: &[u8], is_first: bool) -> Result<()> {
        let priority = if is_first { OPENING } else { 0 };
        let mut context = [0; CONTEXT];
        context[CONTEXT_PRIORITY..][..4].copy_from_slice(&priority.to_ne_bytes());
        let mut after = [0xff; CONTEXT];
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::new()
        };
        let result = self.classifier("to_client")?.test_run(options)?;
        ensure!(result.return_value.cast_signed() == -1, "return code {}", result.return_value);
        ensure!(after[CONTEXT_PRIORITY..][..4] == [0; 4], "the priority stays");
        Ok(())
    }

    /// Sends one frame to the XDP stage, and returns whether that drops it.
    pub fn drops_early(&mut self, frame: &[u8]) -> Result<bool> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        match self.early()?.test_run(options)?.return_value {
            XDP_DROP => Ok(true),
            XDP_PASS => Ok(false),
            other => anyhow::bail!("unknown return code {other}"),
        }
    }

    /// The program and the maps, for using both at the same time.
    pub fn split(&mut self) -> Result<(Sender<'_>, &mut Maps)> {
        let program = self.ebpf.program("from_client").context("no such program")?;
        Ok((Sender(program.try_into()?), &mut self.maps))
    }

    /// Mean time of one run of a program, harness included.
    pub fn time(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<Duration> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        Ok(self.classifier(name)?.test_run(options)?.duration)
    }

    /// Puts a client's rules in force as the agent would.
    pub fn put(
        &mut self,
        client: IpAddr,
        ruleset: &oracle::Ruleset,
        known: &Surroundings,
    ) -> Result<()> {
        let policy = proved(client, &ruleset.file(), known)?;
        let rules = u32::try_from(ruleset.rules.len())?;
        self.install(client, &Installation::Policy { policy, rules }, 1)
    }

    /// Puts anything in force for a client.
    pub fn install(
        &mut self,
        client: IpAddr,
        installation: &Installation,
        generation: u32,
    ) -> Result<()> {
        let client = ClientId { vif: VIF, address: client };
        self.maps.put(client, installation, generation)?;
        self.maps.settle(client)?;
        Ok(self.maps.tidy()?)
    }

    /// Packets counted for a client and reason.
    pub fn counted(&self, client: Option<IpAddr>, reason: Reason) -> Counter {
        let client = client.map(|address| ClientId { vif: VIF, address });
        self.maps.reason_counter(client, reason)
    }

    /// Packets counted for a client and rule.
    pub fn counted_rule(&self, client: IpAddr, rule: u32) -> Counter {
        self.maps.rule_counter(ClientId { vif: VIF, address: client }, rule)
    }

    /// Has the program forget what it keeps of earlier packets of the clients of these tests: the
    /// datagrams that lack fragments, and what budgets were used up.
    pub fn rest(&mut self) -> Result<()> {
        self.hold_datagrams(false)?;
        let budgets = self.ebpf.map_mut("PASS_BUDGETS").context("no PASS_BUDGETS")?;
        Ok(Array::<_, [u8; 16]>::try_from(budgets)?.set(VIF, [0; 16], 0)?)
    }

    /// Has the program find the datagrams that lack fragments, of which there are none then, in
    /// the hands of another processor, or free.
    pub fn hold_datagrams(&mut self, held: bool) -> Result<()> {
        let mut bytes = [0; size_of::<Datagrams>()];
        bytes[offset_of!(Datagrams, lock)..][..8].copy_from_slice(&u64::from(held).to_ne_bytes());
        for client in 0..2 {
            self.datagrams.set(client, bytes, 0)?;
        }
        Ok(())
    }

    /// Takes all drop records.
    pub fn records(&mut self) -> Result<Vec<DropRecord>> {
        let mut records = Vec::new();
        while let Some(item) = self.records.next() {
            let record = DropRecord::read_from_bytes(&item);
            records.push(record.map_err(|_| anyhow!("record of {} bytes", item.len()))?);
        }
        Ok(records)
    }
}

/// The loaded program.
pub struct Sender<'a>(&'a SchedClassifier);

impl Sender<'_> {
    /// Sends one frame that stands for several segments. Fails if the program changes anything of it
    /// but the permit, or the mark.
    pub fn send(&self, frame: &[u8], gso_segments: u32) -> Result<Outcome> {
        let mut context = [0; CONTEXT];
        context[CONTEXT_MARK..][..4].copy_from_slice(&MARK.to_ne_bytes());
        context[CONTEXT_GSO_SEGMENTS..][..4].copy_from_slice(&gso_segments.to_ne_bytes());
        let mut after = [0; CONTEXT];
        let mut handed = vec![0; frame.len()];
        let result = self.0.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut handed),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::new()
        })?;
        ensure!(after[CONTEXT_MARK..][..4] == MARK.to_ne_bytes(), "the mark is another");
        ensure!(handed[PERMIT.len()..] == frame[PERMIT.len()..], "the packet is another");
        let permit = [PERMIT, PERMIT_RELATED].into_iter().find(|it| handed.starts_with(it));
        match result.return_value.cast_signed() {
            -1 => Ok(Outcome { handed_on: true, permit }),
            2 => Ok(Outcome::DROPPED),
            other => anyhow::bail!("unknown return code {other}"),
        }
    }
}

/// The client that is measured.
pub fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 137, 0, 12).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0xc).into(),
    }
}

/// A host that is measured; those of IPv6 differ in their last four bytes only.
pub fn host(family: Family, bits: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(bits).into(),
        Family::V6 => Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(bits)).into(),
    }
}

/// A client's rules, all the way from text to a proved policy.
pub fn proved(client: IpAddr, text: &str, known: &Surroundings) -> Result<ProvedPolicy> {
    let ruleset: Ruleset = rule_files::ruleset(client, text)?;
    let resolved = resolve::resolve(Family::from(client), &ruleset, known);
    let policy = compile::compile(&resolved)?;
    Ok(check::prove(&resolved, policy)?)
}
