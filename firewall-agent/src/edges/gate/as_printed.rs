//! Tables as versions of nft printed them, and that the agent reads the same in all of them. The files
//! are what Debian 12 and 13 print: of `qubes-firewall` in mode standalone with two uplinks and rules of
//! others, of all chains, of a table of others that is asleep, and of `qubes-firewall-answers` at two vifs.
//! Never runs nft.
//!
//! Where they differ: 1.0.6 tells no device of a chain, and 1.1 several in a list; of a table that is
//! asleep 1.0.6 prints any word as its flag; the text of a limit has its burst in 1.1.

#[cfg(test)]
mod pure {
    use std::collections::BTreeSet;

    use firewall_core::uplinks::Uplinks;

    use super::super::between::in_order;
    use super::super::listed::Listed;
    use super::super::listing::chains_in;
    use super::super::rules::{FAMILIES, gate};
    use super::super::{added, mending, strict};

    /// What one version printed.
    struct Printed {
        version: &'static str,
        gate: &'static str,
        gate_in_words: &'static str,
        chains: &'static str,
        asleep: &'static str,
        answers: &'static str,
        /// How it writes that a rule is for a few packets.
        few: &'static str,
    }

    const ALL: [Printed; 2] = [
        Printed {
            version: "1.0.6",
            gate: include_str!("as_printed/nft-1.0.6/gate.json"),
            gate_in_words: include_str!("as_printed/nft-1.0.6/gate.txt"),
            chains: include_str!("as_printed/nft-1.0.6/chains.json"),
            asleep: include_str!("as_printed/nft-1.0.6/asleep.json"),
            answers: include_str!("as_printed/nft-1.0.6/answers.json"),
            few: "limit rate 5/second",
        },
        Printed {
            version: "1.1.3",
            gate: include_str!("as_printed/nft-1.1.3/gate.json"),
            gate_in_words: include_str!("as_printed/nft-1.1.3/gate.txt"),
            chains: include_str!("as_printed/nft-1.1.3/chains.json"),
            asleep: include_str!("as_printed/nft-1.1.3/asleep.json"),
            answers: include_str!("as_printed/nft-1.1.3/answers.json"),
            few: "limit rate 5/second burst 5 packets",
        },
    ];

    fn parse(json: &str) -> Listed {
        Listed::parse(json.as_bytes()).expect("a table")
    }

    #[test]
    fn the_gate_and_what_others_added_are_read_alike() {
        for it in ALL {
            let version = it.version;
            assert!(it.gate.contains(version), "{version}");
            let listed = parse(it.gate);
            assert!(!listed.is_asleep && listed.is_closed("forward"), "{version}");
            let uplinks = ["eth0", "wg0"].map(|name| name.parse().expect("a name"));
            assert_eq!(listed.uplinks(), Some(Uplinks(uplinks.into())), "{version}");
            let wanted = gate(FAMILIES[0], "vif*", None);
            assert_eq!(mending::in_front(&wanted, &listed), [20], "{version}");
            let added = added::rules(&wanted, &listed, it.gate_in_words).into_iter();
            let told: Vec<_> = added.map(|it| (it.chain, it.text, it.warning)).collect();
            let expected = [
                ("forward", "ip saddr 10.137.0.13 drop".to_owned()),
                (
                    "qubes-forward",
                    format!("ip saddr 10.137.0.12 {} counter accept comment \"a few\"", it.few),
                ),
                (
                    "qubes-forward",
                    "iifname \"vif12.0\" ip daddr { 192.0.2.1, 192.0.2.2 } tcp dport { 22, 443 } \
                     accept"
                        .to_owned(),
                ),
            ];
            assert_eq!(told, expected.map(|(chain, text)| (chain.to_owned(), text, None)));
        }
    }

    #[test]
    fn a_table_that_is_asleep_is_known_as_such() {
        for it in ALL {
            let listed = parse(it.asleep);
            assert!(listed.is_asleep, "{}", it.version);
            assert_eq!((listed.chains.len(), listed.rules.len()), (1, 2), "{}", it.version);
        }
    }

    #[test]
    fn chains_of_others_are_read_whatever_devices_they_are_at() {
        for it in ALL {
            let chains = chains_in(it.chains.as_bytes()).expect("chains");
            assert_eq!(chains.iter().filter(|it| it.family == "netdev").count(), 2);
            let told: Vec<String> = in_order(chains).iter().map(ToString::to_string).collect();
            let expected = ["prerouting, priority -100: table ip others, chain dnat-dns"];
            assert_eq!(told, expected, "{}", it.version);
        }
    }

    #[test]
    fn vifs_that_answer_are_known_where_no_device_is_told() {
        for it in ALL {
            let check = |json: &str, vifs: &[&str], expected: bool| {
                let vifs: BTreeSet<String> = vifs.iter().map(|&vif| vif.to_owned()).collect();
                let found = strict::are_answering(&vifs, &parse(json));
                assert_eq!(found, expected, "{} {vifs:?}", it.version);
            };
            check(it.answers, &["vif12.0", "vif13.0"], true);
            check(it.answers, &["vif12.0", "vif14.0"], false);
            check(it.answers, &["vif12.0"], false);
            check(it.answers, &["vif12.0", "vif13.0", "vif14.0"], false);
            check(it.answers, &[], false);
            // Where devices are told, they count.
            let elsewhere = it.answers.replace(r#""dev": "vif13.0""#, r#""dev": "eth0""#);
            check(&elsewhere, &["vif12.0", "vif13.0"], elsewhere == it.answers);
            let several = r#""dev": ["vif13.0", "eth0"]"#;
            let several = it.answers.replace(r#""dev": "vif13.0""#, several);
            check(&several, &["vif12.0", "vif13.0"], several == it.answers);
        }
    }
}
