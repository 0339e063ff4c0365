//! A program of tc that takes its time over a packet, so that it can be met in its middle.
//! Never part of a way that anything else is sent by.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::EbpfLoader;
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{SchedClassifier, TcAttachType, tc};

use super::kernel::{Processor, classifier, object, stay_on};
use crate::rig::namespace::Namespace;

/// How far the program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No packet came yet.
    Before,
    /// A packet is being looked at.
    Middle,
    /// The packet was looked at.
    Over,
}

/// The program at the loopback device of a namespace, until this is dropped.
pub struct Dawdler {
    namespace: Namespace,
    stage: Array<MapData, u32>,
    until: Array<MapData, u64>,
    _ebpf: Ebpf,
}

impl Dawdler {
    /// Attaches the program.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(&object()?)?;
        let program = classifier(&mut ebpf, "dawdle")?;
        program.load()?;
        let again = program.fd()?.try_clone()?;
        namespace.run(|| {
            // Before Linux 6.6 there is no tcx, and the program is a filter of a qdisc.
            if SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_err() {
                tc::qdisc_add_clsact("lo")?;
            }
            Ok(program.attach("lo", TcAttachType::Ingress)?)
        })?;
        let programs = ebpf.map_mut("AGAIN").context("no AGAIN")?;
        ProgramArray::try_from(programs)?.set(0, &again, 0)?;
        let stage = Array::try_from(ebpf.take_map("STAGE").context("no STAGE")?)?;
        let until = Array::try_from(ebpf.take_map("DAWDLE_UNTIL").context("no DAWDLE_UNTIL")?)?;
        Ok(Self { namespace: namespace.clone(), stage, until, _ebpf: ebpf })
    }

    /// Sends one packet from the last processor, and does something meanwhile.
    pub fn meet<T>(&mut self, meanwhile: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.until.set(0, 0, 0)?;
        self.stage.set(0, 0, 0)?;
        let this = &*self;
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                this.namespace.run(|| {
                    stay_on(Processor::Last)?;
                    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                    socket.send_to(b"slowly", socket.local_addr()?)?;
                    Ok(())
                })
            });
            let outcome = meanwhile(this);
            sending.join().ok().context("the sender panicked")??;
            outcome
        })
    }

    /// How far the program is.
    pub fn stage(&self) -> Result<Stage> {
        Ok(match self.stage.get(&0, 0)? {
            0 => Stage::Before,
            1 => Stage::Middle,
            _ => Stage::Over,
        })
    }
}
