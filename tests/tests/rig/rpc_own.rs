//! What a qube learns by `firewall.Why`: its own rules, and of others nothing, whatever it asks.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::own::OwnStatus;
use firewall_core::told::status::State;
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::qrexec::Qrexec;
use firewall_tests::rig::{Client, ClientSpec};

use super::rpc::{Netvm, check_bounds, key};

const MOST: usize = 64 * 1024;
const OWN_RULES: [(&str, &[u8]); 2] = [
    ("0000", b"action=accept proto=tcp dstports=443-443"),
    ("0001", b"action=accept specialtarget=dns"),
];
/// What only others' rules say.
const SECRET: &str = "203.0.113.99";

/// `work` asks; `play`, `vault` and one that nobody introduced are others.
struct Scene {
    netvm: Netvm,
    others: Vec<Client>,
}

impl Scene {
    fn new(label: &str) -> Result<Self> {
        let netvm = Netvm::new(label)?;
        netvm.db.reload(&netvm.world.v4.to_string(), "drop", &OWN_RULES);
        let mut others = Vec::new();
        for number in [13, 14, 15] {
            others.push(netvm.world.rig.add_client(&ClientSpec::numbered(number))?);
        }
        let scene = Self { netvm, others };
        let rules = [
            format!("action=accept dst4={SECRET}"),
            format!("action=accept dst4={SECRET} proto=tpc"),
            "action=accept dsthost=secret.example".to_owned(),
        ];
        for (client, rule) in scene.others.iter().zip(rules) {
            scene.netvm.put(address(client)?, &rule);
        }
        scene.introduce("play", 0)?;
        scene.introduce("vault", 1)?;
        std::fs::write(
            scene.netvm.world.rig.directory().join("resolv.conf"),
            "nameserver 198.51.100.53\n",
        )?;
        Ok(scene)
    }

    fn introduce(&self, name: &str, index: usize) -> Result<()> {
        let own = address(&self.others[index])?.to_string();
        self.netvm.db.write(&key(name), own.as_bytes());
        Ok(())
    }

    fn start(&self) -> Result<Agent> {
        let agent = self.netvm.start()?;
        let blocked = address(&self.others[1])?;
        agent.wait_for("all clients", |status| {
            let of = |address: IpAddr| status.clients.iter().find(|it| it.address == address);
            of(blocked).is_some_and(|it| it.state == State::Blocked && it.name.is_some())
                && of(self.netvm.world.v4)
                    .is_some_and(|it| it.rules.len() == 2 && it.name.is_some())
                && status.clients.len() >= 8
        })?;
        Ok(agent)
    }

    /// What may be in no answer to `work`: all that is others' or the netvm's.
    fn forbidden(&self) -> Result<Vec<String>> {
        let rig = &self.netvm.world.rig;
        let mut all: Vec<String> =
            ["play", "vault", "vif", "generation", SECRET, "secret", "198.51.100.53", "10.139.1"]
                .map(str::to_owned)
                .into();
        for client in &self.others {
            all.extend(client.spec().addresses().iter().map(IpAddr::to_string));
        }
        let own = rig.netvm().ip(&["-o", "address", "show"])?;
        let words: Vec<&str> = own.split_whitespace().collect();
        let pairs = words.windows(2).filter(|pair| ["inet", "inet6"].contains(&pair[0]));
        let addresses = pairs.filter_map(|pair| pair[1].split('/').next());
        all.extend(
            addresses.filter(|it| !it.starts_with("127.") && *it != "::1").map(str::to_owned),
        );
        Ok(all)
    }
}

/// Whether a text has a word in it; an address only as a whole.
fn mentions(text: &str, word: &str) -> bool {
    let goes_on = |end: usize| {
        let next = text.as_bytes().get(end);
        next.is_some_and(|it| it.is_ascii_hexdigit() || *it == b':')
    };
    let is_address = word.parse::<IpAddr>().is_ok();
    text.match_indices(word).any(|(at, _)| !is_address || !goes_on(at + word.len()))
}

