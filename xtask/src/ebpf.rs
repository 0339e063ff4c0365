//! Compiles the kernel programs and puts the objects where the agent's build script, the tests
//! and the benches look.
//! Never attaches or loads it.

use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{root, run, say};
use crate::setup::{self, Compiler, TARGET};

/// A package and its object: the product's, which firewall-agent/build.rs reads, and that of tests
/// and benches.
const OBJECTS: [(&str, &str); 2] =
    [("firewall-ebpf", "firewall-ebpf"), ("firewall-tests-ebpf", "traffic")];

/// Builds the objects, with the toolchain installed first when something is missing.
pub fn build() -> Result<()> {
    let toolchain = setup::for_build()?;
    let target_directory = root().join("target/ebpf");
    let mut cargo = match &toolchain.compiler {
        Compiler::Distribution { cargo, rustc } => {
            let mut command = Command::new(cargo);
            command.env("RUSTC", rustc);
            // aya-ebpf uses asm_experimental_arch; a stable compiler needs to be told.
            command.env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Compiler::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
    };
    // This process runs under cargo itself; none of that may reach the other toolchain.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG") || text == "CARGO" || text == "RUSTUP_TOOLCHAIN" {
            cargo.env_remove(&name);
        }
    }
    let linker = format!("linker={}", toolchain.linker.display());
    let flags = ["-C", &linker, "-C", "link-arg=--btf", "-C", "debuginfo=2"];
    cargo
        .current_dir(root())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_directory)
        .args(OBJECTS.iter().flat_map(|(package, _)| ["--package", package]));
    if matches!(toolchain.compiler, Compiler::Nightly) {
        cargo.args(["-Z", "build-std=core"]);
    }
    say("compiling the kernel programs");
    run(&mut cargo)?;
    for (_, name) in OBJECTS {
        let built = target_directory.join(TARGET).join("release").join(name);
        let bytes = std::fs::read(&built).with_context(|| format!("no {}", built.display()))?;
        let object = root().join("target").join(format!("{name}.o"));
        // Left alone when nothing changed, so that the agent is not built again.
        if std::fs::read(&object).ok().as_deref() != Some(&bytes) {
            std::fs::write(&object, &bytes)?;
        }
        say(&format!("{} ({} bytes)", object.display(), bytes.len()));
    }
    Ok(())
}
