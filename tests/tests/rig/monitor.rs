//! `monitor` beside real packets: what it says of them, and whether the rules that it learns
//! let them pass.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::control::{self, Request};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::told::news::{Denied, News};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets;
use firewall_tests::rig::CLIENT_INTERFACE;
use firewall_tests::rig::agent::{Agent, PATIENCE, binary};
use firewall_tests::rig::dns::Reply;
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::named::{Named, ONE, TWO};
use super::scene::frame;
use super::world::*;

/// A running `monitor`, and the lines that it prints.
pub struct Monitor {
    child: Child,
    lines: Receiver<String>,
}

impl Monitor {
    /// Starts it, and waits until it listens.
    pub fn start(agent: &Agent, arguments: &[&str]) -> Result<(Self, String)> {
        let mut command = Command::new(binary()?);
        command.arg("monitor").args(arguments).arg("--socket").arg(agent.socket());
        // With --learn, what is seen goes to standard error.
        let is_learning = arguments.contains(&"--learn");
        command.stdout(Stdio::piped()).env("TZ", "UTC");
        if is_learning {
            command.stderr(Stdio::piped());
        }
        let mut child = command.spawn()?;
        let (sender, lines) = channel();
        let pipe: Box<dyn std::io::Read + Send> = if is_learning {
            Box::new(child.stderr.take().context("no standard error")?)
        } else {
            Box::new(child.stdout.take().context("no standard output")?)
        };
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut monitor = Self { child, lines };
        let first = monitor.line()?;
        Ok((monitor, first))
    }

    fn line(&mut self) -> Result<String> {
        self.lines.recv_timeout(PATIENCE).context("no line")
    }

    pub fn denied(&mut self) -> Result<Denied> {
        match serde_json::from_str(&self.line()?)? {
            News::Denied(denied) => Ok(*denied),
            other => anyhow::bail!("{other:?}"),
        }
    }

    fn interrupt(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?)
    }

    /// Its exit code, once it has ended by itself.
    fn ended(mut self) -> Result<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return status.code().context("a signal");
            }
            ensure!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn monitor_tells_what_became_of_packets_by_which_rule_and_all_that_counters_count() -> Result<()> {
    let world = World::new("monitor")?;
    let agent = world.start()?;
    let no_80 = Rule { proto: Some(Proto::Tcp), ports: Some((80, 80)), ..Rule::all(false) };
    world.put(&agent, &[no_80.clone(), ping()])?;
    let (mut monitor, hello) = Monitor::start(&agent, &["--json"])?;
    ensure!(matches!(serde_json::from_str(&hello)?, News::Hello { pid, .. } if pid == agent.pid()));
    let from = world.client.namespace();
    let cases = [(world.v4, SERVER4, PROHIBITED4), (world.v6, SERVER6, PROHIBITED6)];
    for (client, server, prohibited) in cases {
        assert_eq!(Probe::tcp(from, SocketAddr::new(server, 80)).run(SILENCE)?, prohibited);
        assert_eq!(Probe::udp(from, SocketAddr::new(server, 443)).run(SILENCE)?, prohibited);
        assert_eq!(Probe::ping(from, server).run(SILENCE)?, Outcome::Accepted);
        let status = agent.client(client)?;
        let counted = [status.rules[0].counter.packets, status.default_counter.packets];
        let mut told = [0, 0];
        while told != counted {
            let denied = monitor.denied()?;
            let Denied { vif, source, destination, verdict, generation, .. } = &denied;
            assert_eq!((vif.as_str(), *verdict), (world.client.vif(), Verdict::Reject));
            assert_eq!((*source, *destination), (Some(client), Some(server)));
            assert_eq!(*generation, status.generation);
            let rule = denied.rule.as_ref().map(|rule| (rule.number, rule.text.clone()));
            let is_tcp = denied.protocol == packets::TCP;
            let by = if is_tcp { Some((0, no_80.text())) } else { None };
            assert_eq!((rule, denied.reason == Reason::Rule), (by, is_tcp), "{denied:?}");
            assert_eq!(denied.port, if is_tcp { 80 } else { 443 });
            told[usize::from(!is_tcp)] += 1 + u64::from(denied.suppressed);
            ensure!(told[0] <= counted[0] && told[1] <= counted[1], "{told:?} of {counted:?}");
        }
    }
    Ok(())
}

