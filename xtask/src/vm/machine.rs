//! A virtual machine without hardware support (QEMU's TCG), and what it says on its serial line.
//! Never understands what is said.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::image::Image;
use crate::lines::{Until, each_line};

/// Megabytes of memory of the guest: the layer above its root is in there too.
const MEMORY: &str = "3072";
const PROCESSORS: &str = "2";

/// How a virtual machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    PoweredOff,
    /// It took too long.
    TimedOut,
}

/// A virtual machine that ends with this value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What each kernel is told.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off";

/// Boots with `arguments` on the kernel's command line as well, and hands on each line until the
/// machine is off, for `patience` at most.
pub fn boot(
    image: &Image,
    arguments: &str,
    patience: Duration,
    line: impl FnMut(&str),
) -> Result<End> {
    let mut qemu = qemu("max", PROCESSORS, MEMORY);
    qemu.args(["-append", &format!("{COMMAND_LINE} {arguments}")])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs);
    follow(&mut qemu, patience, line)
}

/// QEMU with so many processors of a kind, so many megabytes, and this machine's root to share.
pub fn qemu(kind: &str, processors: &str, memory: &str) -> Command {
    // It ends with whoever started it, in whatever way that ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", kind, "-smp", processors, "-m", memory])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    qemu
}

/// Starts a machine, and hands on each line until it is off, for `patience` at most.
pub fn follow(qemu: &mut Command, patience: Duration, line: impl FnMut(&str)) -> Result<End> {
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
    let output = child.stdout.take().context("no output")?;
    let _machine = Machine(child);
    Ok(match each_line(output, patience, line) {
        Until::End => End::PoweredOff,
        Until::TimedOut => End::TimedOut,
    })
}
