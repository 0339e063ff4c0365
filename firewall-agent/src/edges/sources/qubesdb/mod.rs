//! Rules from QubesDB, where dom0 writes them.
//! Never makes the agent wait: a task of its own talks to the daemon.
//!
//! dom0 removes a client's rules, writes the new ones, and writes the empty key
//! `/qubes-firewall/ADDRESS` last: this commits them. Until then a tree is not to be read, and
//! what was committed before is what counts, unless everything is to be read anew. Source: `net.py`
//! and `firewall.py` of qubes-core-admin, and the Qubes documentation, "vm-interface".

pub mod client;
pub mod wire;

mod news;
mod own_keys;
mod session;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{self, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use self::client::{ClientError, Connection};
use self::news::{News, channel};
pub use self::own_keys::OwnKeys;
use self::wire::{NotAPath, Path};
use firewall_core::events::Event;
use firewall_core::options::{PREFIX, Said};
use firewall_core::tor::{Access, Each, Keys, Service};
use firewall_core::uplinks::{BadUplinks, KEY as UPLINKS, Uplinks};

/// The name of the qube's user.
const DEFAULT_USER: &str = "/default-user";

/// How patient the source is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a single answer of the daemon may take.
    pub answer: Duration,
    /// How long after a first failure the next attempt is; it doubles with each failure.
    pub first_pause: Duration,
    /// How long after a failure the next attempt is at most.
    pub last_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(10),
            first_pause: Duration::from_millis(100),
            last_pause: Duration::from_secs(5),
        }
    }
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// QubesDB cannot be talked to.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A key that cannot be.
    #[error(transparent)]
    Path(#[from] NotAPath),
    /// The agent has ended.
    #[error("nobody listens")]
    NobodyListens,
}

/// Where dom0 says something to the netvm itself.
const OWN: &str = "/vm-config/";

/// What the netvm's own keys say.
#[derive(Debug)]
pub struct Own {
    /// By which links alone clients' packets may leave.
    pub uplinks: Result<Option<Uplinks>, BadUplinks>,
    /// What of Tor's services is allowed in a Whonix gateway.
    pub services: Keys,
    /// All other options.
    pub options: Said,
}

/// What the netvm's own keys say, as QubesDB behind a socket says now, without any task; each answer may
/// take as long as `patience`. An error if QubesDB cannot be asked.
pub async fn own(socket: &path::Path, patience: Duration) -> Result<Own, Ended> {
    read_own(&mut Connection::open(socket, patience).await?).await
}

/// Name of the user of this qube, as dom0 says; `None` if it does not. Each answer may take as long as
/// `patience`. An error if QubesDB cannot be asked.
pub async fn default_user(
    socket: &path::Path,
    patience: Duration,
) -> Result<Option<String>, Ended> {
    let mut connection = Connection::open(socket, patience).await?;
    let user = connection.read(&Path::new(DEFAULT_USER)?).await?;
    Ok(user.and_then(|user| String::from_utf8(user).ok()))
}

async fn read_own(from: &mut Connection) -> Result<Own, Ended> {
    let keys = from.multiread(&Path::new(OWN)?).await?.into_iter();
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    let mut keys: BTreeMap<String, String> = keys.map(|(key, value)| (key, text(value))).collect();
    let mut take = |key: &str| keys.remove(key).unwrap_or_default();
    let uplinks = Uplinks::parse(&take(UPLINKS));
    let mut of = |service: Service| Access::parse(&take(service.key()));
    let services = Each { socks: of(Service::Socks), control: of(Service::Control) };
    let option = |(key, value): (String, String)| {
        let name = key.strip_prefix(PREFIX)?.to_owned();
        Some((name, value))
    };
    let options = keys.into_iter().filter_map(option).collect();
    Ok(Own { uplinks, services, options })
}

/// What the task is asked to do.
#[derive(Debug)]
enum Order {
    Reload,
    Handled(IpAddr),
    Publish(IpAddr, BTreeMap<String, BTreeSet<IpAddr>>),
}

/// QubesDB as a source of rules.
pub struct QubesDb {
    news: News,
    orders: mpsc::UnboundedSender<Order>,
}

impl QubesDb {
    /// Begins to talk to the daemon behind a socket, whether it is there already or not.
    /// Must be called inside a tokio runtime.
    pub fn start(socket: PathBuf, patience: Patience) -> Self {
        // Whoever reads the news decides how fast they come.
        let (tell, news) = channel(16);
        let (orders, obey) = mpsc::unbounded_channel();
        let task = session::Task::new(socket, patience, tell, obey);
        tokio::spawn(task.run());
        Self { news, orders }
    }

    /// Where the options are that dom0 sets, and where changes of them are told; `None`: not read yet.
    pub fn options(&self) -> watch::Receiver<Option<Said>> {
        self.news.options()
    }

    /// Waits for news. Whoever waits may stop waiting; nothing is lost then.
    pub async fn next(&mut self) -> Event {
        self.news.next().await
    }

    /// Has everything read again; the answer is [`Event::AllRules`], or [`Event::Source`]
    /// with a reason.
    pub fn reload(&self) {
        self.order(Order::Reload);
    }

    /// Counts that a client's rules came into force, in `/qubes-firewall-handled/ADDRESS`.
    pub fn handled(&self, client: IpAddr) {
        self.order(Order::Handled(client));
    }

    /// Tells where the names in a client's rules lead, in `/dns/ADDRESS/NAME`.
    pub fn publish(&self, client: IpAddr, names: BTreeMap<String, BTreeSet<IpAddr>>) {
        self.order(Order::Publish(client, names));
    }

    fn order(&self, order: Order) {
        // The task ends with the runtime only.
        let _ = self.orders.send(order);
    }
}