#[test]
fn monitors_filter_count_and_do_not_disturb_each_other() -> Result<()> {
    let world = World::new("monitors")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    let request = Request::Audit { client: world.v6, seconds: 3600 };
    let _: serde_json::Value = control::ask(&agent.socket(), &request)?;
    let generation = |client| -> Result<String> {
        let generation = agent.client(client)?.generation.context("no generation")?;
        Ok(format!(", generation {generation}"))
    };
    let (of_v4, of_v6) = (generation(world.v4)?, generation(world.v6)?);
    let cases = [
        (
            vec!["--to", "198.51.100.0/24"],
            " to 198.51.100.0/24",
            format!("10.137.0.12 to 198.51.100.7:443/tcp: rejected by default{of_v4}"),
        ),
        (
            vec!["--client", "10.137.0.12"],
            "",
            format!("10.137.0.12 to 198.51.100.7:443/tcp: rejected by default{of_v4}"),
        ),
        (
            vec!["--reason", "audit"],
            " for the reason audit",
            format!(
                "{} to [2001:db8:1::7]:443/tcp: AUDIT, PASSED; denied by default{of_v6}",
                world.v6
            ),
        ),
        (
            vec!["--reason", "unknown-source"],
            " for the reason unknown-source",
            "10.137.0.99 to 192.0.2.9:9/udp: dropped: unknown-source".to_owned(),
        ),
    ];
    let mut monitors = Vec::new();
    for (filters, headline, expected) in cases {
        let (monitor, first) =
            Monitor::start(&agent, &[filters.as_slice(), &["--count", "1"]].concat())?;
        let of = if filters[0] == "--client" { filters[1] } else { "all clients" };
        let about = format!("denied packets of {of}{headline}, at most 20 a second of each vif");
        assert_eq!(first, about);
        monitors.push((monitor, expected));
    }
    // One that nobody reads.
    let (_unread, _) = Monitor::start(&agent, &[])?;
    let from = world.client.namespace();
    let nobody: IpAddr = "10.137.0.99".parse()?;
    let spoofed = packets::plain(nobody, "192.0.2.9".parse()?, packets::UDP, 9);
    frames::send_raw(from, CLIENT_INTERFACE, &frame(&spoofed[14..]))?;
    assert_eq!(Probe::tcp(from, SocketAddr::new(SERVER6, 443)).run(SILENCE)?, Outcome::Accepted);
    assert_eq!(Probe::tcp(from, SocketAddr::new(SERVER4, 443)).run(SILENCE)?, PROHIBITED4);
    for (mut monitor, expected) in monitors {
        let line = monitor.line()?;
        let (time, line) = line.split_once(' ').context("no time")?;
        assert_eq!(time.len(), "17:44:39".len());
        // What was not told before it depends on the kernels' chatter.
        let line = line.split(';').filter(|part| !part.ends_with("not shown"));
        assert_eq!(line.collect::<Vec<_>>().join(";"), format!("vif12.0: {expected}"));
        assert_eq!(monitor.ended()?, 0);
    }
    Ok(())
}

#[test]
fn monitor_ends_with_the_agent_and_with_a_signal() -> Result<()> {
    let world = World::new("monitorend")?;
    let agent = world.start()?;
    let (interrupted, _) = Monitor::start(&agent, &[])?;
    let (left_alone, _) = Monitor::start(&agent, &[])?;
    interrupted.interrupt()?;
    assert_eq!(interrupted.ended()?, 0);
    let socket = agent.socket();
    agent.kill()?;
    assert_eq!(left_alone.ended()?, 3);
    // Nor is `top` for pipes.
    let top = Command::new(binary()?).args(["top", "--socket"]).arg(&socket).output()?;
    assert_eq!(top.status.code(), Some(2));
    assert!(String::from_utf8(top.stderr)?.contains("status --json"));
    let nobody = Command::new(binary()?).args(["monitor", "--socket"]).arg(socket).output()?;
    assert_eq!(nobody.status.code(), Some(3));
    Ok(())
}

