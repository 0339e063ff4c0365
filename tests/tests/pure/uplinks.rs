//! Lists of uplinks: how they are read, and what comes of two wishes and of what is wrong.

use std::time::Duration;

use firewall_agent::cli::text;
use firewall_core::client::Links;
use firewall_core::events::{Effect, Event, GateLook, Notice, Task, Why};
use firewall_core::time::Moment;
use firewall_core::told::status::UplinksFrom;
use firewall_core::told::totals::problems;
use firewall_core::uplinks::{LinkName, Uplinks};
use firewall_core::world::{Settings, World};

use super::memory::{When, check, links, rules, running, status_at, step};

fn list(names: &str) -> Option<Uplinks> {
    Uplinks::parse(names).expect("a list")
}

#[test]
fn a_name_of_a_link_is_what_nftables_takes_for_a_string() {
    for good in ["wg0", "5", "0x1", "drop", "a+b=c@d.e_f-15x", "...", "abcdefghijklmno"] {
        assert_eq!(good.parse::<LinkName>().map(|it| it.to_string()), Ok(good.to_owned()));
    }
    let bad = ["", ".", "..", "a/b", "a b", "a\tb", "a\"b", "a'b", "a*", "a:b", "a;b", "ä", "a\0"];
    for bad in bad.into_iter().chain(["abcdefghijklmnop", "{a}", "$a", "\\a", "#a"]) {
        assert!(bad.parse::<LinkName>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_list_of_links_has_commas_or_blanks_between_names() {
    let check = |text: &str, expected: Result<Option<&str>, &str>| {
        let parsed = Uplinks::parse(text);
        let parsed = parsed.as_ref().map(|it| it.as_ref().map(Uplinks::to_string));
        let found = parsed.as_ref().map(Option::as_deref).map_err(|bad| bad.good.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{text:?}");
    };
    check("", Ok(None));
    check("wg0", Ok(Some("wg0")));
    check("wg0,tun0", Ok(Some("tun0, wg0")));
    check(" wg0  tun0\n", Ok(Some("tun0, wg0")));
    check("wg0, tun0 , wg0", Ok(Some("tun0, wg0")));
    check(" ", Err("none"));
    check(",", Err("none"));
    check("wg0,", Err("wg0"));
    check("wg0,,tun0", Err("tun0, wg0"));
    check("wg0 eth0/ tun0", Err("tun0, wg0"));
}

#[test]
fn what_is_wrong_in_the_key_or_not_read_yet_lets_nothing_leave_that_did_not_before() {
    struct It(World);
    impl It {
        fn new(given: &str, before: &str) -> Self {
            let (uplinks, uplinks_before) = (list(given), list(before));
            Self(World::new(Settings { uplinks, uplinks_before, ..Settings::default() }))
        }

        /// Says what the key says; checks what is in force then, what is told of, and whether the
        /// gate is loaded for that.
        #[track_caller]
        fn key(&mut self, text: &str, expected: Option<&str>, is_wrong: bool, is_other: bool) {
            let effects = step(&mut self.0, Event::Uplinks(Uplinks::parse(text)));
            self.is(text, expected);
            let agent = status_at(&self.0, Moment::BOOT).agent;
            assert_eq!(agent.uplinks_problem.is_some(), is_wrong, "{text:?}");
            if let Some(problem) = agent.uplinks_problem {
                assert!(problem.contains(&format!("`{text}`")), "{problem}");
                assert!(problem.starts_with("/vm-config/firewall-uplinks: "), "{problem}");
            }
            let limits = effects.iter().filter_map(|effect| match effect {
                Effect::LimitUplinks(links) => Some(links.as_ref().map(Uplinks::to_string)),
                _ => None,
            });
            let wanted = is_other.then(|| expected.map(str::to_owned));
            assert_eq!(limits.collect::<Vec<_>>(), Vec::from_iter(wanted), "{text:?}");
            let is = |wanted: fn(&Effect) -> bool| effects.iter().any(wanted);
            assert_eq!(is(|it| matches!(it, Effect::LoadGate)), is_other, "{text:?}");
            assert_eq!(is(|it| matches!(it, Effect::SetServers(_))), is_other, "{text:?}");
            let told = |it: &Effect| matches!(it, Effect::Tell(Notice::Uplinks(_)));
            assert_eq!(effects.iter().any(told), is_other, "{text:?}");
        }

        #[track_caller]
        fn is(&self, name: &str, expected: Option<&str>) {
            let links = status_at(&self.0, Moment::BOOT).agent.uplinks.map(|it| it.names());
            let links = links.map(|it| if it.is_empty() { "none".into() } else { it.join(", ") });
            assert_eq!(links.as_deref(), expected, "{name:?}");
        }

        fn from(&self) -> Vec<UplinksFrom> {
            status_at(&self.0, Moment::BOOT).agent.uplinks.map(|it| it.from).unwrap_or_default()
        }
    }
    use UplinksFrom::{Before, Options, Qubesdb};
    let mut it = It::new("", "");
    it.is("nothing", None);
    it.key("", None, false, false);
    it.key("wg0", Some("wg0"), false, true);
    assert_eq!(it.from(), [Qubesdb]);
    it.key("wg0,eth0/", Some("wg0"), true, false);
    it.key("eth0 eth1/", Some("wg0"), true, false);
    it.key("wg0 tun0", Some("tun0, wg0"), false, true);
    it.key("", None, false, true);
    // Nothing is in force that could stay.
    it.key("wg0 eth0/", Some("wg0"), true, true);
    it.key("", None, false, true);
    it.key(" ", Some("none"), true, true);
    let mut it = It::new("wg0 tun0", "");
    it.is("given", Some("tun0, wg0"));
    assert_eq!(it.from(), [Options]);
    it.key("wg0 eth0", Some("wg0"), false, true);
    assert_eq!(it.from(), [Options, Qubesdb]);
    it.key("eth0", Some("none"), false, true);
    it.key("", Some("tun0, wg0"), false, true);
    it.key("/", Some("none"), true, true);
    let mut it = It::new("", "wg0");
    it.is("not read yet", Some("wg0"));
    assert_eq!(it.from(), [Before]);
    it.key("?", Some("wg0"), true, false);
    it.key("wg0", Some("wg0"), false, false);
    assert_eq!(it.from(), [Qubesdb]);
    it.key("", None, false, true);
}

#[test]
fn what_waits_ends_when_the_gate_has_the_new_list_and_not_before() {
    let listed = |text: &str| Event::Uplinks(Uplinks::parse(text));
    let whole = || Event::Gate(GateLook::Whole(Vec::new()));
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"])]));
    step(&mut world, rules("10.137.0.1", "default drop\n"));
    // Any link will do.
    check(&mut world, whole(), &[]);
    check(&mut world, listed("wg0"), &["uplinks wg0", "gate"]);
    let refused = || Err(Why("no".to_owned()));
    check(&mut world, Event::GateLoaded(refused()), &[]);
    check(&mut world, Event::Gate(GateLook::Changed("other links".to_owned())), &["gate"]);
    let ended = ["blocked 7 10.137.0.1", "end what waits but at wg0"];
    check(&mut world, Event::GateLoaded(Ok(())), &ended);
    check(&mut world, whole(), &[]);
    // Somebody else may have loaded it.
    check(&mut world, listed("wg0 tun0"), &["uplinks tun0, wg0", "gate"]);
    check(&mut world, whole(), &["blocked 7 10.137.0.1", "end what waits but at tun0, wg0"]);
    // It is tried again until it works, and only as long as somebody wants it.
    let outcome = |outcome| Event::Tried { task: Task::EndWaiting, outcome };
    step(&mut world, outcome(refused()));
    let again = ["end what waits but at tun0, wg0"];
    check(&mut world, When(Moment::BOOT + Duration::from_secs(2), Event::Time), &again);
    step(&mut world, outcome(refused()));
    step(&mut world, listed(""));
    check(&mut world, When(Moment::BOOT + Duration::from_secs(20), Event::Time), &[]);
    // Whoever takes the gate away lets something wait.
    let mut world = running();
    check(&mut world, listed("wg0"), &["uplinks wg0", "gate"]);
    let ended = ["end what waits but at wg0"];
    check(&mut world, Event::GateLoaded(Ok(())), &ended);
    check(&mut world, Event::Gate(GateLook::Changed("it is empty".to_owned())), &["gate"]);
    check(&mut world, Event::GateLoaded(Ok(())), &ended);
    // And so does a link with another name; one that comes or goes does not.
    let links = |names: &[(u32, &str)]| {
        let uplinks = names.iter().map(|(index, name)| (*index, (*name).to_owned()));
        Event::Links(Links { uplinks: uplinks.collect(), ..Links::default() })
    };
    let waits = |effects: &[Effect]| effects.iter().any(|it| matches!(it, Effect::EndWaiting(_)));
    for (names, expected) in [
        (&[(2, "eth0"), (3, "wg0")][..], false),
        (&[(2, "eth1"), (3, "wg0")], false),
        (&[(2, "eth1"), (3, "wg1")], true),
        (&[(2, "eth1"), (3, "wg0")], false),
        (&[(2, "eth1")], false),
        (&[(2, "eth1"), (4, "wg0")], false),
    ] {
        assert_eq!(waits(&step(&mut world, links(names))), expected, "{names:?}");
    }
    // A list that is gone is no trouble any more.
    step(&mut world, outcome(refused()));
    step(&mut world, listed(""));
    assert_eq!(problems(&status_at(&world, Moment::BOOT)), 0);
    // What was there before the agent is there.
    let mut world = World::new(Settings { uplinks: list("wg0"), ..Settings::default() });
    check(&mut world, whole(), &["end what waits but at wg0"]);
}

#[test]
fn status_says_by_which_links_packets_leave_which_of_them_there_are_and_who_says_so() {
    let lines = |world: &World| {
        let status = status_at(world, Moment::BOOT);
        let text = text::summary(&status);
        let is_it = |line: &&str| line.contains("leave by") || line.starts_with("PROBLEM");
        let lines = text.lines().filter(is_it).map(str::to_owned).collect::<Vec<_>>();
        (lines, problems(&status))
    };
    let mut world = World::new(Settings { uplinks: list("wg0 tun0"), ..Settings::default() });
    let uplinks = [(2, "eth0".to_owned()), (3, "wg0".to_owned())].into();
    step(&mut world, Event::Links(Links { uplinks, ..Links::default() }));
    let leave = "clients' packets leave by";
    let given = format!("{leave} tun0 (not there), wg0 alone, say --uplinks");
    assert_eq!(lines(&world), (vec![given.clone()], 0));
    let key = "/vm-config/firewall-uplinks";
    step(&mut world, Event::Uplinks(Uplinks::parse("wg0")));
    let both = format!("{leave} wg0 alone, say --uplinks and {key}");
    assert_eq!(lines(&world), (vec![both.clone()], 0));
    step(&mut world, Event::Uplinks(Uplinks::parse("eth0/")));
    let problem = format!(
        "PROBLEM: {key}: `eth0/` is no list of links: `eth0/` is no name of a link: 1 to 15 letters, \
         digits, and `.`, `_`, `-`, `+`, `=`, `@`; until that is mended, nothing leaves by a link by \
         which it did not before"
    );
    assert_eq!(lines(&world), (vec![both, problem], 1));
    step(&mut world, Event::Uplinks(Uplinks::parse("eth0")));
    let none = format!("{leave} no link, say --uplinks and {key}");
    assert_eq!(lines(&world), (vec![none], 0));
    step(&mut world, Event::Uplinks(Uplinks::parse("")));
    assert_eq!(lines(&world), (vec![given], 0));
}
