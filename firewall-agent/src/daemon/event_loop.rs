//! THE event loop: waits for whatever happens, and has the daemon follow it.
//! Never decides anything itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::info;

use super::clock::{milliseconds_since_1970, now, sleep_until};
use super::{Daemon, Heard, Options};
use crate::edges::control::{ControlError, Listener, Question};
use crate::edges::dataplane;
use crate::edges::dataplane::records::{Log, Records};
use crate::edges::systemd::Service;
use firewall_core::events::Event;
use firewall_core::options::Said;

/// Everything is read again this often, should a change have gone unnoticed.
const RESYNC: Duration = Duration::from_secs(10);
/// Somebody may take programs away, of which nobody tells: they are looked at this often.
const CHECK: Duration = Duration::from_secs(2);

/// Why a daemon ends.
#[derive(Clone, Debug)]
pub enum End {
    /// Somebody asked it to.
    Asked,
    /// dom0 sets other options. What is in force goes on until the next daemon takes over.
    Options(Said),
}

/// What outlives each daemon of a process: signals, of which none is to come in between two daemons,
/// and the control socket, where who asks meanwhile waits.
pub struct Lasting {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    listener: Option<Listener>,
}

impl Lasting {
    /// Catches signals from now on. Must be called inside a tokio runtime.
    pub fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            listener: None,
        })
    }

    /// Listens at a path; on error, where it did before.
    async fn listen(&mut self, path: &Path) -> Result<(), ControlError> {
        if self.listener.as_ref().is_none_or(|listener| listener.path() != path) {
            self.listener = Some(Listener::bind(path).await?);
        }
        Ok(())
    }
}

/// A daemon that has closed the gate, and loaded its programs.
pub struct Started {
    daemon: Daemon,
    records: Records,
    log: Log,
}

/// Closes the gate and loads the programs. An error if that does not work; what an earlier daemon left
/// in force goes on then.
pub async fn start(options: Options, heard: Heard, lasting: &mut Lasting) -> Result<Started> {
    dataplane::require_object()?;
    lasting.listen(&options.socket).await?;
    let mut daemon = Daemon::start(options, heard, Service::find()).await?;
    let records = Records::new(daemon.dataplane.ebpf())?;
    let log = Log::new(daemon.dataplane.ebpf())?;
    Ok(Started { daemon, records, log })
}

impl Started {
    /// Runs until SIGTERM or SIGINT, or until dom0 sets other options. What is in force then stays in
    /// force, unless the options say otherwise. An error if the daemon cannot end as it should, or can
    /// no longer read what the kernel program tells.
    pub async fn run(self, lasting: &mut Lasting, hear: impl Fn(&Said) -> Heard) -> Result<End> {
        let Self { mut daemon, mut records, mut log } = self;
        let Lasting { terminate, interrupt, hangup, listener } = lasting;
        let mut options = daemon.source.options();
        let mut resync = interval_at(Instant::now() + RESYNC, RESYNC);
        let mut check = interval_at(Instant::now() + CHECK, CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    daemon.happened(Event::Reload).await;
                    daemon.read_all().await;
                    daemon.follow(Event::AskAll).await;
                }
                said = changed(options.as_mut()) => {
                    let heard = hear(&said);
                    if heard.good != daemon.heard.good {
                        info!("starts anew: dom0 sets other options");
                        daemon.happened(Event::Stopping { opens: false }).await;
                        return Ok(End::Options(said));
                    }
                    let is_told = heard.all_problems() == daemon.heard.all_problems();
                    daemon.heard = heard;
                    if !is_told {
                        daemon.tell_problems();
                    }
                }
                _ = resync.tick() => {
                    daemon.happened(Event::Resync).await;
                    daemon.read_all().await;
                    daemon.look().await;
                    give_back_memory();
                }
                _ = check.tick() => daemon.check_programs().await,
                () = daemon.gate_changes.next() => daemon.check_gate().await,
                event = daemon.source.next() => daemon.follow(event).await,
                () = daemon.resolvers.changed() => daemon.read_resolvers().await,
                outcomes = daemon.dns.next() => daemon.follow(Event::Answered(outcomes)).await,
                () = sleep_until(daemon.world.next_time()) => daemon.follow(Event::Time).await,
                () = daemon.watch.changed() => daemon.read_links().await,
                part = daemon.cutting.next() => daemon.take_connections(part).await,
                part = daemon.looking.next() => daemon.take_flows(part).await,
                taken = records.next() => {
                    let time_ms = milliseconds_since_1970();
                    daemon.happened(Event::Denied { records: taken?, time_ms }).await;
                }
                (request, answer) = question(listener) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(daemon.answer(&request).await);
                }
                passed = log.pass_on() => passed?,
                () = daemon.service.sign_of_life_due() => daemon.service.alive(),
            }
            daemon.service.status(daemon.world.summary(now()));
        }
        daemon.service.stopping();
        let opens = daemon.options.open_on_stop;
        if !opens {
            daemon.end_last().await;
        }
        daemon.happened(Event::Stopping { opens }).await;
        daemon.stop().await?;
        Ok(End::Asked)
    }
}

/// Waits for the next question.
async fn question(listener: &mut Option<Listener>) -> Question {
    match listener {
        Some(listener) => listener.question().await,
        None => std::future::pending().await,
    }
}

/// Waits until dom0 sets other options than it did.
async fn changed(options: Option<&mut watch::Receiver<Option<Said>>>) -> Said {
    let Some(options) = options else {
        return std::future::pending().await;
    };
    loop {
        if options.changed().await.is_err() {
            // Nobody reads them any more.
            return std::future::pending().await;
        }
        if let Some(said) = options.borrow_and_update().clone() {
            return said;
        }
    }
}

/// The C library keeps what a thousand vifs once took, unless it is asked not to.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches only what nobody uses.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
