//! What was checked on each kernel, for people and for programs.
//! Never checks anything.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What was checked on one kernel.
pub struct Run {
    /// The kernel as it was asked for, and what `uname -r` says there.
    pub kernel: String,
    release: String,
    checks: Vec<Check>,
    has_ended: bool,
    /// Why the run is not whole, if it is not.
    pub problem: Option<String>,
}

/// One check.
struct Check {
    holds: bool,
    name: String,
    about: String,
    seen: String,
}

impl Run {
    /// A kernel of which nothing is known yet.
    pub fn new(kernel: &str) -> Self {
        let (release, checks) = Default::default();
        Self { kernel: kernel.to_owned(), release, checks, has_ended: false, problem: None }
    }

    /// Takes in a line of dom0: `CHECK ok NAME | WHAT HOLDS | WHAT WAS SEEN`, say.
    pub fn hear(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix("VM up ") {
            release.clone_into(&mut self.release);
        } else if let Some(why) = line.strip_prefix("VM lacks ") {
            self.problem = Some(format!("it lacks {why}"));
        } else if line.starts_with("VM job ended with ") {
            self.has_ended = true;
        } else if let Some((outcome, rest)) =
            line.strip_prefix("CHECK ").and_then(|rest| rest.split_once(' '))
        {
            let mut parts = rest.splitn(3, " | ").map(str::to_owned);
            let mut part = || parts.next().unwrap_or_default();
            let (name, about, seen) = (part(), part(), part());
            self.checks.push(Check { holds: outcome == "ok", name, about, seen });
        }
    }

    /// Whether some check was made, all of them to the end, and all hold.
    pub fn is_good(&self) -> bool {
        self.why_not_whole().is_none() && self.checks.iter().all(|check| check.holds)
    }

    fn why_not_whole(&self) -> Option<String> {
        let is_empty = self.checks.is_empty();
        let problem = match (self.release.is_empty(), self.has_ended, is_empty) {
            (true, ..) => Some("it does not boot"),
            (_, false, _) => Some("the checks did not come to their end"),
            (.., true) => Some("no check was made"),
            (false, true, false) => None,
        };
        self.problem.clone().or(problem.map(str::to_owned))
    }
}

/// All of it as text: a line for each check, below its kernel.
pub fn text(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        let good = run.checks.iter().filter(|check| check.holds).count();
        let (kernel, release, all) = (&run.kernel, &run.release, run.checks.len());
        let _ = writeln!(text, "{kernel} ({release}): {good} of {all} checks hold");
        for check in &run.checks {
            let outcome = if check.holds { "ok" } else { "FAILED" };
            let Check { name, about, seen, .. } = check;
            let _ = writeln!(text, "  {outcome:<6} {name}: {about}\n         {seen}");
        }
        if let Some(problem) = run.why_not_whole() {
            let _ = writeln!(text, "  FAILED {problem}");
        }
    }
    text
}

/// The same for programs.
pub fn to_json(runs: &[Run]) -> Value {
    let check =
        |check: &Check| json!({"holds": check.holds, "name": check.name, "seen": check.seen});
    let run = |run: &Run| {
        json!({
            "kernel": run.kernel,
            "release": run.release,
            "checks": run.checks.iter().map(check).collect::<Vec<Value>>(),
            "problem": run.why_not_whole(),
            "is_good": run.is_good(),
        })
    };
    json!({ "kernels": runs.iter().map(run).collect::<Vec<Value>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_good_only_if_it_is_whole_and_all_checks_hold() {
        let hear = |lines: &[&str]| {
            let mut run = Run::new("6.12");
            lines.iter().for_each(|line| run.hear(line));
            run.is_good()
        };
        let (up, end) = ("VM up 6.12.9 with BTF", "VM job ended with 0");
        let (good, bad) =
            ("CHECK ok reach | it works | tcp: accepted", "CHECK FAILED cut | it ends | 3 left");
        assert!(hear(&[up, good, end]));
        assert!(!hear(&[up, good, bad, end]));
        assert!(!hear(&[up, good]));
        assert!(!hear(&[up, end]));
        assert!(!hear(&["VM lacks xenfs", up, good, end]));
        assert!(!hear(&[good, end]));
    }
}
