//! A real Tor in the gateway, in place of what stands in for it, and what it says of those who come.
//! Never reaches a network: its directory authority is nobody, on its own loopback.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::packets::family::{Family, PerFamily as _};
use crate::rig::agent::PATIENCE;
use crate::whonix::Gateway;
use crate::whonix::tables::{DNS_PORT, OWN_DNS_PORT, TRANS_PORT};

/// A Tor that runs. It ends when this is dropped.
pub struct RealTor {
    child: Child,
    control: BufReader<UnixStream>,
    log: PathBuf,
}

/// Where `cargo xtask test` unpacks one.
fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tor/root/usr")
}

/// Tor's program, if this machine has one.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let installed = std::env::split_paths(&path).map(|it| it.join("tor"));
    installed.chain([unpacked().join("bin/tor")]).find(|it| it.is_file())
}

impl RealTor {
    /// Starts it, with the ports of a Whonix gateway at the addresses that its rules redirect to.
    /// None if there is no Tor here.
    pub fn start(gateway: &Gateway) -> Result<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        let directory = gateway.rig.directory().join("tor");
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let own = directory.display();
        let mut text = format!(
            "DataDirectory {own}/data\nControlSocket {own}/control\nLog notice stdout\n\
             SafeLogging 0\nAutomapHostsOnResolve 1\nVirtualAddrNetworkIPv4 10.192.0.0/10\n\
             UseDefaultFallbackDirs 0\nDNSPort 127.0.0.1:{OWN_DNS_PORT}\n\
             DirAuthority nobody orport=1 127.0.0.1:1 {}\n",
            "F".repeat(40)
        );
        for family in Family::BOTH {
            let at = Gateway::on_vif(family);
            let at = family.of([at.to_string(), format!("[{at}]")]);
            for (name, port) in
                [("TransPort", TRANS_PORT), ("DNSPort", DNS_PORT), ("SocksPort", 9050)]
            {
                text += &format!("{name} {at}:{port} IsolateClientAddr\n");
            }
        }
        fs::write(directory.join("torrc"), text)?;
        let log = directory.join("log");
        let mut command = Command::new(program);
        // The libraries of one that is unpacked are beside it.
        let libraries = unpacked().join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
        command.env("LD_LIBRARY_PATH", libraries);
        command.arg("-f").arg(directory.join("torrc")).stdin(Stdio::null());
        command.stdout(fs::File::create(&log)?).stderr(Stdio::null());
        let mut child = gateway.netvm().spawn(&mut command)?;
        let deadline = Instant::now() + PATIENCE;
        let socket = directory.join("control");
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = child.try_wait()? {
                bail!("tor ended with {status}:\n{said}");
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("tor does not listen for orders:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut tor = Self { child, control: BufReader::new(stream), log };
        tor.order("AUTHENTICATE \"\"")?;
        tor.order("SETEVENTS STREAM")?;
        Ok(Some(tor))
    }

    fn order(&mut self, words: &str) -> Result<()> {
        self.control.get_mut().write_all(format!("{words}\r\n").as_bytes())?;
        let answer = self.line(words)?;
        ensure!(answer.starts_with("250 "), "`{words}`: {answer}");
        Ok(())
    }

    fn line(&mut self, what: &str) -> Result<String> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line);
        let length = read.with_context(|| format!("`{what}` never came\n{}", self.log()))?;
        ensure!(length > 0, "tor has gone: {}", self.log());
        Ok(line.trim_end().to_owned())
    }

    /// Every stream that a client asked for until one that has these words: what it says of each
    /// when it is new.
    pub fn streams_until(&mut self, words: &[&str]) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut streams = Vec::new();
        loop {
            let line = self.line(&format!("{words:?}"));
            let line = line.with_context(|| format!("before it came {streams:?}"))?;
            let is_new = line.contains(" NEW ") || line.contains(" NEWRESOLVE ");
            if is_new && line.contains(" SOURCE_ADDR=") {
                streams.push(line);
            }
            if let Some(last) = streams.last()
                && words.iter().all(|word| last.contains(word))
            {
                return Ok(streams);
            }
            ensure!(Instant::now() < deadline, "{words:?} never came, but {streams:?}");
        }
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for RealTor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
