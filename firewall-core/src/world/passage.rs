//! Whether what rules accept leaves: somebody else's rules, a missing route, or a fault of the way
//! from the program to the gate can be in between.
//! Never knows why something does not leave; only what is in between.

use std::time::Duration;

use crate::events::{Effect, Notice, Why};
use crate::time::Moment;
use crate::told::passage::{BaseChain, Loss};

/// Fewer frames tell nothing: some are on their way, and some are lost anywhere.
const FEWEST: u64 = 20;
/// The part of the accepted frames that is missing when something is said: one of so many.
const PART: u64 = 10;
/// Shorter times tell nothing.
const SHORTEST: Duration = Duration::from_secs(5);

/// What was seen of frames on their way.
#[derive(Debug, Default)]
pub(super) struct Passage {
    before: Option<([u64; 2], Moment)>,
    lost: Option<Loss>,
}

impl Passage {
    /// Takes in how many frames got a permit, and how many of these left. Where an interface is not
    /// watched, nothing is said.
    pub(super) fn look(
        &mut self,
        [permitted, left]: [u64; 2],
        is_watched: bool,
        now: Moment,
    ) -> Option<Effect> {
        let Some(([permitted_before, left_before], since)) = self.before else {
            self.before = Some(([permitted, left], now));
            return None;
        };
        let time = now.since(since);
        if time < SHORTEST {
            return None;
        }
        self.before = Some(([permitted, left], now));
        let accepted_frames = permitted.saturating_sub(permitted_before);
        let left_frames = left.saturating_sub(left_before);
        let missing = accepted_frames.saturating_sub(left_frames);
        if !is_watched || missing < FEWEST || missing < accepted_frames / PART {
            self.lost = None;
            return None;
        }
        let is_new = self.lost.is_none();
        let before = self.lost.take().map(|lost| (lost.between, lost.between_problem));
        let (between, between_problem) = before.unwrap_or_default();
        let seconds = time.as_secs();
        self.lost = Some(Loss { accepted_frames, left_frames, seconds, between, between_problem });
        is_new.then_some(Effect::LookBetween)
    }

    /// Takes in what is in between.
    pub(super) fn between(&mut self, between: Result<Vec<BaseChain>, Why>) -> Option<Effect> {
        let lost = self.lost.as_mut()?;
        (lost.between, lost.between_problem) = match between {
            Ok(between) => (between, None),
            Err(Why(why)) => (Vec::new(), Some(why)),
        };
        Some(Effect::Tell(Notice::Lost(lost.clone())))
    }

    /// What is missing.
    pub(super) fn lost(&self) -> Option<&Loss> {
        self.lost.as_ref()
    }
}
