//! Metrics, as a monitoring system reads them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use firewall_agent::edges::metrics;
use firewall_common::verdict::Reason;
use firewall_core::rules::Action;
use firewall_core::told::SCHEMA;
use firewall_core::told::status::{
    AgentStatus, ClientStatus, CounterStatus, Mode, RuleStatus, State, Status,
};
use firewall_core::told::totals::Totals;
use firewall_core::told::words::Named;

fn counted(packets: u64) -> CounterStatus {
    CounterStatus { packets, bytes: 100 * packets }
}

pub fn rule(action: Action, packets: u64) -> RuleStatus {
    RuleStatus {
        number: 0,
        text: format!("action={}", action.name()),
        action,
        name: None,
        destinations: Vec::new(),
        effective: true,
        bypassed: false,
        hidden_by: Vec::new(),
        last_seconds_ago: None,
        counter: counted(packets),
    }
}

/// A client whose every counter has another value.
pub fn client() -> ClientStatus {
    let counters = [
        (Reason::Audit, 3),
        (Reason::Local, 16),
        (Reason::Fragment, 32),
        (Reason::Truncated, 64),
        (Reason::OverBudget, 5),
    ];
    ClientStatus {
        address: "10.137.0.12".parse().expect("an address"),
        name: None,
        vif: Some("vif12.0".to_owned()),
        vif_index: Some(7),
        state: State::Live,
        problem: None,
        settling: false,
        audit_seconds_left: Some(60),
        generation: Some(2),
        default: Some(Action::Drop),
        default_counter: counted(8),
        default_last_seconds_ago: None,
        rules: vec![rule(Action::Accept, 1), rule(Action::Drop, 2), rule(Action::Accept, 4)],
        policy: None,
        counters: counters.map(|(reason, packets)| (Named(reason), counted(packets))).into(),
    }
}

/// An agent with that client and an odd one.
pub fn status() -> Status {
    let blocked = ClientStatus {
        address: "fd09::d".parse().expect("an address"),
        vif: Some("vif\"13\\.0".to_owned()),
        state: State::Blocked,
        audit_seconds_left: None,
        default: None,
        rules: Vec::new(),
        counters: [(Named(Reason::Blocked), counted(7))].into(),
        ..client()
    };
    let absent = ClientStatus {
        address: "10.137.0.14".parse().expect("an address"),
        vif: None,
        vif_index: None,
        state: State::Absent,
        audit_seconds_left: None,
        ..client()
    };
    Status {
        schema: SCHEMA,
        agent: AgentStatus {
            version: "0.1.0".to_owned(),
            pid: 4711,
            source: "/rules".to_owned(),
            source_problem: None,
            mode: Mode::Qubes,
            verified_instructions: None,
            caches: true,
            resolvers: Vec::new(),
            uplinks: None,
            uplinks_problem: None,
            options: Vec::new(),
            option_problems: Vec::new(),
            resolvers_problem: None,
            gateway: None,
            gate_problem: Some("no nft".to_owned()),
            added_rules: Vec::new(),
            lost: None,
            unpinned_programs: 0,
            unguarded_uplinks: BTreeMap::new(),
            failing: Vec::new(),
            records: 9,
            records_suppressed: 90,
        },
        vifs: Vec::new(),
        clients: vec![client(), blocked, absent],
        names: Vec::new(),
        strays: [(Named(Reason::UnknownSource), counted(11))].into(),
    }
}

#[test]
fn each_packet_of_a_client_is_in_one_total() {
    let totals = Totals::of(&client());
    // 2 by a rule, 8 by default, 64 truncated; 3 of them passed.
    assert_eq!(totals.accepted, counted(1 + 4));
    assert_eq!(totals.denied, counted(2 + 8 + 64 - 3));
    assert_eq!(totals.audited, counted(3));
    assert_eq!(totals.passed, counted(16 + 32));
}

#[test]
fn metrics_are_in_prometheus_text_format() {
    let text = String::from_utf8(metrics::text(&status()).expect("metrics")).expect("text");
    assert_eq!(text, include_str!("metrics.prom"));
}

#[test]
fn whoever_collects_metrics_may_read_them() -> std::io::Result<()> {
    let directory = std::env::temp_dir().join(format!("firewall-metrics-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let (path, aside) = (directory.join("firewall.prom"), directory.join("firewall.new"));
    // As a strict umask makes it.
    fs::write(&aside, "half of an earlier agent's")?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    let written = metrics::write(&path, &status());
    let mode = fs::metadata(&path).map(|it| it.permissions().mode() & 0o777);
    let text = fs::read_to_string(&path);
    fs::remove_dir_all(&directory)?;
    written?;
    assert_eq!((mode?, text?.as_str()), (0o644, include_str!("metrics.prom")));
    Ok(())
}
