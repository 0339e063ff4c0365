//! By what way questions to a DNS server leave, and why they do not leave: the library tells
//! neither.
//! Never asks a question.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::given::{Kind, socket_of};

/// A way to a server.
pub(super) struct Way {
    /// The netvm's address from which questions leave, and the interface that has it, as far as the
    /// kernel knows a way.
    from: Option<String>,
    /// Whether something leaves, or what the kernel says instead: there is no route, or a chain of
    /// nftables lets nothing out.
    outcome: io::Result<()>,
}

impl Way {
    /// Tries it with a datagram in which there is nothing.
    pub(super) async fn to(server: SocketAddr) -> Self {
        let kind = Kind { is_tcp: false, is_v6: server.is_ipv6() };
        let connected = socket_of(kind).await.map(UdpSocket::from).and_then(|socket| {
            socket.connect(server)?;
            let own = socket.local_addr()?.ip();
            Ok((socket, own))
        });
        match connected {
            Ok((socket, own)) => {
                let outcome = socket.send(&[]).map(drop);
                Self { from: Some(with_interface(own)), outcome }
            }
            Err(error) => Self { from: None, outcome: Err(error) },
        }
    }

    /// What became of a question, which the library words like this, or which nobody answered.
    pub(super) fn tell(&self, error: Option<&dyn ToString>) -> String {
        let from = self.from.as_ref().map(|it| format!(" from {it}")).unwrap_or_default();
        match (&self.outcome, error) {
            (Err(why), _) => format!("cannot be asked{from}: {why}"),
            (Ok(()), Some(error)) => format!("cannot be asked{from}: {}", error.to_string()),
            (Ok(()), None) => format!("does not answer, asked{from}"),
        }
    }
}

/// An address, and the interface that has it, if only one does.
fn with_interface(address: IpAddr) -> String {
    let has = |it: &SockaddrStorage| {
        let v4 = it.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        let v6 = it.as_sockaddr_in6().map(|it| IpAddr::from(it.ip()));
        v4.or(v6) == Some(address)
    };
    let interfaces = getifaddrs().into_iter().flatten();
    let having = interfaces.filter(|it| it.address.as_ref().is_some_and(has));
    let names: Vec<String> = having.map(|it| it.interface_name).collect();
    match names.as_slice() {
        [name] => format!("{address} ({name})"),
        _ => address.to_string(),
    }
}
