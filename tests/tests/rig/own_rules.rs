//! Rules that users add to the agent's tables: that they work, that they stay, and that they are told.
//! Never says how a recipe goes: docs/own-rules.md does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::added::Warning;
use firewall_core::told::status::State;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::rig::agent::{Agent, write_rules};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};
use nix::sys::signal::Signal;

use super::closed::Lacking;
use super::files::cli;
use super::marks::LONG;
use super::own_recipes::{MODES, Scene, recipe};
use super::world::*;

/// How often somebody took something of the gate away, and how often rules were appended behind it.
fn mended(scene: &Scene) -> [usize; 2] {
    let log = scene.agent.log();
    ["somebody removed the gate", "behind the gate's last rule"].map(|it| log.matches(it).count())
}

/// Whether the first web server is reached, and what another one says.
#[track_caller]
fn check(scene: &Scene, name: &str, expected: Outcome) {
    let from = scene.world.client.namespace();
    let ask = |port, patience| Probe::tcp(from, SocketAddr::new(SERVER4, port)).run(patience);
    let patience = if expected == Outcome::Silent { SILENCE } else { LONG };
    assert_eq!(ask(443, patience).expect("a probe"), expected, "{name}\n{}", scene.agent.log());
    // What no rule of anybody accepts.
    assert_eq!(ask(80, LONG).expect("a probe"), PROHIBITED4, "{name}\n{}", scene.agent.log());
}

/// Goes through all that a user's rule is to survive.
fn survives(scene: &Scene, name: &str, expected: Outcome) -> Result<()> {
    let count = scene.agent.status()?.agent.added_rules.len();
    let is_listed =
        |what: &str| scene.agent.wait_for(what, |status| status.agent.added_rules.len() == count);
    check(scene, name, expected);
    for loss in [
        "flush chain ip qubes-firewall openings",
        "delete chain ip qubes-firewall openings",
        "add chain ip qubes-firewall forward { policy accept; }",
        "delete table ip6 qubes-firewall",
    ] {
        let [before, _] = mended(scene);
        scene.netvm().nft(loss)?;
        scene.agent.wait_for(loss, |_| mended(scene)[0] > before)?;
        is_listed(loss)?;
        check(scene, &format!("{name}: {loss}"), expected);
    }
    for chain in ["forward", "qubes-forward"] {
        let [before, _] = mended(scene);
        let listed = list(scene)?;
        let rules = listed.split(&format!("chain {chain} {{")).nth(1).context("no chain")?;
        let permit = rules.lines().find(|it| it.contains("accepted by a qube's rules"));
        let handle = permit.and_then(|it| it.rsplit(' ').next()).context("no rule")?;
        scene.netvm().nft(&format!("delete rule ip qubes-firewall {chain} handle {handle}"))?;
        scene.agent.wait_for(chain, |_| mended(scene)[0] > before)?;
        is_listed(chain)?;
        check(scene, &format!("{name}: a part of {chain} was gone"), expected);
    }
    let [before, _] = mended(scene);
    let handles = own_handles(scene, "forward")?;
    let deletions = handles
        .iter()
        .map(|handle| format!("delete rule ip qubes-firewall forward handle {handle}\n"));
    scene.netvm().nft(&deletions.collect::<String>())?;
    scene.agent.wait_for("without ours", |_| mended(scene)[0] > before)?;
    is_listed("without ours")?;
    check(scene, &format!("{name}: all of ours were gone"), expected);
    scene.agent.signal(Signal::SIGHUP)?;
    check(scene, &format!("{name}: read again"), expected);
    // Servers of DNS that change have the agent write its tables.
    std::fs::write(scene.world.rig.directory().join("resolv.conf"), "nameserver 198.51.100.8\n")?;
    scene.agent.wait_for("another resolver", |status| {
        status.agent.resolvers.contains(&"198.51.100.8".parse().expect("an address"))
    })?;
    is_listed("another resolver")?;
    check(scene, &format!("{name}: another resolver"), expected);
    Ok(())
}

