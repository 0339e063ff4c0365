//! The options of `run` and `prepare`, and what follows from them: mode, source, gate.
//! Never does anything before all of them fit together.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::{Result, ensure};
use clap::Args;

use super::{DEFAULT_PINS, DEFAULT_RULES, DEFAULT_SOCKET};
use crate::daemon::prepare::RUNTIME_DIRECTORY;
use crate::edges::dataplane::{self, Attach};
use crate::edges::desktop;
use crate::edges::gate::{Gate, Mode};
use crate::edges::links::Pattern;
use crate::edges::resolv_conf;
use crate::edges::sources::Place;
use firewall_core::names::rebinding::Guard;
use firewall_core::rules::resolve::Surroundings;
use firewall_core::tor::{self, Access, Each};
use firewall_core::uplinks::{LinkName, Uplinks};

/// What the gate depends on, and where pins are.
#[derive(Debug, Args)]
pub struct Prepare {
    /// Directory on a BPF file system, where programs are pinned.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_PINS)]
    pub pins: PathBuf,
    /// Interfaces that lead to clients: a name, or the beginning of names and `*`.
    #[arg(long, value_name = "PATTERN", default_value = "vif*")]
    pub vifs: Pattern,
    /// Who translates addresses; by default `whonix` in a Whonix gateway, `qubes` in another qube and
    /// `standalone` elsewhere.
    #[arg(long)]
    pub mode: Option<Mode>,
    /// The only links by which clients' packets may leave, say a tunnel; can be given more than once.
    /// By another link nothing of a client leaves, whether these are up or not. In a qube, dom0 can
    /// say so as well (`vm-config.firewall-uplinks`); then only what both say may leave.
    #[arg(long, value_name = "LINK", value_delimiter = ',')]
    pub uplinks: Vec<LinkName>,
    /// Where the DNS servers behind `specialtarget=dns` are named.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Where Qubes' own files are looked for: its marker, its scripts, QubesDB.
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    pub root: PathBuf,
}

/// How to run.
#[derive(Debug, Args)]
pub struct Run {
    /// The options of `prepare`.
    #[command(flatten)]
    pub prepare: Prepare,
    /// Where rules come from; by default QubesDB in a qube or where its socket is, and
    /// files elsewhere.
    #[arg(long)]
    pub source: Option<SourceKind>,
    /// Directory with one file of rules for each client, named by its address.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_RULES)]
    pub rules: PathBuf,
    /// Control socket, for `status` and `show`.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// File that keeps answers of DNS for the next agent, until the machine boots again.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/firewall-agent/names.json")]
    pub names: PathBuf,
    /// A name that may lead into private networks, and all names under it; can be given
    /// more than once. Without it an accept rule leaves out private addresses of a name,
    /// unless it is of a kind that nobody can own publicly, like `.lan` or `.internal`.
    #[arg(long, value_name = "NAME")]
    pub private_name: Vec<String>,
    /// How programs are attached to interfaces.
    #[arg(long, default_value = "auto")]
    pub attach: Attach,
    /// Drop what is to be dropped in native XDP, before the kernel has spent anything on it,
    /// where the driver of a vif has that (none of Qubes' drivers does) and Linux is 5.18 or
    /// newer. Against floods. On a veth it takes large packets away, and TCP gets slow.
    #[arg(long)]
    pub xdp: bool,
    /// Drop IPv6 neighbour discovery in which a client speaks for addresses that are not its
    /// own, and router advertisements. Off by default: Windows and other HVM guests may
    /// announce addresses that dom0 does not know of.
    #[arg(long)]
    pub guard_neighbours: bool,
    /// Denied packets of one client in a second that are answered with "admin prohibited";
    /// more of them are dropped silently.
    #[arg(long, value_name = "PACKETS", default_value = "10000", value_parser = rate)]
    pub reject_rate: NonZeroU64,
    /// New flows of one vif in a second to the netvm's own addresses, multicast and broadcast,
    /// after 200 at once; more of them are dropped. A TCP connection counts as 2, what conntrack
    /// keeps for longer as up to 20. Raise it where the netvm serves its qubes itself, say as a
    /// proxy.
    #[arg(long, value_name = "FLOWS", default_value = "20", value_parser = rate)]
    pub local_rate: NonZeroU64,
    /// File to write metrics to every 10 seconds, in Prometheus' text format. The textfile
    /// collector of node_exporter takes it if its name ends in `.prom`.
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// In mode `whonix`: what qubes whose default is `drop` may do with Tor's SOCKS and HTTP ports,
    /// which no rule of dom0's names: deny (by default) or allow. Tor is told in the stream where to
    /// go, so with `allow` no rule for a host holds. In a qube, dom0 can say so as well
    /// (`vm-config.firewall-tor-socks`); whoever denies wins. Rules always come first.
    #[arg(long, value_name = "ACCESS", value_parser = Access::from_str)]
    pub tor_socks: Option<Access>,
    /// The same of the filter in front of Tor's control port (`vm-config.firewall-tor-control`).
    #[arg(long, value_name = "ACCESS", value_parser = Access::from_str)]
    pub tor_control: Option<Access>,
    /// At SIGTERM remove the gate and the programs, so that EVERYTHING is forwarded, as
    /// today's qubes-firewall does when it is stopped. Only in mode `qubes`.
    #[arg(long)]
    pub open_on_stop: bool,
}

