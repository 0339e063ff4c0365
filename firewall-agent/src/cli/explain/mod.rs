//! `explain`: which rule decides about a packet, why, and what becomes of it.
//! Never decides: the evaluator does, on the agent's policy and on the kernel's tables.

pub mod capture;
pub mod target;
pub mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use firewall_common::packet::{self, Frame};
use firewall_common::policy::decide;
use firewall_common::verdict::{Decision, Reason, Verdict};

use super::ask::Ask;
use super::colour::Colours;
use super::{EXIT_DISAGREEMENT, EXIT_PROBLEM};
use crate::edges::conntrack::{self, Wanted};
use crate::edges::control::Request;
use crate::edges::dataplane::inspect::{self, Inspection};
use crate::edges::gate;
use crate::edges::sources::rule_files;
use firewall_core::connection::Flow;
use firewall_core::rules::check::{self, PolicyTables};
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, compile};
use firewall_core::told::SCHEMA;
use firewall_core::told::explanation::{
    Connection, Explained, Explanation, Judgement, Outcome, PacketStatus,
};
use firewall_core::told::status::{State, Status};
use firewall_core::told::tried::{is_judged_by_rules, number, tried};
use target::{Host, Target};

/// The agent and the kernel are asked one after the other, while rules may change.
const ATTEMPTS: u32 = 3;
/// Most different packets of a file that are explained.
const MOST_PACKETS: usize = 100;

/// Which packet.
#[derive(Debug, Args)]
pub struct Explain {
    /// The client that sends the packet, by its address. With --packet it is the packet's
    /// source, if not given; with --rules the name of the file.
    #[arg(long, value_name = "CLIENT")]
    pub from: Option<IpAddr>,
    /// Where to: 198.51.100.7:443/tcp, [2001:db8::7]:53/udp, git.example:22/tcp,
    /// 198.51.100.7/icmp (a ping), 198.51.100.7/icmp:3, 198.51.100.7/47 (a protocol by its
    /// number). A name means the addresses that the agent knows for it.
    #[arg(
        long,
        value_name = "HOST[:PORT]/PROTO",
        required_unless_present = "packet",
        conflicts_with = "packet"
    )]
    pub to: Option<Target>,
    /// A packet in hexadecimal digits, with or without its Ethernet header, or a file that
    /// tcpdump or Wireshark wrote (pcap or pcapng).
    #[arg(long, value_name = "HEX|FILE")]
    pub packet: Option<String>,
    /// Explain by this file of rules, and ask neither the agent nor the kernel.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// List every rule that was tried, however many there are.
    #[arg(long)]
    pub all: bool,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// What is asked about: the frame as the evaluator reads it.
#[derive(Clone)]
struct Subject {
    client: IpAddr,
    name: Option<String>,
    frame: Result<Frame, Reason>,
    /// Whether somebody sent it: then it has a source port.
    is_recorded: bool,
}

impl Subject {
    fn packet(&self) -> Option<PacketStatus> {
        match &self.frame {
            Ok(Frame::Ip(packet)) => {
                let source_port = self.is_recorded.then_some(packet.source_port);
                Some(PacketStatus { source_port, ..packet.into() })
            }
            Ok(Frame::Arp { .. }) | Err(_) => None,
        }
    }
}

/// `explain`.
pub fn explain(arguments: &Explain) -> Result<ExitCode> {
    let explained: Vec<Explained> = match &arguments.rules {
        Some(file) => by_file(arguments, file)?,
        None => by_agent_and_kernel(arguments)?,
    };
    if explained.iter().all(|it| it.agent.is_none() && it.kernel.is_none()) {
        let first = explained.iter().take(1);
        let problems = first.flat_map(|it| [&it.agent_problem, &it.kernel_problem]).flatten();
        let problems: Vec<&str> = problems.map(String::as_str).collect();
        return arguments.ask.not_running(&problems.join("\n"));
    }
    arguments.ask.print(&explained, || {
        let texts =
            explained.iter().map(|it| text::explained(it, arguments.all, Colours::of_stdout()));
        texts.collect::<Vec<_>>().join("\n")
    })?;
    let passes = |it: &Explained| match it.outcome {
        Outcome::Forwarded | Outcome::Local | Outcome::Related => true,
        Outcome::Rejected | Outcome::Dropped => false,
    };
    Ok(if explained.iter().any(|it| it.agree == Some(false)) {
        ExitCode::from(EXIT_DISAGREEMENT)
    } else if explained.iter().all(passes) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_PROBLEM)
    })
}

