//! How long answers and addresses of names are used, and when DNS is asked again.
//! Never remembers a name.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use crate::rules::question::Question;

/// No answer is asked for again sooner; some servers say 0.
const FLOOR: Duration = Duration::from_secs(5);
/// None is used longer without asking; some servers say a week.
const CEILING: Duration = Duration::from_secs(3600);
/// How long an address stays that is in no answer any more.
pub(super) const GRACE: Duration = Duration::from_secs(600);
/// The kernel is not asked more often what is in use.
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// A name that failed is not asked more often, however often rules with it are written.
pub(super) const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);
/// How long after a failure the next attempt is; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// An answer that is older is not used any more, be it this agent's or an earlier one's.
pub(super) const OLDEST: Duration = Duration::from_secs(24 * 3600);

/// How long after an answer the next question is, given the shortest time to live in the answer.
pub(super) fn until_next(ttl: Duration) -> Duration {
    ttl.clamp(FLOOR, CEILING)
}

/// How long to wait after so many failures. Names that failed together are not asked again
/// together: up to a quarter is added, another part for each name and each time.
pub(super) fn pause(question: &Question, failures: u32) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LAST_RETRY);
    let mut hasher = DefaultHasher::new();
    (question, failures).hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or(0);
    pause + pause / 4 * part / 256
}