/// A kind of source of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceKind {
    /// QubesDB, where dom0 writes the rules of qubes.
    Qubesdb,
    /// A directory of files.
    Files,
}

/// Every Qubes OS template has this file.
pub const QUBES_MARKER: &str = "usr/share/qubes/marker-vm";
/// The socket of QubesDB that takes writes too.
pub const QUBESDB: &str = "var/run/qubes/qubesdb.sock";

impl Prepare {
    fn is_qube(&self) -> bool {
        self.root.join(QUBES_MARKER).exists()
    }

    fn is_gateway(&self) -> bool {
        self.root.join(tor::MARKER).exists()
    }

    fn mode(&self) -> Mode {
        match self.mode {
            Some(mode) => mode,
            None if self.is_gateway() => Mode::Whonix,
            None if self.is_qube() => Mode::Qubes,
            None => Mode::Standalone,
        }
    }

    /// The gate, with what is known about resolvers now.
    pub(super) fn gate(&self) -> Gate {
        let resolvers =
            resolv_conf::read_both(&self.resolv_conf, Path::new(resolv_conf::BEHIND_STUB));
        Gate {
            mode: self.mode(),
            pattern: self.vifs.clone(),
            redirections: Surroundings { resolvers, ..Surroundings::default() }.redirections(),
            uplinks: self.uplinks(),
            in_front: BTreeSet::new(),
        }
    }

    fn uplinks(&self) -> Option<Uplinks> {
        let links: BTreeSet<LinkName> = self.uplinks.iter().cloned().collect();
        (!links.is_empty()).then_some(Uplinks(links))
    }

    /// The socket of QubesDB; `None` if this is no qube.
    pub(super) fn qubesdb(&self) -> Option<PathBuf> {
        let socket = self.root.join(QUBESDB);
        (socket.exists() || self.is_qube()).then_some(socket)
    }
}

impl Run {
    /// The socket of QubesDB, where dom0 may set options; `None` if this is no qube.
    pub fn qubesdb(&self) -> Option<PathBuf> {
        match self.source {
            Some(SourceKind::Qubesdb) => Some(self.prepare.root.join(QUBESDB)),
            Some(SourceKind::Files) | None => self.prepare.qubesdb(),
        }
    }

    fn source(&self) -> Place {
        let by_default =
            || self.prepare.qubesdb().map_or(SourceKind::Files, |_| SourceKind::Qubesdb);
        match self.source.unwrap_or_else(by_default) {
            SourceKind::Qubesdb => Place::QubesDb(self.prepare.root.join(QUBESDB)),
            SourceKind::Files => {
                Place::Files { directory: self.rules.clone(), qubesdb: self.prepare.qubesdb() }
            }
        }
    }
}

impl TryFrom<Run> for crate::daemon::Options {
    type Error = anyhow::Error;

    fn try_from(run: Run) -> Result<Self> {
        let gate = run.prepare.gate();
        let is_gateway = run.prepare.is_gateway();
        let source = run.source();
        let screen = run.prepare.root.join(desktop::SOCKET);
        let Run {
            prepare: Prepare { pins, vifs, mode: _, uplinks: _, resolv_conf, root: _ },
            source: _,
            rules: _,
            socket,
            names: memory,
            private_name: private,
            attach,
            xdp,
            guard_neighbours,
            reject_rate,
            local_rate,
            metrics,
            tor_socks: socks,
            tor_control: control,
            open_on_stop,
        } = run;
        let tor_services = Each { socks, control };
        ensure!(
            gate.mode == Mode::Whonix || tor_services == Each::default(),
            "--tor-socks and --tor-control go with mode whonix only: elsewhere rules name ports"
        );
        ensure!(
            gate.mode != Mode::Whonix || gate.uplinks.is_none(),
            "--uplinks does not go with mode whonix: nothing of a client leaves by any link there"
        );
        ensure!(
            !open_on_stop || gate.mode == Mode::Qubes,
            "--open-on-stop goes with mode qubes only: elsewhere nothing would translate addresses"
        );
        let dataplane = dataplane::Options {
            pins: pins_of_service(pins),
            attach,
            xdp,
            guard_neighbours,
            judge_all: gate.mode == Mode::Whonix,
            caches: dataplane::may_cache(),
            reject_rate,
            local_rate,
        };
        let guard = Guard { private, is_of_tor: gate.mode == Mode::Whonix };
        Ok(Self {
            source,
            socket,
            resolv_conf,
            memory,
            guard,
            vifs,
            gate,
            is_gateway,
            screen,
            tor_services,
            metrics,
            open_on_stop,
            dataplane,
        })
    }
}

/// The pins where a service finds them that may not go to their own place, which is root's.
fn pins_of_service(pins: PathBuf) -> PathBuf {
    let own = std::env::var_os(RUNTIME_DIRECTORY).map(|own| Path::new(&own).join("pins"));
    own.filter(|own| pins == Path::new(DEFAULT_PINS) && own.is_dir()).unwrap_or(pins)
}

/// Packets or flows in a second. The kernel program counts in nanoseconds.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    let number = text.parse().map_err(|error| format!("{error}"))?;
    let rate = NonZeroU64::new(number).filter(|rate| rate.get() <= 1_000_000_000);
    rate.ok_or_else(|| "a rate is a number from 1 to 1000000000".to_owned())
}
