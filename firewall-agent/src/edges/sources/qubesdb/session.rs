//! The task that talks to QubesDB: connects, watches, reads what was committed, and again
//! when the daemon was gone.
//! Never gives up, and never forgets what was committed because it cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tracing::warn;

use super::client::{ClientError, Connection, OwnKey, OwnTree};
use super::news::Tell;
use super::trees::{RULES, Rules, read_rules, read_trees};
use super::wire::Path;
use super::{Ended, OWN, Order, Own, Patience, read_own};
use crate::edges::sources::client_of;
use firewall_core::events::Event;
use firewall_core::options::PREFIX;
use firewall_core::rules::Family;

const CONNECTED: [&str; 2] = ["/connected-ips", "/connected-ips6"];

/// The task that talks to QubesDB.
pub struct Task {
    socket: PathBuf,
    patience: Patience,
    to: Tell,
    orders: mpsc::UnboundedReceiver<Order>,
    /// What was committed last, by client.
    committed: BTreeMap<IpAddr, Rules>,
    /// Clients whose rules dom0 is writing: changed since the last commit.
    in_writing: BTreeSet<IpAddr>,
    /// Clients whose rules were committed and not read yet.
    unread: BTreeSet<IpAddr>,
    are_connected_unread: bool,
    are_own_unread: bool,
    /// What is told about names, by client.
    published: BTreeMap<IpAddr, BTreeMap<String, BTreeSet<IpAddr>>>,
}

impl Task {
    /// A task that has not connected yet.
    pub fn new(
        socket: PathBuf,
        patience: Patience,
        to: Tell,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        Self {
            socket,
            patience,
            to,
            orders,
            committed: BTreeMap::new(),
            in_writing: BTreeSet::new(),
            unread: BTreeSet::new(),
            are_connected_unread: false,
            are_own_unread: false,
            published: BTreeMap::new(),
        }
    }

    /// Talks until nobody listens any more.
    pub async fn run(mut self) {
        let mut pause = self.patience.first_pause;
        loop {
            let mut has_worked = false;
            let Err(ended) = self.converse(&mut has_worked).await;
            if matches!(ended, Ended::NobodyListens) {
                return;
            }
            if has_worked {
                pause = self.patience.first_pause;
            }
            let why = format!("{}: {ended}", self.socket.display());
            if self.tell(Event::Source(Some(why.clone()))).await.is_err() {
                return;
            }
            if self.rest(pause, &why).await.is_err() {
                return;
            }
            pause = (2 * pause).min(self.patience.last_pause);
        }
    }

    /// Waits before the next attempt. What came into force meanwhile is counted again when
    /// everything is read again.
    async fn rest(&mut self, pause: std::time::Duration, why: &str) -> Result<(), Ended> {
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                order = self.orders.recv() => match order {
                    Some(Order::Reload) => self.tell(Event::Source(Some(why.to_owned()))).await?,
                    Some(Order::Handled(_) | Order::Publish(..)) => {}
                    None => return Err(Ended::NobodyListens),
                }
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.to.news.send(event).await.map_err(|_| Ended::NobodyListens)
    }

