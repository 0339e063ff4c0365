//! PURE: what a qube is told about itself, as text.
//! Never has anything that [`OwnStatus`] has not.

use std::fmt::Write as _;
use std::net::IpAddr;

use firewall_core::protocol::{ICMP, ICMPV6, TCP, UDP};
use firewall_core::told::own::{OwnAnswer, OwnClient, OwnStatus, OwnVerdict};
use firewall_core::told::status::State;

use crate::cli::text::{counted, hits, numbered, told};

/// What a qube is told that has addresses here.
pub fn text(status: &OwnStatus) -> String {
    let mut text = format!("{}: your rules at this netvm\n", status.qube);
    for client in &status.own {
        one(&mut text, client);
    }
    if let Some(it) = &status.answer {
        text.push('\n');
        answer(&mut text, it);
    }
    text
}

/// What a qube is told that dom0 has not introduced.
pub fn stranger(qube: &str) -> String {
    format!(
        "this netvm does not know which address is {qube}'s, or nothing of it is here. In dom0: \
         qubes-firewall-rules --introduce {qube}, or qvm-features NETVM \
         vm-config.firewall-client-{qube} 'ADDRESSES'"
    )
}

fn one(text: &mut String, client: &OwnClient) {
    let state = match client.state {
        State::Live => "live",
        State::Blocked => "BLOCKED, everything is rejected",
        State::Waiting => "waiting for rules, everything is dropped",
        State::Absent => "has rules, but is not attached",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {state}", client.address);
    if let Some(seconds) = client.audit_seconds_left {
        let _ = writeln!(text, "  AUDITED for {seconds} s more: what the rules deny passes");
    }
    if let Some(problem) = &client.problem {
        let _ = writeln!(text, "  because of {}", told(problem));
    }
    for rule in &client.rules {
        let _ = writeln!(text, "  {}  {}", numbered(rule.number), rule.text);
        if !rule.effective {
            let _ = writeln!(text, "        NEVER DECIDES");
        }
        if !rule.addresses.is_empty() {
            let addresses: Vec<String> = rule.addresses.iter().map(IpAddr::to_string).collect();
            let _ = writeln!(text, "        {}", addresses.join(", "));
        }
        let _ = writeln!(text, "        {}", hits(&rule.counter, rule.last_seconds_ago));
    }
    if let Some(default) = &client.default {
        let _ = writeln!(text, "  else  action={}", default.name());
        let decided = hits(&client.default_counter, client.default_last_seconds_ago);
        let _ = writeln!(text, "        {decided}");
    }
    for (reason, counter) in &client.counters {
        let _ = writeln!(text, "  {reason}: {}", counted(counter));
    }
}

fn answer(text: &mut String, answer: &OwnAnswer) {
    let OwnAnswer { source, destination, protocol, port, says, rule, text: of_rule } = answer;
    let service = match *protocol {
        TCP => format!("tcp port {port}"),
        UDP => format!("udp port {port}"),
        ICMP | ICMPV6 => format!("icmp type {port}"),
        other => format!("protocol {other}"),
    };
    let says = match says {
        OwnVerdict::Accepted => "your rules ACCEPT it",
        OwnVerdict::Denied => "your rules DENY it",
        OwnVerdict::Audited => "your rules deny it, and it PASSES while you are audited",
        OwnVerdict::Blocked => "DENIED, because your rules cannot be used",
        OwnVerdict::Waiting => "DENIED, because no rules of yours have come",
        OwnVerdict::NotJudged => "rules say nothing about such messages",
    };
    let _ = writeln!(text, "{source} to {destination}, {service}: {says}");
    match (rule, of_rule) {
        (Some(number), Some(of_rule)) => {
            let _ = writeln!(text, "  by rule {}  {of_rule}", numbered(*number));
        }
        _ => {
            let _ = writeln!(text, "  by no rule");
        }
    }
    text.push_str(
        "This is what your rules say. What is for the netvm itself, or for another qube, and what\n\
         becomes of packets further on, is not theirs to decide.\n",
    );
}