/// Rules of a qube as dom0 keeps them: one list for both families.
struct Dom0(Vec<String>);

impl Dom0 {
    /// Does what a learnt line says.
    fn paste(&mut self, line: &str) -> Result<()> {
        let rule = line.strip_prefix("qvm-firewall QUBE add ").with_context(|| line.to_owned())?;
        let (place, rule) = match rule.strip_prefix("--before ") {
            Some(rest) => {
                let (number, rule) = rest.split_once(' ').context("no rule")?;
                (number.parse()?, rule)
            }
            None => (self.0.len(), rule),
        };
        ensure!(place <= self.0.len(), "no rule {place}");
        self.0.insert(place, format!("action={rule}"));
        Ok(())
    }

    fn of_family(&self, foreign: &str) -> Vec<&str> {
        let rules = self.0.iter().filter(|rule| !rule.contains(foreign));
        rules.map(String::as_str).collect()
    }

    fn put(&self, named: &Named) -> Result<()> {
        named.rules_of(named.world.v4, &self.of_family("dst6="))?;
        named.rules_of(named.world.v6, &self.of_family("dst4="))
    }
}

#[test]
fn what_monitor_learns_lets_pass_what_was_denied_and_no_more() -> Result<()> {
    let named = Named::new("learn")?;
    named.dns.say("a.example", Reply::addresses("a.example", 60, &[ONE]));
    let mut dom0 = Dom0(
        ["action=accept dsthost=a.example proto=tcp dstports=22-22", "action=drop"]
            .map(str::to_owned)
            .to_vec(),
    );
    dom0.put(&named)?;
    named.leads("a.example", &[ONE])?;
    let (mut monitor, _) = Monitor::start(&named.agent, &["--learn"])?;
    let from = named.world.client.namespace();
    let virtual_dns = Probe::udp(from, "10.139.1.1:53".parse()?);
    let denied = [
        (named.probe(ONE), PROHIBITED4),
        (named.probe(TWO), PROHIBITED4),
        (Probe::ping(from, SERVER6), PROHIBITED6),
        (Probe::udp(from, SocketAddr::new(SERVER6, 80)), PROHIBITED6),
    ];
    for (probe, prohibited) in &denied {
        assert_eq!(probe.run(SILENCE)?, *prohibited);
    }
    assert_eq!(virtual_dns.run(SILENCE)?, PROHIBITED4);
    // The last of them is told last.
    while !monitor.line()?.contains("10.139.1.1:53/udp") {}
    monitor.interrupt()?;
    let mut learnt = String::new();
    monitor.child.stdout.take().context("no output")?.read_to_string(&mut learnt)?;
    assert_eq!(monitor.ended()?, 0);
    let lines: Vec<&str> = learnt.lines().filter(|line| !line.starts_with('#')).collect();
    let expected = [
        "specialtarget=dns",
        "dsthost=a.example proto=tcp dstports=443-443",
        "dst4=198.51.100.8/32 proto=tcp dstports=443-443",
        "dst6=2001:db8:1::7/128 proto=udp dstports=80-80",
        "dst6=2001:db8:1::7/128 proto=icmp icmptype=128",
    ];
    let expected = expected.map(|rule| format!("qvm-firewall QUBE add --before 1 accept {rule}"));
    assert_eq!(lines, expected, "{learnt}");
    for line in lines {
        dom0.paste(line)?;
    }
    dom0.put(&named)?;
    for (probe, _) in &denied {
        assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "{probe:?}");
    }
    // The server does not echo; what counts is the rule that it met.
    virtual_dns.run(SILENCE)?;
    let rules = named.agent.client(named.world.v4)?.rules;
    let dns = rules.iter().find(|rule| rule.text.ends_with("specialtarget=dns")).context("dns")?;
    assert!(dns.counter.packets > 0, "{rules:?}");
    let others = [Probe::tcp(from, SocketAddr::new(SERVER4, 80)), Probe::ping(from, SERVER4)];
    for probe in others {
        assert_eq!(probe.run(SILENCE)?, PROHIBITED4, "{probe:?}");
    }
    Ok(())
}
