//! Readings of the kernel's table of connections, which go on beside all else that the daemon
//! does, and what comes of each part; but for the one at the start, which comes before all else.
//! Never decides which connections end, and keeps no part.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Daemon;
use crate::edges::conntrack::{ConntrackError, Reading, Wanted};
use firewall_core::client::ClientId;
use firewall_core::connection::Flow;
use firewall_core::events::{Event, Why};

/// What is being ended when the agent is asked to stop may take so long.
const LAST_CUT: Duration = Duration::from_secs(5);

/// A part of the table; nothing at its end.
pub(super) type Part = Result<Option<Vec<Flow>>, ConntrackError>;

/// A reading that may be going on.
#[derive(Default)]
pub(super) struct Underway(Option<Reading>);

impl Underway {
    /// Begins to read. Returns why that cannot be.
    pub(super) async fn start(&mut self, wanted: Wanted) -> Option<Why> {
        match Reading::start(wanted).await {
            Ok(reading) => {
                self.0 = Some(reading);
                None
            }
            Err(error) => Some(Why::of(error)),
        }
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

impl Daemon {
    /// Takes in a part of what clients have open.
    pub(super) async fn take_connections(&mut self, part: Part) {
        self.take(part, Event::Connections, Event::ConnectionsRead).await;
    }

    /// Takes in a part of what leads to some addresses.
    pub(super) async fn take_flows(&mut self, part: Part) {
        self.take(part, Event::Flows, Event::FlowsRead).await;
    }

    async fn take(
        &mut self,
        part: Part,
        more: fn(Vec<Flow>) -> Event,
        end: fn(Result<(), Why>) -> Event,
    ) {
        let outcome = match part {
            Ok(Some(flows)) => {
                self.happened(more(flows)).await;
                // Whoever else has something to do comes first.
                tokio::task::yield_now().await;
                return;
            }
            Ok(None) => Ok(()),
            Err(error) => Err(Why::of(error)),
        };
        self.follow(end(outcome)).await;
    }

    /// Makes the programs know which connections were opened towards clients.
    pub(super) async fn note_openings(&mut self, clients: &BTreeSet<ClientId>) -> Result<(), Why> {
        let addresses = clients.iter().map(|client| client.address).collect();
        let reading = Reading::start(Wanted::AnsweredBy(addresses)).await;
        let mut reading = reading.map_err(Why::of)?;
        while let Some(part) = reading.next().await.map_err(Why::of)? {
            self.dataplane.openings.note(&part, clients).map_err(Why::of)?;
        }
        Ok(())
    }

    /// Ends connections.
    pub(super) async fn disconnect(&mut self, flows: &[Flow]) -> Event {
        let forgotten = self.forgetting.forget(flows).await;
        Event::Disconnected { gone: forgotten.gone, refused: forgotten.refused }
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
    }
}
