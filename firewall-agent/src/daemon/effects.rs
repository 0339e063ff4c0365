//! Does what the world answers: each effect, and what is left to do after all of them.
//! Never decides what is to be done.

use tracing::{error, info, warn};

use super::{Daemon, now};
use crate::conntrack::{ConntrackError, Flow};
use crate::dataplane::DataplaneError;
use crate::dataplane::maps::MapsError;
use crate::events::{Effect, Event};
use crate::nft::Mode;

impl Daemon {
    /// Does one thing; what came of it can be an event again.
    pub(super) async fn perform(&mut self, effect: Effect) -> Option<Event> {
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
            Effect::Audit { client, until } => {
                log_failure("auditing a client", self.dataplane.maps.audit(client, until));
                None
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
            Effect::Handled(client) => {
                self.handled.push(client);
                None
            }
            Effect::Publish { client, names } => {
                self.source.publish(client, names);
                None
            }
            Effect::SetServers(servers) => {
                self.dns.set_servers(&servers);
                None
            }
            Effect::Ask(question) => {
                self.dns.ask(question);
                None
            }
            Effect::ReadFlows => match self.conntrack.flows().await {
                Ok(flows) => {
                    let ends = |flow: &Flow| (flow.source, flow.packet.destination.into());
                    Some(Event::InUse { flows: flows.iter().map(ends).collect(), now: now() })
                }
                Err(error) => {
                    error!(%error, "cannot read connections; old addresses of names stay");
                    None
                }
            },
            Effect::Remember(names) => {
                self.to_remember = Some(names);
                None
            }
            Effect::TakenOver => {
                let outcome = self.dataplane.forget_all_but(&self.world.links_in_use());
                if let Err(error) = outcome {
                    warn!(%error, "old pins stay");
                }
                None
            }
            Effect::Tell(notice) => {
                self.tell(&notice);
                None
            }
        }
    }

    /// Makes room in the maps; then ends what clients have open and must not have any
    /// more. By then every packet that an old policy accepted has gone its way. Until it is
    /// done, what such a client sends is dropped and not handed on.
    pub(super) async fn tidy(&mut self) {
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
}

fn attached(
    link: u32,
    name: &str,
    outcome: Result<String, DataplaneError>,
    otherwise: &str,
) -> Event {
    match &outcome {
        Ok(how) => info!(link = name, how, "attached"),
        Err(error) => error!(link = name, %error, "not attached: {otherwise}"),
    }
    let outcome = outcome.map_err(|error| error.to_string());
    Event::Attached { link, outcome }
}

fn log_failure(what: &str, outcome: Result<(), MapsError>) {
    if let Err(error) = outcome {
        error!(what, %error);
    }
}
