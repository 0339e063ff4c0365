//! Waiting for programs that run: what was replaced is given back when none is in its middle.

use std::time::Instant;

use anyhow::{Result, ensure};
use firewall_tests::program::Program;
use firewall_tests::rig::Rig;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::traffic::dawdler::{Dawdler, Stage};

/// How often a program is met in its middle.
const MEETINGS: u32 = 10;

#[test]
fn what_was_replaced_is_given_back_when_programs_have_ended() -> Result<()> {
    let rig = Rig::new("running")?;
    let mut dawdler = Dawdler::new(rig.netvm())?;
    let mut program = Program::load()?;
    let deadline = Instant::now() + PATIENCE;
    let mut meetings = 0;
    while meetings < MEETINGS {
        ensure!(Instant::now() < deadline, "met in its middle {meetings} times only");
        meetings += dawdler.meet(|dawdler| {
            while dawdler.stage()? == Stage::Before {
                ensure!(Instant::now() < deadline, "no packet came");
            }
            let is_met = dawdler.stage()? == Stage::Middle;
            program.maps.quiesce()?;
            ensure!(dawdler.stage()? == Stage::Over, "given back while a program runs");
            Ok(u32::from(is_met))
        })?;
    }
    Ok(())
}
