//! Runs the agent that was just built on real vifs of Xen: QEMU boots Xen, whose dom0 is this machine's
//! own root and starts guests, and prints what was checked there.
//! Never installs anything of Xen, nor lets traffic out of the virtual machine.

mod guest;
mod told;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::told::Run;
use crate::run::{root, run as run_command, say};
use crate::vm::image::{self, Image};
use crate::vm::machine::{self, End};
use crate::vm::packages::Packages;
use crate::{setup, suites};

/// Xen as Qubes OS 4.2 has it, and the suite of Debian that has it.
const SUITE: &str = "bookworm";
const XEN: &str = "xen-4.17";
const PACKAGES: [&str; 16] = [
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "libnl-route-3-200",
];

/// Kernels of dom0 and of guests, if none is named: with clsact, and with tcx.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Xen cannot run its dom0 with SMAP on an emulated processor, and without `eager-fpu` the
/// emulation of lazy switching corrupts registers.
const PROCESSOR: &str = "max,la57=off,smap=off,avx=off,avx2=off";
const MEMORY: &str = "3072";
/// Dom0 believes in as many processors as there are; Xen uses only one of them (`maxcpus`). With two,
/// each waits for the other most of the time, since whatever changes a page table of a PV guest is
/// told to both; and now and then one sleeps on that was to be woken.
const PROCESSORS: &str = "2";
const XEN_OPTIONS: &str = "console=com1 com1=115200,8n1 dom0_mem=1792M,max:1792M dom0_max_vcpus=2 \
                           maxcpus=1 spec-ctrl=no,eager-fpu xpti=no noreboot=no";
const DOM0_OPTIONS: &str = "console=hvc0 quiet loglevel=4 panic=-1 nokaslr mitigations=off";

const DOM0: &str = include_str!("dom0.sh");
const VIF: &str = include_str!("vif.sh");

/// Options of `xen`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Xen, its tools and the kernels are packages of Debian, which are fetched once and unpacked below \
target/vm, never installed. QEMU interprets all of it (no KVM is needed), so a kernel takes five to \
fifteen minutes. In the virtual machine, Xen's dom0 is the netvm: its root is this machine's root, \
read-only, under a layer in memory. There runs the agent that was just built, with rules from a \
QubesDB made for the tests; the clients are PV guests behind xen-netback, and the outside is a \
namespace in dom0. No packet leaves the virtual machine.

Lines that begin with a kernel's name are what the virtual machine says meanwhile. A check that says \
FAILED tells what was seen instead. Exit code: 0 if all checks hold on all kernels, else 1.

  cargo xtask xen                 all checks on 6.1 and 6.12
  cargo xtask xen 6.12 -- cut     only checks whose name contains `cut`, on one kernel
  cargo xtask xen --list          what the checks are")]
pub struct Options {
    /// Versions of kernels, for dom0 and guests alike; 6.1 (clsact) and 6.12 (tcx), if none is named.
    kernels: Vec<String>,
    /// Only say which checks there are.
    #[arg(long)]
    list: bool,
    /// Print what was checked as JSON.
    #[arg(long)]
    json: bool,
    /// How long one kernel may take, in minutes.
    #[arg(long, value_name = "MINUTES", default_value = "60")]
    patience: u64,
    /// Only checks whose name contains one of these.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// Runs the checks on the kernels that were asked for. An error if one failed anywhere.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        suites::cargo(&["build", "--quiet", "--locked", "-p", "firewall-tests", "--bin", "xen"])?;
        return run_command(Command::new(root().join("target/debug/xen")).arg("list"));
    }
    suites::prepare("virtual machines")?;
    setup::for_kernels()?;
    let directory = root().join("target/vm");
    let binaries = binaries(&directory)?;
    let packages = Packages::read(directory.join("packages"))?;
    let xen = packages.unpack_together(XEN, SUITE, &PACKAGES)?;
    let hypervisor = hypervisor(&xen, &directory)?;
    let kernels = options.kernels.iter().map(String::as_str);
    let kernels: Vec<&str> =
        if options.kernels.is_empty() { KERNELS.into() } else { kernels.collect() };
    let mut runs = Vec::new();
    for kernel in kernels {
        let unpacked = packages.unpack(&packages.newest_kernel(Some(kernel))?)?;
        let guest = guest::initramfs(&unpacked, &binaries, &directory)?;
        let guest_kernel = image::kernel_in(&unpacked)?;
        let job = job(&xen, &binaries, [&guest_kernel, &guest], &options.filters);
        let image = image::make(&unpacked, None, &directory, &job)?;
        let patience = Duration::from_secs(60 * options.patience);
        runs.push(on(kernel, &hypervisor, &image, patience)?);
    }
    if options.json {
        println!("{:#}", told::to_json(&runs));
    } else {
        print!("{}", told::text(&runs));
    }
    if !runs.iter().all(Run::is_good) {
        bail!("not all checks hold on all kernels");
    }
    Ok(())
}

