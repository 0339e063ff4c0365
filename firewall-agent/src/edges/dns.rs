//! What the netvm's DNS servers say about names: questions out, answers in.
//! Never remembers an answer, and never decides when to ask.
//!
//! The library sends: it chooses ports and numbers that nobody can guess, repeats what gets
//! lost, and asks by TCP what does not fit into UDP. What counts of a message is read here:
//! addresses in its answer section, of the name at the end of the chain of aliases.

mod bound;
mod given;
mod way;

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::xfer::{DnsHandle as _, FirstAnswer as _};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use tracing::warn;

use self::way::Way;
use firewall_core::names::answer::{Answer, Failure, Outcome};
use firewall_core::rules::Family;
use firewall_core::rules::question::Question;
use firewall_core::tor::DNS_SERVER;
use firewall_core::uplinks::{LinkName, Uplinks};

use self::bound::Sockets;
pub use self::given::give;

/// Port of DNS.
const DNS: u16 = 53;
/// How long one server has to answer, repetitions included.
const SERVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long a question may take, whatever servers do.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most questions on the way at once; the others wait.
const MOST_AT_ONCE: usize = 32;
/// What to do about a server that nobody hears of.
const OTHER_SERVERS: &str = " (`run --resolv-conf FILE` names other servers)";
/// What to do about Tor's, which is the only one in a Whonix gateway.
const ONLY_TOR: &str = " (this is Tor's DNSPort, and nobody else is asked: is Tor up?)";
/// Most aliases in a row.
const MOST_ALIASES: usize = 16;
/// How long "no address" may be used if the server does not say (RFC 2308 leaves that open).
const NOTHING_TTL: u32 = 60;

/// Why nobody is asked.
const NOBODY: &str = "no DNS server is known";
const NO_LINK: &str = "packets may leave by no link, so no DNS server is asked";

/// Questions that wait or are on the way, and whom to ask.
#[derive(Default)]
pub struct Dns {
    servers: Arc<[Server]>,
    /// The only links by which is asked; `None`: any.
    links: Option<Uplinks>,
    waiting: VecDeque<Question>,
    on_the_way: JoinSet<Outcome>,
    questions: HashMap<Id, Question>,
}

impl Dns {
    /// Asks these servers from now on, each when those before it fail, as resolv.conf(5)
    /// wants it. What was asked before is forgotten: the old servers' answers do not come.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) {
        let links = self.links.take();
        let ways = servers.iter().flat_map(|address| ways(*address, links.as_ref()));
        let servers = ways.filter_map(|(address, link)| {
            let server = Server::new(address, link);
            server.inspect_err(|error| warn!(%address, %error, "cannot be asked")).ok()
        });
        *self = Self { servers: servers.collect(), links, ..Self::default() };
    }

    /// Has servers that are set from now on asked by these links alone; `None`: by any.
    pub fn ask_by(&mut self, links: Option<&Uplinks>) {
        self.links = links.cloned();
    }

    /// Asks a question, now or when there is room.
    pub fn ask(&mut self, question: Question) {
        self.waiting.push_back(question);
    }

    /// Waits for outcomes, and returns all that are there. Whoever waits may stop waiting; nothing
    /// is lost then.
    pub async fn next(&mut self) -> Vec<(Question, Outcome)> {
        loop {
            self.send();
            let Some(first) = self.on_the_way.join_next_with_id().await else {
                pending::<()>().await;
                continue;
            };
            let mut ended = vec![first];
            while let Some(more) = self.on_the_way.try_join_next_with_id() {
                ended.push(more);
            }
            return ended.into_iter().filter_map(|ended| self.take(ended)).collect();
        }
    }

    /// Puts on the way what waits, as far as there is room.
    fn send(&mut self) {
        while self.on_the_way.len() < MOST_AT_ONCE
            && let Some(question) = self.waiting.pop_front()
        {
            let nobody = if self.links == Some(Uplinks::default()) { NO_LINK } else { NOBODY };
            let work = ask(Arc::clone(&self.servers), question.clone(), nobody);
            let id = self.on_the_way.spawn(work).id();
            self.questions.insert(id, question);
        }
    }

    fn take(&mut self, ended: Result<(Id, Outcome), JoinError>) -> Option<(Question, Outcome)> {
        let (id, outcome) = ended.unwrap_or_else(|error| {
            (error.id(), Err(Failure::NoAnswer("the agent's resolver crashed".to_owned())))
        });
        Some((self.questions.remove(&id)?, outcome))
    }
}

