//! What happened to a packet, and why. Closed: a new reason breaks the build wherever
//! reasons are counted, printed or tested.
//! Never looks at a packet or a table.

use crate::abi::{ACTION_ACCEPT, Client, DEFAULT_RULE, SETTLING, Segment};

/// What the program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// Hand the packet on with the permit: the gate forwards it.
    Accept,
    /// Hand the packet on without the permit: the gate answers "admin prohibited" (ICMP type 3 code
    /// 13, ICMPv6 type 1 code 1).
    Reject,
    /// Hand the packet on without the permit because it is not this firewall's to judge; should
    /// the kernel forward it after all, the gate rejects it.
    Pass,
    /// Drop the packet here, silently.
    Drop,
    /// Hand the packet on with the permit although the client's policy denies it: the client is
    /// audited.
    Audit,
    /// Hand the packet on with the permit because it is an ICMP error about a packet to this client:
    /// the gate forwards the error if connection tracking knows the connection of that packet, and
    /// drops it otherwise.
    Related,
}

impl Verdict {
    /// All verdicts, in the order of their indices.
    pub const ALL: &'static [Self] =
        &[Self::Accept, Self::Reject, Self::Pass, Self::Drop, Self::Audit, Self::Related];

    /// The verdict with this index in records; `None` if there is none.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// Index of this verdict in records, from 0.
    #[inline(always)]
    pub const fn index(self) -> u8 {
        self as u8
    }

    /// The word that people read and scripts compare.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Audit => "audit",
            Self::Related => "related",
        }
    }
}

macro_rules! reasons {
    ($($(#[$meta:meta])* $reason:ident = $name:literal,)+) => {
        /// Why a packet met its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$meta])* $reason,)+
        }

        impl Reason {
            /// All reasons, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$reason),+];

            /// The word that people read and scripts compare.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }
        }
    };
}

reasons! {
    /// A rule matched.
    Rule = "rule",
    /// No rule matched: the default action.
    Default = "default",
    /// The client's rules cannot be used.
    Blocked = "blocked",
    /// The client's rules are not known yet.
    Waiting = "waiting",
    /// ARP, which is the kernel's to answer.
    Arp = "arp",
    /// For the netvm itself, or multicast or broadcast; the kernel's input rules judge. Of what is for
    /// the netvm alone, the verdict says whether the gate forwards it if network address translation
    /// takes it elsewhere.
    Local = "local",
    /// Denied, but it goes the other way of a connection that was opened towards the client; the gate
    /// forwards it if connection tracking knows that connection, and rejects it otherwise.
    Answer = "answer",
    /// A later fragment, right behind the one before it; it is forwarded inside the datagram
    /// whose first fragment was judged, because connection tracking reassembles in front of
    /// the gate.
    Fragment = "fragment",
    /// A later fragment that does not follow on another one which what is in force for the
    /// client let pass.
    StrayFragment = "stray-fragment",
    /// A fragment, and the client has as many in unfinished datagrams as it may.
    TooManyFragments = "too-many-fragments",
    /// An ICMP error about a packet to this client; connection tracking tells whether there
    /// was one.
    IcmpError = "icmp-error",
    /// An ICMP error about a packet that was not sent to this client, or that no honest sender
    /// would make.
    ForeignError = "foreign-error",
    /// An ICMP or ICMPv6 redirect: a client tells nobody where to send.
    Redirect = "redirect",
    /// The source address is not at home behind this vif.
    UnknownSource = "unknown-source",
    /// ARP that speaks for somebody else than a client of this vif; where the neighbour guard
    /// is on, neighbour discovery as well.
    ForeignNeighbour = "foreign-neighbour",
    /// An IPv6 source that is link-local or unspecified: the neighbour and multicast
    /// chatter of every client, which Qubes has always dropped. Not worth a record.
    LinkLocal = "link-local",
    /// For another machine's hardware address.
    OtherHost = "other-host",
    /// A VLAN tag.
    Tagged = "tagged",
    /// Neither ARP, IPv4 nor IPv6.
    ForeignEthertype = "foreign-ethertype",
    /// Shorter than its own headers say.
    Truncated = "truncated",
    /// Headers that contradict themselves.
    Malformed = "malformed",
    /// IPv4 loose or strict source route option.
    SourceRoute = "source-route",
    /// IPv6 routing header.
    RoutingHeader = "routing-header",
    /// More IPv6 extension headers than any honest sender needs.
    TooManyHeaders = "too-many-headers",
    /// An IPv4 address dressed as IPv6 on the wire.
    MappedAddress = "mapped-address",
    /// Denied, and over the client's budget of rejects: counted beside the rule.
    OverBudget = "over-budget",
    /// ARP, neighbour discovery, an ICMP error, or a new flow to the netvm itself or to many, and
    /// over what one vif can have handed on of these.
    TooMany = "too-many",
    /// Denied, but the client is audited, so it passed: counted beside the rule.
    Audit = "audit",
    /// From somewhere else than a client's vif, with a client's source address.
    ConnectedSource = "connected-source",
    /// For a client's address, but about to leave by another way than its vif.
    ConnectedDestination = "connected-destination",
    /// An ICMP error of a client of which connections may have to end.
    Settling = "settling",
    /// About to leave by an uplink, but what accepted it is not in force any more.
    Outdated = "outdated",
    /// The tables contradict themselves; a bug.
    Inconsistent = "inconsistent",
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The reason with this index in records and counters; `None` if there is none.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// Index of this reason in records and counters.
    #[inline(always)]
    pub const fn index(self) -> u8 {
        self as u8
    }
}

/// A verdict with its evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do with the packet.
    pub verdict: Verdict,
    /// Why the packet meets this verdict.
    pub reason: Reason,
    /// Index of the deciding rule, or [`DEFAULT_RULE`].
    pub rule: u32,
    /// Generation of the deciding policy, or 0.
    pub generation: u32,
    /// First counter of the client, or 0 for the counters of packets without a client.
    pub counters: u32,
    /// Index of the client, or 0 for a packet without a client.
    pub client: u32,
    /// Stamp of what is in force for the client ([`Client::stamp`]), or 0 for a packet without a
    /// client.
    pub stamp: u32,
    /// Until when the verdict counts, if the client is audited, in seconds since the machine booted
    /// ([`Client::audit_until`]); else 0.
    pub until: u32,
}