/// Numbers of the agent's rules in a chain of the gate.
fn own_handles(scene: &Scene, chain: &str) -> Result<Vec<String>> {
    let listed = list(scene)?;
    let rules = listed.split(&format!("chain {chain} {{")).nth(1).context("no chain")?;
    let rules = rules.split('}').next().context("no end")?;
    let own = rules.lines().filter(|it| it.contains("firewall-agent "));
    Ok(own.filter_map(|it| it.rsplit(' ').next()).map(str::to_owned).collect())
}

fn list(scene: &Scene) -> Result<String> {
    let mut nft = std::process::Command::new("nft");
    nft.args(["-a", "list", "table", "ip", "qubes-firewall"]).stdout(std::process::Stdio::piped());
    Ok(String::from_utf8(scene.netvm().spawn(&mut nft)?.wait_with_output()?.stdout)?)
}

#[test]
fn an_appended_accept_lets_pass_what_rules_deny_and_stays() -> Result<()> {
    let [commands] = recipe("More than dom0's rules accept")?;
    for mode in MODES {
        let scene = Scene::new("more", mode, &[])?;
        check(&scene, "before", PROHIBITED4);
        scene.run(&commands)?;
        survives(&scene, mode, Outcome::Accepted)?;
        let (code, text) = cli(
            &scene.agent,
            &["explain", "--from", "10.137.0.12", "--to", "198.51.100.7:443/tcp"],
        )?;
        ensure!(code == 1 && text.contains("rules of others in the agent's tables may"), "{text}");
        scene.world.put(&scene.agent, &[ping()])?;
        check(&scene, "other rules", Outcome::Accepted);
        // The chain at the hook ends with a rule of the agent's.
        scene.netvm().nft("flush chain ip qubes-firewall qubes-forward")?;
        scene.agent.wait_for("gone", |status| status.agent.added_rules.is_empty())?;
        check(&scene, "gone", PROHIBITED4);
        let [lost, appended] = mended(&scene);
        scene.run(&commands.replace("qubes-forward", "forward"))?;
        assert_eq!(mended(&scene), [lost, appended + 1], "{}", scene.agent.log());
        survives(&scene, &format!("{mode}, in forward"), Outcome::Accepted)?;
    }
    Ok(())
}

#[test]
fn a_drop_in_front_stops_what_rules_accept_and_stays() -> Result<()> {
    let [commands] = recipe("Less than dom0's rules accept")?;
    for mode in MODES {
        let scene = Scene::new("less", mode, &[tcp_443()])?;
        check(&scene, "before", Outcome::Accepted);
        // Not of what is denied as well, which is to be answered.
        scene.run(&commands.replace("counter", "tcp dport 443 counter"))?;
        survives(&scene, mode, Outcome::Silent)?;
        scene.run(&commands)?;
        let from = scene.world.client.namespace();
        let all = Probe::tcp(from, SocketAddr::new(SERVER4, 80));
        assert_eq!(all.run(SILENCE)?, Outcome::Silent);
    }
    Ok(())
}

#[test]
fn a_rule_that_a_script_appended_before_the_agent_stays() -> Result<()> {
    for (mode, chain) in
        [("qubes", "ip qubes-firewall forward"), ("standalone", "inet qubes-firewall-nat forward")]
    {
        let scene = Scene::new("early", mode, &[])?;
        let Scene { world, agent, .. } = scene;
        agent.kill()?;
        // The agent is not there to move its own last rule.
        world.rig.netvm().nft(&format!("add rule {chain} ip saddr 10.137.0.12 counter accept"))?;
        let agent = world.start_with(&["--mode", mode])?;
        let rules = agent.status()?.agent.added_rules;
        assert_eq!(rules.len(), 1, "{rules:?}\n{}", agent.log());
        assert_eq!(rules[0].text, "ip saddr 10.137.0.12 counter accept");
        assert_eq!(format!("{} {}", rules[0].table, rules[0].chain), chain);
    }
    Ok(())
}