/// A text with an address in it, where that stands as a whole, written as `X`.
fn without(text: &str, address: &str) -> String {
    let mut rest = text;
    let mut told = String::new();
    while let Some((before, behind)) = rest.split_once(address) {
        let goes_on = behind.starts_with(|it: char| it.is_ascii_hexdigit() || it == ':');
        told.push_str(before);
        told.push_str(if goes_on { address } else { "X" });
        rest = behind;
    }
    told + rest
}

fn address(client: &Client) -> Result<IpAddr> {
    client.spec().v4.map(IpAddr::from).context("no address")
}

/// What `work` is told, without its own counts of packets, which go on meanwhile.
fn asked(qrexec: &Qrexec, argument: &str) -> Result<(String, i32)> {
    let answer = qrexec.call("work", "firewall.Why", argument)?;
    check_bounds(&answer, MOST);
    let text = answer.text();
    if argument.ends_with("json") && answer.code != 2 {
        let mut own: OwnStatus = serde_json::from_str(&text)?;
        own.own.iter_mut().for_each(|it| it.counters.clear());
        return Ok((serde_json::to_string(&own)?, answer.code));
    }
    let is_count =
        |line: &&str| !(line.starts_with("  ") && line.ends_with(" bytes") && line.contains(": "));
    Ok((text.lines().filter(is_count).collect::<Vec<_>>().join("\n"), answer.code))
}

/// Destinations that are somebody's here, each with one of the same length that is nobody's.
fn pairs(scene: &Scene) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for client in &scene.others {
        for address in client.spec().addresses() {
            let nobody = if address.is_ipv4() { "10.137.0.99" } else { "fd09:24ef:4179::a89:63" };
            pairs.push((address.to_string(), nobody.to_owned()));
        }
    }
    // The netvm's own, and its DNS server.
    let own = scene.netvm.world.rig.netvm().ip(&["-o", "-4", "address", "show"])?;
    let words: Vec<&str> = own.split_whitespace().collect();
    for pair in words.windows(2).filter(|pair| pair[0] == "inet") {
        let address = pair[1].split('/').next().context("an address")?;
        if !address.starts_with("127.") {
            pairs.push((address.to_owned(), "192.0.2.99".to_owned()));
        }
    }
    ensure!(pairs.len() > 6, "{pairs:?}");
    Ok(pairs)
}

#[test]
fn a_qube_that_asks_about_others_learns_what_it_would_of_nobody() -> Result<()> {
    let scene = Scene::new("whyothers")?;
    let agent = scene.start()?;
    let qrexec = Qrexec::new(&scene.netvm.world.rig, &agent)?;
    let forbidden = scene.forbidden()?;
    for form in ["", "+json"] {
        let (own, code) = asked(&qrexec, form.trim_start_matches('+'))?;
        ensure!(code == 0 && own.contains("dstports=443-443"), "{code}: {own}");
        for word in &forbidden {
            ensure!(!mentions(&own, word), "`{word}` is in:\n{own}");
        }
        // Whether a packet would pass depends on the rules alone, wherever it goes.
        for (somebody, nobody) in pairs(&scene)? {
            for service in ["443+tcp", "80+tcp", "53+udp", "icmp", "3+icmp", "47"] {
                let [told, expected] = [&somebody, &nobody].map(|to| -> Result<_> {
                    let field = to.replace(':', "_");
                    let (text, code) = asked(&qrexec, &format!("{field}+{service}{form}"))?;
                    Ok((without(&text, to), code))
                });
                let (told, expected) = (told?, expected?);
                ensure!(told == expected, "{somebody} {service}:\n{}\n{}", told.0, expected.0);
                let leaks = |word: &&String| **word != somebody && mentions(&told.0, word);
                let found = forbidden.iter().find(leaks);
                ensure!(found.is_none(), "{somebody} {service}: {found:?} in\n{}", told.0);
            }
        }
        // Names of others are refused as those of nobody.
        for other in ["play", "vault"] {
            for argument in ["X", "X+443+tcp", "X+198.51.100.7+443+tcp", "json+X"] {
                let [told, expected] = [other, "nobod"].map(|name| -> Result<_> {
                    let (text, code) = asked(&qrexec, &(argument.replace('X', name) + form))?;
                    Ok((text.replace(name, "X"), code))
                });
                ensure!(told? == expected?, "{other} {argument}");
            }
        }
    }
    // Whoever is not introduced learns nothing at all, though others are.
    let mut all = Vec::new();
    for (caller, argument) in [("thief", ""), ("WORK", ""), ("wor", "10.137.0.13+443+tcp")] {
        let answer = qrexec.call(caller, "firewall.Why", argument)?;
        ensure!(answer.code == 2, "{}", answer.text());
        for word in &forbidden {
            ensure!(!mentions(&answer.text(), word), "{}", answer.text());
        }
        all.push(answer.text().replace(caller, "X"));
    }
    ensure!(all.iter().all(|it| *it == all[0]), "{all:?}");
    // Each is told its own.
    let play = qrexec.call("play", "firewall.Why", "")?.text();
    ensure!(play.contains(SECRET) && !play.contains("dstports=443"), "{play}");
    Ok(())
}

