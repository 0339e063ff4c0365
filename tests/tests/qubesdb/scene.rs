//! A daemon, and a source that talks to it.
//! Never has expectations of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use firewall_agent::edges::sources::qubesdb::{Patience, QubesDb};
use firewall_core::events::Event;
use firewall_core::tor::{Access, NoAccess};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use tempfile::TempDir;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const ONE: &str = "10.137.0.1";
pub const TWO: &str = "10.137.0.2";
pub const ACCEPT: &[(&str, &[u8])] = &[("0000", b"action=accept")];
pub const NONE: &[(&str, &[u8])] = &[];

/// Any uplink will do.
const ANY: &str = "uplinks any";
/// No key says anything about Tor's services.
const NONE_ALLOWED: &str = "tor nobody says";

pub struct Scene {
    pub server: Arc<FakeQubesDb>,
    pub source: QubesDb,
    runtime: tokio::runtime::Runtime,
    _directory: TempDir,
    /// What was told last about uplinks.
    uplinks: String,
    /// What was told last about Tor's services.
    tor: String,
}

impl Scene {
    /// A daemon that was filled before the source came.
    pub fn new(fill: impl FnOnce(&FakeQubesDb)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("qubesdb.sock");
        let server = Arc::new(FakeQubesDb::start(&socket).expect("a daemon"));
        fill(&server);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let patience = Patience {
            answer: Duration::from_millis(500),
            first_pause: Duration::from_millis(10),
            last_pause: Duration::from_millis(100),
        };
        let source = runtime.block_on(async { QubesDb::start(socket, patience) });
        Self {
            server,
            source,
            runtime,
            _directory: directory,
            uplinks: ANY.to_owned(),
            tor: NONE_ALLOWED.to_owned(),
        }
    }

    /// The next news, in short; what was told about uplinks or Tor's services already is
    /// none.
    pub fn next(&mut self) -> String {
        loop {
            let news = async { tokio::time::timeout(PATIENCE, self.source.next()).await };
            let news = short(&self.runtime.block_on(news).expect("no news"));
            if news == self.uplinks || news == self.tor {
                continue;
            }
            if news.starts_with("tor ") {
                self.tor.clone_from(&news);
            }
            if news.starts_with("uplinks ") {
                self.uplinks.clone_from(&news);
            }
            return news;
        }
    }

    /// News up to and with the first that begins like this.
    pub fn until(&mut self, beginning: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            all.push(self.next());
            if all.last().is_some_and(|last| last.starts_with(beginning)) {
                return all;
            }
            assert!(all.len() < 1000, "never {beginning}: {all:?}");
        }
    }

    #[track_caller]
    pub fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next(), *expected);
        }
    }

    /// Lets the task go on until a key has a value.
    pub fn wait_for(&mut self, path: &str, value: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.server.get(path).as_deref() != Some(value) {
            self.go_on();
            let found = self.server.get(path);
            assert!(std::time::Instant::now() < deadline, "{path} is {found:?} and not {value}");
        }
    }

    /// Lets the task go on for a moment.
    pub fn go_on(&mut self) {
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
    }
}

fn rules(rules: &Result<firewall_core::rules::Ruleset, impl std::fmt::Display>) -> String {
    match rules {
        Ok(rules) => {
            let numbers = rules.rules.iter().map(|rule| format!(" {:04}", rule.number));
            format!("{}{}", rules.default.name(), numbers.collect::<String>())
        }
        Err(error) => format!("error {error}"),
    }
}

fn short(event: &Event) -> String {
    match event {
        Event::AllRules(all) => {
            let each =
                all.iter().map(|(client, of_client)| format!(" {client}: {}", rules(of_client)));
            format!("all{}", each.collect::<Vec<_>>().join(","))
        }
        Event::Rules { client, rules: Some(of_client) } => {
            format!("{client}: {}", rules(of_client))
        }
        Event::Rules { client, rules: None } => format!("{client}: none"),
        Event::Connected(connected) => {
            let each = connected.iter().map(IpAddr::to_string);
            format!("connected {}", each.collect::<Vec<_>>().join(" "))
        }
        Event::TorServices(keys) => {
            let said = |key: &Result<Option<Access>, _>| match key {
                Ok(None) => "nobody says".to_owned(),
                Ok(Some(access)) => access.to_string(),
                Err(NoAccess(text)) => format!("`{text}`"),
            };
            let (socks, control) = (said(&keys.socks), said(&keys.control));
            if socks == control { format!("tor {socks}") } else { format!("tor {socks} {control}") }
        }
        Event::Uplinks(Ok(None)) => ANY.to_owned(),
        Event::Uplinks(Ok(Some(links))) => format!("uplinks {links}"),
        Event::Uplinks(Err(bad)) => format!("uplinks {bad}"),
        Event::Source(None) => "readable".to_owned(),
        Event::Source(Some(why)) => {
            format!("unreadable {}", why.split_once(": ").map_or(why.as_str(), |it| it.1))
        }
        other => format!("{other:?}"),
    }
}