/// The packets that are asked about.
fn subjects(
    arguments: &Explain,
    from: Option<IpAddr>,
    status: Option<&Status>,
) -> Result<Vec<Subject>> {
    if let Some(given) = &arguments.packet {
        return recorded(given, from);
    }
    let target = arguments.to.as_ref().context("neither --to nor --packet")?;
    let client = from.context("say who sends the packet: --from CLIENT, a client's address")?;
    let (addresses, name) = match &target.host {
        Host::Address(address) => (vec![*address], None),
        Host::Name(name) => (addresses(name, client, status)?, Some(name.clone())),
    };
    let subject = |to: IpAddr| {
        ensure!(to.is_ipv4() == client.is_ipv4(), other_family(client, to, status));
        let packet = target.packet(client, to).packet();
        let frame = Ok(Frame::Ip(packet));
        Ok(Subject { client, name: name.clone(), frame, is_recorded: false })
    };
    addresses.into_iter().map(subject).collect()
}

/// A qube with both families is two clients.
fn other_family(client: IpAddr, to: IpAddr, status: Option<&Status>) -> String {
    let vifs = status.map(|status| status.vifs.as_slice()).unwrap_or_default();
    let of_client = vifs.iter().find(|vif| vif.addresses.contains(&client));
    let mut others = of_client.map(|vif| vif.addresses.iter()).into_iter().flatten();
    let instead = match others.find(|other| other.is_ipv4() == to.is_ipv4()) {
        Some(other) => format!("on the same vif is {other}: use --from {other}"),
        None => "use the qube's address of that family; `firewall-agent show` lists all".to_owned(),
    };
    format!("{to} is an {} address and {client} is not; {instead}", Family::from(to))
}

/// Where a name leads, as far as the agent knows.
fn addresses(name: &str, client: IpAddr, status: Option<&Status>) -> Result<Vec<IpAddr>> {
    let Some(status) = status else {
        bail!("only a running agent knows where `{name}` leads; give an address instead");
    };
    let family = Family::from(client);
    let known = status.names.iter().find(|it| it.name == name && it.family == family);
    let Some(known) = known else {
        bail!(
            "the agent does not know `{name}` for {family}: no rule that makes a difference \
             names it, so it is not looked up; give an address instead"
        );
    };
    ensure!(
        !known.addresses.is_empty(),
        "`{name}` leads to no {family} address: {}",
        known.problem.as_deref().unwrap_or("DNS has none, or has not answered yet")
    );
    Ok(known.addresses.iter().map(|it| it.address).collect())
}

/// Frames that were recorded, each different packet once.
fn recorded(given: &str, from: Option<IpAddr>) -> Result<Vec<Subject>> {
    let frames = capture::frames(given)?;
    let (mut subjects, mut seen) = (Vec::new(), BTreeSet::new());
    for frame in &frames {
        let frame = packet::parse(frame.as_slice());
        let source = match &frame {
            Ok(Frame::Ip(packet)) => Some(packet.source.into()),
            Ok(Frame::Arp { sender }) => Some((*sender).into()),
            Err(_) => None,
        };
        let Some(client) = from.or(source) else {
            bail!("this packet does not say who sends it: add --from CLIENT");
        };
        let subject = Subject { client, name: None, frame, is_recorded: true };
        let key = match &subject.frame {
            // What is recorded at a vif goes both ways.
            Ok(Frame::Ip(packet)) if from == Some(packet.destination.into()) => continue,
            Ok(_) => (subject.packet().map(|it| PacketStatus { source_port: None, ..it }), None),
            Err(reason) => (None, Some(*reason)),
        };
        if seen.insert((client, key)) {
            subjects.push(subject);
        }
    }
    ensure!(!subjects.is_empty(), "no packet of a client in `{given}`");
    if subjects.len() > MOST_PACKETS {
        eprintln!("{} different packets; the first {MOST_PACKETS} follow", subjects.len());
        subjects.truncate(MOST_PACKETS);
    }
    Ok(subjects)
}

