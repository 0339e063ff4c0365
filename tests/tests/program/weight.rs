//! What the programs weigh, beside what was accepted: CI's benchmark, without a clock.

use anyhow::Result;
use firewall_tests::program::weight::{baseline, compare, measure};

#[test]
fn programs_and_packets_weigh_no_more_than_what_was_accepted() -> Result<()> {
    let (now, then) = (measure()?, baseline()?);
    let (heavier, lighter) = compare(&now, &then);
    for sentence in &lighter {
        println!("lighter: {sentence}");
    }
    assert!(
        heavier.is_empty(),
        "heavier than tests/baseline.json ({}, {}; here {}, {}):\n{}\n\
         if that is worth it, `cargo xtask bench baseline --accept`, and say why",
        then.kernel,
        then.compiler,
        now.kernel,
        now.compiler,
        heavier.join("\n")
    );
    Ok(())
}

#[test]
fn one_more_look_up_or_a_larger_program_is_noticed() -> Result<()> {
    let then = baseline()?;
    let mut now = then.clone();
    assert_eq!(compare(&now, &then), (Vec::new(), Vec::new()));
    now.verified.values_mut().for_each(|verified| *verified += *verified / 50);
    for cost in now.packets.values_mut() {
        *cost.lookups.entry("CLIENTS".to_owned()).or_default() += 1;
    }
    now.programs.values_mut().for_each(|size| size.jited += size.jited / 50);
    let (heavier, lighter) = compare(&now, &then);
    let expected = now.packets.len() + now.programs.len() + now.verified.len();
    assert_eq!(heavier.len(), expected, "{heavier:?}");
    assert!(lighter.is_empty(), "{lighter:?}");
    // On another kernel a program may be somewhat larger, but look-ups are look-ups, and each
    // verifier has a budget of its own.
    now.kernel = "5.10".to_owned();
    assert_eq!(compare(&now, &then).0.len(), now.packets.len() + now.verified.len());
    Ok(())
}
