//! Rules that were written and name what nobody has asked about yet: they count as handled when
//! there is a first answer about each of these names, or none for too long.
//! Never waits for a name of which something is known, and never knows what the answer was.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::rules::question::Question;
use crate::time::Moment;

/// Whoever waits for rules waits no longer than this for names: a server that is silent would
/// hold up dom0's scripts.
const LONGEST: Duration = Duration::from_secs(2);

/// Rules as they were written once.
#[derive(Debug)]
struct Commit {
    client: IpAddr,
    awaited: BTreeSet<Question>,
    until: Moment,
}

/// Rules that wait for no name any more.
#[derive(Debug)]
pub(super) struct Ready {
    /// The client's address.
    pub(super) client: IpAddr,
    /// Names about which nobody has said anything yet.
    pub(super) unanswered: BTreeSet<Question>,
}

/// All rules that wait for names.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: Vec<Commit>,
}

impl Commits {
    /// A client's rules were written, which wait for these names.
    pub(super) fn add(&mut self, client: IpAddr, awaited: BTreeSet<Question>, now: Moment) {
        self.waiting.push(Commit { client, awaited, until: now + LONGEST });
    }

    /// Whether no rules wait.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out the rules that wait no more, once for each time that they were written.
    pub(super) fn take_ready(
        &mut self,
        now: Moment,
        is_awaited: impl Fn(&Question) -> bool,
    ) -> Vec<Ready> {
        let ready = self.waiting.extract_if(.., |commit| {
            commit.awaited.retain(&is_awaited);
            commit.awaited.is_empty() || commit.until <= now
        });
        ready.map(|it| Ready { client: it.client, unanswered: it.awaited }).collect()
    }

    /// When rules wait no more, whatever names do; `None` if none wait.
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.iter().map(|commit| commit.until).min()
    }
}
