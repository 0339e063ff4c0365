//! Clients that come and go with their rules: addresses that nothing but a route to a network puts
//! behind a vif.
//! Never touches a client whose address is behind a vif by itself.

use std::net::IpAddr;

use super::World;
use super::standings::Change;
use crate::events::Effect;

impl World {
    /// Puts what the rules of one address come to in force.
    pub(super) fn follow_rules(&mut self, change: Change) -> Vec<Effect> {
        let routed = self.links.routed(change.client);
        match routed {
            None => self.follow_changes(vec![change]),
            Some(client) if self.has_rules(change.client) => {
                let is_new = !self.clients.installed().is_present(client);
                let mut effects = self.follow_changes(vec![change]);
                if is_new {
                    effects.extend(self.put(client, false));
                    effects.extend(self.connect());
                }
                effects
            }
            Some(_) => {
                let effects = self.leave_by_rules();
                effects.into_iter().chain(self.follow_changes(vec![change])).collect()
            }
        }
    }

    fn has_rules(&self, address: IpAddr) -> bool {
        self.standings.addresses().any(|with_rules| with_rules == address)
    }

    /// Removes clients that were there by their rules, and have none any more.
    fn leave_by_rules(&mut self) -> Vec<Effect> {
        let present = self.links.clients(self.standings.addresses());
        let mut effects = self.clients.leave(&present, &mut self.retries);
        effects.extend(self.clients.handled_by_now());
        effects.extend(self.clients.end_audits_of_absent(&mut self.retries));
        effects.extend(self.connect());
        effects
    }
}