#[test]
fn what_a_qube_is_told_stays_to_the_byte_whatever_becomes_of_others() -> Result<()> {
    let scene = Scene::new("whysame")?;
    let agent = scene.start()?;
    let qrexec = Qrexec::new(&scene.netvm.world.rig, &agent)?;
    let arguments =
        ["", "json", "10.137.0.13+443+tcp", "10.137.0.14+80+tcp+json", "203.0.113.99+icmp"];
    let ask = || {
        arguments.map(|argument| asked(&qrexec, argument)).into_iter().collect::<Result<Vec<_>>>()
    };
    let before = ask()?;
    // Others get other rules, several times, and other names; one is blocked, one is not any more; one
    // goes.
    for round in 0..3 {
        for (index, client) in scene.others.iter().enumerate() {
            scene
                .netvm
                .put(address(client)?, &format!("action=accept dst4=203.0.113.{round}{index}"));
        }
    }
    scene.introduce("elsewhere", 2)?;
    scene.netvm.db.remove(&key("play"));
    scene.netvm.put(address(&scene.others[0])?, "action=accept proto=tpc");
    scene.netvm.world.rig.remove_client(&scene.others[2])?;
    let [blocked, live] = [address(&scene.others[0])?, address(&scene.others[1])?];
    agent.wait_for("all of that", |status| {
        let of = |address: IpAddr| status.clients.iter().find(|it| it.address == address);
        of(blocked).is_some_and(|it| it.state == State::Blocked && it.name.is_none())
            && of(live).is_some_and(|it| it.state == State::Live)
    })?;
    agent.wait_for_settled()?;
    let after = ask()?;
    for ((argument, before), after) in arguments.iter().zip(&before).zip(&after) {
        ensure!(before == after, "{argument}:\n{}\n{}", before.0, after.0);
    }
    // It does tell what becomes of its own; and how often others' rules changed meanwhile, no number tells.
    let own = |rules: &[(&str, &[u8])]| -> Result<()> {
        scene.netvm.db.reload(&scene.netvm.world.v4.to_string(), "drop", rules);
        agent.wait_for("own rules", |status| {
            let own = status.clients.iter().find(|it| it.address == scene.netvm.world.v4);
            own.is_some_and(|it| it.rules.len() == rules.len() && it.state == State::Live)
        })
    };
    own(&OWN_RULES[..1])?;
    ensure!(ask()? != before, "nothing of its own is told");
    own(&OWN_RULES)?;
    let after = ask()?;
    ensure!(after == before, "{after:?}\n{before:?}");
    Ok(())
}
