//! Services for qrexec, by the scripts of the package, against a real agent: what each says to whom, and
//! what leaves. What a qube learns about others is in `rpc_own.rs`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use firewall_core::told::explanation::{Explained, Outcome};
use firewall_core::told::failure::ErrorStatus;
use firewall_core::told::news::News;
use firewall_core::told::own::{OwnStatus, OwnVerdict};
use firewall_core::told::status::Status;
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::qrexec::{Answer, Qrexec, User};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::traffic::probe::{Probe, SILENCE};

use super::cycles::DENIED;
use super::world::*;

const ANEW: &str = "starts anew";
const MOST_TEXT: usize = 64 * 1024;
const MOST_JSON: usize = 1024 * 1024;

pub fn key(name: &str) -> String {
    format!("/vm-config/firewall-client-{name}")
}

/// A netvm with a QubesDB, and `work`, whom dom0 has introduced and which may use port 443.
pub struct Netvm {
    pub world: World,
    pub db: FakeQubesDb,
}

impl Netvm {
    pub fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let db =
            FakeQubesDb::start(&world.rig.directory().join("root/var/run/qubes/qubesdb.sock"))?;
        let netvm = Self { world, db };
        for client in [netvm.world.v4, netvm.world.v6] {
            netvm.put(client, "action=accept proto=tcp dstports=443-443");
        }
        let own = format!("{} {}", netvm.world.v4, netvm.world.v6);
        netvm.db.write(&key("work"), own.as_bytes());
        Ok(netvm)
    }

    pub fn put(&self, client: std::net::IpAddr, rule: &str) {
        self.db.reload(&client.to_string(), "drop", &[("0000", rule.as_bytes())]);
    }

    pub fn start(&self) -> Result<Agent> {
        let agent = Agent::start(&self.world.rig, &[])?;
        agent.wait_for_vif(self.world.client.vif())?;
        agent.wait_for_settled()?;
        Ok(agent)
    }
}

/// Whether an answer may leave: printable ASCII and line ends, not too much of it.
#[track_caller]
pub fn check_bounds(answer: &Answer, most: usize) {
    let is_fine = |byte: &u8| (b' '..=b'~').contains(byte) || *byte == b'\n';
    assert!(answer.said.iter().all(is_fine), "{}", answer.text());
    assert!(!answer.said.is_empty() && answer.said.len() <= most, "{}", answer.said.len());
    assert!(answer.said.ends_with(b"\n"), "{}", answer.text());
}

#[test]
fn each_service_answers_in_text_and_json_with_the_exit_code_of_its_command() -> Result<()> {
    let netvm = Netvm::new("rpc")?;
    let agent = netvm.start()?;
    let qrexec = Qrexec::new(&netvm.world.rig, &agent)?;
    let call = |service: &str, argument: &str| -> Result<(String, i32)> {
        let answer = qrexec.call("dom0", service, argument)?;
        check_bounds(&answer, if argument.ends_with("json") { MOST_JSON } else { MOST_TEXT });
        Ok((answer.text(), answer.code))
    };
    let v4 = netvm.world.v4;
    let (text, code) = call("firewall.Status", "")?;
    ensure!(code == 0 && text.contains(&format!("{v4} (work) on vif12.0: live")), "{code} {text}");
    let (text, code) = call("firewall.Status", "json")?;
    let status: Status = serde_json::from_str(&text)?;
    ensure!(code == 0 && status.agent.pid == agent.pid(), "{text}");
    for (client, clients) in [("work", 2), ("10.137.0.12", 1), ("play", 0), ("10.137.0.99", 0)] {
        let (text, _) = call("firewall.Show", client)?;
        ensure!(
            text.contains("0000  action=accept proto=tcp") == (clients > 0),
            "{client}: {text}"
        );
        let (text, code) = call("firewall.Show", &format!("{client}+json"))?;
        let status: Status = serde_json::from_str(&text)?;
        ensure!(code == 0 && status.clients.len() == clients, "{client}: {text}");
    }
    let v6 = netvm.world.v6.to_string().replace(':', "_");
    for (argument, expected) in [
        ("work+198.51.100.7+443+tcp".to_owned(), Outcome::Forwarded),
        ("work+2001_db8_1__7+443+tcp".to_owned(), Outcome::Forwarded),
        (format!("{v6}+2001_db8_1__7+80+tcp"), Outcome::Rejected),
        ("10.137.0.12+198.51.100.7+icmp".to_owned(), Outcome::Rejected),
    ] {
        let (text, code) = call("firewall.Explain", &argument)?;
        ensure!(code == i32::from(expected == Outcome::Rejected), "{argument}: {code} {text}");
        ensure!(text.contains("its own tables say the same"), "{argument}: {text}");
        let (text, _) = call("firewall.Explain", &format!("{argument}+json"))?;
        let explained: Vec<Explained> = serde_json::from_str(&text)?;
        ensure!(explained[0].outcome == expected && explained[0].agree == Some(true), "{text}");
    }
    for (argument, expected) in [
        ("198.51.100.7+443+tcp", OwnVerdict::Accepted),
        ("2001_db8_1__7+443+udp", OwnVerdict::Denied),
    ] {
        let why = qrexec.call("work", "firewall.Why", argument)?;
        let word = if expected == OwnVerdict::Accepted { "ACCEPT it" } else { "DENY it" };
        ensure!(why.text().contains(word), "{}", why.text());
        ensure!(why.code == i32::from(expected == OwnVerdict::Denied), "{}", why.text());
        let why = qrexec.call("work", "firewall.Why", format!("{argument}+json"))?;
        let own: OwnStatus = serde_json::from_slice(&why.said)?;
        ensure!(own.own.len() == 2 && own.answer.is_some_and(|it| it.says == expected));
    }
    // Nobody answers.
    ensure!(agent.terminate()?);
    for service in ["firewall.Status", "firewall.Monitor", "firewall.Why"] {
        for (argument, most) in [("", MOST_TEXT), ("json", MOST_JSON)] {
            let answer = qrexec.call("work", service, argument)?;
            check_bounds(&answer, most);
            ensure!(answer.code == 3, "{service} {argument}: {} {}", answer.code, answer.text());
            ensure!(
                argument.is_empty()
                    || serde_json::from_slice::<serde_json::Value>(&answer.said).is_ok()
            );
        }
    }
    Ok(())
}

