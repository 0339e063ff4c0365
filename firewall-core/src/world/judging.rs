//! Whether what is in force for a client denies a packet, by the function that the kernel runs.
//! Never changes anything.

use std::net::IpAddr;

use firewall_common::abi::ACTION_ACCEPT;
use firewall_common::packet::Packet;
use firewall_common::policy;

use super::World;
use crate::client::ClientId;
use crate::rules::check::PolicyTables;

impl World {
    /// Tells whether what is in force for a client now denies a packet of that client. What is not
    /// the rules' business is not denied.
    pub fn judge_of(&self, client: ClientId) -> impl Fn(&Packet) -> bool {
        let installed = self.clients.installed();
        let is_there = installed.is_present(client) && installed.refusal(client).is_none();
        let live = self.standings.live(client.address).filter(|_| is_there);
        let tables = live.map(|live| PolicyTables::new(live.policy.policy()));
        let is_audited = live.is_some() && self.clients.audits().until(client.address).is_some();
        move |packet| {
            let destination = IpAddr::from(packet.destination);
            let is_own =
                packet.destination.is_multicast() || self.links.local(destination).is_some();
            if is_own && !self.judges_all() || is_audited {
                return false;
            }
            let answer = tables.as_ref().and_then(|tables| policy::answer(tables, 0, packet));
            answer.is_none_or(|answer| answer.action != ACTION_ACCEPT)
        }
    }
}
