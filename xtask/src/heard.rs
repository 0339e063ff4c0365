//! What became of the tests in one place, on a kernel or in a distribution, as the tests themselves
//! tell; for people and for programs.
//! Never runs a test.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::sum::Sum;

/// What became of the tests in one place.
#[derive(Debug, Default)]
pub struct Heard {
    /// How many tests passed, failed, and were skipped.
    pub sum: Sum,
    /// Names of the tests that failed.
    pub failed: Vec<String>,
    /// What tests that were skipped say.
    pub skipped: Vec<String>,
    /// Why the run is not whole, if it is not.
    pub problem: Option<String>,
}

impl Heard {
    /// Takes in a line.
    pub fn hear(&mut self, line: &str) {
        self.sum.add(line);
        if let Some(reason) = line.strip_prefix("SKIPPED: ") {
            self.skipped.push(reason.to_owned());
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        }
    }

    /// Tests that ran and passed.
    pub fn passed(&self) -> usize {
        self.sum.passed.saturating_sub(self.sum.ran_not)
    }

    /// Whether some test ran, and none failed.
    pub fn is_good(&self) -> bool {
        self.problem.is_none() && self.sum.failed == 0 && self.passed() > 0
    }

    /// All of it for programs, to be told beside the place.
    pub fn to_json(&self) -> Map<String, Value> {
        let Self { sum: _, failed, skipped, problem } = self;
        Map::from_iter([
            ("passed".to_owned(), json!(self.passed())),
            ("failed".to_owned(), json!(failed)),
            ("skipped".to_owned(), json!(skipped)),
            ("problem".to_owned(), json!(problem)),
            ("is_good".to_owned(), json!(self.is_good())),
        ])
    }
}

/// A line for each place, by its name and what it is, and what failed and was skipped there below it.
pub fn table<'a>(
    kind: &str,
    rows: impl IntoIterator<Item = (&'a str, &'a str, &'a Heard)>,
) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows.iter().map(|(_, what, _)| what.len()).max().unwrap_or(0).max(36);
    let mut text =
        format!("{kind:<24} {:<width$} {:>6} {:>6} {:>7}\n", "is", "passed", "failed", "skipped");
    for (name, what, heard) in rows {
        let (passed, failed, skipped) = (heard.passed(), heard.sum.failed, heard.sum.skipped);
        let _ = writeln!(text, "{name:<24} {what:<width$} {passed:>6} {failed:>6} {skipped:>7}");
        let notes = heard.problem.iter().cloned();
        let notes = notes.chain(heard.failed.iter().map(|name| format!("FAILED {name}")));
        for note in notes.chain(heard.skipped.iter().map(|reason| format!("skipped: {reason}"))) {
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_good_only_if_something_passed_and_nothing_failed() {
        let hear = |lines: &[&str]| {
            let mut heard = Heard::default();
            lines.iter().for_each(|line| heard.hear(line));
            heard
        };
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured";
        let bad = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured";
        assert!(hear(&[good]).is_good());
        assert!(!hear(&[]).is_good());
        let failed = hear(&["test rig::life::a ... FAILED", bad]);
        assert_eq!((failed.failed.len(), failed.is_good()), (1, false));
        assert!(!hear(&["SKIPPED: a flowtable", "test result: ok. 1 passed; 0 failed"]).is_good());
        let not_whole = Heard { problem: Some("not over".to_owned()), ..hear(&[good]) };
        assert!(!not_whole.is_good());
    }
}
