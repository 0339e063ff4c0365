//! Which DNS servers the agent asks, and which ones clients mean.
//! Never asks one.

use std::net::{IpAddr, SocketAddr};

use super::World;
use crate::events::Effect;
use crate::tor;

/// Port of DNS.
const DNS: u16 = 53;

impl World {
    /// Takes in which DNS servers the netvm names.
    pub(super) fn servers(&mut self, of_clients: Vec<IpAddr>, own: Vec<IpAddr>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let asked = own.into_iter().map(|address| SocketAddr::new(address, DNS)).collect();
        // Whoever else is asked in a Whonix gateway hears of it in the clear.
        let own = if self.judges_all() { vec![tor::DNS_SERVER] } else { asked };
        let of_clients = if self.judges_all() { Vec::new() } else { of_clients };
        let are_others = self.standings.surroundings().resolvers != of_clients;
        // Behind a stub that stays the same, servers may be other ones now.
        if are_others || self.naming.asks_others(&own) {
            effects.push(self.naming.ask_others(own));
        }
        if are_others {
            let changes = self.standings.set_resolvers(of_clients);
            let redirections = self.standings.surroundings().redirections();
            effects.extend(self.gate.redirect(redirections));
            effects.extend(self.follow_changes(changes));
        }
        effects
    }
}