#[test]
fn status_lists_rules_of_others_and_warns_of_those_that_are_not_what_they_seem() -> Result<()> {
    let scene = Scene::new("listed", "qubes", &[Rule { proto: Some(Proto::Udp), ..tcp_443() }])?;
    let (code, text) = cli(&scene.agent, &["status"])?;
    assert_eq!(code, 0, "{text}");
    ensure!(!text.contains("rules of others"), "{text}");
    let many: Vec<String> = (1..=200).map(|it| format!("192.0.2.{it}")).collect();
    let many = many.join(", ");
    let add = "add rule ip qubes-firewall qubes-forward";
    let late = format!("ip saddr 10.137.0.12 ip daddr {{ {many} }} counter drop comment \"mine\"");
    scene.run(&format!("nft '{add} ip saddr 10.137.0.12 tcp dport 22 accept; {add} {late}'"))?;
    let (code, text) = cli(&scene.agent, &["status"])?;
    assert_eq!(code, 0, "{text}");
    let expected = format!(
        "rules of others in the gate: 2\n  \
         ip qubes-firewall qubes-forward: ip saddr 10.137.0.12 tcp dport 22 accept\n  \
         ip qubes-firewall qubes-forward: {late}\n    WARNING: {}\n",
        Warning::SeesOnlyDenied.told()
    );
    ensure!(text.contains(&expected), "{text}\n{expected}");
    scene.agent.wait_for_log("a rule of others is in the gate, and sees only what rules deny")?;
    // A counter that counts is no news.
    let news = |scene: &Scene| scene.agent.log().matches("a rule of others").count();
    let before = news(&scene);
    let denied = Probe::udp(scene.world.client.namespace(), "192.0.2.1:9".parse()?);
    assert_eq!(denied.run(SILENCE)?, Outcome::Silent);
    scene.run(
        "nft 'add rule ip6 qubes-firewall forward counter accept; \
               add rule ip6 qubes-firewall forward ip6 saddr ::1 accept'",
    )?;
    scene.agent.wait_for_log("accepts whatever clients send")?;
    assert_eq!(news(&scene), before + 2, "{}", scene.agent.log());
    let (code, text) = cli(&scene.agent, &["status"])?;
    assert_eq!(code, 1, "{text}");
    ensure!(text.contains(&format!("PROBLEM: {}", Warning::OpensAll.told())), "{text}");
    let (_, json) = cli(&scene.agent, &["status", "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let rules = json["agent"]["added_rules"].as_array().context("no list")?;
    let warnings: Vec<_> = rules.iter().map(|it| it["warning"].as_str()).collect();
    let expected = [None, Some("sees-only-denied"), Some("opens-all"), Some("never-reached")];
    assert_eq!(warnings, expected, "{json}");
    // They are right.
    let open = Probe::tcp(scene.world.client.namespace(), SocketAddr::new(SERVER6, 443));
    assert_eq!(open.run(LONG)?, Outcome::Accepted, "it is not as open as it is said to be");
    scene.netvm().nft("flush chain ip6 qubes-firewall forward")?;
    scene.agent.wait_for("gone", |status| status.agent.added_rules.len() == 2)?;
    scene.agent.wait_for_log("a rule of others is not in the gate any more")?;
    assert_eq!(cli(&scene.agent, &["status"])?.0, 0);
    Ok(())
}

#[test]
fn what_a_user_appends_opens_a_qube_without_rules_as_well() -> Result<()> {
    let scene = Scene::new("norules", "qubes", &[])?;
    let [commands] = recipe("More than dom0's rules accept")?;
    scene.run(&commands)?;
    check(&scene, "with rules", Outcome::Accepted);
    std::fs::remove_file(scene.agent.rules_of(scene.world.v4))?;
    scene.agent.wait_for_state(scene.world.v4, State::Waiting)?;
    check(&scene, "without rules", Outcome::Accepted);
    write_rules(scene.world.rig.directory(), scene.world.v4, "policy = drop\ncommit\n")?;
    scene.agent.wait_for_state(scene.world.v4, State::Live)?;
    check(&scene, "with rules again", Outcome::Accepted);
    Ok(())
}

#[test]
fn mending_is_tried_several_times_and_then_all_is_loaded_anew_and_told() -> Result<()> {
    const TRIES: usize = 8;
    let world = World::new("tries")?;
    let lacking = Lacking::new(&world.rig, "")?;
    let agent = Agent::start_in(&world.rig, &[], &[lacking.environment()?])?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    let netvm = world.rig.netvm();
    netvm.nft("insert rule ip qubes-firewall forward ip saddr 192.0.2.99 drop")?;
    let added = || -> Result<usize> { Ok(agent.status()?.agent.added_rules.len()) };
    agent.wait_for("the rule", |status| status.agent.added_rules.len() == 1)?;
    let anew = "all of it is loaded anew";
    // Only what mends begins so.
    let mends = "^(add|insert) rule ";
    let tried = || -> Result<usize> {
        let own = "rule ip6 qubes-firewall forward jump qubes-forward ";
        Ok(lacking.told()?.matches(own).count())
    };
    for (times, tries) in [(TRIES - 1, TRIES), (TRIES, TRIES)] {
        let before = tried()?;
        let losses = |log: String| log.matches("somebody removed the gate").count();
        let lost = losses(agent.log());
        lacking.refuse_so_often(mends, times)?;
        netvm.nft("flush chain ip6 qubes-firewall forward")?;
        agent.wait_for("noticed", |_| losses(agent.log()) > lost)?;
        agent.wait_for("mended", |status| {
            let rule = usize::from(times < TRIES);
            status.agent.gate_problem.is_none() && status.agent.added_rules.len() == rule
        })?;
        assert_eq!(tried()? - before, tries, "{}", agent.log());
        assert_eq!(agent.log().contains(anew), times == TRIES, "{}", agent.log());
        world.check(&format!("refused {times} times"), v4, v6);
    }
    assert_eq!(added()?, 0);
    Ok(())
}

/// The port that the server names, in the words of FTP.
const NAMED: (u16, &str) = (8080, "227 Entering Passive Mode (198,51,100,7,31,144)\r\n");

#[test]
fn the_second_connection_of_ftp_is_judged_by_rules_unless_a_recipe_lets_it_pass() -> Result<()> {
    let [helper, accept] = recipe("The second connection of FTP")?;
    let ftp = Rule { ports: Some((21, 21)), ..tcp_443() };
    for mode in MODES {
        let scene = Scene::new("ftp", mode, std::slice::from_ref(&ftp))?;
        let (qube, internet) = (scene.world.client.namespace(), scene.world.rig.internet());
        let probe = "table ip probe { ct helper ftp { type \"ftp\" protocol tcp; }; }";
        if scene.netvm().nft(probe).is_err() {
            firewall_tests::skip("the_second_connection_of_ftp", "this kernel has no helper")?;
            return Ok(());
        }
        let serve = |port| EchoServer::start(internet, SocketAddr::new(SERVER4, port));
        let [first, second, other] = [21, NAMED.0, NAMED.0 + 1];
        let _servers = [serve(first)?, serve(second)?, serve(other)?];
        let [first, second, other] =
            [first, second, other].map(|port| SocketAddr::new(SERVER4, port));
        // What the client says comes back as the server's word; the helper reads whole lines only,
        // and not the first.
        let connect = || -> Result<TcpStream> {
            let mut control = qube.run(|| Ok(TcpStream::connect_timeout(&first, LONG)?))?;
            control.set_read_timeout(Some(LONG))?;
            for line in ["220 hello\r\n", NAMED.1] {
                control.write_all(line.as_bytes())?;
                control.read_exact(&mut vec![0; line.len()])?;
            }
            Ok(control)
        };
        // Whoever is answered after the first packet is told the same as who never got that far.
        let denied = |name: &str, to: SocketAddr| -> Result<()> {
            let mut left = frames::capture(internet, "eth0")?;
            assert_eq!(Probe::tcp(qube, to).run(LONG)?, PROHIBITED4, "{mode}: {name}");
            let port = to.port().to_be_bytes();
            // The first packet of a connection, by its flags.
            let is_it =
                |frame: &[u8]| frame.get(36..38) == Some(&port) && frame.get(47) == Some(&2);
            ensure!(left.wait_for(is_it, SILENCE)?.is_none(), "{mode}: {name}: it left");
            Ok(())
        };
        scene.run(&helper)?;
        let control = connect()?;
        denied("judged by rules", second)?;
        drop(control);
        scene.run(&accept)?;
        denied("nobody named it", second)?;
        let _control = connect()?;
        denied("not the named one", other)?;
        let mut flow = OpenFlow::open(qube, second, LONG)?;
        for _ in 0..3 {
            ensure!(flow.exchange(LONG)?, "{mode}: a later packet of it");
        }
        denied("named for one connection", second)?;
    }
    Ok(())
}
