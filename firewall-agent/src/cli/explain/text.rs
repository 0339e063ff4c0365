//! An explanation as text for people: the answer first, then the rules, then the way.
//! Never works anything out that is not in the explanation.

use std::fmt::Write as _;

use firewall_common::verdict::Reason;
use textwrap::{WordSeparator, WordSplitter};

use super::steps::steps;
use super::why::why;
use crate::cli::colour::{BAD, Colours, GOOD, ODD};
use crate::cli::text::numbered;
use firewall_core::protocol::{ICMP, ICMPV6, TCP, UDP};
use firewall_core::rules::Action;
use firewall_core::told::explanation::{Explained, Explanation, Judgement, Outcome, PacketStatus};

/// Longer lists of rules are cut in the middle.
const MOST_TRIED: usize = 20;
const SHOWN_OF_MANY: usize = 8;
/// Columns of a line, where a terminal has as many.
const WIDTH: usize = 80;

/// What is said about one packet. Of many rules that were tried some are left out, unless `all` is
/// set.
pub fn explained(it: &Explained, all: bool, colours: Colours) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {}", what(it), outcome(it, colours));
    let _ = writeln!(text, "  {}", wrapped(&why(it), 2));
    if it.agree == Some(false) {
        let _ = writeln!(text, "{}", disagreement(it, colours));
    }
    if let Some(agent) = it.agent.as_ref().filter(|agent| !agent.tried.is_empty()) {
        rules(&mut text, agent, all, colours);
    } else if let Some(agent) = it.agent.as_ref().filter(|_| it.judgement.reason == Reason::Default)
    {
        let default = agent.default.unwrap_or(Action::Drop).name();
        let _ = writeln!(text, "\n  There are no rules; the default is {default}.");
    }
    let _ = writeln!(text, "\n  On its way:");
    for (place, happens) in steps(it) {
        let _ = writeln!(text, "    {place:<11} {}", wrapped(&happens, 16));
    }
    text
}

/// What the packet is.
fn what(it: &Explained) -> String {
    let vif = it.agent.as_ref().and_then(|agent| agent.vif.as_ref());
    let vif = vif.map(|vif| format!(" ({vif})")).unwrap_or_default();
    let name = it.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    match &it.packet {
        None => format!("a frame of {}{vif}", it.client),
        Some(packet) if packet.source == it.client => {
            format!("{}{vif} to {name}{}, {}", it.client, packet.destination, service(packet))
        }
        Some(packet) => format!(
            "{}{vif}, with the source address {}, to {}, {}",
            it.client,
            packet.source,
            packet.destination,
            service(packet)
        ),
    }
}

fn service(packet: &PacketStatus) -> String {
    let PacketStatus { protocol, port, later_fragment, .. } = packet;
    if *later_fragment {
        return format!("a later fragment of protocol {protocol}");
    }
    match (*protocol, packet.source.is_ipv4()) {
        (TCP, _) => format!("tcp port {port}"),
        (UDP, _) => format!("udp port {port}"),
        (ICMP, true) if *port == 8 => "a ping".to_owned(),
        (ICMPV6, false) if *port == 128 => "a ping".to_owned(),
        (ICMP, true) | (ICMPV6, false) => format!("icmp type {port}"),
        (other, _) => format!("protocol {other}"),
    }
}

fn outcome(it: &Explained, colours: Colours) -> String {
    match it.outcome {
        Outcome::Forwarded => colours.paint(GOOD, "forwarded"),
        Outcome::Local if it.judgement.reason == Reason::Local => {
            colours.paint(GOOD, "for the netvm itself, or NAT")
        }
        Outcome::Tor => colours.paint(GOOD, "to Tor"),
        Outcome::Local => colours.paint(GOOD, "for the netvm itself"),
        Outcome::Related => {
            "forwarded if connection tracking knows the connection that it is about, else dropped"
                .to_owned()
        }
        Outcome::Rejected => colours.paint(BAD, "BLOCKED, with an ICMP error"),
        Outcome::Dropped => colours.paint(BAD, "BLOCKED silently"),
    }
}

fn disagreement(it: &Explained, colours: Colours) -> String {
    let said = |judgement: &Judgement| {
        let Judgement { verdict, reason, rule_index, generation } = judgement;
        let rule = rule_index.map(|index| format!(" with index {index}")).unwrap_or_default();
        let (verdict, reason) = (verdict.name(), reason.name());
        format!("{verdict}, by {reason}{rule}, generation {generation}")
    };
    let agent = it.agent.as_ref().map(|agent| said(&agent.judgement)).unwrap_or_default();
    let kernel = it.kernel.as_ref().map(said).unwrap_or_default();
    colours.paint(
        BAD,
        &format!(
            "\n  THE KERNEL SAYS SOMETHING ELSE, and the kernel decides. This is a bug.\n    \
             the agent:  {agent}\n    the kernel: {kernel}\n  \
             Restart the service to have everything installed anew, and please report this."
        ),
    )
}

/// The rules that were tried.
fn rules(text: &mut String, agent: &Explanation, all: bool, colours: Colours) {
    let _ = writeln!(text, "\n  Rules in order, the first that matches decides:");
    let count = agent.tried.len();
    let is_cut = count > MOST_TRIED && !all;
    for (index, rule) in agent.tried.iter().enumerate() {
        if is_cut && index >= SHOWN_OF_MANY && index + SHOWN_OF_MANY < count {
            if index == SHOWN_OF_MANY {
                let left_out = count - 2 * SHOWN_OF_MANY;
                let _ = writeln!(text, "    ...   {left_out} more that do not match (--all)");
            }
            continue;
        }
        let number = numbered(rule.number);
        let _ = writeln!(text, "    {number}  {}", wrapped(&rule.text, 10));
        if rule.differs.is_empty() {
            let _ = writeln!(text, "          {}", colours.paint(ODD, "matches: this one decides"));
        } else {
            let whys: Vec<&str> = rule.differs.iter().map(|it| it.why.as_str()).collect();
            let _ = writeln!(text, "          no: {}", wrapped(&whys.join("; "), 14));
        }
    }
    let left = agent.rules.saturating_sub(count);
    match (agent.rule, left) {
        (None, _) => {
            let default = agent.default.unwrap_or(Action::Drop).name();
            let _ = writeln!(text, "    else  action={default}");
            let _ = writeln!(text, "          {}", colours.paint(ODD, "the default decides"));
        }
        (Some(_), 0) => {}
        (Some(_), 1) => {
            let _ = writeln!(text, "    1 more rule is not tried any more");
        }
        (Some(_), left) => {
            let _ = writeln!(text, "    {left} more rules are not tried any more");
        }
    }
}

/// Text that goes on at a column where it would be wider than a terminal.
fn wrapped(text: &str, column: usize) -> String {
    let indent = " ".repeat(column);
    let options = textwrap::Options::new(WIDTH)
        .initial_indent(&indent)
        .subsequent_indent(&indent)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(text, options).trim_start().to_owned()
}
