//! Long transfers: whether each byte is right, and what packets of them look like at the vif.
//! Never tells how fast they were: nobody's emulated machine is.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::order::{Answer, Order};
use crate::outside::{SERVER, SINK, SOURCE};
use crate::seen::Seen;
use crate::stage::{RULES, Stage};

const MEGABYTE: u64 = 1 << 20;

/// Both directions, both families.
pub fn bulk(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let vif = stage.watch_vif(&stage.work.vif())?;
    for (server, bytes) in SERVER.into_iter().zip([16 * MEGABYTE, 4 * MEGABYTE]) {
        let to = SocketAddr::new(server, SINK);
        let answer = stage.work.ask(Order::Upload { to, bytes })?;
        ensure!(answer == Answer::Text(format!("{bytes} right")), "upload to {to}: {answer:?}");
        let to = SocketAddr::new(server, SOURCE);
        let answer = stage.work.ask(Order::Download { to, bytes })?;
        ensure!(answer == Answer::Number(bytes), "download from {to}: {answer:?}");
    }
    let seen = vif.end(|_| true)?;
    let (to_guest, from_guest): (Vec<Seen>, Vec<Seen>) = seen.into_iter().partition(|it| it.left);
    for (direction, frames) in [("from the qube", &from_guest), ("to it", &to_guest)] {
        ensure!(frames.iter().any(|it| it.segments.is_some()), "no long packet {direction}");
    }
    let is_partial = from_guest.iter().filter(|it| it.is_partial).count();
    ensure!(is_partial > 0, "no checksum is left to be completed");
    let about = |frames: &[Seen]| {
        let long: Vec<(u16, u16)> = frames.iter().filter_map(|it| it.segments).collect();
        let longest = frames.iter().map(|it| it.length).max().unwrap_or(0);
        let range = |of: fn(&(u16, u16)) -> u16| {
            let (least, most) = (long.iter().map(of).min(), long.iter().map(of).max());
            format!("{} to {}", least.unwrap_or(0), most.unwrap_or(0))
        };
        let partial = frames.iter().filter(|it| it.is_partial).count();
        format!(
            "{} frames, {partial} with a partial checksum, {} to be segmented (into {} bytes each; \
             {} bytes linear), the longest of {longest} bytes",
            frames.len(),
            long.len(),
            range(|it| it.0),
            range(|it| it.1),
        )
    };
    let (up, down) = (about(&from_guest), about(&to_guest));
    Ok(format!("20 MiB each way, all bytes right; from the qube {up}; to the qube {down}"))
}