#[test]
fn monitoring_ends_by_itself_and_tells_what_was_denied_and_what_would_allow_it() -> Result<()> {
    let netvm = Netvm::new("rpcmonitor")?;
    let agent = netvm.start()?;
    let qrexec = Qrexec::new(&netvm.world.rig, &agent)?;
    let watch = |argument: &str| -> Result<Answer> {
        let call = || qrexec.call("dom0", "firewall.Monitor", argument);
        let pause = Duration::from_millis(1);
        let (answer, _) = while_sending(&netvm.world.client, DENIED, pause, call)?;
        ensure!(answer.code == 0, "{}", answer.text());
        check_bounds(&answer, MOST_JSON);
        Ok(answer)
    };
    let text = watch("2")?.text();
    ensure!(text.contains("198.51.100.7:82/udp: rejected by default"), "{text}");
    let text = watch("2+learn")?.text();
    ensure!(
        text.contains("qvm-firewall QUBE add accept dst4=198.51.100.7/32 proto=udp dstports=82-82"),
        "{text}"
    );
    // Where nothing is denied, it ends nonetheless.
    let answer = qrexec.call("dom0", "firewall.Monitor", "1")?;
    ensure!(answer.code == 0 && answer.text().contains("denied packets of"), "{}", answer.text());
    let json = watch("2+json")?.text();
    let news: Vec<News> = json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(news.iter().any(|it| matches!(it, News::Denied(_))), "{json}");
    Ok(())
}

#[test]
fn whoever_is_not_root_is_told_so_and_nothing_else() -> Result<()> {
    let netvm = Netvm::new("rpcnobody")?;
    let agent = netvm.start()?;
    let qrexec = Qrexec::new(&netvm.world.rig, &agent)?;
    for service in ["Status", "Monitor", "Why"] {
        let service = format!("firewall.{service}");
        let answer = qrexec.call_as(User::Nobody, "work", &service, "")?;
        let text = answer.text();
        ensure!(answer.code == 2 && text.lines().count() == 1, "{} {text}", answer.code);
        ensure!(text.contains("another user than root") && text.contains("force-user"), "{text}");
        let answer = qrexec.call_as(User::Nobody, "work", &service, "json")?;
        let error: ErrorStatus = serde_json::from_slice(&answer.said)?;
        ensure!(answer.code == 2 && error.error.contains("force-user"), "{error:?}");
    }
    Ok(())
}

