//! The only program of a guest: obeys orders that come as lines on its console.
//! Never decides what a check needs.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, send, setsockopt};
use socket2::SockRef;

use firewall_tests::rig::namespace::Namespace;
use firewall_tests::traffic::frames::open;
use firewall_tests::traffic::options::VirtioHeaders;
use firewall_tests::traffic::probe::{OpenFlow, Probe};

use crate::order::{Addresses, Answer, Frame, INTERFACE, MARK, NAMESPACE, Numbered, Order};
use crate::pattern::Pattern;

/// How long an emulated machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(500);
/// How long nothing must come back to call it silence.
const SILENCE: Duration = Duration::from_secs(4);

const PUMP_PAUSE: Duration = Duration::from_millis(2);

/// What outlives an order.
#[derive(Clone, Default)]
struct Guest {
    flow: Arc<Mutex<Option<OpenFlow>>>,
    uploads: Arc<Mutex<Vec<TcpStream>>>,
    pumps: Arc<AtomicBool>,
    pumped: Arc<AtomicU64>,
}

/// Obeys until the console ends.
pub fn obey() -> Result<()> {
    let guest = Guest::default();
    answer(&Numbered { number: 0, content: Ok(Answer::Done) })?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Ok(order) = serde_json::from_str::<Numbered<Order>>(line.trim()) else {
            println!("not an order: {line}");
            continue;
        };
        let guest = guest.clone();
        thread::spawn(move || {
            let content = guest.obey(order.content).map_err(|error| format!("{error:#}"));
            let _ = answer(&Numbered { number: order.number, content });
        });
    }
    Ok(())
}

fn answer(content: &Numbered<Result<Answer, String>>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK}{}", serde_json::to_string(content)?)?;
    Ok(out.flush()?)
}

impl Guest {
    fn obey(&self, order: Order) -> Result<Answer> {
        let here = Namespace::named(NAMESPACE.to_owned());
        match order {
            Order::Configure(addresses) => configure(addresses),
            Order::Mtu(mtu) => {
                ip(&["link", "set", INTERFACE, "mtu", &mtu.to_string()])?;
                Ok(Answer::Done)
            }
            Order::Probe { how, to } => {
                let probe =
                    Probe { from: here, to: to.ip(), port: to.port(), protocol: how.into() };
                Ok(probe.run(SILENCE)?.into())
            }
            Order::Datagram { to, bytes, from_port } => datagram(to, bytes, from_port),
            Order::Frames(frames) => send_frames(&frames),
            Order::Upload { to, bytes } => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE).context("cannot connect")?;
                lock(&self.uploads).push(stream.try_clone()?);
                upload(stream, bytes)
            }
            Order::Neighbours => Ok(Answer::Text(ip(&["neigh", "show"])?)),
            Order::Abandon => {
                for stream in lock(&self.uploads).drain(..) {
                    // The last one that closes it ends it at once.
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                }
                Ok(Answer::Done)
            }
            Order::Download { to, bytes } => download(to, bytes),
            Order::Open { to } => {
                *lock(&self.flow) = Some(OpenFlow::open(&here, to, PATIENCE)?);
                Ok(Answer::Done)
            }
            Order::Exchange => {
                let mut flow = lock(&self.flow);
                Ok(Answer::Is(flow.as_mut().context("no open connection")?.exchange(SILENCE)?))
            }
            Order::Pump { to, token } => {
                self.pumps.store(true, Ordering::Relaxed);
                self.pumped.store(0, Ordering::Relaxed);
                let guest = self.clone();
                thread::spawn(move || guest.pump(&to, &token));
                Ok(Answer::Done)
            }
            Order::StopPump => {
                self.pumps.store(false, Ordering::Relaxed);
                Ok(Answer::Number(self.pumped.load(Ordering::Relaxed)))
            }
        }
    }

    /// Sends until it is told to stop. Without an interface there is no way, until there is one.
    fn pump(&self, to: &[SocketAddr], token: &[u8]) -> Result<()> {
        let v4 = UdpSocket::bind("0.0.0.0:7070")?;
        let v6 = UdpSocket::bind("[::]:7071")?;
        while self.pumps.load(Ordering::Relaxed) {
            for to in to {
                let socket = if to.is_ipv4() { &v4 } else { &v6 };
                let is_sent = socket.send_to(token, to).is_ok();
                self.pumped.fetch_add(u64::from(is_sent), Ordering::Relaxed);
            }
            // The firewall and this guest may share one processor.
            thread::sleep(PUMP_PAUSE);
        }
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As Qubes OS sets up a qube: host addresses, and the netvm as the way out.
fn configure(addresses: Addresses) -> Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    let directory = Path::new("/sys/class/net").join(INTERFACE);
    while !directory.exists() {
        ensure!(Instant::now() < deadline, "no {INTERFACE}");
        thread::sleep(Duration::from_millis(2));
    }
    let sysctl = |key: &str, value: &str| std::fs::write(format!("/proc/sys/net/{key}"), value);
    sysctl(&format!("ipv6/conf/{INTERFACE}/accept_dad"), "0")?;
    let (v4, v6) = (format!("{}/32", addresses.v4), format!("{}/128", addresses.v6));
    for words in [
        &["link", "set", INTERFACE, "up"][..],
        &["address", "add", &v4, "dev", INTERFACE],
        &["route", "add", "10.137.0.1", "dev", INTERFACE],
        &["route", "add", "default", "via", "10.137.0.1"],
        &["-6", "address", "add", &v6, "dev", INTERFACE],
        &["-6", "route", "add", "fd09::1", "dev", INTERFACE],
        &["-6", "route", "add", "default", "via", "fd09::1", "dev", INTERFACE],
    ] {
        ip(words)?;
    }
    let queues = std::fs::read_dir(directory.join("queues"))?.flatten();
    let sends = queues.filter(|queue| queue.file_name().to_string_lossy().starts_with("tx-"));
    Ok(Answer::Number(sends.count() as u64))
}