impl Decision {
    /// A verdict on a packet of no known client.
    #[inline(always)]
    pub const fn stray(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            rule: DEFAULT_RULE,
            generation: 0,
            counters: 0,
            client: 0,
            stamp: 0,
            until: 0,
        }
    }

    /// A verdict on a packet of a known client that no rule had a say in.
    #[inline(always)]
    pub const fn on(client: &Client, verdict: Verdict, reason: Reason) -> Self {
        let Client { state, generation, counters, index, stamp, .. } = *client;
        let verdict = settled(verdict, state);
        let rule = DEFAULT_RULE;
        Self { verdict, reason, rule, generation, counters, client: index, stamp, until: 0 }
    }

    /// The verdict of a client's policy.
    #[inline(always)]
    pub const fn of_policy(client: &Client, answer: &Segment) -> Self {
        let verdict = match answer.action {
            ACTION_ACCEPT => Verdict::Accept,
            _ => Verdict::Reject,
        };
        let reason = match answer.rule {
            DEFAULT_RULE => Reason::Default,
            _ => Reason::Rule,
        };
        let Client { state, generation, counters, index, stamp, .. } = *client;
        let verdict = settled(verdict, state);
        let rule = answer.rule;
        Self { verdict, reason, rule, generation, counters, client: index, stamp, until: 0 }
    }

    /// The verdict while the client is audited: the packet passes, until a time in seconds since
    /// the machine booted.
    #[inline(always)]
    pub const fn audited(self, until: u32) -> Self {
        Self { verdict: Verdict::Audit, until, ..self }
    }

    /// Whether rules deny the packet, whatever becomes of it. Rules are about what a client opens
    /// itself, so an answer of the client is told apart ([`Reason::Answer`]).
    #[inline(always)]
    pub const fn is_denial(&self) -> bool {
        match self.reason {
            Reason::Rule | Reason::Default | Reason::Blocked => {
                !matches!(self.verdict, Verdict::Accept)
            }
            _ => false,
        }
    }

    /// The decision about a denied packet that goes the other way of a connection towards its
    /// client: connection tracking has the last word.
    #[inline(always)]
    pub const fn answering(self) -> Self {
        let (verdict, reason) = (Verdict::Pass, Reason::Answer);
        Self { verdict, reason, rule: DEFAULT_RULE, until: 0, ..self }
    }

    /// Index of the counter that counts this packet, in the map of counters.
    #[inline(always)]
    pub const fn counter(&self) -> u32 {
        match self.reason {
            Reason::Rule => rule_counter(self.counters, self.rule),
            _ => reason_counter(self.counters, self.reason),
        }
    }
}

/// While a client settles, nothing is handed on that is denied.
#[inline(always)]
const fn settled(verdict: Verdict, state: u32) -> Verdict {
    match verdict {
        Verdict::Reject if state & SETTLING != 0 => Verdict::Drop,
        Verdict::Accept
        | Verdict::Reject
        | Verdict::Pass
        | Verdict::Drop
        | Verdict::Audit
        | Verdict::Related => verdict,
    }
}

/// Index of the counter of a reason, in the range that starts at `counters`.
#[inline(always)]
pub const fn reason_counter(counters: u32, reason: Reason) -> u32 {
    counters.wrapping_add(reason.index() as u32)
}

/// Index of the counter of a rule, in the range that starts at `counters`.
#[inline(always)]
pub const fn rule_counter(counters: u32, rule: u32) -> u32 {
    counters.wrapping_add(Reason::COUNT).wrapping_add(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_index_and_name() {
        for (index, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(usize::from(reason.index()), index);
            assert_eq!(Reason::from_index(reason.index()), Some(reason));
            let same = Reason::ALL.iter().filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{}", reason.name());
        }
        assert_eq!(Reason::from_index(Reason::ALL.len() as u8), None);
    }

    #[test]
    fn every_verdict_has_its_own_index() {
        for (index, &verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(usize::from(verdict.index()), index);
            assert_eq!(Verdict::from_index(verdict.index()), Some(verdict));
        }
        assert_eq!(Verdict::from_index(Verdict::ALL.len() as u8), None);
    }

    #[test]
    fn rule_counters_follow_reason_counters() {
        let last = Reason::ALL[Reason::ALL.len() - 1];
        assert_eq!(reason_counter(100, last) + 1, rule_counter(100, 0));
    }
}
