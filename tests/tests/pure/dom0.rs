//! The command for dom0, among stand-ins for dom0's own tools: what it asks, what it prints of what a
//! stranger says, and that it changes nothing but what it shows first.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A stand-in notes how it was called, and says what is in a file beside it.
const STAND_IN: &str = "#!/bin/sh
cd \"${0%/*}\" || exit 9
echo \"${0##*/} $*\" >> calls
file=\"say-${0##*/}-$(echo \"$*\" | tr -c 'A-Za-z0-9.\\n' '-')\"
[ -e \"$file\" ] || file=\"say-${0##*/}\"
[ -e \"$file\" ] && cat \"$file\"
[ -e \"code-${0##*/}\" ] && exit \"$(cat \"code-${0##*/}\")\"
exit 0
";
const TOOLS: [&str; 5] = ["qvm-prefs", "qvm-features", "qvm-check", "qvm-run", "qvm-firewall"];

/// A dom0 of stand-ins.
struct Dom0 {
    directory: PathBuf,
}

/// What came of the command.
struct Done {
    code: Option<i32>,
    said: String,
    complained: String,
}

impl Dom0 {
    /// Where `work`, with an address of each family, has a netvm that runs.
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("fwt-dom0-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let dom0 = Self { directory };
        for tool in TOOLS {
            let path = dom0.directory.join(tool);
            fs::write(&path, STAND_IN).expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        dom0.say("qvm-prefs-work-netvm", "sys-firewall\n");
        dom0.say("qvm-prefs-work-ip", "10.137.0.12\n");
        dom0.say("qvm-prefs-work-ip6", "fd09::c\n");
        dom0
    }

    fn say(&self, tool: &str, text: impl AsRef<[u8]>) {
        fs::write(self.directory.join(format!("say-{tool}")), text).expect("a file");
    }

    fn fail(&self, tool: &str, code: i32) {
        fs::write(self.directory.join(format!("code-{tool}")), code.to_string()).expect("a file");
    }

    fn show(&self, address: &str, told: &Value) {
        let service = format!("firewall.Show-{address}-json");
        self.say(
            &format!("qvm-run---pass-io---no-gui---no-auto---service-sys-firewall-{service}"),
            told.to_string(),
        );
    }

    fn run(&self, arguments: &[&str]) -> Done {
        self.run_from(&script(), arguments, "")
    }

    fn run_from(&self, script: &Path, arguments: &[&str], answers: &str) -> Done {
        let mut command = Command::new("python3");
        command.arg(script).args(arguments);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.directory.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let mut stdin = child.stdin.take().expect("a pipe");
        // It need not ask.
        let _ = stdin.write_all(answers.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("an end");
        for bytes in [&output.stdout, &output.stderr] {
            let is_fine = |byte: &u8| (b' '..=b'~').contains(byte) || *byte == b'\n';
            assert!(bytes.iter().all(is_fine), "{}", String::from_utf8_lossy(bytes));
            assert!(bytes.len() < 2 * 1024 * 1024, "{}", bytes.len());
        }
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let done = Done {
            code: output.status.code(),
            said: text(output.stdout),
            complained: text(output.stderr),
        };
        assert!(!done.complained.contains("Traceback"), "{}", done.complained);
        done
    }

    /// How dom0's tools were called.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.directory.join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }
}

impl Drop for Dom0 {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dom0/qubes-firewall-rules")
}

/// What a netvm says of a client, with one rule that denies.
fn client(address: &str, state: &str, text: &str) -> Value {
    json!({"schema": 2, "agent": {}, "clients": [{
        "address": address, "state": state, "problem": null, "audit_seconds_left": null,
        "default": "drop", "default_counter": {"packets": 3, "bytes": 180},
        "default_last_seconds_ago": 200,
        "rules": [{"number": 7, "text": text, "action": "drop", "effective": true,
            "counter": {"packets": 5, "bytes": 300}, "last_seconds_ago": 4}],
        "counters": {},
    }]})
}

#[test]
fn dom0_is_told_where_rules_are_and_what_was_denied_last() {
    let dom0 = Dom0::new();
    dom0.show("10.137.0.12", &client("10.137.0.12", "live", "action=drop proto=udp"));
    dom0.show("fd09--c", &client("fd09::c", "live", "action=drop"));
    let done = dom0.run(&["work"]);
    assert_eq!(done.code, Some(0), "{}{}", done.said, done.complained);
    for part in [
        "work: its rules are in sys-firewall, which runs this firewall",
        "10.137.0.12: live",
        "fd09::c: live",
        "  0007  action=drop proto=udp\n        5 packets, 300 bytes, last 4 s ago",
        "  last denials:\n    5 packets by rule 0007, last 4 s ago\n    3 packets by no rule: the default, last 3 min ago",
    ] {
        assert!(done.said.contains(part), "no `{part}` in\n{}", done.said);
    }
    assert_eq!(
        dom0.calls(),
        [
            "qvm-prefs work netvm",
            "qvm-prefs work ip",
            "qvm-prefs work ip6",
            "qvm-check --quiet --running sys-firewall",
            "qvm-run --pass-io --no-gui --no-auto --service sys-firewall firewall.Show+10.137.0.12+json",
            "qvm-run --pass-io --no-gui --no-auto --service sys-firewall firewall.Show+fd09__c+json",
        ]
    );
    let told: Value = serde_json::from_str(&dom0.run(&["work", "--json"]).said).expect("JSON");
    assert_eq!(told["netvm"], "sys-firewall");
    assert_eq!(told["clients"][1]["rules"][0]["counter"]["packets"], 5);
    // Something needs attention, or no agent runs.
    dom0.show("fd09--c", &client("fd09::c", "blocked", ""));
    assert_eq!(dom0.run(&["work"]).code, Some(1));
    dom0.show("fd09--c", &json!({"clients": [], "agent": {}}));
    let done = dom0.run(&["work"]);
    assert!(
        done.code == Some(1) && done.said.contains("fd09::c: not attached there"),
        "{}",
        done.said
    );
    dom0.show("10.137.0.12", &json!({"agent_problem": "no agent answers"}));
    let done = dom0.run(&["work"]);
    assert!(done.code == Some(3) && done.said.contains("no agent runs there"), "{}", done.said);
}

#[test]
fn what_dom0_cannot_be_told_it_is_told_why_and_what_to_do() {
    #[track_caller]
    fn check(change: impl Fn(&Dom0), why: &str) {
        let dom0 = Dom0::new();
        dom0.show("10.137.0.12", &client("10.137.0.12", "live", ""));
        change(&dom0);
        let done = dom0.run(&["work"]);
        assert_eq!(done.code, Some(2), "{}", done.said);
        assert!(done.complained.contains(why), "{}", done.complained);
        assert_eq!(done.said, "");
        let done = dom0.run(&["work", "--json"]);
        let told: Value = serde_json::from_str(&done.said).expect("JSON");
        assert!(told["error"].as_str().is_some_and(|it| it.contains(why)), "{told}");
    }
    check(|dom0| dom0.say("qvm-prefs-work-netvm", "\n"), "qvm-prefs work netvm sys-firewall");
    check(|dom0| dom0.say("qvm-prefs-work-netvm", "None\n"), "work has no netvm");
    check(|dom0| dom0.fail("qvm-check", 1), "qvm-start sys-firewall");
    check(|dom0| dom0.fail("qvm-prefs", 1), "qvm-prefs work netvm: exit code 1");
    check(|dom0| dom0.show("10.137.0.12", &json!({"error": "no root"})), "sys-firewall: no root");
    // fd09::c: no service answers.
    check(|_| (), "firewall is not installed in its template");
    let dom0 = Dom0::new();
    for name in ["", "-x", "--all", "a b", "a/b", "$(id)", "@anyvm", &"a".repeat(32)] {
        let done = dom0.run(&["--", name]);
        assert_eq!(done.code, Some(2), "{name}");
    }
    assert_eq!(dom0.calls(), Vec::<String>::new());
    assert!(dom0.run(&["--help"]).said.contains("NOTHING IS"));
}

#[test]
fn whatever_a_netvm_says_dom0_prints_bounded_ascii_and_does_nothing() {
    let dom0 = Dom0::new();
    dom0.show("fd09--c", &client("fd09::c", "live", ""));
    let evil = "\u{1b}[2J\u{1b}]0;x\u{7}\r\n$(reboot)\u{202e}";
    dom0.show("10.137.0.12", &client("10.137.0.12", &format!("live{evil}"), &evil.repeat(1000)));
    let done = dom0.run(&["work"]);
    assert!(done.said.contains("0007  ?[2J?]0;x???$(reboot)?"), "{}", done.said);
    let longest = done.said.lines().map(str::len).max().unwrap_or_default();
    assert!(longest <= 310, "{longest}");
    dom0.run(&["work", "--json"]);
    let whole = "qvm-run---pass-io---no-gui---no-auto---service-sys-firewall-firewall.Show-10.137.0.12-json";
    let many = json!({"clients": vec![json!({"address": "10.137.0.12", "rules": vec![json!({}); 50]}); 300]});
    let told: [Vec<u8>; 14] = [
        b"\x1b[2J\xff\xfe".into(),
        b"[]".into(),
        b"null".into(),
        b"{".into(),
        "[".repeat(500_000).into(),
        format!("{{\"clients\": {}}}", "1".repeat(900_000)).into(),
        br#"{"clients": {"a": 1}, "agent": 3}"#.into(),
        br#"{"clients": [1, null, "x", {"rules": 3, "counters": [], "problem": "x"}]}"#.into(),
        br#"{"clients": [{"address": "10.137.0.12", "rules": [null, {"counter": {"packets": true}}]}]}"#.into(),
        br#"{"clients": [{"address": "10.137.0.12", "default_last_seconds_ago": -1e400, "state": []}]}"#.into(),
        many.to_string().into(),
        "x".repeat(3_000_000).into(),
        // All is well there, but for its size, or for a number.
        format!("{}{}", client("10.137.0.12", "live", ""), " ".repeat(1_100_000)).into(),
        client("10.137.0.12", "live", "").to_string().replace("180", &"9".repeat(30)).into(),
    ];
    for told in told {
        dom0.say(whole, &told);
        for form in [&["work"][..], &["work", "--json"]] {
            let done = dom0.run(form);
            assert!(
                done.code.is_some_and(|code| code != 0),
                "{}",
                &done.said[..done.said.len().min(200)]
            );
        }
    }
    let changes = dom0.calls().into_iter().filter(|it| !it.starts_with("qvm-prefs work "));
    let mut others =
        changes.filter(|it| !it.starts_with("qvm-check") && !it.starts_with("qvm-run --pass-io"));
    assert_eq!(others.next(), None);
}

#[test]
fn a_netvm_that_never_ends_is_not_waited_for() {
    let dom0 = Dom0::new();
    let hanging = "#!/bin/sh\nexec cat /dev/zero > /dev/null\n";
    fs::write(dom0.directory.join("qvm-run"), hanging).expect("a file");
    let text = fs::read_to_string(script()).expect("text");
    let hasty = text.replace("PATIENCE = 120", "PATIENCE = 1");
    assert_ne!(hasty, text);
    let hasty_script = dom0.directory.join("hasty");
    fs::write(&hasty_script, hasty).expect("a file");
    let done = dom0.run_from(&hasty_script, &["work"], "");
    assert!(done.complained.contains("did not end within 1 seconds"), "{}", done.complained);
    assert_eq!(done.code, Some(2));
}

#[test]
fn what_is_learnt_is_for_review_and_never_applied() {
    let dom0 = Dom0::new();
    let run =
        "qvm-run---pass-io---no-gui---no-auto---service-sys-firewall-firewall.Monitor-10-learn";
    dom0.say(
        run,
        "# 10.137.0.12, fd09::c on vif12.0: 3 packets denied. For dom0, with the name of\n\
         # the qube for QUBE, in this order, because a line moves the rules behind it:\n\
         qvm-firewall QUBE add --before 1 accept dst4=198.51.100.8/32 proto=tcp dstports=443-443\n\
         qvm-firewall QUBE add accept dsthost=a.example proto=udp dstports=1-9\n\
         qvm-firewall QUBE add accept dst6=2001:db8::7/128 proto=icmp icmptype=8\n\
         qvm-firewall QUBE add accept specialtarget=dns\n\
         qvm-firewall QUBE add accept dsthost=$(reboot) proto=tcp dstports=1-1\n\
         qvm-firewall QUBE add accept dst4=1.2.3.4/32 proto=tcp dstports=1-1; reboot\n\
         qvm-firewall QUBE add accept dst4=0.0.0.0/0\n\
         qvm-firewall QUBE del --rule-no 0\n\
         qvm-firewall other add accept\n\
         reboot\n\
         # 10.137.0.13 on vif13.0: 1 packet denied. For dom0, with the name of\n\
         qvm-firewall QUBE add accept dst4=203.0.113.99/32 proto=tcp dstports=443-443\n\
         # Only what was seen is here, and at most some packets a second are told.\n",
    );
    let done = dom0.run(&["work", "--learn"]);
    assert_eq!(done.code, Some(0), "{}", done.complained);
    assert!(done.said.lines().all(|line| line.starts_with('#')), "{}", done.said);
    let rules: Vec<&str> =
        done.said.lines().filter_map(|line| line.strip_prefix("# NOT APPLIED: ")).collect();
    assert_eq!(
        rules,
        [
            "qvm-firewall work add --before 1 accept dst4=198.51.100.8/32 proto=tcp dstports=443-443",
            "qvm-firewall work add accept dsthost=a.example proto=udp dstports=1-9",
            "qvm-firewall work add accept dst6=2001:db8::7/128 proto=icmp icmptype=8",
            "qvm-firewall work add accept specialtarget=dns",
        ]
    );
    assert!(!done.said.contains("203.0.113.99"), "{}", done.said);
    assert!(!dom0.calls().iter().any(|it| it.starts_with("qvm-firewall")), "{:?}", dom0.calls());
    assert_eq!(dom0.run(&["work", "--learn", "--seconds", "61"]).code, Some(2));
}

#[test]
fn a_qube_is_introduced_as_it_was_shown_and_not_without_a_yes() {
    let set = "qvm-features sys-firewall vm-config.firewall-client-work 10.137.0.12 fd09::c";
    for (arguments, answers, is_set) in [
        (&["work", "--introduce"][..], "y\n", true),
        (&["work", "--introduce", "--yes"], "", true),
        (&["work", "--introduce"], "n\n", false),
        (&["work", "--introduce"], "", false),
    ] {
        let dom0 = Dom0::new();
        dom0.say("qvm-features", "vm-config.firewall-client-work  10.137.0.9\nservice.x  1\n");
        let done = dom0.run_from(&script(), arguments, answers);
        let shown =
            "qvm-features sys-firewall vm-config.firewall-client-work '10.137.0.12 fd09::c'";
        assert!(done.said.contains(shown), "{}", done.said);
        assert_eq!(dom0.calls().contains(&set.to_owned()), is_set, "{answers}");
        assert_eq!(done.code, Some(if is_set { 0 } else { 1 }));
    }
    // Another has one of its addresses.
    let dom0 = Dom0::new();
    dom0.say("qvm-features", "vm-config.firewall-client-play  10.137.0.13,10.137.0.12\n");
    let done = dom0.run(&["work", "--introduce", "--yes"]);
    assert!(
        done.complained.contains("--unset sys-firewall vm-config.firewall-client-play"),
        "{}",
        done.complained
    );
    assert!(!dom0.calls().contains(&set.to_owned()) && done.code == Some(2));
}
