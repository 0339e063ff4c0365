//! Waiting until something is so.
//! Never without an end, nor without a name for what did not come.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks until there is an answer, in no hurry.
pub fn until<T>(
    what: &str,
    patience: Duration,
    ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    every(Duration::from_millis(100), what, patience, ask)
}

/// Asks so often until there is an answer.
pub fn every<T>(
    pause: Duration,
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("never came, in {} seconds: {what}", patience.as_secs());
        }
        std::thread::sleep(pause);
    }
}
