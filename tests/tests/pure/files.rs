//! Rule files: complete or refused, and read as they are now.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use firewall_agent::edges::sources::rule_files::{self, Files};
use firewall_core::events::Event;
use firewall_core::rules::problem::Problem;

const FILE: &str = "\
# A comment, and an empty line.

policy = accept
0000 = action=drop dst4=10.0.0.0/8
0001 = action=accept dst4=192.0.2.0/24 proto=tcp dstports=1-1024
0002 = action=drop
commit
";

fn client() -> IpAddr {
    "10.137.0.12".parse().expect("an address")
}

#[test]
fn half_a_file_is_never_taken_for_a_whole_one() {
    let whole = rule_files::ruleset(client(), FILE).expect("a ruleset");
    for length in 0..FILE.len() {
        let half = rule_files::ruleset(client(), &FILE[..length]);
        assert!(half.is_err(), "{:?} became {half:?}", &FILE[..length]);
    }
    assert_eq!(whole.rules.len(), 3);
}

#[test]
fn an_error_names_line_text_and_reason() {
    let check = |text: &str, line, quoted: &str, problem: Problem| {
        let error = rule_files::ruleset(client(), text).expect_err("an error");
        assert_eq!((error.line, error.text.as_str(), error.problem), (line, quoted, problem));
    };
    check("policy = drop\n0000 = action=maybe\ncommit\n", Some(2), "action=maybe", {
        Problem::NotAnAction("maybe".to_owned())
    });
    check("policy = drop\nnonsense\ncommit\n", Some(2), "nonsense", Problem::NotAnEntry);
    check("policy = drop\ncommit\n0000 = action=accept\n", Some(3), "0000 = action=accept", {
        Problem::AfterCommit
    });
    check("policy = drop\n", None, "", Problem::NoCommit);
    check("policy = drop\ncommit", None, "", Problem::NoCommit);
    check("policy=drop\ncommit\n", Some(1), "policy=drop", Problem::NotAnEntry);
    check("policy = drop\r\ncommit\r\n", Some(1), "policy = drop\r", Problem::CarriageReturn);
    check("policy = drop\ncommit\r\n", Some(2), "commit\r", Problem::CarriageReturn);
    check("policy = drop\r\ncommit\n\r\n", Some(1), "policy = drop\r", Problem::CarriageReturn);
    let (entries, errors) = rule_files::entries("policy = drop\r\nnonsense\r\ncommit\r\n");
    let problems: Vec<Problem> = errors.into_iter().map(|error| error.problem).collect();
    assert_eq!(problems, [Problem::CarriageReturn, Problem::NotAnEntry]);
    assert_eq!(entries.first().map(|entry| entry.value.as_str()), Some("drop"));
}

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("firewall-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).expect("a file");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs what waits.
fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(work);
}

/// What the source tells next, in short; the addresses whose rules are good, then the others.
async fn news(files: &mut Files) -> Vec<String> {
    let event = files.next().await;
    if matches!(event, Event::Source(Some(_))) {
        return vec!["a problem".to_owned()];
    }
    assert!(matches!(event, Event::Source(None)), "{event:?}");
    let (connected, rules) = match (files.next().await, files.next().await) {
        (Event::Connected(connected), Event::AllRules(rules)) => Some((connected, rules)),
        _ => None,
    }
    .expect("addresses, then rules");
    assert!(rules.keys().eq(&connected));
    let word = |good: bool| if good { "good" } else { "bad" };
    rules.iter().map(|(client, rules)| format!("{client} {}", word(rules.is_ok()))).collect()
}

#[test]
fn files_tell_all_rules_of_those_that_are_named_by_an_address() {
    let directory = Directory::new("files");
    directory.write("10.137.0.12", FILE.as_bytes());
    directory.write("fd09::1", b"policy = drop\ncommit\n");
    directory.write(".10.137.0.13.swp", b"policy = accept\ncommit\n");
    directory.write("10.137.0.14~", b"policy = accept\ncommit\n");
    directory.write("FD09::2", b"policy = accept\ncommit\n");
    directory.write("010.137.0.1", b"policy = accept\ncommit\n");
    block_on(async {
        let mut files = Files::watch(&directory.0).expect("a watch");
        assert_eq!(news(&mut files).await, ["10.137.0.12 good", "fd09::1 good"]);
        directory.write("10.137.0.12", b"\xff\xfe");
        files.reload();
        assert_eq!(news(&mut files).await, ["10.137.0.12 bad", "fd09::1 good"]);
        fs::remove_file(directory.0.join("10.137.0.12")).expect("a file");
        files.reload();
        assert_eq!(news(&mut files).await, ["fd09::1 good"]);
        fs::remove_dir_all(&directory.0).expect("a directory");
        files.reload();
        // A directory that is gone is not an empty one.
        assert_eq!(news(&mut files).await, ["a problem"]);
    });
}

#[test]
fn a_written_file_wakes_and_reading_does_not() {
    let directory = Directory::new("wake");
    directory.write("10.137.0.12", FILE.as_bytes());
    let mut files = Files::watch(&directory.0).expect("a watch");
    block_on(async {
        let moment = Duration::from_millis(300);
        news(&mut files).await;
        let woken = tokio::time::timeout(moment, files.next()).await;
        assert!(woken.is_err(), "its own reading wakes it, and again, and again");
        directory.write("10.137.0.12", b"half");
        let woken = tokio::time::timeout(100 * moment, news(&mut files)).await;
        assert_eq!(woken.expect("a change does not wake it"), ["10.137.0.12 bad"]);
    });
}
