//! The daemon: edges tell what happened, [`World`] answers what to do, the daemon does it.
//! Never decides anything itself.

mod answers;
mod clock;
mod cutting;
mod effects;
mod event_loop;
pub mod handover;
pub mod logging;
mod notices;
pub mod prepare;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tracing::{error, info, warn};

use crate::edges::conntrack::Forgetting;
use crate::edges::control::feed::Feed;
use crate::edges::dataplane::{self, Dataplane};
use crate::edges::desktop::Desktop;
use crate::edges::dns::Dns;
use crate::edges::gate::{self, Gate, Look};
use crate::edges::links::{Pattern, Watch};
use crate::edges::memory;
use crate::edges::resolv_conf::{self, Resolvers};
use crate::edges::sources::{Place, Source};
use crate::edges::systemd::Service;
use crate::edges::wait::pace::Changes;
use firewall_core::events::{Effect, Event, GateLook, Why};
use firewall_core::introductions::Introductions;
use firewall_core::names::rebinding::Guard;
use firewall_core::options::Said;
use firewall_core::told::options::OptionStatus;
use firewall_core::tor::{Access, Each};
use firewall_core::uplinks::Uplinks;
use firewall_core::world::{Settings, World};

use self::clock::now;
use self::cutting::Underway;
pub use self::event_loop::{End, Lasting, Started, start};

/// How the daemon is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where rules come from.
    pub source: Place,
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Where the netvm's DNS servers are named.
    pub resolv_conf: PathBuf,
    /// Where answers of DNS are kept for a later agent.
    pub memory: PathBuf,
    /// Which names may lead into private networks.
    pub guard: Guard,
    /// Which links are vifs.
    pub vifs: Pattern,
    /// The gate, as it is to be at first.
    pub gate: Gate,
    /// Whether this machine is a Whonix gateway, whatever the mode.
    pub is_gateway: bool,
    /// Where the helper listens that shows messages to the user.
    pub screen: PathBuf,
    /// What clients whose default is `drop` may do with Tor's services there.
    pub tor_services: Each<Option<Access>>,
    /// File that metrics are written to; `None`: they are not written.
    pub metrics: Option<PathBuf>,
    /// Whether the end of the agent opens the firewall.
    pub open_on_stop: bool,
    /// How programs are loaded and attached, and where they are pinned.
    pub dataplane: dataplane::Options,
}

/// The options that dom0 sets, as they were understood.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Those that count.
    pub good: Said,
    /// All options that somebody set, dom0 or the command line.
    pub options: Vec<OptionStatus>,
    /// What is wrong with the others.
    pub problems: Vec<String>,
    /// Which qubes dom0 introduces. No daemon starts anew because of them.
    pub introductions: Introductions,
}

impl Heard {
    /// All that is wrong with keys of dom0.
    fn all_problems(&self) -> Vec<String> {
        let Introductions { problems, .. } = &self.introductions;
        self.problems.iter().chain(problems).cloned().collect()
    }
}

struct Daemon {
    options: Options,
    heard: Heard,
    world: World,
    gate: Gate,
    gate_changes: Changes,
    dataplane: Dataplane,
    source: Source,
    resolvers: Resolvers,
    dns: Dns,
    watch: Watch,
    forgetting: Forgetting,
    /// Connections of clients that settle.
    cutting: Underway,
    /// Connections to addresses that names may let go of.
    looking: Underway,
    service: Service,
    desktop: Desktop,
    feed: Feed,
}

impl Daemon {
    /// Closes the gate first, then loads the programs. Whatever an earlier agent left in
    /// force goes on until rules and links are known.
    async fn start(options: Options, heard: Heard, service: Service) -> Result<Self> {
        let mut gate = options.gate.clone();
        let uplinks_before = uplinks_before(&options.source).await?;
        gate.uplinks = Uplinks::both(gate.uplinks.as_ref(), uplinks_before.as_ref());
        let gate_changes = gate::changes().context("cannot open netlink of nftables")?;
        // What `prepare` has loaded stays: scripts may have added to it since.
        match gate.look().await.gate {
            GateLook::Whole(_) => {}
            GateLook::Appended(_) => gate.mend().await.context("cannot mend the gate")?,
            GateLook::Changed(difference) | GateLook::Unknown(Why(difference)) => {
                info!(difference, "loading the gate");
                gate.load().await.context("cannot load the gate")?;
            }
        }
        let dataplane = Dataplane::load(options.dataplane.clone())?;
        let place = options.source.name();
        let source =
            Source::start(&options.source).with_context(|| format!("cannot watch {place}"))?;
        let resolvers = Resolvers::watch(&options.resolv_conf, Path::new(resolv_conf::BEHIND_STUB))
            .with_context(|| format!("cannot watch {}", options.resolv_conf.display()))?;
        let watch = Watch::start(options.vifs.clone()).context("cannot open rtnetlink")?;
        let forgetting = Forgetting::open().context("cannot open conntrack's netlink")?;
        let world = World::new(Settings {
            guard: options.guard.clone(),
            mode: gate.mode.into(),
            redirections: gate.redirections.clone(),
            guards_neighbours: options.dataplane.guard_neighbours,
            uplinks: options.gate.uplinks.clone(),
            uplinks_before,
            is_gateway: options.is_gateway,
            tor_services: options.tor_services.clone(),
        });
        let mut dns = Dns::default();
        dns.ask_by(gate.uplinks.as_ref());
        let remembered = memory::read(&options.memory);
        let desktop = Desktop::behind(options.screen.clone());
        let mut daemon = Self {
            options,
            heard,
            world,
            gate,
            gate_changes,
            dataplane,
            source,
            resolvers,
            dns,
            watch,
            forgetting,
            cutting: Underway::default(),
            looking: Underway::default(),
            service,
            desktop,
            feed: Feed::default(),
        };
        daemon.happened(Event::Remembered(remembered)).await;
        daemon.read_all().await;
        let mode = daemon.gate.mode.name();
        let verified_instructions = daemon.dataplane.verified_instructions();
        info!(rules = %place, mode, verified_instructions, "running");
        daemon.tell_problems();
        if daemon.options.is_gateway && daemon.gate.mode != gate::Mode::Whonix {
            error!(mode, "{}", notices::UNENFORCED);
        }
        Ok(daemon)
    }

