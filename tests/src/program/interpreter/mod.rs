//! A program's own instructions, run in user space on the kernel's real maps, to count what
//! a packet costs where no clock can tell: instructions, calls, look-ups.
//! Never writes to a map: what a program changes, nobody else sees.
//!
//! Addresses are a region's number in the upper 32 bits and an offset in the lower, so that
//! a program that errs is an error here and not a crash. Semantics: RFC 9669.

mod arithmetic;
mod maps;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramInfo;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use nix::libc;

use arithmetic::{calculate32, calculate64, holds, in_order, width};
use maps::Map;

/// What one run of a program came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// What the program returned.
    pub verdict: i32,
    /// Instructions that were executed.
    pub instructions: u64,
    /// Calls of each helper, by its number.
    pub calls: BTreeMap<i32, u64>,
    /// Look-ups in each map.
    pub lookups: BTreeMap<String, u64>,
}

/// A program with its maps.
pub struct Interpreter {
    code: Vec<bpf_insn>,
    maps: Vec<Map>,
}

/// Size of `struct __sk_buff`, and offsets in it (uapi/linux/bpf.h).
const CONTEXT: usize = 192;
const CONTEXT_LENGTH: usize = 0;
const CONTEXT_PROTOCOL: usize = 16;
const CONTEXT_INGRESS: usize = 36;
const CONTEXT_INTERFACE: usize = 40;
const CONTEXT_DATA: u64 = 76;
const CONTEXT_DATA_END: u64 = 80;
const STACK: u64 = 512;
/// More than any packet may take.
const MOST_STEPS: u64 = 1_000_000;
/// Offset at which handles of maps are told from regions.
const MAPS: u64 = 1 << 62;

const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const TIME: i32 = 5;
const COARSE_TIME: i32 = 160;
const RANDOM: i32 = 7;
const PROCESSOR: i32 = 8;
const LOAD_BYTES: i32 = 26;
const RESERVE: i32 = 131;
const SUBMIT: i32 = 132;
const DISCARD: i32 = 133;

impl Interpreter {
    /// Takes a program out of an object, with the maps of its twin that the kernel loaded.
    pub fn new(object: &[u8], name: &str, loaded: &ProgramInfo) -> Result<Self> {
        let mut object = Object::parse(object)?;
        let mut maps = Vec::new();
        for id in loaded.map_ids()?.context("the kernel does not tell maps")? {
            maps.push(Map::numbered(id)?);
        }
        // A map's number here takes the place of its descriptor.
        let number = |name: &str| maps.iter().position(|map: &Map| map.is_called(name));
        let known = object.maps.clone();
        let known = known
            .iter()
            .map(|(name, map)| (name.as_str(), number(name).map_or(-1, |it| it as i32), map));
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(known, &text)?;
        object.relocate_calls(&text)?;
        let program = object.programs.get(name).context("no such program")?;
        let function = object.functions.get(&program.function_key()).context("no code")?;
        Ok(Self { code: function.instructions.clone(), maps })
    }

    /// Runs it twice on one frame that came in by an interface. The second time it finds in
    /// the maps what it wrote the first time.
    pub fn run_twice(&self, frame: &[u8], interface: u32) -> Result<[Run; 2]> {
        let mut context = vec![0; CONTEXT];
        let mut set = |at: usize, value: u32| {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        set(CONTEXT_LENGTH, u32::try_from(frame.len())?);
        set(CONTEXT_INGRESS, interface);
        set(CONTEXT_INTERFACE, interface);
        let ethertype = frame.get(12..14).context("no Ethernet header")?;
        set(CONTEXT_PROTOCOL, u32::from(u16::from_ne_bytes(ethertype.try_into()?)));
        let mut machine = Machine {
            interpreter: self,
            frame,
            // No address is 0.
            regions: vec![Vec::new()],
            registers: [0; 11],
            context: 0,
            data: 0,
            inner: Vec::new(),
            values: BTreeMap::new(),
            run: Run::default(),
        };
        let mut once = || -> Result<Run> {
            machine.run = Run::default();
            machine.data = machine.region(frame.to_vec())?;
            machine.context = machine.region(context.clone())?;
            machine.registers[1] = machine.context;
            machine.registers[10] = machine.region(vec![0; STACK as usize])? + STACK;
            machine.execute(0)?;
            machine.run.verdict = machine.registers[0] as i32;
            Ok(machine.run.clone())
        };
        Ok([once()?, once()?])
    }
}

struct Machine<'a> {
    interpreter: &'a Interpreter,
    frame: &'a [u8],
    regions: Vec<Vec<u8>>,
    registers: [u64; 11],
    /// Where the context is.
    context: u64,
    /// Where the frame is: all of it is linear.
    data: u64,
    /// Maps that were found in maps, with the name of the outer one.
    inner: Vec<Map>,
    /// Where values of maps are, by map and key.
    values: BTreeMap<(u64, Vec<u8>), u64>,
    run: Run,
}

