//! What the kernel programs weigh, by no clock: instructions that the verifier walks, sizes,
//! and for some packets the instructions and look-ups of their way. And what they weighed
//! when somebody last accepted it: tests/baseline.json.
//! Never writes that file but in [`accept`].

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use firewall_core::rules::resolve::Surroundings;
use serde::{Deserialize, Serialize};

use crate::oracle::{Proto, Rule, Ruleset};
use crate::packets;
use crate::packets::family::{Family, PerFamily as _};
use crate::program::interpreter::Interpreter;
use crate::program::{Program, VIF, client, host};

const PROGRAMS: [&str; 4] = ["from_client", "from_client_early", "from_uplink", "to_uplink"];
/// Prefixes of the clients' policies.
const PREFIXES: u32 = 1_000;
const PORT: u16 = 443;
/// How much heavier anything may be: measured as the baseline was, and on another kernel or
/// with another compiler, whose verifiers, just-in-time compilers and optimisers differ.
const SAME: f64 = 1.01;
const OTHER: f64 = 1.25;

/// What everything weighs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// Version of the kernel, with its patch level.
    pub kernel: String,
    /// What made the programs.
    pub compiler: String,
    /// Instructions of the largest program that the verifier walked, by version of the kernel; what
    /// was measured there and accepted.
    pub verified: BTreeMap<String, u64>,
    /// By name.
    pub programs: BTreeMap<String, Size>,
    /// By what a packet is.
    pub packets: BTreeMap<String, Cost>,
}

/// How large a program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Instructions that the verifier walked.
    pub verified: u64,
    /// Bytes behind the verifier.
    pub translated: u64,
    /// Bytes of machine code; 0 where nothing is compiled, or constants are blinded, which makes more of
    /// it (`net.core.bpf_jit_harden`).
    pub jited: u64,
}

/// What a packet costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Instructions that are executed, outside of helpers.
    pub instructions: u64,
    /// Calls of helpers other than look-ups.
    pub calls: u64,
    /// Look-ups by map.
    pub lookups: BTreeMap<String, u64>,
}

