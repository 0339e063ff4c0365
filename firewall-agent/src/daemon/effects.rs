//! Does what the world answers: each effect, and what is left to do after all of them.
//! Never decides what is to be done.

use tracing::{error, info};

use super::{Daemon, now};
use crate::edges::dataplane::DataplaneError;
use crate::edges::gate::Mode;
use firewall_core::events::{Effect, Event, Task, Why};
use firewall_core::told::status::Attachment;

impl Daemon {
    /// Does one thing; what came of it can be an event again.
    pub(super) async fn perform(&mut self, effect: Effect) -> Option<Event> {
        let maps = &mut self.dataplane.maps;
        match effect {
            Effect::ReadLinks => Some(match self.watch.read().await {
                Ok(links) => Event::Links(links),
                Err(error) => tried(Task::Links, Err(error)),
            }),
            Effect::SetLocals(locals) => Some(tried(Task::Locals, maps.set_locals(locals))),
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
                Some(match maps.put(client, &installation, generation) {
                    Ok(()) => done(Task::Put(client)),
                    Err(error) => Event::Refused {
                        client,
                        why: error.to_string(),
                        may_pass: error.may_pass(),
                        now: now(),
                    },
                })
            }
            Effect::Audit { client, until } => {
                Some(tried(Task::Audit(client), maps.audit(client, until)))
            }
            Effect::Remove(client) => Some(tried(Task::Remove(client), maps.remove(client))),
            Effect::SetConnected(connected) => {
                Some(tried(Task::Connected, maps.set_connected(connected.into_iter())))
            }
            Effect::ReadConnections(of) => self.read_connections(of).await,
            Effect::Disconnect(flows) => Some(self.disconnect(&flows).await),
            Effect::Settled(client) => Some(tried(Task::Settled(client), maps.settle(client))),
            Effect::Attach { vif, name } => {
                let outcome = self.dataplane.attach(vif);
                Some(attached(vif, &name, outcome, "nothing passes"))
            }
            Effect::AttachUplink { uplink, name } => {
                let outcome = self.dataplane.attach_uplink(uplink);
                Some(attached(uplink, &name, outcome, "clients' addresses are not guarded there"))
            }
            Effect::Forget { link } => Some(tried(Task::Forget(link), self.dataplane.forget(link))),
            Effect::Handled(client) => {
                self.source.handled(client);
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
            Effect::ReadFlows { to, now } => self.read_flows(to, now).await,
            Effect::Remember(names) => {
                self.to_remember = Some(names);
                None
            }
            Effect::TakenOver => {
                let ended = self.dataplane.maps.take_over();
                let forgotten = self.dataplane.forget_all_but(&self.world.links_in_use());
                Some(tried(Task::TakenOver, forgotten.and(ended.map_err(Into::into))))
            }
            Effect::Tell(notice) => {
                self.tell(&notice);
                None
            }
        }
    }

    /// Waits, if somebody has to, until every packet that was judged by what has been replaced
    /// has gone its way, and makes room in the maps. From then on what clients have open can
    /// be looked through.
    pub(super) async fn tidy(&mut self) {
        let maps = &mut self.dataplane.maps;
        let is_waited_for = self.world.is_to_become_quiet() || self.world.is_failing(Task::Tidy);
        if maps.has_retired() || is_waited_for {
            let outcome = maps.quiesce();
            self.happened(tried(Task::Tidy, outcome)).await;
        }
        let maps = &mut self.dataplane.maps;
        if !maps.is_prepared() || self.world.is_failing(Task::Prepare) {
            let outcome = maps.prepare();
            self.happened(tried(Task::Prepare, outcome)).await;
        }
    }
}

fn done(task: Task) -> Event {
    Event::Tried { task, outcome: Ok(()), now: now() }
}

/// What came of a task, for the world.
fn tried(task: Task, outcome: Result<(), impl ToString>) -> Event {
    Event::Tried { task, outcome: outcome.map_err(Why::of), now: now() }
}

fn attached(
    link: u32,
    name: &str,
    outcome: Result<Attachment, DataplaneError>,
    otherwise: &str,
) -> Event {
    match &outcome {
        Ok(how) => info!(link = name, how = how.name(), "attached"),
        Err(error) => error!(link = name, %error, "not attached: {otherwise}"),
    }
    Event::Attached { link, outcome: outcome.map_err(Why::of) }
}
