//! What happens to a packet in a Whonix gateway, in words: nothing is forwarded there, and what rules
//! accept is for Tor.
//! Never works anything out that is not in the explanation.

use firewall_common::verdict::{Reason, Verdict};
use firewall_core::told::explanation::{Explained, Judgement};
use firewall_core::told::gateway::PacketInGateway;
use firewall_core::tor::Fate;

/// What the gateway does with a packet that rules accept.
pub(super) fn gets(fate: Fate) -> &'static str {
    match fate {
        Fate::TransPort => {
            "Tor's TransPort gets the connection, and Tor connects to where the packet is for"
        }
        Fate::DnsPort => "Tor's DNSPort gets the question, whichever server it is for",
        Fate::Socks => {
            "Tor gets the connection at a port for SOCKS or HTTP: the destination is inside the \
             stream, and rules cannot see it"
        }
        Fate::Control => "the filter in front of Tor's control port gets the connection",
        Fate::Neighbour => "the gateway's kernel takes it: it is neighbour discovery",
        Fate::Related => {
            "the gateway takes it if it says \"too big\" about a connection that the gateway knows, \
             and drops it otherwise"
        }
        Fate::Dropped => {
            "the gateway drops it: Tor takes TCP, and questions to DNS by UDP, and nothing else"
        }
    }
}

/// What the gate does: it stands in front of Tor.
pub(super) fn gate(it: &Explained, PacketInGateway { silent, .. }: PacketInGateway) -> String {
    let error = if it.client.is_ipv4() { "ICMP 3/13" } else { "ICMPv6 1/1" };
    let Judgement { verdict, reason, .. } = it.judgement;
    let is_fragment = it.packet.is_some_and(|packet| packet.first_fragment);
    match verdict {
        Verdict::Accept | Verdict::Audit => "lets it in, because of the permit".to_owned(),
        Verdict::Related => {
            "lets it in if it is about a connection that the kernel knows, and drops it otherwise"
                .to_owned()
        }
        Verdict::Reject if is_fragment => "is not reached".to_owned(),
        Verdict::Reject if silent => "drops it: nothing answers it".to_owned(),
        Verdict::Reject => {
            format!("is not reached: the vif answers \"administratively prohibited\" ({error})")
        }
        Verdict::Pass if reason == Reason::Fragment => {
            "lets it in inside the datagram whose first fragment has the permit, or not at all"
                .to_owned()
        }
        Verdict::Pass => "is not on its way".to_owned(),
        Verdict::Drop => "is not reached".to_owned(),
    }
}

/// What the gateway does, if the packet gets as far.
pub(super) fn gateway(it: &Explained, PacketInGateway { fate, .. }: PacketInGateway) -> String {
    match it.judgement.verdict {
        Verdict::Accept | Verdict::Audit | Verdict::Related => gets(fate).to_owned(),
        Verdict::Pass if it.judgement.reason == Reason::Fragment => {
            "gets the datagram, not the fragment".to_owned()
        }
        Verdict::Pass => "answers it itself".to_owned(),
        Verdict::Reject | Verdict::Drop => "is not reached".to_owned(),
    }
}
