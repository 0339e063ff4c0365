//! Does what the world answers: each effect is a call of an edge, and what comes of that call is
//! an event again.
//! Never decides what is to be done.

use tracing::{info, warn};

use super::{Daemon, notices};
use crate::edges::conntrack::Wanted;
use crate::edges::dataplane::maps::Maps;
use crate::edges::gate::Gate;
use crate::edges::memory;
use crate::edges::neighbours::end_waiting;
use firewall_core::events::{Effect, Event, Notice, Task, Why};
use firewall_core::names::answer::Remembered;
use firewall_core::told::news::News;
use firewall_core::told::screen::on_screen;

impl Daemon {
    /// Does one thing. What came of it, if the world is to know, is an event.
    pub(super) async fn perform(&mut self, effect: Effect) -> Option<Event> {
        let maps = &mut self.dataplane.maps;
        match effect {
            Effect::ReadLinks => Some(match self.watch.read().await {
                Ok(links) => Event::Links(links),
                Err(error) => tried(Task::Links, Err(error)),
            }),
            Effect::SetLocals(locals) => Some(tried(Task::Locals, maps.set_locals(locals))),
            Effect::LeaveToOthers(others) => {
                Some(tried(Task::LeaveToOthers, maps.leave_to_others(others)))
            }
            Effect::LookBetween => {
                let between = crate::edges::gate::between().await;
                Some(Event::Between(between.map_err(Why::of)))
            }
            Effect::Redirect(redirections) => {
                self.gate.redirections = redirections;
                None
            }
            Effect::LimitUplinks(uplinks) => {
                self.dns.ask_by(uplinks.as_ref());
                self.gate.uplinks = uplinks;
                None
            }
            Effect::EndWaiting(uplinks) => {
                // Packets that met the gate as it was before have got to their link by then.
                let vifs = &self.options.vifs;
                let may_stay = |name: &str| vifs.matches(name) || uplinks.contains(name);
                let ended = match maps.quiesce() {
                    Ok(()) => end_waiting(may_stay).await.map_err(Why::of),
                    Err(error) => Err(Why::of(error)),
                };
                Some(tried(Task::EndWaiting, ended))
            }
            Effect::AnswerDenied(vifs) => {
                Some(Event::AnswersDenied(Gate::answer_denied(&vifs).await.map_err(Why::of)))
            }
            Effect::LoadGate => Some(Event::GateLoaded(self.gate.mend().await.map_err(Why::of))),
            Effect::Put { client, installation, generation, settles } => {
                let put = if settles { Maps::put } else { Maps::widen };
                Some(match put(maps, client, &installation, generation) {
                    Ok(()) => tried(Task::Put(client), Ok::<(), Why>(())),
                    Err(error) => Event::Refused {
                        client,
                        why: error.to_string(),
                        may_pass: error.may_pass(),
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
            Effect::ReadConnections(of) => {
                let why = self.cutting.start(Wanted::From(of)).await?;
                Some(Event::ConnectionsRead(Err(why)))
            }
            Effect::NoteOpenings(clients) => {
                if let Err(why) = self.note_openings(&clients).await {
                    warn!(%why, "answers of connections that are open may be told as denied");
                }
                None
            }
            Effect::Disconnect(flows) => Some(self.disconnect(&flows).await),
            Effect::Settled(client) => Some(tried(Task::Settled(client), maps.settle(client))),
            Effect::Tidy => Some(tried(Task::Tidy, maps.quiesce())),
            Effect::Prepare => Some(tried(Task::Prepare, maps.tidy())),
            Effect::Attach { vif, name: _ } => {
                let outcome = self.dataplane.attach(vif).map_err(Why::of);
                Some(Event::Attached { link: vif, outcome })
            }
            Effect::AttachUplink { uplink, name: _ } => {
                let outcome = self.dataplane.attach_uplink(uplink).map_err(Why::of);
                Some(Event::Attached { link: uplink, outcome })
            }
            Effect::Forget { link } => Some(tried(Task::Forget(link), self.dataplane.forget(link))),
            Effect::TakenOver(links) => {
                let ended = maps.take_over();
                let forgotten = self.dataplane.forget_all_but(&links);
                Some(tried(Task::TakenOver, forgotten.and(ended.map_err(Into::into))))
            }
            Effect::ReadFlows(to) => {
                let why = self.looking.start(Wanted::To(to)).await?;
                Some(Event::FlowsRead(Err(why)))
            }
            Effect::Handled(client) => {
                self.source.handled(client);
                None
            }
            Effect::Publish { client, names } => {
                self.source.publish(client, names);
                None
            }
            Effect::ReloadSource => {
                self.source.reload();
                None
            }
            Effect::ResyncSource => {
                self.source.resync();
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
            Effect::Remember(names) => {
                self.remember(&names);
                None
            }
            Effect::Reloading => {
                self.service.reloading();
                None
            }
            Effect::Ready => {
                self.service.ready();
                None
            }
            Effect::Denied(denied) => {
                info!(target: "denied", "{denied}");
                self.feed.tell(&News::Denied(denied));
                None
            }
            Effect::Tell(notice) => {
                self.tell(&notice);
                None
            }
        }
    }

    /// Keeps what is known about names for a later agent.
    fn remember(&self, names: &[Remembered]) {
        let path = &self.options.memory;
        if let Err(error) = memory::write(path, names) {
            warn!(path = %path.display(), %error, "answers of DNS do not outlive this agent");
        }
    }

    fn tell(&self, notice: &Notice) {
        notices::log(notice);
        if let Some(text) = on_screen(notice, self.gate.mode.into()) {
            self.desktop.tell(&text);
        }
    }
}

/// What came of a task, for the world.
fn tried(task: Task, outcome: Result<(), impl ToString>) -> Event {
    Event::Tried { task, outcome: outcome.map_err(Why::of) }
}
