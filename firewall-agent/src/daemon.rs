//! THE event loop: edges tell what happened, [`World`] answers what to do, this does it.
//! Never decides anything itself.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use firewall_common::abi::{Counter, DEFAULT_RULE, DropRecord};
use firewall_common::verdict::Reason;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::conntrack::{Conntrack, ConntrackError};
use crate::control::{Listener, Request};
use crate::dataplane::maps::MapsError;
use crate::dataplane::records::{Log, Records};
use crate::dataplane::{self, Attach, Dataplane, DataplaneError};
use crate::events::{ClientId, Effect, Event, Notice};
use crate::links::{Pattern, Watch};
use crate::nft::{Gate, Mode};
use crate::resolvers::{self, Resolvers};
use crate::rules::resolve::Surroundings;
use crate::sources::files::Files;
use crate::status::{AgentStatus, CounterStatus, SCHEMA, Status};
use crate::world::World;

/// Everything is read again this often, should a change have gone unnoticed.
const RESYNC: Duration = Duration::from_secs(10);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of rule files.
    pub rules: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Where the netvm's DNS servers are named.
    pub resolv_conf: PathBuf,
    /// Which links are vifs.
    pub vifs: Pattern,
    /// Who does network address translation.
    pub mode: Mode,
    /// The kernel side.
    pub dataplane: dataplane::Options,
}

/// Runs until SIGTERM or SIGINT. What is in force then stays in force.
pub async fn run(options: Options) -> Result<()> {
    dataplane::require_object()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut listener = Listener::bind(&options.socket)?;
    let mut daemon = Daemon::start(options).await?;
    let mut records = Records::new(daemon.dataplane.ebpf())?;
    let mut log = Log::new(daemon.dataplane.ebpf())?;
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => daemon.read_all().await,
            _ = resync.tick() => daemon.read_all().await,
            () = daemon.files.changed() => daemon.read_rules().await,
            () = daemon.resolvers.changed() => daemon.read_resolvers().await,
            () = daemon.watch.changed() => daemon.read_links().await,
            taken = records.next() => daemon.tell_records(&taken?),
            (request, answer) = listener.question() => {
                // Whoever asked may have gone.
                let _ = answer.send(daemon.status(&request));
            }
            passed = log.pass_on() => passed?,
        }
    }
    info!("stopped; the policies in force stay in force, and nothing else is forwarded");
    Ok(())
}

struct Daemon {
    options: Options,
    world: World,
    gate: Gate,
    gate_problem: Option<String>,
    dataplane: Dataplane,
    verified_instructions: Option<u32>,
    files: Files,
    resolvers: Resolvers,
    watch: Watch,
    conntrack: Conntrack,
    /// Clients whose connections are still to be looked through.
    settling: BTreeSet<ClientId>,
}

impl Daemon {
    /// Closes the gate first, then loads the programs, reads rules before links, and so
    /// has policies in place when it takes over the vifs.
    async fn start(options: Options) -> Result<Self> {
        let gate = Gate {
            mode: options.mode,
            pattern: options.vifs.clone(),
            mark_bit: options.dataplane.mark_bit,
            redirections: Vec::new(),
        };
        gate.load().await.context("cannot load the gate")?;
        let mut dataplane = Dataplane::load(options.dataplane.clone())?;
        let verified_instructions = dataplane.verified_instructions();
        let files = Files::watch(&options.rules)
            .with_context(|| format!("cannot watch {}", options.rules.display()))?;
        let resolvers =
            Resolvers::watch(&options.resolv_conf, Path::new(resolvers::BEHIND_STUB))
                .with_context(|| format!("cannot watch {}", options.resolv_conf.display()))?;
        let watch = Watch::start(options.vifs.clone()).context("cannot open rtnetlink")?;
        let conntrack = Conntrack::open().context("cannot open conntrack's netlink")?;
        let mut daemon = Self {
            options,
            world: World::default(),
            gate,
            gate_problem: None,
            dataplane,
            verified_instructions,
            files,
            resolvers,
            watch,
            conntrack,
            settling: BTreeSet::new(),
        };
        daemon.read_all().await;
        if let Err(error) = daemon.dataplane.forget_all_but(&daemon.world.links_in_use()) {
            warn!(%error, "old pins stay");
        }
        info!(
            rules = %daemon.options.rules.display(),
            mode = daemon.options.mode.name(),
            verified_instructions,
            "running"
        );
        Ok(daemon)
    }

