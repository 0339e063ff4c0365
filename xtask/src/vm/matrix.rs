//! What became of the tests on each kernel, for people and for programs.
//! Never runs a test.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::kernels::Kernel;
use crate::sum::Sum;

/// What became of the tests on one kernel.
pub struct Row {
    /// The kernel.
    pub kernel: Kernel,
    /// What `uname -r` says there, and whether the kernel has BTF; nothing if it did not boot.
    pub release: String,
    /// How many tests passed, failed, and were skipped.
    pub sum: Sum,
    /// Names of the tests that failed.
    pub failed: Vec<String>,
    /// What tests that were skipped say.
    pub skipped: Vec<String>,
    /// Why the run is not whole, if it is not.
    pub problem: Option<String>,
}

impl Row {
    /// A kernel of which nothing is known yet.
    pub fn new(kernel: Kernel) -> Self {
        let (release, sum) = Default::default();
        Self { kernel, release, sum, failed: Vec::new(), skipped: Vec::new(), problem: None }
    }

    /// Takes in a line of the guest.
    pub fn hear(&mut self, line: &str) {
        self.sum.add(line);
        if let Some(release) = line.strip_prefix("VM up ") {
            release.clone_into(&mut self.release);
        } else if let Some(why) = line.strip_prefix("VM lacks ") {
            self.problem = Some(format!("the kernel lacks {why}"));
        } else if let Some(reason) = line.strip_prefix("SKIPPED: ") {
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
}

/// The matrix as text: a line for each kernel, and what failed and was skipped below it.
pub fn text(rows: &[Row]) -> String {
    let mut text =
        format!("{:<24} {:<36} {:>6} {:>6} {:>7}\n", "kernel", "is", "passed", "failed", "skipped");
    for row in rows {
        let (name, release) = (row.kernel.name, &row.release);
        let (passed, failed, skipped) = (row.passed(), row.sum.failed, row.sum.skipped);
        let _ = writeln!(text, "{name:<24} {release:<36} {passed:>6} {failed:>6} {skipped:>7}");
        let notes = row.problem.iter().cloned();
        let notes = notes.chain(row.failed.iter().map(|name| format!("FAILED {name}")));
        for note in notes.chain(row.skipped.iter().map(|reason| format!("skipped: {reason}"))) {
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

/// The matrix for programs.
pub fn to_json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "kernel": row.kernel.name,
            "release": row.release,
            "passed": row.passed(),
            "failed": row.failed,
            "skipped": row.skipped,
            "problem": row.problem,
            "is_good": row.is_good(),
        })
    };
    json!({ "kernels": rows.iter().map(row).collect::<Vec<Value>>() })
}

#[cfg(test)]
mod tests {
    use super::super::kernels::KERNELS;
    use super::*;

    #[test]
    fn a_row_is_good_only_if_the_run_is_whole_and_nothing_failed() {
        let hear = |lines: &[&str]| {
            let mut row = Row::new(KERNELS[0]);
            lines.iter().for_each(|line| row.hear(line));
            row
        };
        let up = "VM up 6.1.0-50-amd64 with BTF";
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured";
        let bad = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured";
        assert!(hear(&[up, good]).is_good());
        assert!(!hear(&[up]).is_good());
        assert!(!hear(&["VM lacks overlayfs", good]).is_good());
        let failed = hear(&[up, "test rig::life::a ... FAILED", bad]);
        assert_eq!((failed.failed.len(), failed.is_good()), (1, false));
        assert!(
            !hear(&[up, "SKIPPED: a flowtable", "test result: ok. 1 passed; 0 failed"]).is_good()
        );
    }
}