fn ip(words: &[&str]) -> Result<String> {
    let output = Command::new("/bin/busybox").arg("ip").args(words).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {error}", words.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

fn datagram(to: SocketAddr, bytes: usize, from_port: u16) -> Result<Answer> {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, from_port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let content = Pattern::new().next(bytes).to_vec();
    socket.send(&content)?;
    let mut buffer = vec![0; 1 << 16];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            ensure!(buffer.get(..length) == Some(&content), "the echo is not what was sent");
            Ok(Answer::Number(length as u64))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Answer::Silent),
        Err(_) => Ok(Answer::Refused),
    }
}

fn send_frames(frames: &[Frame]) -> Result<Answer> {
    let plain = open(INTERFACE, 0)?;
    let cut = open(INTERFACE, 0)?;
    setsockopt(&cut, VirtioHeaders, &true)?;
    for frame in frames {
        // Of a `virtio_net_hdr` only `hdr_len`: how much shall be linear.
        let (socket, bytes) = match frame.linear {
            None => (&plain, frame.bytes.clone()),
            Some(linear) => {
                let head = [&[0, 0], &linear.to_ne_bytes()[..], &[0; 6]].concat();
                (&cut, [head, frame.bytes.clone()].concat())
            }
        };
        let sent = send(socket.as_raw_fd(), &bytes, MsgFlags::empty())
            .with_context(|| format!("a frame of {} bytes", frame.bytes.len()))?;
        ensure!(sent == bytes.len(), "only {sent} bytes were sent");
    }
    Ok(Answer::Number(frames.len() as u64))
}

/// Sends so many bytes of the pattern; the answer is what the server says in the end.
fn upload(mut stream: TcpStream, bytes: u64) -> Result<Answer> {
    let (mut pattern, mut left) = (Pattern::new(), bytes);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 17);
        let sent = stream.write(pattern.next(most)).context("cannot send")?;
        pattern.advance(sent);
        left -= sent as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("no answer")?;
    Ok(Answer::Text(text))
}

fn download(to: SocketAddr, bytes: u64) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("cannot connect")?;
    stream.write_all(&bytes.to_le_bytes())?;
    let (mut pattern, mut got) = (Pattern::new(), 0);
    let mut buffer = vec![0; 1 << 17];
    loop {
        let length = stream.read(&mut buffer).context("cannot receive")?;
        if length == 0 {
            break;
        }
        let part = buffer.get(..length).unwrap_or_default();
        ensure!(pattern.is_next(part), "the bytes behind {got} are not those that were sent");
        got += length as u64;
    }
    ensure!(got == bytes, "{got} of {bytes} bytes came");
    Ok(Answer::Number(got))
}
