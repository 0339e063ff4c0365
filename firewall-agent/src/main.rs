//! Starts what the arguments ask for, and turns what came of it into an exit code.
//! Never does any command's work itself.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use firewall_agent::cli::colour::Colours;
use firewall_agent::cli::{self, Arguments, Command, EXIT_ERROR};
use firewall_agent::daemon::logging::Log;
use firewall_agent::daemon::{self, handover};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let command = Arguments::parse_from(&line).command;
    let is_for_scripts = command.is_for_scripts();
    let outcome = match command {
        Command::Prepare(prepare) => in_runtime(cli::prepare(&prepare, &line)),
        Command::Run(run) => {
            let socket = run.qubesdb();
            daemon::Options::try_from(run).and_then(|_| in_runtime(cli::run(&line, socket)))
        }
        Command::Status(ask) => cli::show::status(&ask),
        Command::Show(show) => cli::show::show(&show),
        Command::Monitor(monitor) => cli::monitor::monitor(&monitor),
        Command::Top(top) => cli::top::top(&top),
        Command::Audit(audit) => cli::audit::audit(&audit),
        Command::Check(check) => cli::check::check(&check),
        Command::Explain(explain) => cli::explain::explain(&explain),
        Command::Doctor(doctor) => quietly(cli::doctor::doctor(&doctor)),
        Command::HandOver { pins } => in_runtime(handover::hand_over(&pins)),
        Command::Notify(notify) => in_runtime(cli::notify::notify(&notify)),
        Command::Sockets => in_runtime(cli::sockets::sockets()),
        Command::Completions(shell) => cli::manual::completions(&shell),
        Command::Rpc(rpc) => cli::rpc::rpc(&rpc),
        Command::Schema => cli::schema::schema(),
        Command::Manual(manual) => cli::manual::manual(&manual),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("firewall-agent: {error:#}");
        if is_for_scripts {
            // Who does not read it has the exit code.
            let _ = cli::ask::print_error(&format!("{error:#}"));
        }
        ExitCode::from(EXIT_ERROR)
    })
}

/// Runs what waits, and has an answer instead of a log.
fn quietly(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Runs what logs and waits.
fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    // FIREWALL_LOG=debug shows more; the syntax is that of tracing's EnvFilter.
    let filter = EnvFilter::try_from_env("FIREWALL_LOG").unwrap_or_else(|_| "info".into());
    let log = Log::to_stderr()?;
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        .with_ansi(Colours::of_stderr().are_wanted())
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Not even what waits for others on threads of its own holds up the end.
    runtime.shutdown_background();
    if let Err(error) = &outcome {
        let _ = writeln!(log.clone(), "firewall-agent: {error:#}");
    }
    log.finish();
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_ERROR) })
}
