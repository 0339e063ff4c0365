//! A job among the files of a distribution, and what it says.
//! Never leaves a process, a mount or a namespace of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lines::{Until, each_line};
use crate::run::root;

const INSIDE: &str = include_str!("inside.sh");

/// A job that ends with this value: it listens at its standard input for that.
struct Job(Child);

impl Drop for Job {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Runs a script in the tree, for `patience` at most, and hands on each line. Returns whether the job
/// ended well; `None` if it took too long.
pub fn run(
    name: &str,
    tree: &Path,
    job: &str,
    patience: Duration,
    line: impl FnMut(&str),
) -> Result<Option<bool>> {
    let directory = tree.parent().context("a tree in no directory")?;
    let (script, work) = (directory.join("inside.sh"), directory.join("job.sh"));
    fs::write(&script, INSIDE)?;
    fs::write(&work, job)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh"]).arg(script).args(["first", name]);
    command.arg(tree).arg(root()).arg(work);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // What ends this program ends the job by its standard input, and in order.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("cannot start `unshare`")?;
    let output = child.stdout.take().context("no output")?;
    let mut job = Job(child);
    match each_line(output, patience, line) {
        Until::TimedOut => Ok(None),
        Until::End => {
            // Somebody else may hold the other end of its standard input, but nobody its output.
            Ok(Some(job.0.wait()?.success()))
        }
    }
}
