//! Embeds the kernel programs, if `cargo xtask build-ebpf` has made them.
//! Never builds them: that needs another compiler.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=FIREWALL_EBPF_OBJECT");
    let given = env::var_os("FIREWALL_EBPF_OBJECT").map(PathBuf::from);
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = given.unwrap_or_else(|| here.join("../target/firewall-ebpf.o"));
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("cargo::warning=no {}: the agent will not start", object.display());
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("firewall-ebpf.o"), bytes)
}
