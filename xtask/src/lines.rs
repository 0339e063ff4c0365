//! What another program says, line by line, for as long as there is patience.
//! Never understands what is said.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What ended the listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nobody can say more.
    End,
    /// It took too long.
    TimedOut,
}

/// Hands on each line until the end, for `patience` at most.
pub fn each_line(
    output: impl Read + Send + 'static,
    patience: Duration,
    mut line: impl FnMut(&str),
) -> Until {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for part in BufReader::new(output).split(b'\n') {
            let Ok(part) = part else { break };
            let text = String::from_utf8_lossy(&part).trim_end_matches('\r').to_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + patience;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => return Until::End,
            Err(RecvTimeoutError::Timeout) => return Until::TimedOut,
        }
    }
}
