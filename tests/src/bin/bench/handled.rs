//! Replacing a client's rules by way of QubesDB: how long until it says there that they were
//! handled, which scripts in dom0 wait for.
//! Never looks at packets: `update.rs` does.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use firewall_tests::oracle::{Proto, Ruleset};
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::{Client, ClientSpec, Rig};
use serde_json::{Value, json};

use crate::firewalls::Firewall;
use crate::machine::machine;
use crate::peers::{Side, ruleset};
use crate::rounds::{Rounds, set_up, turn};
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<40, 5>,
}

const RULES: [usize; 3] = [10, 100, 1_000];
const PATIENCE: Duration = Duration::from_secs(20);

/// What replaces the rules.
enum Kind {
    /// The agent, and QubesDB.
    Ours(Box<Qube>),
    /// `nft`, with the text that today's service would load: the longest of what it does.
    Stock(Box<Side>),
}

/// A firewall, and how long changes took.
struct Place {
    firewall: Firewall,
    kind: Kind,
    /// Milliseconds from the commit until rules that deny more, or less, were handled.
    tightened: Samples,
    loosened: Samples,
}

/// A netvm with QubesDB, and one client.
struct Qube {
    _agent: Agent,
    db: FakeQubesDb,
    client: Client,
    written: u64,
    _rig: Rig,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let firewalls = RULES.iter().flat_map(|&rules| [Firewall::Stock(rules), Firewall::Ours(rules)]);
    let firewalls: Vec<Firewall> = firewalls.collect();
    let progress = show::progress(firewalls.len() + options.rounds.count())?;
    let mut places = set_up(&firewalls, "ha", &progress, |firewall, label| {
        Place::new(firewall, label).map(Some)
    })?;
    options.rounds.each(&progress, || {
        turn(&mut places);
        places.iter_mut().try_for_each(Place::measure)?;
        progress.inc(1);
        Ok(())
    })?;
    places.sort_by_key(|place| firewalls.iter().position(|it| *it == place.firewall));
    Ok(Report { text: table(&places), json: report(&places) })
}

impl Place {
    fn new(firewall: Firewall, label: &str) -> Result<Self> {
        let kind = match firewall {
            Firewall::Ours(_) => Kind::Ours(Box::new(Qube::new(label)?)),
            _ => Kind::Stock(Box::new(Side::new(firewall, Proto::Tcp, label)?)),
        };
        let (tightened, loosened) = Default::default();
        let mut place = Self { firewall, kind, tightened, loosened };
        place.replace(&place.rules())?;
        Ok(place)
    }

    fn rules(&self) -> Ruleset {
        ruleset(self.firewall.rules().unwrap_or_default(), Proto::Tcp)
    }

    /// To rules that lack the last one, and back.
    fn measure(&mut self) -> Result<()> {
        let whole = self.rules();
        let mut tight = whole.clone();
        tight.rules.pop();
        let time = self.replace(&tight)?;
        self.tightened.add(time);
        let time = self.replace(&whole)?;
        self.loosened.add(time);
        Ok(())
    }

    /// Milliseconds until rules were handled.
    fn replace(&mut self, rules: &Ruleset) -> Result<f64> {
        let time = match &mut self.kind {
            Kind::Ours(qube) => qube.replace(rules),
            Kind::Stock(side) => {
                let start = Instant::now();
                side.put_stock(rules).map(|()| start.elapsed())
            }
        };
        let time = time.with_context(|| format!("`{}`", self.firewall))?;
        Ok(time.as_secs_f64() * 1000.0)
    }
}

impl Qube {
    fn new(label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        let client = rig.add_client(&ClientSpec::numbered(12))?;
        let db = FakeQubesDb::start(&rig.directory().join("root/var/run/qubes/qubesdb.sock"))?;
        let agent = Agent::start(&rig, &["--mode", "qubes"])?;
        agent.wait_for_vif(client.vif())?;
        Ok(Self { _agent: agent, db, client, written: 0, _rig: rig })
    }

    /// Writes rules in the order in which dom0 does; the clock runs from the commit on.
    fn replace(&mut self, rules: &Ruleset) -> Result<Duration> {
        let client = self.client.spec().v4.context("no IPv4 address")?.to_string();
        let text = rules.file();
        let pairs: Vec<(&str, &[u8])> = text
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .filter(|(key, _)| *key != "policy")
            .map(|(key, value)| (key, value.as_bytes()))
            .collect();
        self.db.begin(&client, "drop", &pairs);
        self.written += 1;
        let start = Instant::now();
        self.db.write(&format!("/qubes-firewall/{client}"), b"");
        let key = format!("/qubes-firewall-handled/{client}");
        self.db.wait_for(&key, &self.written.to_string(), PATIENCE)?;
        Ok(start.elapsed())
    }
}

fn table(places: &[Place]) -> String {
    let row = |place: &Place| {
        let mut row = vec![place.firewall.to_string()];
        for samples in [&place.tightened, &place.loosened] {
            let parts = [0.0, 0.5, 0.9, 1.0];
            row.extend(parts.map(|part| format!("{:.1}", samples.quantile(part))));
        }
        row
    };
    let header = [
        "handled",
        "tighter: least",
        "median",
        "90 %",
        "most",
        "looser: least",
        "median",
        "90 %",
        "most",
    ];
    show::table(header, places.iter().map(row).collect()).to_string()
}

fn report(places: &[Place]) -> Value {
    let row = |place: &Place| {
        json!({
            "firewall": place.firewall.to_string(),
            "tighter_median_ms": place.tightened.median(),
            "tighter_p90_ms": place.tightened.quantile(0.9),
            "looser_median_ms": place.loosened.median(),
            "looser_p90_ms": place.loosened.quantile(0.9),
            "rounds": place.tightened.count(),
        })
    };
    let rows: Vec<Value> = places.iter().map(row).collect();
    json!({ "machine": machine(), "handled": rows })
}
