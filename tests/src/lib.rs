//! The vocabulary of the test suites: networks, traffic, and what came back.
//! Never part of the product, and knows nothing of its insides.

pub mod agent;
pub mod attack;
pub mod connections;
pub mod difference;
pub mod dns;
pub mod fragments;
pub mod frames;
pub mod generate;
mod icmp;
pub mod interpreter;
mod leftovers;
pub mod machine;
pub mod manager;
pub mod namespace;
mod options;
pub mod oracle;
pub mod packets;
pub mod probe;
pub mod program;
pub mod qubesdb;
pub mod rig;
pub mod server;
pub mod shots;
pub mod sightings;
pub mod stock;
pub mod traffic;
pub mod twins;
mod wait;
pub mod weight;

/// How often a random test goes round: `normally`, or as often as `soak` says where
/// `cargo xtask test --soak` asks for patience.
pub fn rounds(normally: usize, soak: usize) -> usize {
    if std::env::var_os("FIREWALL_SOAK").is_some() { soak } else { normally }
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
