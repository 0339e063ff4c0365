//! The vocabulary of the test suites: networks, traffic, and what came back.
//! Never part of the product, and knows nothing of its insides.
//!
//! A ring is a suite with a question of its own. It may use the words of its row, and whatever
//! these are made of.
//!
//! | ring | question | tests | needs | words |
//! |---|---|---|---|---|
//! | pure | does the meaning hold? | `tests/pure` | nothing; seconds | [`packets`], [`oracle`], [`rig::agent::binary`] |
//! | program | does the kernel agree? | `tests/program` | root, BPF; a minute | [`program`] |
//! | rig | does the product work? | `tests/rig` | root, BPF, namespaces; minutes | [`rig`], [`traffic`], [`program`] |
//! | whonix | does it hold in a Whonix gateway? | `tests/rig/whonix*.rs` | as rig; for some a Tor, which xtask unpacks | [`whonix`] |
//! | rig itself | does the rig tell the truth? | `tests/rig_self.rs` | root, namespaces; seconds | [`rig`], [`traffic`] |
//! | qubesdb | is dom0 understood, whatever it says? | `tests/qubesdb` | nothing; seconds | [`rig::qubesdb`] |
//! | stock | where do ours and today's firewall differ? | `tests/stock.rs` | as rig | [`stock`] |
//! | machines | does the package work where systemd runs? | `tests/rig/packages.rs` | as rig, containers; a minute | [`machine`], [`stock`] |
//! | attack | does it hold against a hostile client? | `tests/attack` | as rig | [`attack`] |
//! | soak | does it hold for long? | random tests of all rings, with `--soak` | an hour | [`rounds`], [`seed`] |
//! | xen | does it hold on real vifs? | `src/bin/xen`, by `cargo xtask xen` | QEMU; a quarter of an hour | [`traffic`], [`packets`], [`rig::qubesdb`] |
//! | bench | what does it cost? | `src/bin/bench` | as rig, quiet; ten minutes | [`traffic::kernel`], [`program`], [`stock`] |

pub mod attack;
pub mod machine;
pub mod oracle;
pub mod packets;
pub mod program;
pub mod rig;
pub mod stock;
pub mod traffic;
pub mod whonix;

/// How often a random test goes round: `normally`; as often as `soak` says where
/// `cargo xtask test --soak` asks for patience; a tenth as often, but ten times if that is not more
/// than `normally`, where `cargo xtask vm` has a slow machine.
pub fn rounds(normally: usize, soak: usize) -> usize {
    let is_set = |name| std::env::var_os(name).is_some();
    if is_set("FIREWALL_SOAK") {
        soak
    } else if is_set("FIREWALL_BRIEF") {
        normally.div_ceil(10).max(10).min(normally)
    } else {
        normally
    }
}

/// The seed of a random test: what `--seed` says, or a new one, printed to repeat the run.
pub fn seed() -> u64 {
    let given = std::env::var("FIREWALL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("`cargo xtask test --seed {seed}` repeats this run");
    seed
}

/// Says that a test cannot run here, and why. libtest has no such outcome, and hides what a
/// test prints that passes; so this goes around it, and `cargo xtask test` counts the line.
pub fn skip(test: &str, why: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let line = format!("SKIPPED: {test}: {why}\n");
    std::io::stdout().lock().write_all(line.as_bytes())
}