/// By which links a server is asked. One on this machine is asked here: what it asks itself is its own.
fn ways(address: SocketAddr, links: Option<&Uplinks>) -> Vec<(SocketAddr, Option<LinkName>)> {
    match links.filter(|_| !address.ip().is_loopback()) {
        Some(Uplinks(links)) => links.iter().map(|link| (address, Some(link.clone()))).collect(),
        None => vec![(address, None)],
    }
}

async fn ask(servers: Arc<[Server]>, question: Question, nobody: &str) -> Outcome {
    let outcome = timeout(PATIENCE, ask_each(&servers, &question, nobody)).await;
    outcome.unwrap_or_else(|_| {
        Err(Failure::NoAnswer(format!("no answer within {} seconds", PATIENCE.as_secs())))
    })
}

/// Asks one server after the other, until one of them knows.
async fn ask_each(servers: &[Server], question: &Question, nobody: &str) -> Outcome {
    let mut problems = Vec::new();
    for server in servers {
        match server.ask(question).await {
            Err(Failure::NoAnswer(why)) => problems.push(format!("{} {why}", server.name())),
            outcome @ (Ok(_) | Err(Failure::NoSuchName)) => return outcome,
        }
    }
    if problems.is_empty() {
        problems.push(format!("{nobody}{OTHER_SERVERS}"));
    }
    Err(Failure::NoAnswer(problems.join("; ")))
}

/// One server. Each is asked by itself: the library would ask several at a time, and take
/// the first error of any of them for the outcome.
struct Server {
    address: SocketAddr,
    /// The only link by which the server is asked; `None`: any.
    link: Option<LinkName>,
    sockets: Sockets,
    pool: NameServerPool<Sockets>,
}

impl Server {
    fn new(address: SocketAddr, link: Option<LinkName>) -> Result<Self, NetError> {
        let mut options = ResolverOpts::default();
        options.timeout = SERVER_PATIENCE;
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        server.connections.iter_mut().for_each(|connection| connection.port = address.port());
        let sockets = Sockets::by(link.clone());
        let pool = NameServerPool::from_config([server], context, sockets.clone());
        Ok(Self { address, link, sockets, pool })
    }

    /// The server as people are told of it.
    fn name(&self) -> String {
        let Self { address, link, .. } = self;
        let address = match address.port() {
            DNS => address.ip().to_string(),
            _ => address.to_string(),
        };
        link.as_ref().map_or_else(|| address.clone(), |link| format!("{address} by {link}"))
    }

    /// Follows aliases, where a message does not lead to their end.
    async fn ask(&self, question: &Question) -> Outcome {
        if let Err(error) = self.sockets.try_way(self.address).await {
            return Err(Failure::NoAnswer(self.told(&NetError::from(error)).await));
        }
        let kind = match question.family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        // A dot at the end: search domains are for people at a keyboard.
        let name = Name::from_ascii(format!("{}.", question.name));
        let mut name = name.map_err(|error| Failure::NoAnswer(error.to_string()))?;
        let mut ttl = u32::MAX;
        for _ in 0..MOST_ALIASES {
            let said = self.look_up(&name, kind).await?;
            ttl = ttl.min(said.ttl);
            match said.alias {
                Some(alias) => name = alias,
                None => {
                    let ttl = Duration::from_secs(ttl.into());
                    return Ok(Answer { addresses: said.addresses.into_iter().collect(), ttl });
                }
            }
        }
        Err(endless())
    }

