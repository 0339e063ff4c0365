//! A QubesDB daemon for tests, as `qubes-core-qubesdb` speaks to its clients, which can also
//! be slow, cut its words, hold them back, hang up, be silent, and lie.
//! Never uses the product's own bytes: it says by itself what they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::socket::{Shutdown, shutdown};

const HEADER: usize = 72;
/// Kinds of requests, by their number.
const NAMES: [&str; 7] = ["READ", "WRITE", "MULTIREAD", "LIST", "RM", "WATCH", "UNWATCH"];

use crate::rig::shared::Shared;

/// What the daemon does not do as it should.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Each answer comes that much later.
    pub delay: Duration,
    /// What is sent comes in pieces of so many bytes; 0: whole.
    pub piece: usize,
    /// Events are held back, and come in the middle of the next answer.
    pub holds_events: bool,
    /// It hangs up instead of giving this many answers more.
    pub hangs_up_after: Option<usize>,
    /// It reads and says nothing.
    pub is_silent: bool,
    /// It lies.
    pub lie: Option<Lie>,
}

/// A lie, instead of each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The answer to another kind of question.
    OtherKind,
    /// About another key.
    OtherPath,
    /// Data that nobody may send.
    HugeData,
    /// A path that has no end.
    NoEnd,
    /// A kind that does not exist.
    NoKind,
    /// A series that goes on and on.
    Endless,
}

/// All that the daemon knows.
#[derive(Default)]
struct State {
    keys: BTreeMap<String, Vec<u8>>,
    clients: Vec<Client>,
    behaviour: Behaviour,
    requests: Vec<String>,
}

struct Client {
    number: usize,
    stream: UnixStream,
    watches: Vec<String>,
    held: Vec<u8>,
}

/// A running daemon. It ends when this is dropped; its socket stays, and nobody listens.
pub struct FakeQubesDb {
    shared: Arc<Shared<State>>,
    listener: Arc<UnixListener>,
    listening: Option<JoinHandle<()>>,
}

impl FakeQubesDb {
    /// Listens on a socket; directories on the way are made.
    pub fn start(socket: &Path) -> Result<Self> {
        if let Some(directory) = socket.parent() {
            fs::create_dir_all(directory)?;
        }
        let listener = Arc::new(UnixListener::bind(socket)?);
        // As in a qube, whoever is there may ask.
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
        let shared = Arc::<Shared<State>>::default();
        let (of_thread, its_own) = (Arc::clone(&shared), Arc::clone(&listener));
        let listening = Some(std::thread::spawn(move || listen(&its_own, &of_thread)));
        Ok(Self { shared, listener, listening })
    }

    /// Behaves otherwise from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
    }

    /// Hangs up on everybody, as at a restart.
    pub fn hang_up(&self) {
        for client in self.shared.lock().clients.drain(..) {
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Writes a key, as dom0.
    pub fn write(&self, path: &str, value: &[u8]) {
        let mut state = self.shared.lock();
        state.keys.insert(path.to_owned(), value.to_owned());
        state.tell(path);
        self.shared.changed.notify_all();
    }

    /// Removes a key, or all that begin with a prefix, as dom0; tells nobody if there is none.
    pub fn remove(&self, path: &str) {
        let mut state = self.shared.lock();
        if state.remove(path) {
            state.tell(path);
        }
        self.shared.changed.notify_all();
    }

    /// Writes a client's rules in the order in which dom0 does it, the commit last.
    pub fn reload(&self, client: &str, policy: &str, rules: &[(&str, &[u8])]) {
        self.begin(client, policy, rules);
        self.write(&format!("/qubes-firewall/{client}"), b"");
    }

    /// Writes a client's rules without the commit.
    pub fn begin(&self, client: &str, policy: &str, rules: &[(&str, &[u8])]) {
        self.remove(&format!("/qubes-firewall/{client}/"));
        self.write(&format!("/qubes-firewall/{client}/policy"), policy.as_bytes());
        for (key, value) in rules {
            self.write(&format!("/qubes-firewall/{client}/{key}"), value);
        }
    }

    /// The value of a key as text.
    pub fn get(&self, path: &str) -> Option<String> {
        let state = self.shared.lock();
        state.keys.get(path).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Waits until a key has this value.
    pub fn wait_for(&self, path: &str, value: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while state.keys.get(path).map(Vec::as_slice) != Some(value.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let found = state.keys.get(path).map(|it| String::from_utf8_lossy(it));
                bail!("{path} is {found:?} and not {value}");
            }
            let woken = self.shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits until a client asks this; what it asked before, in `requests` lines, does not count. The
    /// answer comes later, if the daemon is slow.
    pub fn wait_for_request(&self, request: &str, before: usize, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while !state.requests.iter().skip(before).any(|it| it == request) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("nobody asks {request}");
            }
            let woken = self.shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// What clients asked so far: kind and path.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.clone()
    }
}

impl Drop for FakeQubesDb {
    fn drop(&mut self) {
        // Nobody can come any more, and whoever waits for somebody to come is woken.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        self.hang_up();
    }
}

fn listen(listener: &UnixListener, shared: &Arc<Shared<State>>) {
    for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
        let Ok(own) = stream.try_clone() else { continue };
        let client = Client { number, stream, watches: Vec::new(), held: Vec::new() };
        shared.lock().clients.push(client);
        let shared = Arc::clone(shared);
        // Ends when the stream is shut down.
        std::thread::spawn(move || {
            while serve(&own, number, &shared).is_some() {}
            let _ = own.shutdown(std::net::Shutdown::Both);
            shared.lock().clients.retain(|client| client.number != number);
        });
    }
}

/// Answers one question; nothing if the client or the daemon is to go.
fn serve(mut stream: &UnixStream, number: usize, shared: &Shared<State>) -> Option<()> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).ok()?;
    let length = u32::from_le_bytes(header[68..].try_into().ok()?) as usize;
    let end = header[1..65].iter().position(|byte| *byte == 0).unwrap_or(63).min(63);
    let path = String::from_utf8_lossy(&header[1..=end]).into_owned();
    let mut data = vec![0; length];
    stream.read_exact(&mut data).ok()?;
    let behaviour = {
        let mut state = shared.lock();
        let name = NAMES.get(usize::from(header[0])).copied().unwrap_or("NONSENSE");
        state.requests.push(format!("{name} {path}"));
        shared.changed.notify_all();
        state.behaviour.clone()
    };
    std::thread::sleep(behaviour.delay);
    let mut state = shared.lock();
    if behaviour.is_silent {
        return Some(());
    }
    if let Some(left) = &mut state.behaviour.hangs_up_after {
        *left = left.checked_sub(1)?;
    }
    let (answer, changed) = state.answer(header[0], &path, data, number)?;
    let answer = match behaviour.lie {
        Some(lie) => lied(lie, answer),
        None => answer,
    };
    let client = state.clients.iter_mut().find(|client| client.number == number)?;
    let held = std::mem::take(&mut client.held);
    // Before the last message of the answer, which ends a series.
    let last = answer.len() - last_message(&answer);
    let bytes = [&answer[..last], &held, &answer[last..]].concat();
    client.send(&bytes, behaviour.piece)?;
    if let Some(path) = changed {
        state.tell(&path);
    }
    shared.changed.notify_all();
    Some(())
}

