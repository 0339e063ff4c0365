//! What the daemon must do.
//! Never says what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use firewall_common::abi::Local;

use super::Notice;
use crate::client::ClientId;
use crate::connection::Flow;
use crate::names::answer::Remembered;
use crate::rules::check::ProvedPolicy;
use crate::rules::question::Question;
use crate::told::news::Denied;
use crate::uplinks::Uplinks;

/// What to put in force for a client.
#[derive(Clone, Debug)]
pub enum Installation {
    /// Drop everything; no rules are known.
    Waiting,
    /// Reject everything.
    Blocked,
    /// Let a policy decide.
    Policy {
        /// The policy.
        policy: ProvedPolicy,
        /// How many rules to count.
        rules: u32,
    },
}

/// Something the daemon must do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Tell which links there are now.
    ReadLinks,
    /// The netvm's own addresses are now these.
    SetLocals(BTreeMap<IpAddr, Local>),
    /// These addresses, and no others, belong to clients, present or not.
    SetConnected(BTreeSet<IpAddr>),
    /// Whether others' rules in the gate are to be asked about clients without rules.
    LeaveToOthers(bool),
    /// Tell what else in nftables packets of clients come by.
    LookBetween,
    /// From now on, the gate is to lead the first address of each pair, a virtual resolver, to the
    /// second, a real one.
    Redirect(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// From now on, the gate is to let clients' packets leave by these links alone, and names are to be
    /// asked by them; `None`: by any.
    LimitUplinks(Option<Uplinks>),
    /// End what waits for the address of a neighbour at any other link than these and vifs.
    EndWaiting(Uplinks),
    /// Put something in force for a client.
    Put {
        /// The client.
        client: ClientId,
        /// What to put in force.
        installation: Installation,
        /// Number of what is put in force.
        generation: u32,
        /// Whether it may deny what was accepted before, and the client settles.
        settles: bool,
    },
    /// Let what a client's policy denies pass, and tell it.
    Audit {
        /// The client.
        client: ClientId,
        /// When that ends, in seconds since the machine booted (CLOCK_BOOTTIME); 0: the client is
        /// not audited any more.
        until: u32,
    },
    /// A client is gone: remove all that is in force for it.
    Remove(ClientId),
    /// Tell which connections these addresses have opened, part by part.
    ReadConnections(BTreeSet<IpAddr>),
    /// Make known which connections were opened towards these clients earlier, so that their answers
    /// are told as such.
    NoteOpenings(BTreeSet<ClientId>),
    /// End these connections.
    Disconnect(Vec<Flow>),
    /// A client has nothing open any more that it must not have: its denied packets are to be
    /// rejected again.
    Settled(ClientId),
    /// What the rules of the client with this address come to is in force, and what they deny has
    /// ended: tell the source.
    Handled(IpAddr),
    /// Tell the source what the names in a client's rules lead to.
    Publish {
        /// The client's address.
        client: IpAddr,
        /// Addresses that accept rules use, by name, as far as names are resolved.
        names: BTreeMap<String, BTreeSet<IpAddr>>,
    },
    /// Ask these DNS servers from now on, and forget what was asked before.
    SetServers(Vec<SocketAddr>),
    /// Ask DNS this question.
    Ask(Question),
    /// Find out which connections lead to these addresses.
    ReadFlows(BTreeSet<IpAddr>),
    /// Keep these answers of DNS for a later agent.
    Remember(Vec<Remembered>),
    /// Attach the program to a vif.
    Attach {
        /// Interface index.
        vif: u32,
        /// Interface name.
        name: String,
    },
    /// Attach the programs that guard clients' addresses to another link.
    AttachUplink {
        /// Interface index.
        uplink: u32,
        /// Interface name.
        name: String,
    },
    /// A link is gone: remove what is left of it.
    Forget {
        /// Interface index.
        link: u32,
    },
    /// Everything that is there is in force for the first time: what an earlier agent left
    /// for links other than these can go. Links are interface indices.
    TakenOver(Vec<u32>),
    /// Wait until no packet can see what was replaced, and make room of it. From then on what
    /// clients have open can be looked through.
    Tidy,
    /// Make room of what was replaced, and make it ready for the next policies; nobody waits.
    Prepare,
    /// Load the gate.
    LoadGate,
    /// In a Whonix gateway: have denied packets that come by these vifs answered, by their names.
    AnswerDenied(BTreeSet<String>),
    /// A packet was denied: tell whoever listens.
    Denied(Box<Denied>),
    /// Tell the service manager that everything is being read again.
    Reloading,
    /// Tell the service manager that the source of rules has answered.
    Ready,
    /// Have the source read everything again.
    ReloadSource,
    /// Have the source read everything again, if it can miss a change.
    ResyncSource,
    /// Tell whoever reads the log.
    Tell(Notice),
}
