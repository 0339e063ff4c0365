//! A guest of Xen: made, driven and destroyed by `xl`.
//! Never knows what it is told to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::console::Console;
use crate::order::{Addresses, Answer, Order};
use crate::wait::until;

/// How long an emulated machine may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What guests boot with.
#[derive(clap::Args, Clone, Debug)]
pub struct Boot {
    /// Their kernel.
    #[arg(long)]
    kernel: PathBuf,
    /// Their initramfs.
    #[arg(long)]
    initramfs: PathBuf,
    /// What `xl` calls to set up a vif.
    #[arg(long)]
    vif_script: PathBuf,
}

/// What a guest is.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub processors: u32,
    pub mac: [u8; 6],
    pub addresses: Addresses,
}

/// A running guest, destroyed when this is dropped.
pub struct Domain {
    pub spec: Spec,
    /// Its number in Xen.
    pub id: u32,
    /// Number of its vif; another after each time that it was plugged in.
    pub device: u32,
    vif_script: PathBuf,
    console: Console,
}

impl Domain {
    /// Creates a guest, waits until it has booted, and configures its interface.
    pub fn start(boot: &Boot, spec: Spec) -> Result<Self> {
        let Boot { kernel, initramfs, vif_script } = boot;
        let configuration = PathBuf::from(format!("/run/{}.cfg", spec.name));
        let text = format!(
            "name = '{}'\nkernel = '{}'\nramdisk = '{}'\nmemory = 320\nvcpus = {}\n\
             extra = 'console=hvc0 quiet loglevel=3 mitigations=off panic=-1'\non_crash = 'destroy'\n\
             on_reboot = 'destroy'\nvif = ['{}']\n",
            spec.name,
            kernel.display(),
            initramfs.display(),
            spec.processors,
            vif(&spec, vif_script)
        );
        fs::write(&configuration, text)?;
        // Nobody is to wait for its end in the background.
        xl(&["create", "-e", &configuration.to_string_lossy()])?;
        let id = xl(&["domid", spec.name])?.trim().parse()?;
        let key = format!("/local/domain/{id}/console/tty");
        let terminal = until("the guest's console", PATIENCE, || Ok(read(&key)))?;
        let console = Console::open(spec.name, Path::new(&terminal))?;
        console.wait_until_up(PATIENCE)?;
        let vif_script = vif_script.clone();
        let mut domain = Self { spec, id, device: 0, vif_script, console };
        domain.configure()?;
        Ok(domain)
    }

    /// Name of its vif in dom0.
    pub fn vif(&self) -> String {
        format!("vif{}.{}", self.id, self.device)
    }

    /// Has it configure its interface; returns how many queues that has.
    pub fn configure(&mut self) -> Result<u64> {
        match self.ask(Order::Configure(self.spec.addresses))? {
            Answer::Number(queues) => Ok(queues),
            other => anyhow::bail!("it has {other:?} queues"),
        }
    }

    /// Gives an order, and waits for its answer.
    pub fn ask(&mut self, order: Order) -> Result<Answer> {
        self.console.ask(order, PATIENCE).with_context(|| self.spec.name)
    }

    /// Gives an order whose answer nobody waits for.
    pub fn give(&mut self, order: Order) -> Result<()> {
        self.console.give(order).map(drop).with_context(|| self.spec.name)
    }

    /// Ends it, as if it were pulled from the wall, and waits until its vif is gone.
    pub fn destroy(&mut self) -> Result<()> {
        xl(&["destroy", &self.id.to_string()])?;
        self.wait_until_unplugged()
    }

    /// Takes its vif away, and waits until that is gone.
    pub fn unplug(&mut self) -> Result<()> {
        let (id, device) = (self.id.to_string(), self.device.to_string());
        xl(&["network-detach", &id, &device])?;
        self.wait_until_unplugged()
    }

    fn wait_until_unplugged(&self) -> Result<()> {
        let path = PathBuf::from(format!("/sys/class/net/{}", self.vif()));
        until("the end of a vif", PATIENCE, || Ok((!path.exists()).then_some(())))
    }

    /// Gives it a vif again.
    pub fn plug(&mut self) -> Result<()> {
        let id = self.id.to_string();
        let vif = vif(&self.spec, &self.vif_script);
        let words: Vec<&str> = vif.split(',').collect();
        xl(&[&["network-attach", &id][..], &words].concat())?;
        let backends = format!("/local/domain/0/backend/vif/{}", self.id);
        let devices = list(&backends)?;
        let last = devices.iter().filter_map(|device| device.parse().ok()).max();
        self.device = last.context("no vif after network-attach")?;
        Ok(())
    }

    /// How many requests of each sending queue netback has taken.
    pub fn taken(&self) -> Result<Vec<u64>> {
        let directory = format!("/sys/kernel/debug/xen-netback/{}", self.vif());
        let mut queues: Vec<PathBuf> =
            fs::read_dir(directory)?.flatten().map(|file| file.path()).collect();
        queues.retain(|file| file.to_string_lossy().contains("io_ring_q"));
        queues.sort();
        queues.iter().map(|file| requests(&fs::read_to_string(file)?)).collect()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // One that was destroyed before is not there any more.
        let _ = xl(&["destroy", &self.id.to_string()]);
    }
}

/// A vif as `xl` wants it told.
fn vif(spec: &Spec, script: &Path) -> String {
    let mac: Vec<String> = spec.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let [v4, v6] = spec.addresses.all();
    format!("mac={},ip={v4} {v6},script={}", mac.join(":"), script.display())
}

/// What netback has taken of a ring: `req prod 5 (5) cons 7 (2) event 8 (3)`.
fn requests(ring: &str) -> Result<u64> {
    let sending = ring.split("RX:").next().unwrap_or_default();
    let line = sending.lines().find(|line| line.trim_start().starts_with("req prod"));
    let word = line.and_then(|line| line.split_whitespace().nth(2));
    let number = word.and_then(|word| word.parse().ok());
    number.with_context(|| format!("no requests in {ring}"))
}

/// Runs `xl`, and returns what it prints.
pub fn xl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("xl").args(arguments).output().context("cannot run xl")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`xl {}`: {}", arguments.join(" "), error.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// A key of xenstore.
fn read(key: &str) -> Option<String> {
    let output = Command::new("xenstore-read").arg(key).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn list(key: &str) -> Result<Vec<String>> {
    let output = Command::new("xenstore-list").arg(key).output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}
