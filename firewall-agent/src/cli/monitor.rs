//! `monitor`: denied packets, as they happen.
//! Never asks the kernel: the agent tells.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use firewall_common::verdict::{Reason, Verdict};
use ipnet::IpNet;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use tokio::signal::unix::{SignalKind, signal};

use super::ask::{Ask, print};
use super::learn::Lessons;
use crate::edges::control::{ControlError, feed};
use firewall_core::told::news::{Denied, News};

/// What to show.
#[derive(Debug, Args)]
pub struct Monitor {
    /// Only packets that this address sent.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// Only packets to this address or network.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub to: Option<IpNet>,
    /// Only packets that were denied for this reason; `audit`: those that passed nonetheless.
    #[arg(long, value_parser = reasons())]
    pub reason: Option<Sought>,
    /// End after so many packets.
    #[arg(long, value_name = "PACKETS")]
    pub count: Option<NonZeroU64>,
    /// At the end, print rules that would allow what was seen, ready to paste in dom0. What
    /// is seen goes to standard error.
    #[arg(long, conflicts_with = "json")]
    pub learn: bool,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// Which packets are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// Packets that were denied for this reason.
    Reason(Reason),
    /// Packets that passed because their client is audited.
    Audited,
}

impl Sought {
    /// All of them. A packet that passed has the reason of what denies it.
    fn all() -> impl Iterator<Item = Self> {
        let reasons = Reason::ALL.iter().filter(|reason| **reason != Reason::Audit);
        reasons.map(|reason| Self::Reason(*reason)).chain([Self::Audited])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Reason(reason) => reason.name(),
            Self::Audited => Verdict::Audit.name(),
        }
    }
}

/// Why `monitor` ends.
enum End {
    /// Enough was shown, or a signal came.
    Asked,
    /// The agent has ended.
    Agent,
    /// Nobody reads what is shown.
    Unread,
}

/// Runs `monitor`: prints denied packets until enough were seen, it is asked to end, or the agent
/// has ended.
pub fn monitor(monitor: &Monitor) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(monitor.run())
}

impl Monitor {
    async fn run(&self) -> Result<ExitCode> {
        let mut news = match feed::follow(&self.ask.socket).await {
            Ok(news) => news,
            Err(error @ ControlError::NotRunning(_)) => {
                return self.ask.not_running(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        };
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut lessons = Lessons::default();
        let mut left = self.count.map(NonZeroU64::get);
        let end = loop {
            let told = tokio::select! {
                told = news.next() => told?,
                _ = interrupt.recv() => break End::Asked,
                _ = terminate.recv() => break End::Asked,
            };
            let Some(told) = told else {
                break End::Agent;
            };
            if let News::Denied(denied) = &told {
                if !self.wants(denied) {
                    continue;
                }
                left = left.map(|left| left - 1);
            }
            lessons.learn(&told);
            if !self.show(&told)? {
                break End::Unread;
            }
            if left == Some(0) {
                break End::Asked;
            }
        };
        if self.learn {
            print(&lessons.to_string())?;
        }
        Ok(match end {
            End::Asked | End::Unread => ExitCode::SUCCESS,
            End::Agent => {
                self.ask.not_running("the agent has ended; what is in force stays in force")?
            }
        })
    }

    fn wants(&self, denied: &Denied) -> bool {
        let is_of = |client: &IpAddr| denied.source == Some(*client);
        let leads = |to: &IpNet| denied.destination.is_some_and(|it| to.contains(&it));
        let is_for = |sought: &Sought| match sought {
            Sought::Reason(reason) => denied.reason == *reason,
            Sought::Audited => denied.verdict == Verdict::Audit,
        };
        self.client.as_ref().is_none_or(is_of)
            && self.to.as_ref().is_none_or(leads)
            && self.reason.as_ref().is_none_or(is_for)
    }

    /// Shows one line. Returns whether anybody reads it.
    fn show(&self, news: &News) -> Result<bool> {
        let mut line = if self.ask.json { serde_json::to_string(news)? } else { self.text(news) };
        line.push('\n');
        let shown = if self.learn {
            io::stderr().write_all(line.as_bytes())
        } else {
            io::stdout().write_all(line.as_bytes())
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            shown => Ok(shown.map(|()| true)?),
        }
    }

    fn text(&self, news: &News) -> String {
        match news {
            News::Hello { records_per_second, .. } => self.headline(*records_per_second),
            News::Denied(denied) => {
                format!("{} {denied}", time_of_day(denied.time_ms))
            }
            News::Missed { lines } => {
                format!("{lines} lines are missing here: they came faster than they were read")
            }
            News::Full { readers } => {
                format!("the agent tells {readers} readers already, and no more; end one of them")
            }
        }
    }

    /// What is shown.
    fn headline(&self, records_per_second: u32) -> String {
        let client = self.client.map_or("all clients".to_owned(), |client| client.to_string());
        let mut text = format!("denied packets of {client}");
        // Writing to a String cannot fail.
        if let Some(to) = self.to {
            let _ = write!(text, " to {to}");
        }
        if let Some(reason) = self.reason {
            let _ = write!(text, " for the reason {}", reason.name());
        }
        let _ = write!(text, ", at most {records_per_second} a second of each vif");
        if self.count.is_none() {
            text.push_str("; Ctrl-C ends it");
        }
        text
    }
}

/// Local time of day.
fn time_of_day(milliseconds: u64) -> String {
    let timestamp = i64::try_from(milliseconds).ok();
    let timestamp = timestamp.and_then(|it| Timestamp::from_millisecond(it).ok());
    let zoned = Zoned::new(timestamp.unwrap_or_default(), TimeZone::system());
    zoned.strftime("%H:%M:%S").to_string()
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| "an address or a network is wanted".to_owned())
}

fn reasons() -> impl TypedValueParser<Value = Sought> {
    let names = PossibleValuesParser::new(Sought::all().map(Sought::name));
    names.try_map(|name| Sought::all().find(|it| it.name() == name).ok_or("no such reason"))
}
