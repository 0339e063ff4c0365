//! A file with what is known about names, for the agent that comes after this one.
//! Never fails at reading: what cannot be used is as good as nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::edges::regular;
use firewall_core::names::answer::Remembered;
use firewall_core::names::name::MOST_ADDRESSES;
use firewall_core::rules::Family;
use firewall_core::rules::question::Question;
use firewall_core::time::Moment;

/// Changes with every boot; ages in the file are counted from there.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct File {
    boot: String,
    names: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    family: Family,
    addresses: BTreeSet<IpAddr>,
    /// Seconds from boot to the answer.
    at: u64,
    /// Addresses of earlier answers, and the seconds from boot to when they left.
    leaving: BTreeMap<IpAddr, u64>,
}

impl Entry {
    /// Whether somebody could have written it other than by mistake.
    fn is_sound(&self) -> bool {
        let Self { name: _, family, addresses, at: _, leaving } = self;
        let is_of_family = |address: &IpAddr| Family::from(*address) == *family;
        addresses.len().saturating_add(leaving.len()) <= MOST_ADDRESSES
            && addresses.iter().chain(leaving.keys()).all(is_of_family)
    }
}

/// What an agent wrote since the machine booted; nothing if there is no such file, or if it cannot
/// be used.
pub fn read(path: &Path) -> Vec<Remembered> {
    let file = match try_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(path = %path.display(), %error, "answers of an earlier agent cannot be used");
            return Vec::new();
        }
    };
    if boot().ok().as_ref() != Some(&file.boot) {
        return Vec::new();
    }
    let sound = file.names.into_iter().filter(Entry::is_sound);
    let names: Vec<Remembered> = sound
        .map(|Entry { name, family, addresses, at, leaving }| {
            let question = Question { name, family };
            let leaving = leaving.into_iter().map(|(it, since)| (it, at_second(since)));
            let leaving = leaving.collect();
            Remembered { question, addresses, at: at_second(at), leaving }
        })
        .collect();
    info!(names = names.len(), "known from an earlier agent");
    names
}

fn at_second(second: u64) -> Moment {
    Moment::after_boot(Duration::from_secs(second))
}

fn try_read(path: &Path) -> io::Result<File> {
    Ok(serde_json::from_slice(&regular::read(path, MAX_FILE)?)?)
}

/// Writes the file for the next agent, only for root to read; there is always a whole file. An
/// error if it cannot be written: then the old one stays.
pub fn write(path: &Path, names: &[Remembered]) -> io::Result<()> {
    let entry = |Remembered { question, addresses, at, leaving }: &Remembered| Entry {
        name: question.name.clone(),
        family: question.family,
        addresses: addresses.clone(),
        at: at.since_boot().as_secs(),
        leaving: leaving.iter().map(|(it, since)| (*it, since.since_boot().as_secs())).collect(),
    };
    let file = File { boot: boot()?, names: names.iter().map(entry).collect() };
    if let Some(directory) = path.parent() {
        // Names are where users go: nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    regular::replace(path, 0o600, &serde_json::to_vec(&file)?)
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered() -> Vec<Remembered> {
        let question = Question { name: "a.example".to_owned(), family: Family::V4 };
        let addresses = [IpAddr::from([192, 0, 2, 1])].into();
        let leaving = [(IpAddr::from([192, 0, 2, 2]), at_second(50))].into();
        vec![Remembered { question, addresses, at: at_second(60), leaving }]
    }

    #[test]
    fn what_is_written_is_read_again_and_what_is_unsound_is_nothing() {
        let directory = std::env::temp_dir().join(format!("memory-{}", std::process::id()));
        let path = directory.join("names.json");
        assert_eq!(read(&path), [], "no file");
        write(&path, &remembered()).expect("a file");
        assert_eq!(read(&path), remembered());
        let whole = fs::read_to_string(&path).expect("text");
        let check = |what: &str, text: &str| {
            assert_ne!(text, whole, "{what}: nothing was changed");
            fs::write(&path, text).expect("a file");
            assert_eq!(read(&path), [], "{what}");
        };
        check("half", &whole[..whole.len() / 2]);
        check("nothing", "");
        check("another boot", &whole.replace(&boot().expect("a boot"), "another"));
        check("another family", &whole.replace("192.0.2.1", "2001:db8::1"));
        check("another family", &whole.replace("192.0.2.2", "2001:db8::1"));
        check("no address", &whole.replace("192.0.2.1", "192.0.2.256"));
        check("no number", &whole.replace("60", "-60"));
        let many: Vec<String> = (0..=255).map(|it| format!("\"198.51.100.{it}\"")).collect();
        check("too many", &whole.replace("\"192.0.2.1\"", &many.join(",")));
        fs::remove_dir_all(&directory).expect("a directory");
    }
}