/// Boots Xen with this dom0, and listens to what is checked.
fn on(kernel: &str, hypervisor: &Path, dom0: &Image, patience: Duration) -> Result<Run> {
    say(&format!("booting Xen with a dom0 of {kernel}"));
    let mut qemu = machine::qemu(PROCESSOR, PROCESSORS, MEMORY);
    let (dom0, initramfs) = (dom0.kernel.display(), dom0.initramfs.display());
    qemu.arg("-kernel").arg(hypervisor).args(["-append", XEN_OPTIONS]);
    qemu.args(["-initrd", &format!("{dom0} {DOM0_OPTIONS},{initramfs}")]);
    let mut run = Run::new(kernel);
    let end = machine::follow(&mut qemu, patience, |line| {
        eprintln!("{kernel}| {line}");
        run.hear(line);
    })?;
    if end == End::TimedOut {
        run.problem = Some(format!("not over after {} minutes", patience.as_secs() / 60));
    }
    Ok(run)
}

/// The agent and the checks, without what only debuggers read: dom0 reads them over a slow line.
fn binaries(directory: &Path) -> Result<PathBuf> {
    suites::cargo(&["build", "--locked", "-p", "firewall-agent", "-p", "firewall-tests"])?;
    let to = directory.join("binaries");
    fs::create_dir_all(&to)?;
    for name in ["firewall-agent", "xen"] {
        let from = root().join("target/debug").join(name);
        run_command(Command::new("strip").arg("-o").arg(to.join(name)).arg(from))?;
    }
    Ok(to)
}

/// The hypervisor, uncompressed, as QEMU wants it.
fn hypervisor(xen: &Path, directory: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(xen.join("boot"))?.flatten().map(|file| file.path());
    let mut images = files.filter(|file| file.extension().is_some_and(|it| it == "gz"));
    let image = images.next().context("no hypervisor in its package")?;
    let to = directory.join(XEN);
    run_command(Command::new("gzip").arg("-dc").arg(image).stdout(fs::File::create(&to)?))?;
    Ok(to)
}

/// The script that runs in dom0.
fn job(xen: &Path, binaries: &Path, guest: [&PathBuf; 2], filters: &[String]) -> String {
    let [kernel, initramfs] = guest.map(|path| path.display());
    let (xen, binaries) = (xen.display(), binaries.display());
    let filters: Vec<String> = filters.iter().map(|it| format!("'{it}'")).collect();
    let options = format!("--kernel '{kernel}' --initramfs '{initramfs}' --vif-script /run/vif.sh");
    format!(
        "XEN='{xen}'\ncat >/run/vif.sh <<'END'\n{VIF}END\nchmod 755 /run/vif.sh\n\
         CHECKS=\"'{binaries}/xen' dom0 {options} {}\"\n{DOM0}",
        filters.join(" ")
    )
}
