//! Vifs with more than one queue, whose packets come on several processors.
//! Never guesses by which queue a packet came: netback's own counts say.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::reach::{ACCEPTED, DENIED};
use crate::order::{Answer, Order};
use crate::outside::SERVER;
use crate::stage::{NO_RULES, RULES, Stage};

/// How often a verdict is to be seen on each queue, and how often it is tried at most.
const EACH: usize = 4;
const MOST: u16 = 100;

/// Datagrams from different ports, until each queue had enough of each verdict.
pub fn queues(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let count = stage.work.taken()?.len();
    ensure!(count == 2, "the vif has {count} queues");
    let refused = Answer::Refused;
    let accepted = on_each(stage, ACCEPTED, &Answer::Number(16))?;
    let denied = on_each(stage, DENIED, &refused)?;
    stage.put(&NO_RULES)?;
    let forbidden = on_each(stage, ACCEPTED, &refused)?;
    stage.put(&RULES)?;
    let again = on_each(stage, ACCEPTED, &Answer::Number(16))?;
    Ok(format!(
        "datagrams by queue: accepted {accepted:?}, rejected {denied:?}, rejected after a change of \
         rules {forbidden:?}, accepted after another {again:?}"
    ))
}

/// Sends datagrams until each queue had enough; all must have this outcome.
fn on_each(stage: &mut Stage, port: u16, expected: &Answer) -> Result<Vec<usize>> {
    let mut counts = vec![0; stage.work.taken()?.len()];
    for index in 0..MOST {
        let to = SocketAddr::new(SERVER[usize::from(index % 2)], port);
        let before = stage.work.taken()?;
        let order = Order::Datagram { to, bytes: 16, from_port: 20_000 + index };
        let answer = stage.work.ask(order)?;
        let after = stage.work.taken()?;
        ensure!(answer == *expected, "from port {}: {answer:?}, not {expected:?}", 20_000 + index);
        let moved: Vec<usize> = (0..counts.len()).filter(|at| before[*at] != after[*at]).collect();
        // Where the guest also asked for its neighbour, say, nobody knows which queue it was.
        if let [queue] = moved[..] {
            counts[queue] += 1;
        }
        if counts.iter().all(|count| *count >= EACH) {
            return Ok(counts);
        }
    }
    anyhow::bail!("after {MOST} datagrams, queues had {counts:?}")
}