    async fn read_all(&mut self) {
        self.read_resolvers().await;
        self.read_rules().await;
        self.read_links().await;
        self.check_gate().await;
    }

    async fn read_resolvers(&mut self) {
        let resolvers = self.resolvers.read();
        let names = self.world.known_surroundings().names.clone();
        self.happened(Event::Surroundings(Surroundings { resolvers, names })).await;
        self.tidy().await;
    }

    async fn read_rules(&mut self) {
        match self.files.read() {
            Ok(changes) => {
                for (client, rules) in changes {
                    self.happened(Event::Rules { client, rules }).await;
                }
            }
            Err(error) => {
                let directory = self.options.rules.display();
                error!(%directory, %error, "cannot list rules; those in force stay");
            }
        }
        self.tidy().await;
    }

    async fn read_links(&mut self) {
        match self.watch.read().await {
            Ok(links) => self.happened(Event::Links(links)).await,
            Err(error) => error!(%error, "cannot read links; what is known stays"),
        }
        self.tidy().await;
    }

    /// Tells the world, and does what it answers, and so on until it is content.
    async fn happened(&mut self, event: Event) {
        let mut effects = VecDeque::from(self.world.step(event));
        while let Some(effect) = effects.pop_front() {
            let event = self.perform(effect).await;
            effects.extend(event.map(|event| self.world.step(event)).unwrap_or_default());
        }
    }