    async fn look_up(&self, name: &Name, kind: RecordType) -> Result<Said, Failure> {
        let query = || Query::query(name.clone(), kind);
        let mut options = DnsRequestOptions::default();
        let mut response = self.pool.lookup(query(), options).first_answer().await;
        if let Err(NetError::Dns(DnsError::ResponseCode(code))) = &response
            && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
        {
            // Some routers know no extensions (RFC 6891, 6.2.2).
            options.use_edns = false;
            response = self.pool.lookup(query(), options).first_answer().await;
        }
        match response {
            Ok(response) => read(&response, name, kind),
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
                if nothing.response_code == ResponseCode::NXDomain {
                    return Err(Failure::NoSuchName);
                }
                if nothing.soa.is_none() && nothing.ns.is_some() {
                    return Err(Failure::NoAnswer("names other servers only".to_owned()));
                }
                let ttl = nothing.negative_ttl.unwrap_or(NOTHING_TTL);
                Ok(Said { addresses: Vec::new(), alias: None, ttl })
            }
            Err(error) => Err(Failure::NoAnswer(self.told(&error).await)),
        }
    }
}

impl Server {
    /// What the server did instead of answering. Nothing is tried by another link than the only one.
    async fn told(&self, error: &NetError) -> String {
        let way = || Way::to(self.address);
        let others = if self.address == DNS_SERVER { ONLY_TOR } else { OTHER_SERVERS };
        match error {
            NetError::Dns(DnsError::ResponseCode(code)) => says(*code),
            NetError::Timeout if self.link.is_some() => "does not answer".to_owned(),
            NetError::Timeout => way().await.tell(None) + others,
            // The library says so when it has given up for whatever reason.
            NetError::NoConnections if self.link.is_some() => format!("cannot be asked: {error}"),
            NetError::Io(error) if self.link.is_some() => format!("cannot be asked: {error}"),
            NetError::NoConnections => way().await.tell(Some(error)) + others,
            NetError::Io(error) => way().await.tell(Some(error)) + others,
            error => format!("cannot be used: {error}"),
        }
    }
}

/// What one message says about a name.
struct Said {
    addresses: Vec<IpAddr>,
    /// Whom to ask about instead.
    alias: Option<Name>,
    /// In seconds, the least of all that it follows from.
    ttl: u32,
}

/// Reads the answer section alone: anybody may have written into the others.
fn read(response: &DnsResponse, name: &Name, kind: RecordType) -> Result<Said, Failure> {
    let is_missing = match response.response_code {
        ResponseCode::NoError => false,
        ResponseCode::NXDomain => true,
        code => return Err(Failure::NoAnswer(says(code))),
    };
    let answers = || response.answers.iter().filter(|record| record.dns_class == DNSClass::IN);
    let alias_of = |owner: &Name| {
        answers().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *owner => Some((&alias.0, record.ttl)),
            _ => None,
        })
    };
    let (mut owner, mut ttl, mut aliases) = (name, u32::MAX, 0);
    while let Some((alias, alias_ttl)) = alias_of(owner) {
        (owner, ttl, aliases) = (alias, ttl.min(alias_ttl), aliases + 1);
        if aliases > MOST_ALIASES {
            return Err(endless());
        }
    }
    let mut addresses = Vec::new();
    for record in answers().filter(|record| record.name == *owner) {
        match (&record.data, kind) {
            (RData::A(v4), RecordType::A) => addresses.push(IpAddr::from(v4.0)),
            (RData::AAAA(v6), RecordType::AAAA) => addresses.push(IpAddr::from(v6.0)),
            _ => continue,
        }
        ttl = ttl.min(record.ttl);
    }
    if !addresses.is_empty() {
        return Ok(Said { addresses, alias: None, ttl });
    }
    match (is_missing, response.negative_ttl()) {
        (true, _) => Err(Failure::NoSuchName),
        // Servers say so by a record of the zone that has no such address (RFC 2308).
        (false, Some(nothing)) => Ok(Said { addresses, alias: None, ttl: ttl.min(nothing) }),
        (false, None) if owner != name => Ok(Said { addresses, alias: Some(owner.clone()), ttl }),
        (false, None) => Ok(Said { addresses, alias: None, ttl: NOTHING_TTL }),
    }
}

fn endless() -> Failure {
    Failure::NoAnswer("gives aliases without end".to_owned())
}

fn says(code: ResponseCode) -> String {
    format!("says \"{code}\"")
}