fn by_agent_and_kernel(arguments: &Explain) -> Result<Vec<Explained>> {
    let status: Result<Status, String> = arguments.ask.agent(&Request::Status)?;
    let (status, agent_problem) = match status {
        Ok(status) => (Some(status), None),
        Err(why) => (None, Some(why)),
    };
    let subjects = subjects(arguments, arguments.from, status.as_ref())?;
    if let (Some(status), Some(given)) = (&status, arguments.from) {
        let is_known = status.clients.iter().any(|client| client.address == given);
        ensure!(
            is_known,
            "{given} is no client: no vif leads to it, and it has no rules; \
             `firewall-agent show` lists all"
        );
    }
    let flows = flows(&subjects);
    // A running agent looks at the gate itself.
    let gate = agent_problem.is_some().then(open_families);
    let mut all = Vec::new();
    for subject in &subjects {
        let mut explained = by_both(arguments, subject, agent_problem.as_deref(), &flows)?;
        for _ in 1..ATTEMPTS {
            if explained.iter().all(|it| it.agree != Some(false)) {
                break;
            }
            explained = by_both(arguments, subject, agent_problem.as_deref(), &flows)?;
        }
        all.extend(explained.into_iter().map(|it| behind_gate(it, gate.as_ref())));
    }
    Ok(all)
}

/// What is rejected is rejected by the gate: where it is not there, it is forwarded.
fn behind_gate(mut it: Explained, gate: Option<&Result<Vec<&'static str>, String>>) -> Explained {
    let family = if it.client.is_ipv4() { "ip" } else { "ip6" };
    let note = match gate {
        Some(Ok(open)) if open.contains(&family) => {
            if it.outcome == Outcome::Rejected {
                it.outcome = Outcome::Forwarded;
            }
            "OPEN: the gate is not there, so what rules reject is forwarded".to_owned()
        }
        Some(Err(why)) => format!("whether the gate is there is NOT KNOWN: {why}"),
        Some(Ok(_)) | None => return it,
    };
    it.agent_problem = Some(it.agent_problem.map_or(note.clone(), |why| format!("{why}; {note}")));
    it
}

/// The families in which nothing closes.
fn open_families() -> Result<Vec<&'static str>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(gate::open_families()).map_err(|error| error.to_string())
}

