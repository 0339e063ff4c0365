//! What is outside of the netvm: a namespace behind dom0's uplink, with servers of two addresses.
//! Never sends anything that it was not asked for.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use firewall_tests::rig::namespace::{Namespace, ip};
use firewall_tests::rig::server::EchoServer;

use crate::pattern::Pattern;

/// Dom0's interface towards it.
pub const UPLINK: &str = "up0";
/// A server that rules may name, one family after the other, and one that no rule names.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);
pub const SERVER: [IpAddr; 2] = [IpAddr::V4(SERVER4), IpAddr::V6(SERVER6)];
pub const OTHER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 8)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 8)),
];
/// Ports: two that echo, one that takes the pattern, one that gives it.
pub const ECHO: [u16; 2] = [443, 80];
pub const SINK: u16 = 5001;
pub const SOURCE: u16 = 5002;
/// Of all links, and for frames of more than a page.
pub const MTU: u32 = 1500;
pub const LONG_MTU: u32 = 9000;

/// How far the last upload got: when so many bytes were read.
pub type Growth = Arc<Mutex<Vec<(Duration, u64)>>>;

/// The outside.
pub struct Outside {
    pub growth: Growth,
    _echoes: Vec<EchoServer>,
}

impl Outside {
    /// Makes it, and dom0's way to it.
    pub fn new() -> Result<Self> {
        ip(&["netns", "add", "outside"])?;
        let outside = Namespace::named("outside".to_owned());
        let peer = ["peer", "name", "eth0", "netns", "outside"];
        ip(&[&["link", "add", UPLINK, "type", "veth"][..], &peer].concat())?;
        ip(&["address", "add", "192.0.2.1/24", "dev", UPLINK])?;
        ip(&["address", "add", "2001:db8::1/64", "dev", UPLINK, "nodad"])?;
        ip(&["link", "set", UPLINK, "up"])?;
        outside.ip(&["link", "set", "lo", "up"])?;
        outside.ip(&["address", "add", "192.0.2.2/24", "dev", "eth0"])?;
        outside.ip(&["address", "add", "2001:db8::2/64", "dev", "eth0", "nodad"])?;
        outside.ip(&["link", "set", "eth0", "up"])?;
        for address in SERVER.iter().chain(&OTHER) {
            outside.ip(&["address", "add", &address.to_string(), "dev", "lo"])?;
        }
        ip(&["route", "add", "default", "via", "192.0.2.2"])?;
        ip(&["-6", "route", "add", "default", "via", "2001:db8::2"])?;
        // Each denied packet is to be answered, however many there are.
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv4/icmp_msgs_per_sec", "100000"),
            ("ipv4/icmp_msgs_burst", "100000"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            fs::write(format!("/proc/sys/net/{key}"), value)?;
        }
        let addresses = || SERVER.into_iter().chain(OTHER);
        let echo = |port| addresses().map(move |address| SocketAddr::new(address, port));
        let echoes = ECHO.into_iter().flat_map(echo);
        let echoes = echoes.map(|address| EchoServer::start(&outside, address));
        let echoes = echoes.collect::<Result<Vec<_>>>()?;
        let growth = Growth::default();
        for address in SERVER {
            let its = Arc::clone(&growth);
            serve(&outside, SocketAddr::new(address, SINK), move |stream| take(stream, &its))?;
            serve(&outside, SocketAddr::new(address, SOURCE), give)?;
        }
        Ok(Self { growth, _echoes: echoes })
    }

    /// Sets how long a frame on the uplink may be.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        ip(&["link", "set", UPLINK, "mtu", &mtu.to_string()])?;
        let outside = Namespace::named("outside".to_owned());
        outside.ip(&["link", "set", "eth0", "mtu", &mtu.to_string()]).map(drop)
    }

    /// How far the last upload got so far.
    pub fn growth(&self) -> Vec<(Duration, u64)> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The time since 1970, as frames have it.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn serve(
    outside: &Namespace,
    address: SocketAddr,
    work: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let listener = outside.run(|| Ok(TcpListener::bind(address)?))?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let work = work.clone();
            // A guest that goes away in between is no error of the outside.
            thread::spawn(move || drop(work(stream)));
        }
    });
    Ok(())
}

/// Takes the pattern to its end, and says how many bytes of it were right.
fn take(mut stream: TcpStream, growth: &Growth) -> Result<()> {
    let growing = || growth.lock().unwrap_or_else(PoisonError::into_inner);
    growing().clear();
    let (mut pattern, mut got, mut is_right) = (Pattern::new(), 0, true);
    let mut buffer = vec![0; 1 << 17];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        is_right &= pattern.is_next(buffer.get(..length).unwrap_or_default());
        got += length as u64;
        growing().push((now(), got));
    }
    let text = if is_right { format!("{got} right") } else { format!("{got} with an error") };
    Ok(stream.write_all(text.as_bytes())?)
}

/// Gives as many bytes of the pattern as it is asked for.
fn give(mut stream: TcpStream) -> Result<()> {
    let mut asked = [0; 8];
    stream.read_exact(&mut asked)?;
    let (mut pattern, mut left) = (Pattern::new(), u64::from_le_bytes(asked));
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 17);
        let sent = stream.write(pattern.next(most))?;
        pattern.advance(sent);
        left -= sent as u64;
    }
    Ok(())
}
