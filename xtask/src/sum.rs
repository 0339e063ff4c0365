//! What test binaries print, added up.
//! Never runs one.

/// What all test binaries together say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Tests that passed, those among them that could not run included.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
    /// Tests among those that passed that did not run.
    pub ran_not: usize,
}

impl Sum {
    /// Reads a line like `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, or one by
    /// which a test that counts as passed says that it could not run here.
    pub fn add(&mut self, line: &str) {
        if line.starts_with("SKIPPED: ") {
            self.skipped += 1;
            self.ran_not += 1;
        }
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            let number: usize = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_summed_up() {
        let mut sum = Sum::default();
        let line = |passed| {
            format!(
                "test result: FAILED. {passed} passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.1s"
            )
        };
        sum.add(&line(3));
        sum.add("test rig::life ... ok");
        sum.add("SKIPPED: a flowtable: this kernel has none");
        sum.add(&line(4));
        assert_eq!((sum.passed, sum.failed, sum.skipped, sum.ran_not), (7, 2, 5, 1));
    }
}