/// How long the last message in an answer is.
fn last_message(answer: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = &answer[at..];
        let length = rest.get(68..72).and_then(|it| it.try_into().ok()).map(u32::from_le_bytes);
        let whole = HEADER + length.unwrap_or(0) as usize;
        if whole >= rest.len() {
            return rest.len();
        }
        at += whole;
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8], piece: usize) -> Option<()> {
        let piece = if piece == 0 { bytes.len().max(1) } else { piece };
        for piece in bytes.chunks(piece) {
            self.stream.write_all(piece).ok()?;
            self.stream.flush().ok()?;
        }
        Some(())
    }
}

fn message(kind: u8, path: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(path.as_bytes());
    bytes.resize(68, 0);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn lied(lie: Lie, answer: Vec<u8>) -> Vec<u8> {
    let mut bytes = answer;
    match lie {
        Lie::OtherKind => bytes[0] = if bytes[0] == 7 { 10 } else { 7 },
        Lie::OtherPath => {
            let kind = bytes[0];
            bytes =
                message(if kind == 7 || kind == 8 { 10 } else { kind }, "/foreign/key", b"value");
        }
        Lie::HugeData => bytes[68..72].copy_from_slice(&u32::MAX.to_le_bytes()),
        Lie::NoEnd => bytes[1..65].fill(b'a'),
        Lie::NoKind => bytes[0] = 77,
        Lie::Endless => {
            let entry = message(11, "/qubes-firewall/10.137.0.1/0000", &[b'a'; 3072]);
            // More than any client should take in.
            bytes = entry.repeat(12_000);
        }
    }
    bytes
}

impl State {
    fn answer(
        &mut self,
        kind: u8,
        path: &str,
        data: Vec<u8>,
        client: usize,
    ) -> Option<(Vec<u8>, Option<String>)> {
        if kind != 1 && !data.is_empty() {
            return None;
        }
        let ok = || message(7, path, b"");
        let no_entry = || message(8, path, b"");
        let series = |kind: u8, with_data: bool| {
            let entries = self.keys.iter().filter(|(key, _)| key.starts_with(path));
            let value = |value: &'_ Vec<u8>| if with_data { value.clone() } else { Vec::new() };
            let mut bytes: Vec<u8> =
                entries.flat_map(|(key, data)| message(kind, key, &value(data))).collect();
            bytes.extend(message(kind, "", b""));
            bytes
        };
        Some(match kind {
            0 => match self.keys.get(path) {
                Some(value) => (message(10, path, value), None),
                None => (no_entry(), None),
            },
            1 if data.len() >= 3072 || data.contains(&0) => (message(9, path, b""), None),
            1 if path.ends_with('/') => return None,
            1 => {
                self.keys.insert(path.to_owned(), data);
                (ok(), Some(path.to_owned()))
            }
            2 => (series(11, true), None),
            3 => (series(12, false), None),
            4 if self.remove(path) => (ok(), Some(path.to_owned())),
            4 => (no_entry(), None),
            5 => {
                let own = self.clients.iter_mut().find(|it| it.number == client)?;
                own.watches.push(path.to_owned());
                (ok(), None)
            }
            _ => return None,
        })
    }

    fn remove(&mut self, path: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key, _| {
            let is_it = if path.ends_with('/') { key.starts_with(path) } else { key == path };
            !is_it
        });
        self.keys.len() < before
    }

    /// Tells whoever watches a key, or what it begins with.
    fn tell(&mut self, path: &str) {
        let Behaviour { piece, holds_events, .. } = self.behaviour;
        for client in &mut self.clients {
            for watch in &client.watches {
                let is_it =
                    if watch.ends_with('/') { path.starts_with(watch) } else { path == watch };
                if is_it {
                    client.held.extend(message(13, path, b""));
                }
            }
            if !holds_events {
                let held = std::mem::take(&mut client.held);
                let _ = client.send(&held, piece);
            }
        }
    }
}
