//! Sockets of questions to DNS, bound to a link where names may be asked by that link alone.
//! Never sends anything itself.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::time::Duration;

use firewall_core::uplinks::LinkName;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

/// How long a TCP connection may take if nobody says so, as in the library's own sockets.
const PATIENCE: Duration = Duration::from_secs(5);

type Later<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

/// Makes sockets for the library.
#[derive(Clone)]
pub(super) struct Sockets {
    plain: TokioRuntimeProvider,
    /// The only link by which they send and receive; `None`: any.
    link: Option<LinkName>,
}

impl Sockets {
    pub(super) fn by(link: Option<LinkName>) -> Self {
        Self { plain: TokioRuntimeProvider::default(), link }
    }

    /// An error if nothing can be sent to a server by the link now, say because the link is down. The
    /// library would not say why.
    pub(super) fn try_way(&self, server: SocketAddr) -> io::Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        bind(&socket, link)?;
        // Looks for a way, and sends nothing.
        socket.connect(server)
    }
}

fn bind(socket: &impl AsFd, link: &LinkName) -> io::Result<()> {
    Ok(setsockopt(socket, BindToDevice, &link.as_str().into())?)
}

impl RuntimeProvider for Sockets {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = <TokioRuntimeProvider as RuntimeProvider>::Udp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.plain.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        own: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Later<Self::Tcp> {
        let Some(link) = self.link.clone() else {
            return self.plain.connect_tcp(server, own, patience);
        };
        Box::pin(async move {
            let socket = match server {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            bind(&socket, &link)?;
            if let Some(own) = own {
                socket.bind(own)?;
            }
            socket.set_nodelay(true)?;
            let connected = timeout(patience.unwrap_or(PATIENCE), socket.connect(server)).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(&self, own: SocketAddr, server: SocketAddr) -> Later<Self::Udp> {
        let Some(link) = self.link.clone() else {
            return self.plain.bind_udp(own, server);
        };
        Box::pin(async move {
            let socket = UdpSocket::bind(own).await?;
            bind(&socket, &link)?;
            Ok(socket)
        })
    }
}