    /// Does one thing; what came of it can be an event again.
    async fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::SetLocals(locals) => {
                let outcome = self.dataplane.maps.set_locals(locals.into_iter());
                log_failure("own addresses", outcome);
                None
            }
            Effect::Redirect(redirections) => {
                if self.gate.redirections != redirections {
                    self.gate.redirections = redirections;
                    if self.gate.mode == Mode::Standalone {
                        self.load_gate().await;
                    }
                }
                None
            }
            Effect::Put { client, installation, generation } => {
                let outcome = self.dataplane.maps.put(client, &installation, generation);
                outcome.err().map(|error| Event::Refused { client, why: error.to_string() })
            }
            Effect::Remove(client) => {
                log_failure("removing a client", self.dataplane.maps.remove(client));
                None
            }
            Effect::SetConnected(connected) => {
                let outcome = self.dataplane.maps.set_connected(connected.into_iter());
                log_failure("clients' addresses", outcome);
                None
            }
            Effect::Settle(client) => {
                self.settling.insert(client);
                None
            }
            Effect::Attach { vif, name } => {
                let outcome = self.dataplane.attach(vif, &name);
                Some(attached(vif, &name, outcome, "nothing passes"))
            }
            Effect::AttachUplink { uplink, name } => {
                let outcome = self.dataplane.attach_uplink(uplink, &name);
                Some(attached(uplink, &name, outcome, "clients' addresses are not guarded there"))
            }
            Effect::Forget { link } => {
                if let Err(error) = self.dataplane.forget(link) {
                    warn!(link, %error, "a pin stays");
                }
                None
            }
            Effect::Tell(notice) => {
                tell(&notice);
                None
            }
        }
    }

    /// Loads the gate again if it is not there: without it, everything is forwarded.
    async fn check_gate(&mut self) {
        let loaded = self.gate.is_loaded().await;
        if self.gate_problem.is_none() && matches!(loaded, Ok(true)) {
            return;
        }
        if matches!(loaded, Ok(false)) {
            error!("somebody removed the gate; loading it again");
        }
        self.load_gate().await;
    }

    async fn load_gate(&mut self) {
        self.gate_problem = self.gate.load().await.err().map(|error| error.to_string());
        if let Some(problem) = &self.gate_problem {
            error!(problem, "the gate is as it was before");
        }
    }

    /// Makes room in the maps; then ends what clients have open and must not have any
    /// more. By then every packet that an old policy accepted has gone its way. Until it is
    /// done, what such a client sends is dropped and not handed on.
    async fn tidy(&mut self) {
        log_failure("making room in the maps", self.dataplane.maps.tidy());
        if self.settling.is_empty() {
            return;
        }
        match self.cut().await {
            Ok(0) => {}
            Ok(ended) => info!(ended, "connections that rules deny now"),
            Err(error) => {
                error!(%error, "cannot end connections; denied packets are dropped until then");
                return;
            }
        }
        for client in std::mem::take(&mut self.settling) {
            log_failure("settling", self.dataplane.maps.settle(client));
        }
        log_failure("making room in the maps", self.dataplane.maps.tidy());
    }

    /// Returns how many connections it ended.
    async fn cut(&self) -> Result<usize, ConntrackError> {
        let mut ended = 0;
        let flows = self.conntrack.flows().await?;
        for client in &self.settling {
            let is_denied = self.world.judge_of(*client);
            let of_client = flows.iter().filter(|flow| flow.source == client.address);
            for flow in of_client.filter(|flow| is_denied(&flow.packet)) {
                self.conntrack.delete(flow).await?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    fn tell_records(&self, records: &[DropRecord]) {
        for record in records {
            let vif = self.world.link_name(record.vif).unwrap_or("a link that is gone");
            info!(target: "denied", "{}", self.describe(vif, record));
        }
    }

    /// One line about a packet that was not accepted.
    fn describe(&self, vif: &str, record: &DropRecord) -> String {
        let source = IpAddr::from(record.source);
        let destination = IpAddr::from(record.destination);
        let number = self.world.rule_number(record.vif, source, record.generation, record.rule);
        let reason = match (number, Reason::from_index(record.reason)) {
            (Some(number), _) => format!("rule {number:04}"),
            (None, Some(Reason::Rule)) => format!("rule with index {}", record.rule),
            (None, Some(reason)) => reason.name().to_owned(),
            (None, None) => format!("reason {}", record.reason),
        };
        let suppressed = match record.suppressed {
            0 => String::new(),
            count => format!(", {count} more not shown"),
        };
        let DropRecord { protocol, destination_port, generation, .. } = record;
        format!(
            "{vif}: {source} to {destination}, protocol {protocol}, port or type \
             {destination_port}: {reason}, generation {generation}{suppressed}"
        )
    }

    fn status(&self, request: &Request) -> Status {
        let mut clients = self.world.client_statuses();
        match request {
            Request::Status => {}
            Request::Show { client } => clients.retain(|it| it.address == *client),
        }
        for status in &mut clients {
            let Some(vif) = status.vif_index else {
                continue;
            };
            let client = ClientId { vif, address: status.address };
            status.counters = self.reason_counters(Some(client));
            status.default_counter =
                status.counters.remove(Reason::Default.name()).unwrap_or_default();
            for (index, rule) in (0..DEFAULT_RULE).zip(&mut status.rules) {
                rule.counter = counted(self.dataplane.maps.rule_counter(client, index));
            }
        }
        Status {
            schema: SCHEMA,
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                source: self.options.rules.display().to_string(),
                mode: self.options.mode.name().to_owned(),
                mark_bit: self.options.dataplane.mark_bit,
                verified_instructions: self.verified_instructions,
                resolvers: self.world.known_surroundings().resolvers.clone(),
                gate_problem: self.gate_problem.clone(),
                unguarded_uplinks: self.world.unguarded_uplinks(),
            },
            vifs: self.world.vif_statuses(),
            clients,
            strays: self.reason_counters(None),
        }
    }

    /// Counters of all reasons that counted anything.
    fn reason_counters(
        &self,
        client: Option<ClientId>,
    ) -> std::collections::BTreeMap<String, CounterStatus> {
        let all = Reason::ALL.iter().map(|&reason| {
            let counter = counted(self.dataplane.maps.reason_counter(client, reason));
            (reason.name().to_owned(), counter)
        });
        all.filter(|(_, counter)| counter.packets > 0).collect()
    }
}

fn counted(counter: Counter) -> CounterStatus {
    let Counter { packets, bytes } = counter;
    CounterStatus { packets, bytes }
}

fn attached(
    link: u32,
    name: &str,
    outcome: Result<Attach, DataplaneError>,
    otherwise: &str,
) -> Event {
    match &outcome {
        Ok(how) => info!(link = name, how = how.name(), "attached"),
        Err(error) => error!(link = name, %error, "not attached: {otherwise}"),
    }
    let outcome = outcome.map(|how| how.name().to_owned()).map_err(|error| error.to_string());
    Event::Attached { link, outcome }
}

fn log_failure(what: &str, outcome: Result<(), MapsError>) {
    if let Err(error) = outcome {
        error!(what, %error);
    }
}

fn tell(notice: &Notice) {
    match notice {
        Notice::Live { client, rules, cells_checked } => {
            info!(%client, rules, cells_checked, "policy proved");
        }
        Notice::Blocked { client, why } => warn!(%client, why, "blocked"),
        Notice::Waiting { client } => warn!(%client, "no rules: everything is dropped"),
    }
}
