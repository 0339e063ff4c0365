//! Finds or installs what the project needs: a Rust compiler for BPF, bpf-linker,
//! nftables and iproute2, and what makes and tries packages. Looks before it installs, so
//! running it twice is free.
//! Never downloads anything but packages of the distribution and of crates.io.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{output_of, run, say, which};
use crate::tor;

/// The eBPF target: little endian, as every machine Qubes OS runs on.
pub const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";

/// A compiler that can build for BPF.
pub enum Compiler {
    /// The distribution's rustc with a ready-made `core` for BPF.
    Distribution {
        /// Its `cargo`.
        cargo: PathBuf,
        /// Its `rustc`.
        rustc: PathBuf,
    },
    /// A nightly of rustup, which builds `core` from its sources.
    Nightly,
}

/// What `build-ebpf` works with.
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// Where bpf-linker is.
    pub linker: PathBuf,
}

/// All that any command of xtask needs.
pub fn everything() -> Result<Toolchain> {
    let toolchain = for_build()?;
    for_rig()?;
    for_packages()?;
    for_machines()?;
    tor::find_or_fetch();
    Ok(toolchain)
}

/// The BPF compiler and linker, installed when missing.
pub fn for_build() -> Result<Toolchain> {
    let compiler = match find_compiler() {
        Some(compiler) => compiler,
        None => {
            say("no Rust compiler for BPF found: installing the distribution's");
            let packages = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
            if let Err(error) = install_packages(&packages) {
                bail!(
                    "{error:#}\n\
                     a Rust compiler for BPF is missing; either of these will do:\n\
                     - Debian 12: apt-get install {}\n\
                     - anywhere:  rustup toolchain install nightly --component rust-src",
                    packages.join(" ")
                );
            }
            find_compiler().context("the packages are installed, yet no `core` for BPF is there")?
        }
    };
    match &compiler {
        Compiler::Distribution { rustc, .. } => say(&format!("compiler: {}", rustc.display())),
        Compiler::Nightly => say("compiler: rustup's nightly with rust-src"),
    }
    let linker = match find_linker() {
        Some(linker) => linker,
        None => install_linker(&compiler)?,
    };
    say(&format!("linker: {}", linker.display()));
    Ok(Toolchain { compiler, linker })
}

/// The programs that a rig of network namespaces needs.
pub fn for_rig() -> Result<()> {
    programs(&[("nft", "nftables"), ("ip", "iproute2")])
}

/// What is measured beside the agent, and the kernel does not bring along.
pub fn for_bench() -> Result<()> {
    programs(&[("iptables-legacy-restore", "iptables")])
}

/// What makes packages.
pub fn for_packages() -> Result<()> {
    programs(&[
        ("dpkg-deb", "dpkg"),
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("rpmbuild", "rpm"),
        ("strip", "binutils"),
        ("gzip", "gzip"),
    ])
}

/// What tries them: machines with a service manager of their own.
pub fn for_machines() -> Result<()> {
    programs(&[("systemd-nspawn", "systemd-container"), ("systemd-analyze", "systemd")])
}

/// What makes trees of other distributions.
pub fn for_trees() -> Result<()> {
    programs(&[("debootstrap", "debootstrap")])
}

/// What boots other kernels.
pub fn for_kernels() -> Result<()> {
    programs(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
        ("strip", "binutils"),
    ])
}

/// What builds a kernel.
pub fn for_kernel_builds() -> Result<()> {
    programs(&[
        ("make", "make"),
        ("gcc", "gcc"),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
    ])?;
    if Path::new("/usr/include/libelf.h").exists() {
        return Ok(());
    }
    install_packages(&["libelf-dev"])
}

/// Programs, each with the package that it is in.
fn programs(wanted: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(", ")));
    install_packages(&missing)
}

fn find_compiler() -> Option<Compiler> {
    let cargo = PathBuf::from("/usr/bin/cargo");
    let rustc = PathBuf::from("/usr/bin/rustc");
    let has_core = |sysroot: String| {
        let libraries = Path::new(&sysroot).join("lib/rustlib").join(TARGET);
        libraries.join("lib").is_dir()
    };
    if cargo.is_file() && output_of(&rustc, &["--print", "sysroot"]).is_some_and(has_core) {
        return Some(Compiler::Distribution { cargo, rustc });
    }
    let nightly = ["run", "nightly", "rustc", "--print", "sysroot"];
    let sysroot = output_of("rustup", &nightly)?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    sources.is_dir().then_some(Compiler::Nightly)
}

fn find_linker() -> Option<PathBuf> {
    which("bpf-linker").or_else(|| Some(cargo_bin()?.join("bpf-linker")).filter(|p| p.is_file()))
}

/// Where `cargo install` puts programs, which need not be in PATH.
fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    Some(home.join("bin"))
}

/// bpf-linker must be built with an LLVM at least as new as the compiler's, so for
/// the distribution's compiler it is built here against the distribution's LLVM.
fn install_linker(compiler: &Compiler) -> Result<PathBuf> {
    let Compiler::Distribution { rustc, .. } = compiler else {
        bail!("bpf-linker is not in PATH; install it with `cargo install bpf-linker`");
    };
    let major = llvm_major(rustc)?;
    say(&format!("bpf-linker is missing: building it against LLVM {major} (a minute or two)"));
    let llvm = [format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
    let libraries = ["zlib1g-dev", "libzstd-dev", "libxml2-dev"];
    let packages: Vec<&str> = llvm.iter().map(String::as_str).chain(libraries).collect();
    install_packages(&packages)?;
    run(Command::new("cargo")
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{major}"))
        .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{major}")]))?;
    find_linker().context("bpf-linker was installed, but is neither in PATH nor in cargo's bin")
}

fn llvm_major(rustc: &Path) -> Result<String> {
    let version = output_of(rustc, &["-vV"]).context("`rustc -vV` does not run")?;
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = line.and_then(|llvm| llvm.split('.').next());
    Ok(major.context("`rustc -vV` names no LLVM version")?.to_owned())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let Some(apt) = which("apt-get") else {
        bail!("no apt-get here: install the equivalents of {} by hand", packages.join(", "));
    };
    if output_of("id", &["-u"]).as_deref() != Some("0") {
        bail!("only root can install packages: run `apt-get install {}`", packages.join(" "));
    }
    let apt = || {
        let mut command = Command::new(&apt);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        // Package managers talk a lot; on success nobody wants to read it.
        command.args(["-q", "-y", "-o", "Dpkg::Use-Pty=0"]);
        command
    };
    run(apt().arg("update").stdout(std::process::Stdio::null()))?;
    run(apt()
        .args(["install", "--no-install-recommends"])
        .args(packages)
        .stdout(std::process::Stdio::null()))
}
