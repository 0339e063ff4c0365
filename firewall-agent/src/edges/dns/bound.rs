//! Sockets of questions to DNS, bound to a link where names may be asked by that link alone.
//! Never sends anything itself.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::time::Duration;

use firewall_core::uplinks::LinkName;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{self, SockaddrStorage, setsockopt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::given::{Kind, socket_of};

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
    pub(super) async fn try_way(&self, server: SocketAddr) -> io::Result<()> {
        if self.link.is_none() {
            return Ok(());
        }
        let kind = Kind { is_tcp: false, is_v6: server.is_ipv6() };
        // Looks for a way, and sends nothing.
        std::net::UdpSocket::from(made(kind, self.link.as_ref()).await?).connect(server)
    }
}

/// A socket that is bound to a link, if there is one.
async fn made(kind: Kind, link: Option<&LinkName>) -> io::Result<OwnedFd> {
    let socket = socket_of(kind).await?;
    if let Some(link) = link {
        bind(&socket, link)?;
    }
    Ok(socket)
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
        let link = self.link.clone();
        Box::pin(async move {
            let kind = Kind { is_tcp: true, is_v6: server.is_ipv6() };
            let socket = TcpStream::from(made(kind, link.as_ref()).await?);
            let socket = TcpSocket::from_std_stream(socket);
            if let Some(own) = own {
                socket.bind(own)?;
            }
            socket.set_nodelay(true)?;
            let connected = timeout(patience.unwrap_or(PATIENCE), socket.connect(server)).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(&self, own: SocketAddr, _server: SocketAddr) -> Later<Self::Udp> {
        let link = self.link.clone();
        Box::pin(async move {
            let kind = Kind { is_tcp: false, is_v6: own.is_ipv6() };
            let socket = made(kind, link.as_ref()).await?;
            socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
            UdpSocket::from_std(socket.into())
        })
    }
}