#[test]
fn a_strangers_argument_is_refused_in_bounded_ascii() -> Result<()> {
    let netvm = Netvm::new("rpchostile")?;
    let agent = netvm.start()?;
    let qrexec = Qrexec::new(&netvm.world.rig, &agent)?;
    let long = "a".repeat(60_000);
    let wrong: [&[u8]; 12] = [
        b"..",
        b"../../etc/passwd",
        b"%s%n",
        b"a\nb",
        b"--help",
        b"--socket=/x",
        b"-",
        b"$(id)",
        b"\xff\xfe",
        b"\x1b[2J",
        b"work;id",
        long.as_bytes(),
    ];
    for argument in wrong {
        for service in ["Status", "Show", "Explain", "Monitor", "Why"] {
            let service = format!("firewall.{service}");
            let answer = qrexec.call("work", &service, OsStr::from_bytes(argument))?;
            check_bounds(&answer, 1024);
            let text = answer.text();
            ensure!(answer.code == 2 && text.contains("call it as firewall."), "{service}: {text}");
            ensure!(text.lines().count() == 1, "{service}: {text}");
        }
    }
    for caller in ["", "dom0", "a b", "\u{1b}[2J", &"a".repeat(32), "work/../play"] {
        let answer = qrexec.call(caller, "firewall.Why", "")?;
        check_bounds(&answer, 1024);
        ensure!(answer.code == 2 && !answer.text().contains("10.137"), "{caller}");
    }
    Ok(())
}

#[test]
fn ten_thousand_rules_are_cut_as_text_and_are_an_error_as_json() -> Result<()> {
    let netvm = Netvm::new("rpcmany")?;
    let keys: Vec<(String, String)> = (0..10_000)
        .map(|it| {
            (format!("{it:04}"), format!("action=drop dst4=100.{}.{}.0/24", it / 250, it % 250))
        })
        .collect();
    let rules: Vec<(&str, &[u8])> =
        keys.iter().map(|(key, rule)| (key.as_str(), rule.as_bytes())).collect();
    netvm.db.reload(&netvm.world.v4.to_string(), "drop", &rules);
    let agent = netvm.start()?;
    let v4 = netvm.world.v4;
    agent.wait_for("all rules", |status| {
        status.clients.iter().any(|it| it.address == v4 && it.rules.len() == rules.len())
    })?;
    let qrexec = Qrexec::new(&netvm.world.rig, &agent)?;
    for (service, argument) in [("firewall.Show", "work"), ("firewall.Why", "")] {
        let answer = qrexec.call("work", service, argument)?;
        check_bounds(&answer, MOST_TEXT);
        ensure!(answer.text().contains("CUT HERE: "), "{service}: {}", answer.said.len());
        let with_json =
            if argument.is_empty() { "json".into() } else { format!("{argument}+json") };
        let answer = qrexec.call("work", service, with_json)?;
        let error: ErrorStatus = serde_json::from_slice(&answer.said)?;
        ensure!(error.error.contains("more than 1048576 bytes"), "{error:?}");
    }
    Ok(())
}

#[test]
fn whom_dom0_introduces_is_known_at_once_and_no_agent_starts_anew() -> Result<()> {
    let netvm = Netvm::new("introduced")?;
    let agent = netvm.start()?;
    let named = |name: Option<&'static str>| {
        let v4 = netvm.world.v4;
        agent.wait_for(&format!("{name:?}"), |status| {
            status.clients.iter().any(|it| it.address == v4 && it.name.as_deref() == name)
        })
    };
    named(Some("work"))?;
    let v4 = netvm.world.v4.to_string();
    // Two claim it.
    netvm.db.write(&key("play"), v4.as_bytes());
    named(None)?;
    ensure!(agent.status()?.agent.option_problems.len() == 1, "{:?}", agent.status()?.agent);
    netvm.db.write(&key("work"), b"");
    named(Some("play"))?;
    netvm.db.remove(&key("play"));
    named(None)?;
    ensure!(agent.status()?.agent.option_problems.is_empty(), "{:?}", agent.status()?.agent);
    // Where an option counts that no agent starts with, and after another agent.
    netvm.db.write("/vm-config/firewall-pins", b"/proc/nobody");
    agent.wait_for("pins", |status| !status.agent.option_problems.is_empty())?;
    netvm.db.write(&key("work"), v4.as_bytes());
    named(Some("work"))?;
    netvm.db.remove("/vm-config/firewall-pins");
    agent.wait_for("no pins", |status| status.agent.option_problems.is_empty())?;
    let before = agent.log().matches(ANEW).count();
    netvm.db.write(&key("other"), b"10.137.0.77");
    netvm.db.write(&key("work"), b"");
    named(None)?;
    ensure!(agent.log().matches(ANEW).count() == before, "{}", agent.log());
    agent.wait_for_vif(netvm.world.client.vif())?;
    let outcome = Probe::tcp(netvm.world.client.namespace(), (SERVER4, 443).into()).run(SILENCE)?;
    ensure!(outcome == ACCEPTED[0], "{outcome:?}");
    Ok(())
}