/// Weighs the programs at hand.
pub fn measure() -> Result<Weight> {
    let object = object()?;
    let mut programs = BTreeMap::new();
    let mut program = Program::load()?;
    let hardening = fs::read_to_string("/proc/sys/net/core/bpf_jit_harden")?;
    let are_blinded = hardening.trim() == "2";
    for name in PROGRAMS {
        let info = program.info(name)?;
        let size = Size {
            verified: info.verified_instruction_count().context("the kernel is too old")?.into(),
            translated: info.size_translated().context("the kernel does not tell")?.into(),
            jited: if are_blinded { 0 } else { info.size_jitted().into() },
        };
        programs.insert(name.to_owned(), size);
    }
    let mut all = BTreeMap::new();
    for client in Family::BOTH.map(client) {
        let rules = (0..PREFIXES).map(|number| rule(client, number)).collect();
        let ruleset = Ruleset { default_accept: false, rules };
        put(&mut program, client, &ruleset, &object, "of 1,000 prefixes", &mut all)?;
        let ruleset = Ruleset { default_accept: true, rules: Vec::new() };
        let mut program = Program::load()?;
        put(&mut program, client, &ruleset, &object, "where all is accepted", &mut all)?;
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // `6.12.117+deb13-amd64`: verifiers of two patch levels walk in different ways.
    let end = kernel.find(|letter: char| letter != '.' && !letter.is_ascii_digit());
    let kernel = kernel.get(..end.unwrap_or(kernel.len())).unwrap_or_default().to_owned();
    let largest = programs.values().map(|size| size.verified).max();
    let verified = largest.map(|largest| (kernel.clone(), largest)).into_iter().collect();
    Ok(Weight { kernel, compiler: compiler(&object), verified, programs, packets: all })
}

/// Weighs packets of a client with these rules.
fn put(
    program: &mut Program,
    client: IpAddr,
    ruleset: &Ruleset,
    object: &[u8],
    name: &str,
    to: &mut BTreeMap<String, Cost>,
) -> Result<()> {
    program.put(client, ruleset, &Surroundings::default())?;
    let interpreter = Interpreter::new(object, "from_client", &program.info("from_client")?)?;
    let family = Family::from(client);
    let stranger = host(family, 0x0909_0909);
    let packets = [
        ("to one", client, host(family, 0x0800_0000 + PREFIXES / 2)),
        ("to none", client, host(family, 0x0700_0000)),
        ("with a wrong source", stranger, host(family, 0x0800_0000)),
    ];
    let mut runs = Vec::new();
    for (what, from, destination) in packets {
        let frame = packets::plain(from, destination, packets::TCP, PORT);
        runs.push((what, interpreter.run_twice(&frame, VIF)?, frame));
    }
    // The kernel comes last, since it keeps what it found.
    for (what, runs, frame) in runs {
        for (run, time) in runs.into_iter().zip(["the first time", "again"]) {
            let handed_on = program.send(&frame)?.handed_on;
            ensure!(handed_on == (run.verdict == -1), "{what}: {run:?}, but the kernel differs");
            let lookups = run.calls.get(&1).copied().unwrap_or_default();
            let calls = run.calls.values().sum::<u64>() - lookups;
            let cost = Cost { instructions: run.instructions, calls, lookups: run.lookups };
            to.insert(format!("{family}, {what} {name}, {time}"), cost);
        }
    }
    Ok(())
}

fn rule(client: IpAddr, number: u32) -> Rule {
    let family = Family::from(client);
    Rule {
        network: Some((host(family, 0x0800_0000 + number), family.bits())),
        proto: Some(Proto::Tcp),
        ports: Some((PORT, PORT)),
        ..Rule::all(true)
    }
}

/// What is heavier than the baseline, and what so much lighter that the baseline should be
/// told; each as a sentence.
pub fn compare(now: &Weight, then: &Weight) -> (Vec<String>, Vec<String>) {
    let (mut heavier, mut lighter) = (Vec::new(), Vec::new());
    let alike = (&now.kernel, &now.compiler) == (&then.kernel, &then.compiler);
    let band = if alike { SAME } else { OTHER };
    let mut weigh = |what: String, now: u64, then: u64, band: f64| {
        let sentence = format!("{what}: {now}, was {then}");
        if now as f64 > then as f64 * band {
            heavier.push(sentence);
        } else if (now as f64) < then as f64 / band {
            lighter.push(sentence);
        }
    };
    for (kernel, verified) in &now.verified {
        let band = if now.compiler == then.compiler { SAME } else { OTHER };
        if let Some(before) = then.verified.get(kernel) {
            weigh(format!("instructions verified by Linux {kernel}"), *verified, *before, band);
        }
    }
    for (name, size) in &now.programs {
        let Some(before) = then.programs.get(name) else {
            weigh(format!("{name}, which is new"), size.verified, 0, band);
            continue;
        };
        // Each kernel's verifier walks in its own way; what counts there is the largest program, above.
        if now.kernel == then.kernel {
            weigh(format!("{name}, instructions verified"), size.verified, before.verified, band);
        }
        weigh(format!("{name}, bytes translated"), size.translated, before.translated, band);
        if size.jited > 0 {
            weigh(format!("{name}, bytes of machine code"), size.jited, before.jited, band);
        }
    }
    for (name, cost) in &now.packets {
        let Some(before) = then.packets.get(name) else {
            weigh(format!("{name}, which is new"), cost.instructions, 0, band);
            continue;
        };
        weigh(format!("{name}, instructions"), cost.instructions, before.instructions, band);
        // Neither kernels nor compilers change how often a program asks.
        weigh(format!("{name}, helpers called"), cost.calls, before.calls, 1.0);
        let maps = cost.lookups.keys().chain(before.lookups.keys());
        for map in maps.collect::<std::collections::BTreeSet<_>>() {
            let of = |cost: &Cost| cost.lookups.get(map).copied().unwrap_or_default();
            weigh(format!("{name}, look-ups in {map}"), of(cost), of(before), 1.0);
        }
    }
    (heavier, lighter)
}

/// What was last accepted.
pub fn baseline() -> Result<Weight> {
    let text = fs::read_to_string(path()).context("cannot read tests/baseline.json")?;
    serde_json::from_str(&text).context("cannot read tests/baseline.json")
}

/// Makes this the baseline, which keeps what other kernels' verifiers walked.
pub fn accept(weight: &Weight) -> Result<()> {
    let mut weight = weight.clone();
    for (kernel, verified) in baseline().map(|it| it.verified).unwrap_or_default() {
        weight.verified.entry(kernel).or_insert(verified);
    }
    let weight = &weight;
    Ok(fs::write(path(), format!("{}\n", serde_json::to_string_pretty(weight)?))?)
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json")
}

/// The object of the kernel programs, as it was built.
pub fn object() -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/firewall-ebpf.o");
    fs::read(&path).with_context(|| format!("no {}: run `cargo xtask build-ebpf`", path.display()))
}

/// What rustc calls itself in the object's debug information.
fn compiler(object: &[u8]) -> String {
    let mark = b"rustc version ";
    let at = object.windows(mark.len()).position(|it| it == mark);
    let rest = at.map_or(&[][..], |at| &object[at + mark.len()..]);
    let version = rest.iter().take_while(|byte| !byte.is_ascii_whitespace() && **byte != 0);
    format!("rustc {}", String::from_utf8_lossy(&version.copied().collect::<Vec<u8>>()))
}
