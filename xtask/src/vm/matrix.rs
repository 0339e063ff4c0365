//! What became of the tests on each kernel, for people and for programs.
//! Never runs a test.

use serde_json::{Value, json};

use super::kernels::Kernel;
use crate::heard::{Heard, table};

/// What became of the tests on one kernel.
pub struct Row {
    /// The kernel.
    pub kernel: Kernel,
    /// What `uname -r` says there, and whether the kernel has BTF; nothing if it did not boot.
    pub release: String,
    /// What the tests say.
    pub heard: Heard,
}

impl Row {
    /// A kernel of which nothing is known yet.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, release: String::new(), heard: Heard::default() }
    }

    /// Takes in a line of the guest.
    pub fn hear(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix("VM up ") {
            release.clone_into(&mut self.release);
        } else if let Some(why) = line.strip_prefix("VM lacks ") {
            self.heard.problem = Some(format!("the kernel lacks {why}"));
        } else {
            self.heard.hear(line);
        }
    }
}

/// The matrix as text: a line for each kernel, and what failed and was skipped below it.
pub fn text(rows: &[Row]) -> String {
    table("kernel", rows.iter().map(|row| (row.kernel.name, row.release.as_str(), &row.heard)))
}

/// The matrix for programs.
pub fn to_json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        let mut object = row.heard.to_json();
        object.insert("kernel".to_owned(), json!(row.kernel.name));
        object.insert("release".to_owned(), json!(row.release));
        Value::Object(object)
    };
    json!({ "kernels": rows.iter().map(row).collect::<Vec<Value>>() })
}

#[cfg(test)]
mod tests {
    use super::super::kernels::KERNELS;
    use super::*;

    #[test]
    fn a_kernel_that_lacks_what_all_tests_need_is_no_good() {
        let hear = |lines: &[&str]| {
            let mut row = Row::new(KERNELS[0]);
            lines.iter().for_each(|line| row.hear(line));
            row
        };
        let up = "VM up 6.1.0-50-amd64 with BTF";
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured";
        let row = hear(&[up, good]);
        assert_eq!((row.release.as_str(), row.heard.is_good()), ("6.1.0-50-amd64 with BTF", true));
        assert!(!hear(&["VM lacks overlayfs", good]).heard.is_good());
    }
}
