//! `explain`: which rule decides about a packet, why, and what becomes of it.
//! Never decides: the evaluator does, on the agent's policy and on the kernel's tables.

mod arguments;
pub mod capture;
mod file;
mod gateway;
mod kernel;
mod running;
mod steps;
mod subject;
pub mod target;
pub mod text;
mod whole;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use firewall_core::told::explanation::{Explained, Outcome};

pub use self::arguments::Explain;
use super::colour::Colours;
use super::{EXIT_DISAGREEMENT, EXIT_PROBLEM};

/// Runs `explain`: prints what becomes of each packet.
pub fn explain(arguments: &Explain) -> Result<ExitCode> {
    let explained: Vec<Explained> = match &arguments.rules {
        Some(file) => file::by_file(arguments, file)?,
        None => running::by_agent_and_kernel(arguments)?,
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
        Outcome::Forwarded | Outcome::Tor | Outcome::Local | Outcome::Related => true,
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