/// For each vif that leads to the client.
fn by_both(
    arguments: &Explain,
    subject: &Subject,
    agent_problem: Option<&str>,
    flows: &Result<Vec<Flow>, String>,
) -> Result<Vec<Explained>> {
    let pins = &arguments.ask.pins;
    let of_agent: Vec<Explanation> = match (agent_problem, subject.packet()) {
        (None, Some(packet)) => {
            let request = Request::Explain { client: subject.client, packet };
            let answer: Result<Vec<Explanation>, String> = arguments.ask.agent(&request)?;
            answer.unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if of_agent.is_empty() {
        let vifs = vifs_of(pins, subject.client);
        let vifs = if vifs.is_empty() { vec![None] } else { vifs.into_iter().map(Some).collect() };
        let each = vifs.into_iter().map(|vif| {
            let kernel = by_kernel(pins, vif, false, &subject.frame);
            one(subject, None, agent_problem, kernel, flows)
        });
        return Ok(each.collect());
    }
    let each = of_agent.into_iter().map(|explanation| {
        let Explanation { vif_index, guards_neighbours, .. } = explanation;
        let kernel = by_kernel(pins, vif_index, guards_neighbours, &subject.frame);
        one(subject, Some(explanation), agent_problem, kernel, flows)
    });
    Ok(each.collect())
}

/// All that is known about one packet, put together.
fn one(
    subject: &Subject,
    agent: Option<Explanation>,
    agent_problem: Option<&str>,
    kernel: Result<Judgement, String>,
    flows: &Result<Vec<Flow>, String>,
) -> Explained {
    let packet = subject.packet();
    // Of a frame that holds no packet nothing has to be looked up.
    let by_itself = match &subject.frame {
        Err(reason) => Decision::stray(Verdict::Drop, *reason),
        Ok(Frame::Arp { .. }) => Decision::stray(Verdict::Pass, Reason::Arp),
        Ok(Frame::Ip(_)) => Decision::stray(Verdict::Drop, Reason::UnknownSource),
    };
    let (kernel, kernel_problem) = match kernel {
        Ok(judgement) => (Some(judgement), None),
        Err(why) => (None, Some(why)),
    };
    let judgement = agent.as_ref().map(|it| &it.judgement).or(kernel.as_ref());
    let judgement = judgement.cloned().unwrap_or_else(|| Judgement::from(&by_itself));
    let (connection, connection_problem) = match (flows, &packet) {
        (Err(why), _) => (None, Some(why.clone())),
        (Ok(flows), Some(packet)) => (connection(flows, packet), None),
        (Ok(_), None) => (None, None),
    };
    let to_client = agent.as_ref().is_some_and(|it| it.to_client);
    let is_first_fragment = packet.is_some_and(|it| it.first_fragment);
    let agree =
        agent.as_ref().zip(kernel.as_ref()).map(|(agent, kernel)| agent.judgement == *kernel);
    Explained {
        schema: SCHEMA,
        client: subject.client,
        name: subject.name.clone(),
        packet,
        outcome: Outcome::of(&judgement, connection, to_client, is_first_fragment),
        judgement,
        agent,
        agent_problem: agent_problem.map(str::to_owned),
        kernel,
        kernel_problem,
        agree,
        connection,
        connection_problem,
    }
}

/// What the kernel's tables say about a frame that comes in by a vif.
fn by_kernel(
    pins: &Path,
    vif: Option<u32>,
    guards_neighbours: bool,
    frame: &Result<Frame, Reason>,
) -> Result<Judgement, String> {
    let vif = vif.ok_or("no vif leads to this client, so the kernel knows nothing about it")?;
    let decided = Inspection::of_vif(pins, vif).and_then(|mut tables| {
        tables.guards_neighbours = guards_neighbours;
        tables.decide(vif, frame)
    });
    decided.map(|decision| Judgement::from(&decision)).map_err(|error| error.to_string())
}

/// The vifs behind which the kernel's tables have a client at home.
fn vifs_of(pins: &Path, client: IpAddr) -> Vec<u32> {
    let attached = inspect::attached(pins).unwrap_or_default();
    let programs: BTreeSet<u32> = attached.into_values().flatten().collect();
    let clients = programs.into_iter().filter_map(|program| {
        Inspection::of_program(program).and_then(|tables| tables.clients()).ok()
    });
    let keys = clients.flatten().filter(|(key, _)| IpAddr::from(key.address) == client);
    keys.map(|(key, _)| key.vif).collect()
}

/// Connections that the kernel knows, of whoever sends what is asked about.
fn flows(subjects: &[Subject]) -> Result<Vec<Flow>, String> {
    let packets = subjects.iter().filter_map(Subject::packet);
    let wanted = Wanted::Of(packets.map(|packet| packet.source).collect());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async { conntrack::flows(wanted).await.map_err(|error| error.to_string()) })
}

/// The connection that a packet belongs to.
fn connection(flows: &[Flow], packet: &PacketStatus) -> Option<Connection> {
    let is_it = |found: PacketStatus| {
        let port = packet.source_port.or(found.source_port);
        PacketStatus { source_port: port, ..*packet } == found
    };
    if flows.iter().any(|flow| is_it((&flow.packet).into())) {
        return Some(Connection::Opened);
    }
    let mut answers = flows.iter().filter_map(|flow| flow.answer.as_ref());
    answers.any(|answer| is_it(answer.into())).then_some(Connection::Answers)
}

/// What a file of rules says.
fn by_file(arguments: &Explain, file: &Path) -> Result<Vec<Explained>> {
    let by_name = || file.file_name()?.to_str()?.parse().ok();
    let from = arguments.from.or_else(by_name);
    let subjects = subjects(arguments, from, None)?;
    let text =
        rule_files::read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
    let each = subjects.iter().map(|subject| {
        let explanation = of_text(subject, &text).with_context(|| {
            let file = file.display();
            format!("{file} blocks its client; `firewall-agent check {file}` says more")
        })?;
        let without = format!("not asked: by the file {} alone", file.display());
        Ok(one(subject, Some(explanation), None, Err(without.clone()), &Err(without)))
    });
    each.collect()
}

fn of_text(subject: &Subject, text: &str) -> Result<Explanation> {
    let client = subject.client;
    let ruleset = rule_files::ruleset(client, text)?;
    // Names and DNS servers are the netvm's to know.
    let resolved = resolve::resolve(Family::from(client), &ruleset, &Surroundings::default());
    let policy = check::prove(&resolved, compile::compile(&resolved)?)?;
    let decision = decide(&PolicyTables::new(policy.policy()), 0, &subject.frame);
    let judgement = Judgement::from(&decision);
    let packet = subject.packet().filter(|_| is_judged_by_rules(decision.reason));
    let tried = packet.map(|packet| tried(&ruleset, &resolved, &packet.packet()));
    Ok(Explanation {
        client,
        vif: None,
        vif_index: None,
        state: State::Absent,
        problem: None,
        settling: false,
        guards_neighbours: false,
        rule: number(Some(&ruleset), &judgement),
        judgement,
        tried: tried.unwrap_or_default(),
        rules: ruleset.rules.len(),
        default: Some(ruleset.default),
        mode: None,
        to_client: false,
        redirected_to: None,
    })
}
