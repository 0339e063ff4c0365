//! A DNS server that says what a test wants, right or wrong, over UDP and TCP.
//! Never knows a name that it was not told: it refuses to answer.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::rig::namespace::Namespace;
use crate::rig::shared::Shared;

/// What is said about a name.
#[derive(Clone, Debug)]
pub struct Reply {
    code: ResponseCode,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
    is_silent: bool,
    is_held: bool,
    is_large: bool,
    is_old: bool,
}

impl Reply {
    /// Nothing but a code.
    pub fn code(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            is_silent: false,
            is_held: false,
            is_large: false,
            is_old: false,
        }
    }

    /// There is no such name.
    pub fn no_such_name() -> Self {
        Self::code(ResponseCode::NXDomain)
    }

    /// Addresses. If the question is for the other family, there are none.
    pub fn addresses(name: &str, ttl: u32, addresses: &[&str]) -> Self {
        let more = |reply: Self, address: &&str| reply.address(name, ttl, address);
        addresses.iter().fold(Self::code(ResponseCode::NoError), more)
    }

    /// Never any reply.
    pub fn silence() -> Self {
        Self { is_silent: true, ..Self::code(ResponseCode::NoError) }
    }

    /// One more address.
    pub fn address(mut self, name: &str, ttl: u32, address: &str) -> Self {
        self.answers.push(address_record(name, ttl, address));
        self
    }

    /// One more alias.
    pub fn alias(mut self, name: &str, ttl: u32, target: &str) -> Self {
        self.answers.push(record(name, ttl, RData::CNAME(CNAME(fqdn(target)))));
        self
    }

    /// A zone that has no such record, which may be used so long.
    pub fn zone(mut self, zone: &str, ttl: u32) -> Self {
        let soa = SOA::new(fqdn(zone), fqdn(zone), 1, 1, 1, 1, ttl);
        self.authority.push(record(zone, ttl, RData::SOA(soa)));
        self
    }

    /// Another server that is said to know.
    pub fn referral(mut self, zone: &str, server: &str) -> Self {
        self.authority.push(record(zone, 60, RData::NS(NS(fqdn(server)))));
        self
    }

    /// An address where nobody asked for it.
    pub fn poison(mut self, name: &str, address: &str) -> Self {
        self.additional.push(address_record(name, 60, address));
        self.authority.push(address_record(name, 60, address));
        self
    }

    /// Too large for UDP, which carries a part only.
    pub fn large(mut self) -> Self {
        self.is_large = true;
        self
    }

    /// Held back until [`DnsServer::release`]; UDP only.
    pub fn held(mut self) -> Self {
        self.is_held = true;
        self
    }

    /// From a server that knows no extensions (EDNS).
    pub fn old(mut self) -> Self {
        self.is_old = true;
        self
    }

    /// The message, if there is one.
    fn to(&self, question: &Message, query: &Query, is_udp: bool) -> Option<Message> {
        if self.is_silent {
            return None;
        }
        let mut message = Message::response(question.metadata.id, OpCode::Query);
        message.metadata.recursion_available = true;
        message.add_query(query.clone());
        if self.is_old && question.edns.is_some() {
            message.metadata.response_code = ResponseCode::FormErr;
            return Some(message);
        }
        message.metadata.response_code = self.code;
        let kinds = [query.query_type(), RecordType::CNAME];
        let fits = |record: &&Record| kinds.contains(&record.record_type());
        let answers: Vec<Record> = self.answers.iter().filter(fits).cloned().collect();
        message.metadata.truncation = is_udp && self.is_large;
        let room = if message.metadata.truncation { 1 } else { usize::MAX };
        message.add_answers(answers.into_iter().take(room));
        message.add_authorities(self.authority.clone());
        message.add_additionals(self.additional.clone());
        Some(message)
    }
}

fn fqdn(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).expect("a name")
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(fqdn(name), ttl, data)
}

fn address_record(name: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().expect("an address") {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    record(name, ttl, data)
}

/// A question that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name, without the dot at its end.
    pub name: String,
    /// A or AAAA.
    pub kind: RecordType,
    /// Whether it came by UDP.
    pub is_udp: bool,
    /// When.
    pub at: Instant,
}

/// The server; it stops when this is dropped.
pub struct DnsServer {
    shared: Arc<Shared<State>>,
    udp: UdpSocket,
    /// Taken, and so closed, to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Serves port 53 of an address.
    pub fn start(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        Self::start_at(namespace, SocketAddr::new(address, 53))
    }

