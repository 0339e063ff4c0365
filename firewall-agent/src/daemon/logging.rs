//! The agent's log: lines to standard error, written by a thread of their own.
//! Never makes anybody wait before the end: if nobody reads, lines are lost and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that wait to be written.
const WAITING: usize = 1024;
/// How long the end waits for whoever reads.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines of the log go.
#[derive(Clone)]
pub struct Log {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

enum Line {
    Text(Vec<u8>),
    /// Everything before is written.
    End(SyncSender<()>),
}

impl Log {
    /// Begins to write to standard error. An error if there can be no thread.
    pub fn to_stderr() -> io::Result<Self> {
        Self::to(io::stderr())
    }

    fn to(place: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, written) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let known = Arc::clone(&lost);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            write_all(&written, &known, place);
        })?;
        Ok(Self { lines, lost })
    }

    /// Waits until everything is written, but not longer than a second.
    pub fn finish(&self) {
        let (done, is_done) = sync_channel(1);
        if self.lines.try_send(Line::End(done)).is_ok() {
            let _ = is_done.recv_timeout(PATIENCE);
        }
    }
}

fn write_all(lines: &Receiver<Line>, lost: &AtomicU64, mut place: impl Write) {
    while let Ok(line) = lines.recv() {
        tell(lost, &mut place);
        match line {
            // Whoever read it may have gone.
            Line::Text(text) => drop(place.write_all(&text)),
            Line::End(done) => drop(done.send(())),
        }
    }
    tell(lost, &mut place);
}

fn tell(lost: &AtomicU64, place: &mut impl Write) {
    let lost = lost.swap(0, Ordering::Relaxed);
    if lost > 0 {
        let _ = writeln!(place, "{lost} lines of the log were lost: nobody read it");
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.lines.try_send(Line::Text(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};

    #[test]
    fn a_log_that_nobody_reads_loses_lines_makes_nobody_wait_and_says_so_later() {
        let (reading, writing) = io::pipe().expect("a pipe");
        let mut log = Log::to(writing).expect("a log");
        // Many times what a pipe and the queue keep.
        let line = [b'x'; 99];
        let all = 100_000;
        for _ in 0..all {
            log.write_all(&[&line[..], b"\n"].concat()).expect("never fails");
        }
        log.finish();
        drop(log);
        let (mut written, mut told) = (0, 0);
        for line in BufReader::new(reading).lines() {
            let line = line.expect("a line");
            match line.split_once(" lines of the log were lost") {
                Some((lost, _)) => told += lost.parse::<u64>().expect("a number"),
                None => written += 1,
            }
        }
        assert!(told > 0, "nothing was lost");
        assert_eq!(written + told, all);
    }
}
