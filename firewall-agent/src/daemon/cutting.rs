//! Readings of the kernel's table of connections, which go on beside all else that the daemon
//! does, and what comes of each part.
//! Never decides which connections end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{Daemon, now};
use crate::edges::conntrack::{ConntrackError, Reading, Wanted};
use firewall_core::connection::Flow;
use firewall_core::events::{Event, Task, Why};
use firewall_core::time::Moment;

/// What is being ended when the agent is asked to stop may take so long.
const LAST_CUT: Duration = Duration::from_secs(5);

/// A part of the table; nothing at its end.
pub(super) type Part = Result<Option<Vec<Flow>>, ConntrackError>;

/// A reading that may be going on.
#[derive(Default)]
pub(super) struct Underway(Option<Reading>);

impl Underway {
    async fn start(&mut self, wanted: Wanted) -> Result<(), ConntrackError> {
        self.0 = Some(Reading::start(wanted).await?);
        Ok(())
    }

    /// Waits for the next part; for ever, if nothing is being read. Whoever waits may stop.
    pub(super) async fn next(&mut self) -> Part {
        let Some(reading) = &mut self.0 else {
            return std::future::pending().await;
        };
        let part = reading.next().await;
        if !matches!(part, Ok(Some(_))) {
            self.0 = None;
        }
        part
    }
}

/// What is found out about connections to some addresses.
pub(super) struct Look {
    found: BTreeSet<(IpAddr, IpAddr)>,
    asked: Moment,
}

impl Daemon {
    /// Begins to read what some addresses have open.
    pub(super) async fn read_connections(&mut self, of: BTreeSet<IpAddr>) -> Option<Event> {
        let started = self.cutting.start(Wanted::From(of)).await;
        let why = Why::of(started.err()?);
        Some(Event::ConnectionsRead { outcome: Err(why), now: now() })
    }

    /// Takes in a part of that.
    pub(super) async fn take_connections(&mut self, part: Part) {
        let outcome = match part {
            Ok(Some(flows)) => {
                self.happened(Event::Connections(flows)).await;
                // Whoever else has something to do comes first.
                tokio::task::yield_now().await;
                return;
            }
            Ok(None) => Ok(()),
            Err(error) => Err(Why::of(error)),
        };
        self.follow(Event::ConnectionsRead { outcome, now: now() }).await;
    }

    /// Ends connections.
    pub(super) async fn disconnect(&mut self, flows: &[Flow]) -> Event {
        let forgotten = self.forgetting.forget(flows).await;
        Event::Disconnected { gone: forgotten.gone, refused: forgotten.refused }
    }

    /// Begins to look which connections lead to some addresses, unless that is being done.
    pub(super) async fn read_flows(
        &mut self,
        to: BTreeSet<IpAddr>,
        asked: Moment,
    ) -> Option<Event> {
        if self.look.is_some() {
            return None;
        }
        match self.looking.start(Wanted::To(to)).await {
            Ok(()) => {
                self.look = Some(Look { found: BTreeSet::new(), asked });
                None
            }
            Err(error) => Some(looked(Err(Why::of(error)))),
        }
    }

    /// Takes in a part of that.
    pub(super) async fn take_flows(&mut self, part: Part) {
        match part {
            Ok(Some(flows)) => {
                let ends = |flow: Flow| (flow.source(), flow.packet.destination.into());
                if let Some(look) = &mut self.look {
                    look.found.extend(flows.into_iter().map(ends));
                }
                tokio::task::yield_now().await;
            }
            Ok(None) => {
                if let Some(Look { found, asked }) = self.look.take() {
                    self.happened(looked(Ok(()))).await;
                    self.follow(Event::InUse { flows: found, now: asked }).await;
                }
            }
            Err(error) => {
                self.look = None;
                self.follow(looked(Err(Why::of(error)))).await;
            }
        }
    }

    /// Goes on with what is being ended until all has ended, but not for long.
    pub(super) async fn end_last(&mut self) {
        let deadline = Instant::now() + LAST_CUT;
        while self.cutting.0.is_some() {
            let Ok(part) = timeout_at(deadline, self.cutting.next()).await else {
                break;
            };
            self.take_connections(part).await;
            if Instant::now() >= deadline {
                break;
            }
        }
        let clients = self.world.count_settling();
        if clients > 0 {
            warn!(
                clients,
                "connections that rules deny may not all have ended; their clients' denied packets \
                 are dropped until an agent has ended them"
            );
        }
    }
}

fn looked(outcome: Result<(), Why>) -> Event {
    Event::Tried { task: Task::ReadFlows, outcome, now: now() }
}
