//! Where the agent is: Qubes' own files, the service, and what the agent says of itself.
//! Never tells the name of a qube or of a host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use firewall_core::options::PREFIX;
use firewall_core::told::examination::Check;
use firewall_core::told::status::{State, Status};
use firewall_core::told::totals::problems;
use firewall_core::tor;

use super::{Doctor, bad, good, odd};
use crate::cli::run::{QUBES_MARKER, QUBESDB};
use crate::edges::control::Request;
use crate::edges::sources::qubesdb;

/// How long QubesDB may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Services of which one is to run.
const SERVICES: [&str; 3] = ["qubes-ebpf-firewall", "firewall-agent", "qubes-firewall"];

/// What is looked at of the machine, and of the agent.
pub(super) async fn checks(doctor: &Doctor) -> Vec<Check> {
    let mut checks = vec![machine(&doctor.root), qubesdb_of(&doctor.root).await];
    checks.extend(services());
    checks.extend(agent(doctor));
    checks
}

fn machine(root: &Path) -> Check {
    let is = |marker: &str| root.join(marker).exists();
    good(
        "machine",
        match (is(tor::MARKER), is(QUBES_MARKER)) {
            (true, _) => "a Whonix gateway",
            (false, true) => "a qube of Qubes OS",
            (false, false) => "no qube",
        },
    )
}

async fn qubesdb_of(root: &Path) -> Check {
    let subject = "QubesDB";
    let socket = root.join(QUBESDB);
    if !socket.exists() && !root.join(QUBES_MARKER).exists() {
        return good(subject, "none, as everywhere but in a qube");
    }
    match qubesdb::own(&socket, PATIENCE).await {
        Ok(own) => good(subject, format!("answers; keys {PREFIX}NAME: {}", own.options.len())),
        Err(error) => bad(
            subject,
            error.to_string(),
            "rules of dom0 cannot be read; those in force stay (is qubes-db.service running?)",
        ),
    }
}

/// Nothing where systemd does not run.
fn services() -> Option<Check> {
    let mut systemctl = Command::new("systemctl");
    systemctl.arg("is-active").args(SERVICES.map(|name| format!("{name}.service")));
    let output = systemctl.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let states: Vec<&str> = text.lines().collect();
    // Without a manager it says nothing to standard output.
    let states: Vec<(&str, &str)> =
        SERVICES.into_iter().zip(states).filter(|(_, state)| *state != "inactive").collect();
    let found: Vec<String> =
        states.iter().map(|(name, state)| format!("{name} is {state}")).collect();
    Some(match found.is_empty() {
        true => odd("services", "none of them is active", "nobody puts rules in force"),
        false => good("services", found.join(", ")),
    })
}

fn agent(doctor: &Doctor) -> Vec<Check> {
    let subject = "agent";
    let status: Status = match doctor.ask.agent(&Request::Status) {
        Ok(Ok(status)) => status,
        Ok(Err(why)) => {
            return vec![bad(
                subject,
                why,
                "rules that are in force stay, and no change comes into force",
            )];
        }
        Err(error) => {
            return vec![bad(subject, error.to_string(), "what the agent says is not understood")];
        }
    };
    let agent = &status.agent;
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for client in &status.clients {
        *count.entry(client.state.name()).or_default() += 1;
    }
    let clients: Vec<String> =
        count.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let clients = if clients.is_empty() { "none".to_owned() } else { clients.join(", ") };
    let attached: Vec<&str> =
        status.vifs.iter().map(|vif| vif.attached.map_or("nothing", |it| it.name())).collect();
    let waiting = status.clients.iter().any(|client| client.state == State::Waiting);
    let mut checks = vec![
        match problems(&status) {
            0 => good(
                subject,
                format!("runs, version {}, mode {}", agent.version, agent.mode.name()),
            ),
            problems => bad(
                subject,
                format!("runs, version {}, and tells {problems} problems", agent.version),
                "`firewall-agent status` names them",
            ),
        },
        good("vifs", format!("{}; attached: {}", status.vifs.len(), attached.join(", "))),
        match waiting {
            false => good("clients", clients),
            true => odd("clients", clients, "who waits has no rules yet, and sends nothing"),
        },
    ];
    let options = agent.options.iter().map(|option| option.name.as_str());
    let options = options.collect::<Vec<_>>().join(", ");
    checks.push(good("options", if options.is_empty() { "as they come" } else { &options }));
    checks
}
