//! What a virtual machine boots with: an initramfs of busybox and a kernel's modules, whose first
//! program makes this machine's own root, read-only and under a layer in memory, the guest's root.
//! Never writes outside of the directory that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::run::{run, which};

/// First program of the initramfs, and first program of the guest's root.
const INIT: &str = include_str!("init.sh");
const GUEST: &str = include_str!("guest.sh");

/// Beginnings of the names of modules that are packed, with what they depend on. No other module
/// is there in the guest.
pub const MODULES: [&str; 45] = [
    "9p",
    "overlay",
    "virtio_pci",
    "veth",
    "dummy",
    "tun",
    "bridge",
    "br_netfilter",
    "macvlan",
    "ifb",
    "8021q",
    "vrf",
    "nf_",
    "nft_",
    "nfnetlink",
    "ip_tables",
    "ip6_tables",
    "iptable_",
    "ip6table_",
    "x_tables",
    "xt_",
    "ipt_",
    "ip6t_",
    "ip_set",
    "sch_",
    "cls_",
    "act_",
    "em_",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "netlink_diag",
    "af_packet",
    "crc32c",
    "libcrc32c",
    "wireguard",
    "sit",
    "ip_tunnel",
    "nsh",
    "xenfs",
    "xen_evtchn",
    "xen_gnt",
    "xen_netback",
    "xen_privcmd",
];

/// A kernel, and the initramfs that was made for it.
pub struct Image {
    /// The compressed kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Makes an initramfs for the kernel in `unpacked`, a package or a build, that runs `job`, a script.
/// Modules whose names begin with `without` are left out.
pub fn make(unpacked: &Path, without: Option<&str>, directory: &Path, job: &str) -> Result<Image> {
    let root = directory.join("initramfs");
    begin(&root)?;
    fs::create_dir_all(root.join("o"))?;
    for (name, text) in [("init", INIT), ("guest.sh", GUEST), ("job.sh", job)] {
        fs::write(root.join(name), text)?;
    }
    pack_modules(unpacked, &MODULES, without, &root)?;
    let initramfs = directory.join("initramfs.cpio");
    pack(&root, &initramfs)?;
    Ok(Image { kernel: kernel_in(unpacked)?, initramfs })
}

/// Begins an initramfs: its directories, and busybox.
pub fn begin(root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    for part in ["bin", "sbin", "proc", "sys", "dev", "lib/modules"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::copy(which("busybox").context("busybox is missing")?, root.join("bin/busybox"))?;
    symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    Ok(())
}

/// Packs all of a directory, whose `init` is to be run, and removes it.
pub fn pack(root: &Path, initramfs: &Path) -> Result<()> {
    run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    let mut find = Command::new("find");
    let mut find = find.arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("no output")?;
    let mut pack = Command::new("cpio");
    pack.args(["-o", "-H", "newc", "--quiet", "-R", "0:0"]).current_dir(root);
    run(pack.stdin(names).stdout(fs::File::create(initramfs)?))?;
    ensure!(find.wait()?.success(), "`find` failed");
    fs::remove_dir_all(root)?;
    Ok(())
}

/// The kernel in a build, or in a package of an older or a newer suite.
pub fn kernel_in(unpacked: &Path) -> Result<PathBuf> {
    let built = unpacked.join("arch/x86/boot/bzImage");
    let boot = fs::read_dir(unpacked.join("boot")).into_iter().flatten().flatten();
    let in_boot = boot.map(|file| file.path()).filter(|file| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    });
    let trees = fs::read_dir(unpacked.join("usr/lib/modules")).into_iter().flatten().flatten();
    let beside_modules = trees.map(|tree| tree.path().join("vmlinuz"));
    let mut candidates = [built].into_iter().chain(in_boot).chain(beside_modules);
    candidates.find(|file| file.is_file()).context("a package without a kernel")
}

/// Packs modules of the kernel in `unpacked` whose names begin with one of `names`, and what these
/// depend on.
pub fn pack_modules(
    unpacked: &Path,
    names: &[&str],
    without: Option<&str>,
    root: &Path,
) -> Result<()> {
    for trees in ["lib/modules", "usr/lib/modules"] {
        let Ok(trees) = fs::read_dir(unpacked.join(trees)) else {
            continue;
        };
        for tree in trees {
            copy_modules(&tree?.path(), names, without, root)?;
        }
    }
    Ok(())
}

/// Copies the modules that are wanted, uncompressed, and lists them anew.
fn copy_modules(tree: &Path, names: &[&str], without: Option<&str>, root: &Path) -> Result<()> {
    let version = tree.file_name().context("modules without a version")?;
    let base = tree.ancestors().nth(3).context("modules in no tree")?;
    if !tree.join("modules.dep").metadata().is_ok_and(|file| file.len() > 0) {
        run(Command::new("depmod").arg("-b").arg(base).arg(version))?;
    }
    let to = root.join("lib/modules").join(version);
    for module in wanted(&fs::read_to_string(tree.join("modules.dep"))?, names, without) {
        let (from, to) = (tree.join(&module), to.join(&module));
        fs::create_dir_all(to.parent().context("a module without a directory")?)?;
        let unpacker = match from.extension().and_then(|it| it.to_str()) {
            Some("xz") => Some("xz"),
            Some("zst") => Some("zstd"),
            _ => None,
        };
        match unpacker {
            None => drop(fs::copy(&from, &to)?),
            Some(program) => {
                let to = fs::File::create(to.with_extension(""))?;
                run(Command::new(program).arg("-dc").arg(&from).stdout(to))?;
            }
        }
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if tree.join(list).exists() {
            fs::copy(tree.join(list), to.join(list))?;
        }
    }
    run(Command::new("depmod").arg("-b").arg(root).arg(version))
}

/// Paths of the modules that are wanted and of those that they depend on, by what `depmod` wrote.
fn wanted(dependencies: &str, names: &[&str], without: Option<&str>) -> BTreeSet<String> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let needs: BTreeMap<&str, Vec<&str>> =
        lines.map(|(module, needs)| (module, needs.split_whitespace().collect())).collect();
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let is_wanted = |path: &&str| names.iter().any(|it| name(path).starts_with(it));
    let mut left: Vec<&str> = needs.keys().copied().filter(is_wanted).collect();
    let mut all = BTreeSet::new();
    while let Some(module) = left.pop() {
        let is_left_out = without.is_some_and(|it| name(module).starts_with(it));
        if !is_left_out && all.insert(module.to_owned()) {
            left.extend(needs.get(module).into_iter().flatten());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_packed_with_all_that_it_needs() {
        let dependencies = "kernel/net/netfilter/nft_ct.ko.xz: kernel/net/nf_conntrack.ko.xz\n\
                            kernel/net/nf_conntrack.ko.xz: kernel/lib/libcrc32c.ko.xz\n\
                            kernel/lib/libcrc32c.ko.xz:\n\
                            kernel/sound/snd.ko.xz:\n\
                            kernel/drivers/net/veth.ko:\n";
        let all: Vec<String> = wanted(dependencies, &MODULES, None).into_iter().collect();
        let expected = [
            "kernel/drivers/net/veth.ko",
            "kernel/lib/libcrc32c.ko.xz",
            "kernel/net/netfilter/nft_ct.ko.xz",
            "kernel/net/nf_conntrack.ko.xz",
        ];
        assert_eq!(all, expected);
        let rest = wanted(dependencies, &MODULES, Some("nft_"));
        assert!(rest.iter().all(|module| !module.contains("nft_ct")), "{rest:?}");
    }
}
