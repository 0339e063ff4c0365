//! Makes the packages: a tree of files as they are to be installed, and from it a .deb by
//! dpkg-deb and an .rpm by rpmbuild.
//! Never installs one.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::{output_of, root, run, say};
use crate::{setup, suites};

/// Options of `package`.
#[derive(clap::Args)]
pub struct Options {
    /// Where the packages go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/packages")]
    output: PathBuf,
    /// Pack this agent instead of building one; quickly, so the package is larger.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Say that it is this version; for trying upgrades.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
}

impl Options {
    /// To pack an agent that is there, for trying.
    pub fn quick(agent: PathBuf, version: &str, output: &Path) -> Self {
        Self { output: output.to_owned(), agent: Some(agent), version: version.to_owned() }
    }
}

/// A kind of package, by the tools that make and take it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Deb,
    Rpm,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Rpm => "rpm",
        }
    }

    /// Where completions for zsh are looked for.
    fn zsh(self) -> &'static str {
        match self {
            Self::Deb => "usr/share/zsh/vendor-completions/_firewall-agent",
            Self::Rpm => "usr/share/zsh/site-functions/_firewall-agent",
        }
    }

    fn license(self) -> (&'static str, &'static str) {
        match self {
            Self::Deb => ("packaging/copyright", "usr/share/doc/firewall-agent/copyright"),
            Self::Rpm => ("LICENSE", "usr/share/licenses/firewall-agent/LICENSE"),
        }
    }
}

/// Units of `packaging`.
const UNITS: [&str; 7] = [
    "firewall-agent.service",
    "qubes-ebpf-firewall.service",
    "qubes-ebpf-firewall-takeover.service",
    "qubes-ebpf-firewall-notify.socket",
    "qubes-ebpf-firewall-notify.service",
    "qubes-ebpf-firewall-sockets.socket",
    "qubes-ebpf-firewall-sockets.service",
];

/// Units that run the agent, to each of which its life and its sandbox are added.
const OF_AGENT: [&str; 2] = ["firewall-agent.service", "qubes-ebpf-firewall.service"];

/// What starts by itself, if its condition holds.
const WANTED: &str = "qubes-ebpf-firewall.service";

/// What a person can read; links among them stay right.
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// Services for qrexec.
const SERVICES: [&str; 5] =
    ["firewall.Status", "firewall.Show", "firewall.Explain", "firewall.Monitor", "firewall.Why"];

/// The command for dom0, which is copied there by hand.
const FOR_DOM0: &str = "qubes-firewall-rules";

/// Makes both packages.
pub fn build(options: &Options) -> Result<()> {
    setup::for_packages()?;
    let agent = match &options.agent {
        Some(agent) => agent.clone(),
        None => suites::build()?,
    };
    let output = root().join(&options.output);
    for kind in [Kind::Deb, Kind::Rpm] {
        let work = output.join(kind.name());
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        let stage = work.join("stage");
        fill(&stage, kind, &agent)?;
        let is_quick = options.agent.is_some();
        let package = match kind {
            Kind::Deb => deb(&work, &stage, &options.version, is_quick)?,
            Kind::Rpm => rpm(&work, &stage, &options.version, is_quick)?,
        };
        let name = package.file_name().context("a package without a name")?;
        fs::rename(&package, output.join(name))?;
        fs::remove_dir_all(&work)?;
        say(&format!("{}", output.join(name).display()));
    }
    Ok(())
}

/// Puts every file where it is to be installed.
fn fill(stage: &Path, kind: Kind, agent: &Path) -> Result<()> {
    let put = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = stage.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(fs::set_permissions(&to, fs::Permissions::from_mode(mode))?)
    };
    put(agent, "usr/bin/firewall-agent", 0o755)?;
    let unneeded = ["--remove-section=.comment", "--remove-section=.note"];
    run(Command::new("strip").args(unneeded).arg(stage.join("usr/bin/firewall-agent")))?;
    let of_units = |name: &str| format!("usr/lib/systemd/system/{name}");
    let packaging = root().join("packaging");
    for name in UNITS {
        put(&packaging.join(name), &of_units(name), 0o644)?;
    }
    for name in OF_AGENT {
        put(
            &packaging.join("service.conf"),
            &of_units(&format!("{name}.d/50-service.conf")),
            0o644,
        )?;
    }
    let wants = stage.join(of_units("multi-user.target.wants"));
    fs::create_dir_all(&wants)?;
    symlink(Path::new("..").join(WANTED), wants.join(WANTED))?;
    for name in SERVICES {
        let [service, config] = ["qubes-rpc", "rpc-config"].map(|it| packaging.join(it).join(name));
        put(&service, &format!("etc/qubes-rpc/{name}"), 0o755)?;
        put(&config, &format!("etc/qubes/rpc-config/{name}"), 0o644)?;
    }
    let for_dom0 = root().join("dom0").join(FOR_DOM0);
    put(&for_dom0, &format!("usr/share/doc/firewall-agent/examples/{FOR_DOM0}"), 0o644)?;
    for name in DOCUMENTS {
        put(&root().join(name), &format!("usr/share/doc/firewall-agent/{name}"), 0o644)?;
    }
    // The guides, and the plots in one of them.
    for directory in ["docs", "docs/performance"] {
        for entry in fs::read_dir(root().join(directory))? {
            let path = entry?.path();
            let name = path.file_name().context("no name")?.to_string_lossy();
            if path.is_file() {
                let to = format!("usr/share/doc/firewall-agent/{directory}/{name}");
                put(&path, &to, 0o644)?;
            }
        }
    }
    let (from, to) = kind.license();
    put(&root().join(from), to, 0o644)?;
    fs::create_dir_all(stage.join("etc/firewall-agent/rules.d"))?;
    for (shell, to) in [
        ("bash", "usr/share/bash-completion/completions/firewall-agent"),
        ("fish", "usr/share/fish/vendor_completions.d/firewall-agent.fish"),
        ("zsh", kind.zsh()),
    ] {
        let text = output_of(agent, &["completions", shell]).context("no completions")?;
        let to = stage.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::write(to, text + "\n")?;
    }
    let manual = stage.join("usr/share/man/man8");
    run(Command::new(agent).arg("manual").arg(&manual))?;
    let pages: Vec<_> =
        fs::read_dir(manual)?.map(|page| Ok(page?.path())).collect::<Result<_>>()?;
    run(Command::new("gzip").arg("-9n").args(pages))
}