impl Machine<'_> {
    /// From an instruction to the end of its function.
    fn execute(&mut self, from: usize) -> Result<()> {
        let mut next = from;
        loop {
            let at = next;
            let step = *self.interpreter.code.get(at).context("ran off the end")?;
            next += 1;
            self.run.instructions += 1;
            ensure!(self.run.instructions < MOST_STEPS, "it does not end");
            let (to, from) = (usize::from(step.dst_reg()), usize::from(step.src_reg()));
            let offset = i64::from(step.off);
            let jump = |by: i64| usize::try_from(next as i64 + by).context("a wild jump");
            let operand =
                if step.code & 8 != 0 { self.registers[from] } else { i64::from(step.imm) as u64 };
            match step.code & 7 {
                // 64 bits of a constant, or a map, or a place in a map's only value.
                0 => {
                    let upper = self.interpreter.code.get(next).context("half a constant")?.imm;
                    next += 1;
                    self.registers[to] = match from {
                        0 => u64::from(step.imm as u32) | u64::from(upper as u32) << 32,
                        1 => MAPS + u64::try_from(step.imm).context("an unknown map")?,
                        2 => {
                            let map = MAPS + u64::try_from(step.imm).context("an unknown map")?;
                            self.value(map, &0_u32.to_ne_bytes())?.context("no globals")?
                                + u64::from(upper as u32)
                        }
                        _ => bail!("constant of kind {from} at {at}"),
                    };
                }
                1 => {
                    let address = self.registers[from].wrapping_add(offset as u64);
                    ensure!(step.code & 0xe0 == 0x60, "load {:#x} at {at}", step.code);
                    // The kernel makes pointers of these two words.
                    self.registers[to] = match address.wrapping_sub(self.context) {
                        CONTEXT_DATA => self.data,
                        CONTEXT_DATA_END => self.data + self.frame.len() as u64,
                        _ => self.load(address, width(step.code))?,
                    };
                }
                2 | 3 => {
                    let address = self.registers[to].wrapping_add(offset as u64);
                    let width = width(step.code);
                    let value = if step.code & 7 == 2 {
                        i64::from(step.imm) as u64
                    } else {
                        self.registers[from]
                    };
                    match (step.code & 0xe0, step.imm) {
                        (0x60, _) => self.store(address, width, value)?,
                        (0xc0, 0) => {
                            let sum = self.load(address, width)?.wrapping_add(value);
                            self.store(address, width, sum)?;
                        }
                        // Exchange, with and without a comparison before.
                        (0xc0, 0xe1) => {
                            self.registers[from] = self.load(address, width)?;
                            self.store(address, width, value)?;
                        }
                        (0xc0, 0xf1) => {
                            let old = self.load(address, width)?;
                            if old == self.registers[0] {
                                self.store(address, width, value)?;
                            }
                            self.registers[0] = old;
                        }
                        _ => bail!("store {:#x} at {at}", step.code),
                    }
                }
                4 if step.code >> 4 == 13 => {
                    let swap = step.code & 8 != 0;
                    self.registers[to] = in_order(self.registers[to], step.imm, swap)?;
                }
                4 => {
                    let (one, other) = (self.registers[to] as u32, operand as u32);
                    let value = calculate32(step.code >> 4, one, other, step.off);
                    self.registers[to] =
                        u64::from(value.with_context(|| format!("{:#x} at {at}", step.code))?);
                }
                7 if step.code >> 4 == 13 => {
                    self.registers[to] = in_order(self.registers[to], step.imm, true)?;
                }
                7 => {
                    let value = calculate64(step.code >> 4, self.registers[to], operand, step.off);
                    self.registers[to] =
                        value.with_context(|| format!("{:#x} at {at}", step.code))?;
                }
                _ => match (step.code & 7, step.code >> 4) {
                    (5, 0) => next = jump(offset)?,
                    (6, 0) => next = jump(i64::from(step.imm))?,
                    (5, 8) if from == 1 => {
                        let saved = self.registers;
                        self.regions.push(vec![0; STACK as usize]);
                        self.registers[10] = ((self.regions.len() as u64 - 1) << 32) + STACK;
                        self.execute(jump(i64::from(step.imm))?)?;
                        self.registers[6..].copy_from_slice(&saved[6..]);
                    }
                    (5, 8) => {
                        *self.run.calls.entry(step.imm).or_default() += 1;
                        self.registers[0] = self.call(step.imm)?;
                    }
                    (5, 9) => return Ok(()),
                    (class, code) => {
                        let (one, other) = match class {
                            5 => (self.registers[to], operand),
                            _ => (
                                i64::from(self.registers[to] as i32) as u64,
                                i64::from(operand as i32) as u64,
                            ),
                        };
                        if holds(code, one, other).with_context(|| format!("jump {code}"))? {
                            next = jump(offset)?;
                        }
                    }
                },
            }
        }
    }

    fn call(&mut self, helper: i32) -> Result<u64> {
        let [_, one, two, three, four, ..] = self.registers;
        match helper {
            MAP_LOOKUP => {
                let key_size = self.map(one)?.key_size();
                let name = self.map(one)?.name.clone();
                *self.run.lookups.entry(name).or_default() += 1;
                let key = self.bytes(two, key_size)?.to_vec();
                Ok(self.value(one, &key)?.unwrap_or(0))
            }
            LOAD_BYTES => {
                let (offset, length) = (two as u32 as usize, four as u32 as usize);
                match self.frame.get(offset..offset + length) {
                    Some(bytes) => {
                        self.bytes(three, length)?.copy_from_slice(bytes);
                        Ok(0)
                    }
                    None => Ok(-i64::from(libc::EFAULT) as u64),
                }
            }
            RESERVE => self.region(vec![0; two as usize]),
            // Long after any budget was used up.
            TIME | COARSE_TIME => Ok(1 << 60),
            MAP_UPDATE | MAP_DELETE | RANDOM | PROCESSOR | SUBMIT | DISCARD => Ok(0),
            _ => bail!("helper {helper} is not known here; tests/src/program/interpreter wants it"),
        }
    }

    fn map(&self, handle: u64) -> Result<&Map> {
        let number = handle.checked_sub(MAPS).context("not a map")? as usize;
        let outer = &self.interpreter.maps;
        let inner = || self.inner.get(number - outer.len());
        outer.get(number).or_else(inner).context("no such map")
    }

    /// A copy of the value behind a key, always the same one; of a map in a map, its handle.
    fn value(&mut self, handle: u64, key: &[u8]) -> Result<Option<u64>> {
        if let Some(known) = self.values.get(&(handle, key.to_vec())) {
            return Ok(Some(*known));
        }
        let found = self.fetch(handle, key)?;
        if let Some(found) = found {
            self.values.insert((handle, key.to_vec()), found);
        }
        Ok(found)
    }

    fn fetch(&mut self, handle: u64, key: &[u8]) -> Result<Option<u64>> {
        let map = self.map(handle)?;
        let Some(value) = map.lookup(key)? else {
            return Ok(None);
        };
        if map.is_outer() {
            let name = format!("{}, inner", map.name);
            let mut inner = Map::numbered(u32::from_ne_bytes(value[..4].try_into()?))?;
            inner.name = name;
            self.inner.push(inner);
            let number = self.interpreter.maps.len() + self.inner.len() - 1;
            return Ok(Some(MAPS + number as u64));
        }
        self.region(value).map(Some)
    }

    fn region(&mut self, bytes: Vec<u8>) -> Result<u64> {
        self.regions.push(bytes);
        Ok((self.regions.len() as u64 - 1) << 32)
    }

    fn bytes(&mut self, address: u64, length: usize) -> Result<&mut [u8]> {
        let (region, offset) = ((address >> 32) as usize, address as u32 as usize);
        let region = self.regions.get_mut(region);
        let bytes = region.and_then(|region| region.get_mut(offset..offset + length));
        bytes.with_context(|| format!("no {length} bytes at {address:#x}"))
    }

    fn load(&mut self, address: u64, width: usize) -> Result<u64> {
        let mut value = [0; 8];
        value[..width].copy_from_slice(self.bytes(address, width)?);
        Ok(u64::from_le_bytes(value))
    }

    fn store(&mut self, address: u64, width: usize, value: u64) -> Result<()> {
        self.bytes(address, width)?.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }
}
