//! The netvm's own DNS servers, from `resolv.conf`, live.
//! Never fails: a line that is not understood names no server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use notify::{Event, EventKind};
use tracing::{debug, warn};

use crate::edges::regular;
use crate::edges::wait::directory::Watching;

/// Far more than any resolver reads.
const MAX_FILE: u64 = 1 << 20;

/// Most symbolic links on the way to a file, as in the kernel; and most directories that come one
/// after the other while they begin to be watched.
const MOST_STEPS: usize = 40;

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
    /// yet can come, and so can their directories.
    pub fn watch(file: &Path, behind_stub: &Path) -> notify::Result<Self> {
        let watching =
            Watching::new(|event| !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })))?;
        let (file, behind_stub) = (file.to_owned(), behind_stub.to_owned());
        let mut resolvers = Self { file, behind_stub, watching };
        resolvers.follow()?;
        Ok(resolvers)
    }

    /// Watches where the files are, or may come to be.
    fn follow(&mut self) -> notify::Result<()> {
        let mut outcome = Ok(());
        // A directory may come or go while others begin to be watched.
        for _ in 0..MOST_STEPS {
            let wanted = self.directories();
            // All of them each time: one may be another one under its old name.
            outcome = wanted.iter().try_for_each(|directory| self.watching.add(directory));
            if outcome.is_ok() && wanted == self.directories() {
                break;
            }
        }
        outcome
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        &directories(&self.file) | &directories(&self.behind_stub)
    }

    /// Waits until one of the files may have changed.
    pub async fn changed(&mut self) {
        self.watching.changed().await;
        if let Err(error) = self.follow() {
            // The files are read now and then, whatever is watched.
            warn!(%error, "changes of resolv.conf may be seen late");
        }
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

/// The directories in which something may change that changes a file: its own one, because the file
/// is mostly replaced and not written, and that of each symbolic link on the way to it. Instead of
/// one that is not there, the nearest above it that is.
fn directories(file: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut file = file.to_owned();
    for _ in 0..MOST_STEPS {
        let there = file.ancestors().skip(1).find_map(|directory| {
            // The directory of a bare name.
            let named = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            named.is_dir().then(|| named.to_owned())
        });
        found.extend(there);
        let Ok(target) = file.read_link() else {
            break;
        };
        file = file.parent().unwrap_or(Path::new("")).join(target);
    }
    found
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
    fn a_file_whose_directories_come_later_is_seen_as_soon_as_it_is_there() {
        let top = std::env::temp_dir().join(format!("resolvers-later-{}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let check = |link: &str, target: &str| {
            std::fs::create_dir_all(top.join("etc")).expect("a directory");
            let link = top.join(link);
            std::os::unix::fs::symlink(top.join(target), &link).expect("a link");
            let mut resolvers =
                Resolvers::watch(&link, &top.join("stub/resolv.conf")).expect("a watch");
            assert!(resolvers.own().is_empty(), "{target}");
            // Twice: a service that ends takes its directory with it.
            for server in ["192.0.2.1", "192.0.2.2"] {
                let directory = top.join(target);
                let directory = directory.parent().expect("a directory");
                std::fs::create_dir_all(directory).expect("a directory");
                let seen = async {
                    // What is left of the directories that came wakes a few times, and not as often.
                    for _ in 0..50 {
                        let text = format!("nameserver {server}\n");
                        std::fs::write(top.join(target), text).expect("a file");
                        resolvers.changed().await;
                    }
                };
                let deadline = std::time::Duration::from_secs(20);
                let in_time =
                    runtime.block_on(async { tokio::time::timeout(deadline, seen).await });
                assert!(in_time.is_ok(), "{target}: nobody tells of {server}");
                let own: Vec<String> = resolvers.own().iter().map(IpAddr::to_string).collect();
                assert_eq!(own, [server]);
                std::fs::remove_dir_all(top.join("run")).expect("a directory");
            }
            std::fs::remove_dir_all(&top).expect("a directory");
        };
        check("etc/resolv.conf", "run/resolv.conf");
        check("etc/resolv.conf", "run/NetworkManager/resolv.conf");
        check("etc/resolv.conf", "run/a/b/c/resolv.conf");
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
