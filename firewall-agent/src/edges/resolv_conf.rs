//! The netvm's own DNS servers, from `resolv.conf`, live.
//! Never fails: a line that is not understood names no server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use notify::{Event, EventKind};
use tracing::debug;

use crate::edges::regular;
use crate::edges::wait::directory::Watching;

/// Far more than any resolver reads.
const MAX_FILE: u64 = 1 << 20;

/// Where systemd-resolved names the servers behind its stub (systemd-resolved(8)).
pub const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The file that names the netvm's DNS servers, and the one that names those behind a stub.
pub struct Resolvers {
    file: PathBuf,
    behind_stub: PathBuf,
    watching: Watching,
}

impl Resolvers {
    /// Begins to watch both files; an error if the kernel does not let. Files that are not there
    /// yet can come; a directory that is not there cannot be watched, and its file is read when
    /// everything is read again.
    pub fn watch(file: &Path, behind_stub: &Path) -> notify::Result<Self> {
        let mut watching =
            Watching::new(|event| !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })))?;
        // Whole directories, because the file is mostly replaced and not written; and the
        // one that a symbolic link leads to.
        let files = [Some(file.to_owned()), file.canonicalize().ok(), Some(behind_stub.to_owned())];
        let directories: BTreeSet<PathBuf> = files
            .into_iter()
            .flatten()
            .filter_map(|file| Some(file.parent()?.to_owned()))
            .filter(|directory| directory.is_dir())
            .collect();
        for directory in directories {
            watching.add(&directory)?;
        }
        let (file, behind_stub) = (file.to_owned(), behind_stub.to_owned());
        Ok(Self { file, behind_stub, watching })
    }

    /// Waits until one of the files may have changed.
    pub async fn changed(&mut self) {
        self.watching.changed().await;
    }

    /// All servers that the file names now, the netvm's loopback included.
    pub fn own(&self) -> Vec<IpAddr> {
        read(&self.file)
    }

    /// The servers that clients can mean, as the files name them now.
    pub fn read(&self) -> Vec<IpAddr> {
        read_both(&self.file, &self.behind_stub)
    }
}

/// The servers that clients can mean. A server on the netvm's loopback is a stub that no
/// client can reach; if there is nothing else, the ones behind it count.
pub fn read_both(file: &Path, behind_stub: &Path) -> Vec<IpAddr> {
    let named = read(file);
    let reachable = |servers: Vec<IpAddr>| {
        servers.into_iter().filter(|server| !server.is_loopback()).collect::<Vec<_>>()
    };
    if !named.is_empty() && named.iter().all(IpAddr::is_loopback) && behind_stub.exists() {
        return reachable(read(behind_stub));
    }
    reachable(named)
}

fn read(path: &Path) -> Vec<IpAddr> {
    match regular::read(path, MAX_FILE) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)),
        Err(error) => {
            debug!(path = %path.display(), %error, "no resolvers known");
            Vec::new()
        }
    }
}

/// The servers that a text names, each once, in order. White space of any kind and amount
/// separates; an address with a zone (`fe80::1%eth0`) cannot be a client's destination.
pub fn parse(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| word.parse().ok());
        if let Some(server) = server.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let expected: Vec<IpAddr> =
            expected.iter().filter_map(|address| address.parse().ok()).collect();
        assert_eq!(parse(text), expected, "{text:?}");
    }

    #[test]
    fn odd_lines_of_resolv_conf_name_no_server_and_harm_no_other() {
        check("", &[]);
        check("nameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("nameserver  192.0.2.53", &["192.0.2.53"]);
        check("nameserver\t192.0.2.53 # the router\r\n", &["192.0.2.53"]);
        check("nameserver fe80::1%eth0\nnameserver 2001:db8::53\n", &["2001:db8::53"]);
        check("nameserver\nnameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("nameserver 192.0.2.53\nnameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("#nameserver 192.0.2.1\n;nameserver 192.0.2.2\nsearch example\n", &[]);
        check("nameserver 999.0.2.53\nnameserver host\n", &[]);
    }

    #[test]
    fn behind_a_stub_the_real_servers_count_and_loopback_never_does() {
        let directory = std::env::temp_dir().join(format!("resolvers-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (file, behind) = (directory.join("resolv.conf"), directory.join("behind"));
        let check = |text: &str, behind_text: Option<&str>, expected: &[&str]| {
            std::fs::write(&file, text).expect("a file");
            let _ = std::fs::remove_file(&behind);
            if let Some(text) = behind_text {
                std::fs::write(&behind, text).expect("a file");
            }
            let resolvers = Resolvers::watch(&file, &behind).expect("a watch");
            let found: Vec<String> = resolvers.read().iter().map(IpAddr::to_string).collect();
            assert_eq!(found, expected, "{text:?} {behind_text:?}");
        };
        let stub = "nameserver 127.0.0.53\n";
        check("nameserver 192.0.2.1\n", Some("nameserver 192.0.2.2\n"), &["192.0.2.1"]);
        check(stub, Some("nameserver 192.0.2.2\nnameserver ::1\n"), &["192.0.2.2"]);
        check(stub, None, &[]);
        check("", Some("nameserver 192.0.2.2\n"), &[]);
        check("nameserver ::1\nnameserver 192.0.2.1\n", None, &["192.0.2.1"]);
        std::fs::remove_dir_all(&directory).expect("a directory");
    }
}
