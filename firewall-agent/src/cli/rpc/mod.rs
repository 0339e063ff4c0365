//! `rpc`: answers a call of dom0 or of a qube by qrexec, on standard output alone.
//! Never reads standard input, and never tells a caller of `firewall.Why` about anybody else.

pub mod bounded;
mod child;
pub mod own;
pub mod question;

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use firewall_core::told::own::{OwnClient, OwnStatus, OwnVerdict};

use self::child::Outcome;
use self::question::{Form, Question, Service, form, question};
use super::ask::print;
use super::{DEFAULT_SOCKET, EXIT_ERROR, EXIT_NOT_RUNNING, EXIT_PROBLEM};
use crate::cli::who::Who;
use crate::edges::control::{self, ControlError, Request};

/// Most denied packets that are told.
const MOST_PACKETS: u32 = 500;

/// Which service. Who calls and with what argument, qrexec says in the environment.
#[derive(Debug, Args)]
pub struct Rpc {
    /// The service, by its name in qrexec.
    pub service: Service,
}

/// An answer, and the exit code that goes with it.
type Answer = (String, u8);

/// Runs `rpc`: prints the answer to a call.
pub fn rpc(Rpc { service }: &Rpc) -> Result<ExitCode> {
    let caller = std::env::var_os("QREXEC_REMOTE_DOMAIN");
    let argument = std::env::var_os("QREXEC_SERVICE_ARGUMENT").unwrap_or_default();
    let form = form(argument.as_bytes());
    let asked = question(*service, caller.as_ref().map(|it| it.as_bytes()), argument.as_bytes());
    let answered = asked.map_err(anyhow::Error::msg).and_then(|question| {
        if !nix::unistd::geteuid().is_root() {
            anyhow::bail!(
                "it runs as another user than root, who alone may ask the agent: \
                 force-user='root' in /etc/qubes/rpc-config, or user=root in dom0's policy"
            );
        }
        match question {
            Question::Why { qube, aim } => why(&Request::Own { qube, aim }, form),
            question => by_command(&question, form),
        }
    });
    let (told, code) = answered.unwrap_or_else(|error| no_answer(&format!("{error:#}"), form));
    print(&match form {
        Form::Text => bounded::text(&told),
        Form::Json => bounded::json(&told),
    })?;
    Ok(ExitCode::from(code))
}

/// Callers see nothing but standard output.
fn no_answer(why: &str, form: Form) -> Answer {
    match form {
        Form::Text => (format!("firewall-agent: {why}\n"), EXIT_ERROR),
        Form::Json => (bounded::error(why), EXIT_ERROR),
    }
}

/// What a command of this program answers.
fn by_command(question: &Question, form: Form) -> Result<Answer> {
    let client = |who: &Who| match who {
        Who::Address(address) => address.to_string(),
        Who::Name(name) => name.clone(),
    };
    let mut watches = None;
    let mut arguments = match question {
        Question::Status => vec!["status".to_owned()],
        Question::Show(who) => vec!["show".to_owned(), client(who)],
        Question::Explain(who, to) => {
            vec![
                "explain".to_owned(),
                format!("--from={}", client(who)),
                format!("--to={}", to.text),
            ]
        }
        Question::Monitor { seconds, learn } => {
            watches = Some(Duration::from_secs(*seconds));
            let learn = learn.then(|| "--learn".to_owned());
            let arguments = ["monitor".to_owned(), format!("--count={MOST_PACKETS}")];
            arguments.into_iter().chain(learn).collect()
        }
        Question::Why { .. } => anyhow::bail!("no command tells a qube about itself"),
    };
    if form == Form::Json {
        arguments.push("--json".to_owned());
    }
    let Outcome { said, complained, code } = child::run(&arguments, watches)?;
    let told = match form {
        Form::Text if said.is_empty() => complained,
        Form::Text | Form::Json => said,
    };
    Ok((told, code))
}

/// What the agent tells a qube about itself.
fn why(request: &Request, form: Form) -> Result<Answer> {
    let status: OwnStatus = match control::ask(Path::new(DEFAULT_SOCKET), request) {
        Ok(status) => status,
        Err(ControlError::NotRunning(_)) => {
            let why = "the firewall's agent does not run; what was in force goes on";
            return Ok((no_answer(why, form).0, EXIT_NOT_RUNNING));
        }
        Err(error) => return Err(error.into()),
    };
    if status.own.is_empty() {
        anyhow::bail!(own::stranger(&status.qube));
    }
    let told = match form {
        Form::Text => own::text(&status),
        Form::Json => serde_json::to_string_pretty(&status)? + "\n",
    };
    Ok((told, if is_well(&status) { 0 } else { EXIT_PROBLEM }))
}

/// Whether the packet that was asked about passes; or whether rules are in force as they are.
fn is_well(OwnStatus { own, answer, .. }: &OwnStatus) -> bool {
    match answer.as_ref().map(|answer| answer.says) {
        Some(OwnVerdict::Accepted | OwnVerdict::Audited | OwnVerdict::NotJudged) => true,
        Some(OwnVerdict::Denied | OwnVerdict::Blocked | OwnVerdict::Waiting) => false,
        None => {
            let needs = |it: &OwnClient| it.problem.is_some() || it.audit_seconds_left.is_some();
            !own.iter().any(needs)
        }
    }
}