/// Lets everybody read all of it: whoever builds may have any umask.
fn let_read(stage: &Path) -> Result<()> {
    run(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(stage))
}

/// A file of `packaging` with its blanks filled.
fn template(name: &str, blanks: &[(&str, &str)]) -> Result<String> {
    let path = root().join("packaging").join(name);
    let mut text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    for (blank, filling) in blanks {
        text = text.replace(&format!("@{blank}@"), filling);
    }
    Ok(text)
}

fn deb(work: &Path, stage: &Path, version: &str, is_quick: bool) -> Result<PathBuf> {
    let architecture =
        output_of("dpkg", &["--print-architecture"]).context("dpkg names no architecture")?;
    let depends = libraries(work, stage)?;
    let control = template(
        "control",
        &[("VERSION", version), ("ARCHITECTURE", &architecture), ("DEPENDS", &depends)],
    )?;
    let date = output_of("date", &["-R", "-u", "-d", &format!("@{}", last_change())]);
    let date = date.context("no date of the last change")?;
    let changelog = template("changelog", &[("VERSION", version), ("DATE", &date)])?;
    let place = stage.join("usr/share/doc/firewall-agent/changelog");
    fs::write(&place, changelog)?;
    run(Command::new("gzip").arg("-9n").arg(place))?;
    let scripts = stage.join("DEBIAN");
    fs::create_dir(&scripts)?;
    fs::write(scripts.join("control"), control)?;
    let of = |name: &&str| format!("/etc/qubes-rpc/{name}\n/etc/qubes/rpc-config/{name}\n");
    fs::write(scripts.join("conffiles"), SERVICES.iter().map(of).collect::<String>())?;
    let life = template("life.sh", &[])?;
    // What dpkg calls them with: Debian Policy, chapter 6.
    for (name, steps) in [
        ("postinst", "case \"$1\" in configure | abort-remove) installed ;; esac"),
        ("prerm", "case \"$1\" in remove) removing ;; esac"),
        ("postrm", "case \"$1\" in remove) removed ;; purge) purged ;; esac"),
    ] {
        let path = scripts.join(name);
        fs::write(&path, format!("{life}\n{steps}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let overrides = stage.join("usr/share/lintian/overrides");
    fs::create_dir_all(&overrides)?;
    fs::write(overrides.join("firewall-agent"), template("lintian-overrides", &[])?)?;
    // What `dpkg --verify` compares with.
    let sums = "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums";
    run(Command::new("sh").current_dir(stage).args(["-c", sums]))?;
    let_read(stage)?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--root-owner-group");
    if is_quick {
        dpkg.args(["-Zgzip", "-z1"]);
    }
    let package = work.join(format!("firewall-agent_{version}_{architecture}.deb"));
    dpkg.env("SOURCE_DATE_EPOCH", last_change()).arg("--build").arg(stage).arg(&package);
    run(dpkg.stdout(std::process::Stdio::null()))?;
    Ok(package)
}

/// The packages of the libraries that the agent is linked to.
fn libraries(work: &Path, stage: &Path) -> Result<String> {
    // It asks for a source package around it.
    fs::create_dir(work.join("debian"))?;
    let minimal = "Source: firewall-agent\n\nPackage: firewall-agent\nArchitecture: any\n";
    fs::write(work.join("debian/control"), minimal)?;
    let output = Command::new("dpkg-shlibdeps")
        .current_dir(work)
        .arg("-O")
        .arg(stage.join("usr/bin/firewall-agent"))
        .output()
        .context("cannot start dpkg-shlibdeps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let libraries = text.trim().strip_prefix("shlibs:Depends=");
    Ok(libraries.context("dpkg-shlibdeps names no libraries")?.to_owned())
}

fn rpm(work: &Path, stage: &Path, version: &str, is_quick: bool) -> Result<PathBuf> {
    let_read(stage)?;
    let spec = work.join("firewall-agent.spec");
    let life = template("life.sh", &[])?;
    let stage = stage.display().to_string();
    let blanks = [("VERSION", version), ("STAGE", stage.as_str()), ("LIFE", life.as_str())];
    fs::write(&spec, template("firewall-agent.spec", &blanks)?)?;
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--define"]).arg(format!("_topdir {}", work.display()));
    if is_quick {
        rpmbuild.args(["--define", "_binary_payload w1.gzdio"]);
    }
    run(rpmbuild.env("SOURCE_DATE_EPOCH", last_change()).arg(spec))?;
    let directories = fs::read_dir(work.join("RPMS"))?.flatten();
    let mut packages = directories.filter_map(|it| fs::read_dir(it.path()).ok()).flatten();
    Ok(packages.next().context("rpmbuild made no package")??.path())
}

/// When the sources changed last, so that the same sources make the same package.
fn last_change() -> String {
    let time = Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]).output();
    let time = time.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    time.map_or_else(|| "0".to_owned(), |time| time.trim().to_owned())
}
