//! The console of a guest, as dom0 has it: orders go in as lines, answers come out.
//! Never waits without saying what for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::order::{Answer, MARK, Numbered, Order};

/// Answers that came, and the last lines that were none.
#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Result<Answer, String>>,
    lines: Vec<String>,
}

/// The console of a running guest.
pub struct Console {
    write: File,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    next: u64,
}

/// An order that was given.
#[derive(Debug)]
pub struct Given {
    number: u64,
    order: String,
}

impl Console {
    /// Opens that of a guest with this name. What comes there and is no answer is shown.
    pub fn open(name: &'static str, terminal: &Path) -> Result<Self> {
        // Or it would be this process's own terminal, and its end the end of all.
        let flags = nix::libc::O_NOCTTY;
        let write = File::options().read(true).write(true).custom_flags(flags).open(terminal)?;
        let mut settings = tcgetattr(write.as_fd())?;
        cfmakeraw(&mut settings);
        tcsetattr(write.as_fd(), SetArg::TCSANOW, &settings)?;
        let read = write.try_clone()?;
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        let shared = Arc::clone(&heard);
        // Ends with the guest, whose terminal goes.
        thread::spawn(move || {
            for line in BufReader::new(read).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).hear(name, line);
                shared.1.notify_all();
            }
        });
        Ok(Self { write, heard, next: 1 })
    }

    /// Waits until the guest has booted: it says so as the answer to no order.
    pub fn wait_until_up(&self, patience: Duration) -> Result<()> {
        let given = Given { number: 0, order: "its start".to_owned() };
        self.wait(given, patience).map(drop)
    }

    /// Gives an order.
    pub fn give(&mut self, order: Order) -> Result<Given> {
        let number = self.next;
        self.next += 1;
        let mut shown = format!("{order:?}");
        shown.truncate(100);
        let line = serde_json::to_string(&Numbered { number, content: order })? + "\n";
        // A terminal keeps no more than 4095 bytes of a line that nobody reads.
        for part in line.as_bytes().chunks(512) {
            self.write.write_all(part)?;
        }
        Ok(Given { number, order: shown })
    }

    /// Waits for an answer.
    pub fn wait(&self, given: Given, patience: Duration) -> Result<Answer> {
        let deadline = Instant::now() + patience;
        let mut heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = heard.answers.remove(&given.number) {
                return answer
                    .map_err(|error| anyhow!("the guest says of {}: {error}", given.order));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = heard.lines.iter().rev().take(5).rev();
                let last: Vec<&str> = last.map(String::as_str).collect();
                bail!("the guest does not answer {}; it said: {}", given.order, last.join(" / "));
            }
            let woken = self.heard.1.wait_timeout(heard, left);
            heard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives an order, and waits for its answer.
    pub fn ask(&mut self, order: Order, patience: Duration) -> Result<Answer> {
        let given = self.give(order).context("cannot write to the guest's console")?;
        self.wait(given, patience)
    }
}

impl Heard {
    fn hear(&mut self, name: &str, line: String) {
        let answer = line.strip_prefix(MARK).and_then(|text| serde_json::from_str(text).ok());
        match answer {
            Some(Numbered { number, content }) => drop(self.answers.insert(number, content)),
            None if line.is_empty() => {}
            None => {
                println!("{name}| {line}");
                self.lines.push(line);
            }
        }
    }
}