    /// Serves an address and port.
    pub fn start_at(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let bind = || Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?));
        let (udp, listener) = namespace
            .run(bind)
            .with_context(|| format!("cannot serve {address} in `{}`", namespace.name()))?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = UnixStream::pair()?;
        let service = Arc::clone(&shared);
        let own = udp.try_clone()?;
        let run = move || serve(&own, &listener, &stopped, &service);
        let thread = thread::Builder::new().name("DNS server".to_owned()).spawn(run)?;
        Ok(Self { shared, udp, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on it says this about a name.
    pub fn say(&self, name: &str, reply: Reply) {
        self.say_in_turn(name, [reply]);
    }

    /// From now on it says one of these after the other about a name, and again.
    pub fn say_in_turn(&self, name: &str, replies: impl IntoIterator<Item = Reply>) {
        self.shared.lock().replies.insert(name.to_owned(), replies.into_iter().collect());
    }

    /// All questions about a name, as they came.
    pub fn asked(&self, name: &str) -> Vec<Asked> {
        self.shared.lock().asked.iter().filter(|asked| asked.name == name).cloned().collect()
    }

    /// How many questions came in all.
    pub fn count(&self) -> usize {
        self.shared.lock().asked.len()
    }

    /// Sends what it held back.
    pub fn release(&self) {
        let held = std::mem::take(&mut self.shared.lock().held);
        for (bytes, peer) in held {
            // Whoever asked may have gone.
            let _ = self.udp.send_to(&bytes, peer);
        }
    }

    /// Waits until that many questions about a name came, and returns all of them.
    pub fn wait_for(&self, name: &str, count: usize, timeout: Duration) -> Result<Vec<Asked>> {
        let is_short = |state: &mut State| {
            state.asked.iter().filter(|asked| asked.name == name).count() < count
        };
        let changed = &self.shared.changed;
        let result = changed.wait_timeout_while(self.shared.lock(), timeout, is_short);
        let (state, waited) = result.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        ensure!(!waited.timed_out(), "{name} was not asked {count} times in time");
        Ok(self.asked(name))
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the DNS server panicked");
        }
    }
}

#[derive(Default)]
struct State {
    replies: BTreeMap<String, VecDeque<Reply>>,
    asked: Vec<Asked>,
    held: Vec<(Vec<u8>, SocketAddr)>,
}

impl Shared<State> {
    /// The bytes to send back to whoever asked: by UDP, if it has an address there.
    fn reply(&self, bytes: &[u8], peer: Option<SocketAddr>) -> Option<Vec<u8>> {
        let question = Message::from_vec(bytes).ok()?;
        let query = question.queries.first()?.clone();
        let name = query.name().to_ascii().to_lowercase();
        let name = name.trim_end_matches('.').to_owned();
        let mut state = self.lock();
        let (kind, is_udp) = (query.query_type(), peer.is_some());
        state.asked.push(Asked { name: name.clone(), kind, is_udp, at: Instant::now() });
        let reply = state.replies.get_mut(&name).and_then(|replies| {
            replies.rotate_left(1);
            replies.back().cloned()
        });
        drop(state);
        self.changed.notify_all();
        let reply = reply.unwrap_or_else(|| Reply::code(ResponseCode::Refused));
        let bytes = reply.to(&question, &query, is_udp)?.to_vec().ok()?;
        match peer.filter(|_| reply.is_held) {
            Some(peer) => {
                self.lock().held.push((bytes, peer));
                None
            }
            None => Some(bytes),
        }
    }
}

/// Until the other end of `stopped` is closed.
fn serve(
    udp: &UdpSocket,
    listener: &TcpListener,
    stopped: &UnixStream,
    shared: &Arc<Shared<State>>,
) {
    let mut connections: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let all = [stopped.as_fd(), udp.as_fd(), listener.as_fd()];
        let mut descriptors = all.map(readable);
        let polled = poll(&mut descriptors, PollTimeout::NONE);
        let [stop, datagram, connection] = descriptors.map(|it| it.any().unwrap_or(false));
        if stop || polled.is_err() {
            break;
        }
        if datagram {
            let mut buffer = [0; 1 << 16];
            if let Ok((length, peer)) = udp.recv_from(&mut buffer)
                && let Some(reply) = shared.reply(&buffer[..length], Some(peer))
            {
                // Whoever asked may have gone.
                let _ = udp.send_to(&reply, peer);
            }
        }
        if connection
            && let Ok((stream, _)) = listener.accept()
            && let Ok(mut own) = stream.try_clone()
        {
            let shared = Arc::clone(shared);
            let serve = move || while exchange(&mut own, &shared).is_some() {};
            connections.push((stream, thread::spawn(serve)));
        }
    }
    for (stream, thread) in connections {
        let _ = stream.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

/// One question by TCP, where each message has its length in front.
fn exchange(stream: &mut TcpStream, shared: &Shared<State>) -> Option<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question).ok()?;
    let Some(reply) = shared.reply(&question, None) else {
        return Some(());
    };
    let length = u16::try_from(reply.len()).ok()?.to_be_bytes();
    stream.write_all(&[&length[..], &reply].concat()).ok()
}