    async fn converse(&mut self, has_worked: &mut bool) -> Result<Infallible, Ended> {
        self.in_writing.clear();
        self.unread.clear();
        self.published.clear();
        let mut watches = Connection::open(&self.socket, self.patience.answer).await?;
        for path in [&[RULES, OWN], &CONNECTED[..]].concat() {
            watches.watch(&Path::new(path)?).await?;
        }
        // Events come on a connection of their own; commands have their answers for themselves.
        let mut commands = Connection::open(&self.socket, self.patience.answer).await?;
        self.read_everything(&mut watches, &mut commands).await?;
        *has_worked = true;
        loop {
            tokio::select! {
                path = watches.next_event() => {
                    self.note(&path?);
                    self.read_changes(&mut watches, &mut commands).await?;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Reload) => self.reread_everything(&mut commands).await?,
                    Some(Order::Handled(client)) => self.count(&mut commands, client).await?,
                    Some(Order::Publish(client, names)) => {
                        self.publish(&mut commands, client, names).await?;
                    }
                    None => return Err(Ended::NobodyListens),
                }
            }
        }
    }

    /// Takes in which key changed.
    fn note(&mut self, path: &str) {
        if CONNECTED.contains(&path) {
            self.are_connected_unread = true;
        }
        // A key that is removed is told with what stands above it, or by itself.
        self.are_own_unread |= path.starts_with(PREFIX) || PREFIX.starts_with(path);
        let Some(path) = path.strip_prefix(RULES) else {
            return;
        };
        match path.split_once('/') {
            // The commit: what was written before is whole.
            None => {
                if let Some(client) = client_of(path) {
                    self.in_writing.remove(&client);
                    self.unread.insert(client);
                } else if !path.is_empty() {
                    warn!(path, "not an address");
                }
            }
            Some((client, _)) => {
                if let Some(client) = client_of(client) {
                    self.in_writing.insert(client);
                    self.unread.remove(&client);
                }
            }
        }
    }

    /// Takes in all events that are there already.
    fn note_waiting(&mut self, watches: &mut Connection) -> Result<(), ClientError> {
        while let Some(path) = watches.next_event().now_or_never() {
            self.note(&path?);
        }
        Ok(())
    }

    /// Reads what was committed, and nothing that is being written.
    async fn read_changes(
        &mut self,
        watches: &mut Connection,
        commands: &mut Connection,
    ) -> Result<(), Ended> {
        loop {
            self.note_waiting(watches)?;
            if std::mem::take(&mut self.are_connected_unread) {
                let connected = self.read_connected(commands).await?;
                self.tell(Event::Connected(connected)).await?;
            }
            if std::mem::take(&mut self.are_own_unread) {
                for key in self.read_own(commands).await? {
                    self.tell(key).await?;
                }
            }
            let Some(client) = self.unread.pop_first() else {
                return Ok(());
            };
            let rules = read_rules(commands, client).await?;
            // What changed while it was read is told by now: then another commit will come. Of the keys
            // that are not rules, nobody tells again.
            self.note_waiting(watches)?;
            if self.in_writing.contains(&client) || self.unread.contains(&client) {
                continue;
            }
            match &rules {
                Some(rules) => self.committed.insert(client, rules.clone()),
                None => self.committed.remove(&client),
            };
            self.tell(Event::Rules { client, rules }).await?;
        }
    }

    /// Reads everything for the first time in a conversation. What dom0 is writing meanwhile counts
    /// when it is committed; until then what was committed before does.
    async fn read_everything(
        &mut self,
        watches: &mut Connection,
        commands: &mut Connection,
    ) -> Result<(), Ended> {
        let connected = self.read_connected(commands).await?;
        let keys = self.read_own(commands).await?;
        let mut rules = read_trees(commands).await?;
        self.note_waiting(watches)?;
        for client in &self.in_writing {
            match self.committed.remove(client) {
                Some(committed) => rules.insert(*client, committed),
                None => rules.remove(client),
            };
        }
        self.tell_everything(connected, keys, rules).await
    }

    /// Reads everything again, as it stands there, committed or not: whoever asks for that gets what
    /// he would get from a new agent, which cannot know what was committed last. What dom0 is
    /// writing is told once more when it is committed.
    async fn reread_everything(&mut self, commands: &mut Connection) -> Result<(), Ended> {
        let connected = self.read_connected(commands).await?;
        let keys = self.read_own(commands).await?;
        let rules = read_trees(commands).await?;
        self.tell_everything(connected, keys, rules).await
    }

    async fn tell_everything(
        &mut self,
        connected: BTreeSet<IpAddr>,
        keys: [Event; 2],
        rules: BTreeMap<IpAddr, Rules>,
    ) -> Result<(), Ended> {
        self.committed.clone_from(&rules);
        self.tell(Event::Source(None)).await?;
        self.tell(Event::Connected(connected)).await?;
        // Before the rules: nothing may be in force that leaves by another link, or gets to a service.
        for key in keys {
            self.tell(key).await?;
        }
        self.tell(Event::AllRules(rules)).await
    }

    async fn read_connected(&self, from: &mut Connection) -> Result<BTreeSet<IpAddr>, Ended> {
        let mut connected = BTreeSet::new();
        for (path, family) in CONNECTED.into_iter().zip([Family::V4, Family::V6]) {
            let value = from.read(&Path::new(path)?).await?.unwrap_or_default();
            for word in String::from_utf8_lossy(&value).split_whitespace() {
                let address = word.parse().ok().filter(|it| Family::from(*it) == family);
                match address {
                    Some(address) => drop(connected.insert(address)),
                    None => warn!(path, word, "not an address of {family}"),
                }
            }
        }
        Ok(connected)
    }

    /// What the netvm's own keys say; options are told at once.
    async fn read_own(&self, from: &mut Connection) -> Result<[Event; 2], Ended> {
        let Own { uplinks, services, options } = read_own(from).await?;
        self.to.set_options(options);
        Ok([Event::Uplinks(uplinks), Event::TorServices(services)])
    }

    /// One more; whatever stands there and is no number counts as nothing.
    async fn count(&self, to: &mut Connection, client: IpAddr) -> Result<(), Ended> {
        let key = OwnKey::handled(client)?;
        let before = to.read_own(&key).await?;
        let before = before.and_then(|value| String::from_utf8(value).ok());
        let before: u64 = before.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let value = before.wrapping_add(1).to_string();
        go_on(to.write(&key, value.as_bytes()).await)
    }

    async fn publish(
        &mut self,
        to: &mut Connection,
        client: IpAddr,
        names: BTreeMap<String, BTreeSet<IpAddr>>,
    ) -> Result<(), Ended> {
        if self.published.get(&client) == Some(&names) {
            return Ok(());
        }
        let tree = OwnTree::names(client)?;
        if to.has_any(&tree).await? {
            go_on(to.remove(&tree).await)?;
        }
        for (name, addresses) in &names {
            match OwnKey::name(client, name) {
                Ok(key) => go_on(to.write(&key, listed(addresses).as_bytes()).await)?,
                Err(error) => warn!(%error, "a name that cannot be told of"),
            }
        }
        self.published.insert(client, names);
        Ok(())
    }
}

/// A refusal of the daemon hinders nothing else.
fn go_on(outcome: Result<(), ClientError>) -> Result<(), Ended> {
    match outcome {
        Err(error @ ClientError::Refused(_)) => {
            warn!(%error);
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// Addresses as Python prints a set of them, which is what others read.
fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "set()".to_owned();
    }
    let networks = addresses.iter().map(|address| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        format!("'{address}/{length}'")
    });
    format!("{{{}}}", networks.collect::<Vec<_>>().join(", "))
}