    fn tell_problems(&self) {
        let problems = self.heard.all_problems();
        problems.iter().for_each(|why| error!(why, "a key of dom0 does not count"));
    }

    async fn stop(&self) -> Result<()> {
        if !self.options.open_on_stop {
            let held = self.dataplane.unpinned();
            if held > 0 {
                warn!(held, "programs end with this agent: there is no place to pin them");
            }
            match self.gate.open().await {
                Ok(open) if open.is_empty() && self.gate.mode == gate::Mode::Whonix => info!(
                    "stopped; the policies in force stay in force, and nothing else of clients gets \
                     to Tor"
                ),
                Ok(open) if open.is_empty() => info!(
                    "stopped; the policies in force stay in force, and nothing else is forwarded but \
                     answers to connections towards clients"
                ),
                Ok(open) => error!(
                    families = open.join(", "),
                    "stopped OPEN: the gate is not there, whatever no program drops passes"
                ),
                Err(error) => error!(%error, "stopped; whether the gate is there is NOT KNOWN"),
            }
            return Ok(());
        }
        let pins = &self.options.dataplane.pins;
        dataplane::detach_all(pins).context("cannot detach the programs")?;
        self.gate.remove().await.context("cannot remove the gate")?;
        warn!("stopped; the firewall is OPEN, as --open-on-stop asks");
        Ok(())
    }

    async fn read_all(&mut self) {
        self.read_resolvers().await;
        self.read_links().await;
        self.check_gate().await;
    }

    async fn read_resolvers(&mut self) {
        let of_clients = self.resolvers.read();
        let own = self.resolvers.own();
        self.follow(Event::Servers { of_clients, own }).await;
    }

    async fn read_links(&mut self) {
        if let Some(event) = self.perform(Effect::ReadLinks).await {
            self.follow(event).await;
        }
    }

    async fn check_programs(&mut self) {
        let lost = self.dataplane.check();
        if !lost.is_empty() {
            self.follow(Event::Detached(lost)).await;
        }
    }

    /// Does all that comes of an event at once, and begins what takes longer.
    async fn follow(&mut self, event: Event) {
        self.happened(event).await;
        self.happened(Event::Time).await;
        let has_replaced = self.dataplane.maps.has_retired();
        self.happened(Event::Done { has_replaced }).await;
        let is_prepared = self.dataplane.maps.is_tidy();
        self.happened(Event::Resting { is_prepared }).await;
    }

    /// Tells the world, and does what it answers, and so on until it is content.
    async fn happened(&mut self, event: Event) {
        let mut effects = VecDeque::from(self.world.step(now(), event));
        while let Some(effect) = effects.pop_front() {
            // What comes of an effect is done before the next one.
            let event = self.perform(effect).await;
            let more = event.map(|event| self.world.step(now(), event)).unwrap_or_default();
            more.into_iter().rev().for_each(|effect| effects.push_front(effect));
        }
    }

    async fn check_gate(&mut self) {
        let Look { gate, not_redirected } = self.gate.look().await;
        self.happened(Event::Gate(gate)).await;
        if let Some(resolvers) = not_redirected {
            self.happened(Event::NotRedirected(resolvers)).await;
        }
    }
}

/// By which links alone clients' packets leave now, as long as QubesDB may say something else: until
/// it was read, what an earlier agent or `prepare` has read there stays in force.
async fn uplinks_before(source: &Place) -> Result<Option<Uplinks>> {
    match source.has_own_keys() {
        true => gate::uplinks_in_force().await.context("cannot look at the gate"),
        false => Ok(None),
    }
}
