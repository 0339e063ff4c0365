//! What a guest is told to do over its console, and what it answers: one line of JSON each.
//! Never says what should come of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use firewall_tests::traffic::probe::{Outcome, Protocol};

/// Begins each line of an answer, which the kernel's lines do not.
pub const MARK: &str = "@answer ";

/// The namespace that a guest is in, by name, and its interface.
pub const NAMESPACE: &str = "guest";
pub const INTERFACE: &str = "eth0";

/// An order with the number by which its answer is known.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Numbered<T> {
    pub number: u64,
    pub content: T,
}

/// What a guest is to do. Orders do not wait for each other.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Order {
    /// Wait for the interface, give it addresses and a way out, and say how many queues it has.
    Configure(Addresses),
    /// Set how long a frame may be.
    Mtu(u32),
    /// Try to reach something.
    Probe { how: How, to: SocketAddr },
    /// Send a datagram of so many bytes to an echo server, and say how many came back.
    Datagram { to: SocketAddr, bytes: usize, from_port: u16 },
    /// Send frames, Ethernet header first; of those with a length, only so much is linear.
    Frames(Vec<Frame>),
    /// Send so many bytes of the pattern, or for as long as it goes, and say what the server says.
    Upload { to: SocketAddr, bytes: u64 },
    /// Say which neighbours the guest knows.
    Neighbours,
    /// Forget all uploads that are not over.
    Abandon,
    /// Receive so many bytes of the pattern; an error if one is another.
    Download { to: SocketAddr, bytes: u64 },
    /// Open a connection that stays.
    Open { to: SocketAddr },
    /// Do bytes come back on the connection that stays?
    Exchange,
    /// Begin to send datagrams to these servers in turns, as soon and as long as there is a way.
    Pump { to: Vec<SocketAddr>, token: Vec<u8> },
    /// End that, and say how many were sent.
    StopPump,
}

/// Addresses of a guest, which are its netvm's as Qubes OS gives them.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both of them.
    pub fn all(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// How to reach something.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Tcp,
    Udp,
    Ping,
}

impl From<How> for Protocol {
    fn from(how: How) -> Self {
        match how {
            How::Tcp => Self::Tcp,
            How::Udp => Self::Udp,
            How::Ping => Self::Ping,
        }
    }
}

/// A frame to send.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub linear: Option<u16>,
}

/// What came of an order.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Is(bool),
    Number(u64),
    Text(String),
    Accepted,
    Rejected { icmp_type: u8, icmp_code: u8 },
    Refused,
    Silent,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Rejected { icmp_type, icmp_code } => Self::Rejected { icmp_type, icmp_code },
            Outcome::Refused => Self::Refused,
            Outcome::Silent => Self::Silent,
        }
    }
}
