//! What a monitoring system wants to know, as a file in Prometheus' text format.
//! Never says where users go: no destination, name or rule is a label, so that there is
//! a bounded number of them.

use std::io;
use std::path::Path;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};

use crate::edges::regular;
use firewall_core::told::status::{State, Status};
use firewall_core::told::totals::{Totals, problems};

type Labels<'a> = &'a [(&'a str, &'a str)];

/// Writes all metrics; there is always a whole file. Anybody may read it, whatever the umask: a
/// collector is seldom root. An error if it cannot be written: then the old one stays.
pub fn write(path: &Path, status: &Status) -> io::Result<()> {
    regular::replace(path, 0o644, &text(status)?)
}

/// All metrics, in Prometheus' text format.
pub fn text(status: &Status) -> io::Result<Vec<u8>> {
    let mut families = agent(status);
    families.extend(clients(status));
    // To the encoder, one without a metric is an error.
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text).map_err(io::Error::other)?;
    Ok(text)
}

fn agent(status: &Status) -> Vec<MetricFamily> {
    let agent = &status.agent;
    let count = |value: usize| vec![gauge(&[], u64::try_from(value).unwrap_or(u64::MAX))];
    let is_so = |value: bool| count(usize::from(value));
    let failing = status.names.iter().filter(|name| name.problem.is_some()).count();
    let clients = [State::Live, State::Blocked, State::Waiting, State::Absent].map(|state| {
        let clients = status.clients.iter().filter(|client| client.state == state).count();
        gauge(&[("state", state.name())], u64::try_from(clients).unwrap_or(u64::MAX))
    });
    let strays = status.strays.iter();
    let strays = strays.map(|(reason, it)| counter(&[("reason", reason.0.name())], it.packets));
    vec![
        gauges("info", "The agent.", {
            vec![gauge(&[("version", &agent.version), ("mode", agent.mode.name())], 1)]
        }),
        gauges("problems", "Things that need attention.", count(problems(status))),
        gauges("gate_failed", "Whether the gate could not be loaded.", {
            is_so(agent.gate_problem.is_some())
        }),
        gauges("source_failed", "Whether rules cannot be read.", {
            is_so(agent.source_problem.is_some())
        }),
        gauges("names", "Names in rules that make a difference.", count(status.names.len())),
        gauges("names_failing", "Those of them with a problem.", count(failing)),
        gauges("clients", "Clients by state.", clients.into()),
        counters("records_total", "Denied packets that were told.", {
            vec![counter(&[], agent.records)]
        }),
        counters("records_suppressed_total", "Denied packets that were only counted.", {
            vec![counter(&[], agent.records_suppressed)]
        }),
        counters("stray_packets_total", "Packets that belong to no client.", strays.collect()),
    ]
}

fn clients(status: &Status) -> Vec<MetricFamily> {
    let (mut generations, mut blocked, mut audited) = (Vec::new(), Vec::new(), Vec::new());
    let (mut packets, mut bytes) = (Vec::new(), Vec::new());
    let (mut reason_packets, mut reason_bytes) = (Vec::new(), Vec::new());
    for client in &status.clients {
        let Some(vif) = &client.vif else {
            continue;
        };
        let address = client.address.to_string();
        let [address, vif] = [("client", address.as_str()), ("vif", vif.as_str())];
        let labels = [address, vif];
        generations.push(gauge(&labels, client.generation.unwrap_or_default().into()));
        blocked.push(gauge(&labels, (client.state == State::Blocked).into()));
        audited.push(gauge(&labels, client.audit_seconds_left.is_some().into()));
        let totals = Totals::of(client);
        for (verdict, it) in [
            ("accept", totals.accepted),
            ("deny", totals.denied),
            ("audit", totals.audited),
            ("pass", totals.passed),
        ] {
            let labels = [address, vif, ("verdict", verdict)];
            packets.push(counter(&labels, it.packets));
            bytes.push(counter(&labels, it.bytes));
        }
        for (reason, it) in &client.counters {
            let labels = [address, vif, ("reason", reason.0.name())];
            reason_packets.push(counter(&labels, it.packets));
            reason_bytes.push(counter(&labels, it.bytes));
        }
    }
    vec![
        gauges("client_generation", "Number of the policy in force.", generations),
        gauges("client_blocked", "Whether everything is rejected.", blocked),
        gauges("client_audited", "Whether what rules deny passes.", audited),
        counters("client_packets_total", "Packets under the policy in force.", packets),
        counters("client_bytes_total", "Bytes under the policy in force.", bytes),
        counters(
            "client_reason_packets_total",
            "Packets that rules had no say in, or that count beside their rule.",
            reason_packets,
        ),
        counters("client_reason_bytes_total", "The same in bytes.", reason_bytes),
    ]
}

fn gauges(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, metrics)
}

fn counters(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, metrics)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("firewall_agent_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn gauge(labels: Labels<'_>, value: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(float(value));
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}

fn counter(labels: Labels<'_>, value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(float(value));
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

/// The format has nothing else; beyond 2^53 the last digits go.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
