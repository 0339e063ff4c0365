//! Whom the attacker must not harm: two clients and the netvm itself, each with a TCP
//! connection, a UDP flow with whole and fragmented datagrams, and pings, in both families.
//! Never forgives: an error on a socket, an answer that does not come, or a smaller MTU is harm.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::{IpMtu, Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{getsockopt, setsockopt};

use super::place::{Flow, Ports, SERVED, SERVER, Whose};
use crate::packets::family::{Family, PerFamily as _};
use crate::rig::agent::PATIENCE;
use crate::rig::namespace::Namespace;
use crate::traffic::icmp::{Content, Heard, IcmpSocket, Sent};
use crate::traffic::options::Ipv6Mtu;
use crate::traffic::probe::OpenFlow;
use crate::traffic::wait::Deadline;

/// Bytes of a datagram that fits the link, and of one that does not.
const SIZES: [usize; 2] = [64, 4000];
const FIRST_PORT: u16 = 42000;

/// Somebody honest.
pub(crate) struct Party {
    name: String,
    whose: Whose,
    namespace: Namespace,
    flows: Vec<Flows>,
}

/// What somebody has open in one family.
struct Flows {
    family: Family,
    tcp: OpenFlow,
    udp: UdpSocket,
    icmp: IcmpSocket,
    ping: Sent,
    identifier: u16,
    mtu: i32,
    /// Number of the last datagram or ping.
    number: u32,
}

impl Party {
    /// Opens all flows from these addresses.
    pub(crate) fn new(
        name: &str,
        whose: Whose,
        namespace: &Namespace,
        own: &[IpAddr],
    ) -> Result<Self> {
        let index = match whose {
            Whose::Honest(index) => u16::from(index),
            Whose::Netvm | Whose::Own => 9,
        };
        let mut flows = Vec::new();
        for (family, own) in Family::BOTH.into_iter().zip(own) {
            let port = FIRST_PORT + index * 10 + family.of([4, 6]);
            flows.push(Flows::open(namespace, family, *own, port)?);
        }
        Ok(Self { name: name.to_owned(), whose, namespace: namespace.clone(), flows })
    }

    /// What an attacker has to know to speak about its flows.
    pub(crate) fn ports(&self) -> Result<Ports> {
        let mut ports = Vec::new();
        for flows in &self.flows {
            let (whose, family) = (self.whose, flows.family);
            ports.push((whose, family, Flow::Tcp, flows.tcp.local_address()?.port()));
            ports.push((whose, family, Flow::Udp, flows.udp.local_addr()?.port()));
            ports.push((whose, family, Flow::Ping, flows.identifier));
        }
        Ok(Ports(ports))
    }

    /// Uses all flows once; returns what is wrong with them.
    pub(crate) fn exchange(&mut self) -> Result<Vec<String>> {
        let mut harm = Vec::new();
        for flows in &mut self.flows {
            let found = flows.exchange();
            let found = found.with_context(|| self.name.clone())?;
            harm.extend(
                found.into_iter().map(|it| format!("{}, {:?}: {it}", self.name, flows.family)),
            );
            let now = self.namespace.run(|| mtu(flows.family.of(SERVER)))?;
            if now != flows.mtu {
                let (name, before) = (&self.name, flows.mtu);
                harm.push(format!("{name}, {:?}: MTU {now} instead of {before}", flows.family));
            }
        }
        Ok(harm)
    }
}

impl Flows {
    fn open(namespace: &Namespace, family: Family, own: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(family.of(SERVER), SERVED);
        let tcp = OpenFlow::open(namespace, to, PATIENCE)?;
        let (udp, icmp, mtu) = namespace.run(|| {
            let udp = UdpSocket::bind((own, port)).with_context(|| format!("port {port}"))?;
            udp.connect(to)?;
            udp.set_nonblocking(true)?;
            // Every ICMP error becomes an error of the socket, not only what ends a flow.
            match family {
                Family::V4 => setsockopt(&udp, Ipv4RecvErr, &true)?,
                Family::V6 => setsockopt(&udp, Ipv6RecvErr, &true)?,
            }
            Ok((udp, IcmpSocket::open(to.ip())?, mtu(to.ip())?))
        })?;
        let content = Content::Echo { identifier: port };
        let ping = Sent { source: own, destination: to.ip(), content };
        Ok(Self { family, tcp, udp, icmp, ping, identifier: port, mtu, number: 0 })
    }

    /// What is wrong.
    fn exchange(&mut self) -> Result<Vec<String>> {
        let mut harm = Vec::new();
        match self.tcp.exchange(PATIENCE) {
            Ok(true) => {}
            Ok(false) => harm.push("its TCP connection is dead".to_owned()),
            Err(error) => harm.push(format!("its TCP connection: {error:#}")),
        }
        for size in SIZES {
            if let Err(error) = self.datagram(size) {
                harm.push(format!("a UDP datagram of {size} bytes: {error:#}"));
            }
        }
        harm.extend(self.ping()?);
        Ok(harm)
    }

    fn datagram(&mut self, size: usize) -> Result<()> {
        self.number += 1;
        let mut data = self.number.to_be_bytes().to_vec();
        data.resize(size, b'.');
        // An error that is told now came before.
        self.udp.send(&data)?;
        let deadline = Deadline::after(PATIENCE);
        let mut buffer = [0; 1 << 13];
        loop {
            match self.udp.recv(&mut buffer) {
                // An answer that was given up is late.
                Ok(length) if buffer.get(..4) != data.get(..4) && length >= 4 => {}
                Ok(length) => {
                    ensure!(
                        buffer.get(..length) == Some(&data[..]),
                        "the echo is not what was sent"
                    );
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut descriptors = [PollFd::new(self.udp.as_fd(), PollFlags::POLLIN)];
                    ensure!(deadline.poll(&mut descriptors)?, "no answer");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ping(&mut self) -> Result<Option<String>> {
        // Whatever else this socket heard is gone; errors about the pings are not.
        while let Some(heard) = self.icmp.heard(&self.ping)? {
            if let Some(harm) = harm_of(&heard) {
                return Ok(Some(harm));
            }
        }
        self.number += 1;
        let payload = self.number.to_be_bytes();
        self.icmp.ping(self.ping.destination, self.identifier, &payload)?;
        let deadline = Deadline::after(PATIENCE);
        loop {
            match self.icmp.heard(&self.ping)? {
                Some(Heard::Reply(reply)) if reply == payload => return Ok(None),
                Some(heard) => {
                    if let Some(harm) = harm_of(&heard) {
                        return Ok(Some(harm));
                    }
                }
                None => {
                    let descriptor = self.icmp.descriptor();
                    if !deadline.poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)])? {
                        return Ok(Some("a ping: no answer".to_owned()));
                    }
                }
            }
        }
    }
}

fn harm_of(heard: &Heard) -> Option<String> {
    match heard {
        Heard::Error { icmp_type, icmp_code } => {
            Some(format!("a ping: error {icmp_type}/{icmp_code}"))
        }
        Heard::Reply(_) => None,
    }
}

/// The MTU of the way to an address, in the calling thread's namespace.
pub(crate) fn mtu(to: IpAddr) -> Result<i32> {
    let any: SocketAddr = match to {
        IpAddr::V4(_) => "0.0.0.0:0".parse()?,
        IpAddr::V6(_) => "[::]:0".parse()?,
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((to, 9))?;
    Ok(match to {
        IpAddr::V4(_) => getsockopt(&socket, IpMtu)?,
        IpAddr::V6(_) => getsockopt(&socket, Ipv6Mtu)?,
    })
}
