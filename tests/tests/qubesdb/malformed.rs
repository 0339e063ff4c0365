//! Everything that is known to have gone wrong with rules: each blocks its own client, says
//! why, and touches nobody else.

use super::scene::{ACCEPT, ONE, Scene, TWO};

/// Writes rules of one client beside those of another, both anew.
#[track_caller]
fn check(scene: &mut Scene, policy: &str, rules: &[(&str, &[u8])], expected: &str) {
    scene.server.reload(ONE, policy, rules);
    assert_eq!(scene.next(), format!("{ONE}: {expected}"));
    scene.server.reload(TWO, "drop", ACCEPT);
    assert_eq!(scene.next(), format!("{TWO}: drop 0000"));
}

/// One rule of one client.
#[track_caller]
fn check_rule(scene: &mut Scene, rule: &str, expected: &str) {
    check(
        scene,
        "drop",
        &[("0000", rule.as_bytes())],
        &expected.replace("KEY", "/qubes-firewall/10.137.0.1/0000"),
    );
}

#[test]
fn every_malformed_value_blocks_its_own_client_and_says_why() {
    let mut scene = Scene::new(|_| {});
    scene.until("all");
    let scene = &mut scene;
    let tree = "error /qubes-firewall/10.137.0.1";
    check(
        scene,
        "reject",
        ACCEPT,
        &format!("{tree}/policy: `reject` is neither `accept` nor `drop` in `reject`"),
    );
    check(scene, "", ACCEPT, &format!("{tree}/policy: `` is neither `accept` nor `drop`"));
    for key in ["00000", "abcd", "0000/x", "10000", "000", "+001"] {
        let expected =
            format!("{tree}/{key}: `{key}` is neither `policy` nor four digits in `action=accept`");
        check(scene, "drop", &[(key, b"action=accept")], &expected);
    }
    check_rule(scene, "proto=tcp", "error KEY: a rule starts with `action=` in `proto=tcp`");
    check_rule(
        scene,
        "action=maybe",
        "error KEY: `maybe` is neither `accept` nor `drop` in `action=maybe`",
    );
    for option in ["foo", "expire", "comment", "dpi"] {
        check_rule(
            scene,
            &format!("action=accept {option}=1"),
            &format!("error KEY: unknown option `{option}` in `action=accept {option}=1`"),
        );
    }
    let empty = "error KEY: an option is empty: options are separated by exactly one space";
    check_rule(scene, "", empty);
    for text in ["action=accept  proto=tcp", "action=accept ", " action=accept"] {
        check_rule(scene, text, &format!("{empty} in `{text}`"));
    }
    check_rule(
        scene,
        "action=accept tcp",
        "error KEY: `tcp` is not of the form option=value in `action=accept tcp`",
    );
    check_rule(
        scene,
        "action=accept dst4=1.2.3.4=5",
        "error KEY: `1.2.3.4=5` is not a network of the form address/prefix-length in `action=accept dst4=1.2.3.4=5`",
    );
    check_rule(
        scene,
        "action=accept action=drop",
        "error KEY: the option `action` stands twice in `action=accept action=drop`",
    );
    for proto in ["sctp", "47", "bogus"] {
        check_rule(
            scene,
            &format!("action=accept proto={proto}"),
            &format!(
                "error KEY: `{proto}` is not one of tcp, udp and icmp in `action=accept proto={proto}`"
            ),
        );
    }
    for good in [
        "dst4=192.168.1.77/24",
        "dst4=0.0.0.0/0",
        "dst4=192.0.2.1",
        "dsthost=a.example",
        "proto=tcp dstports=80-80",
        "proto=tcp dstports=80",
        "dstports=0-65535",
        "icmptype=8",
        "specialtarget=dns",
        "specialtarget=dns dstports=53-53",
        "specialtarget=dns dstports=54-54",
    ] {
        check_rule(scene, &format!("action=accept {good}"), "drop 0000");
    }
    for network in ["1.2.3.400/32", "host.example", "1.2.3.4/33", ""] {
        check_rule(
            scene,
            &format!("action=accept dst4={network}"),
            &format!(
                "error KEY: `{network}` is not a network of the form address/prefix-length in `action=accept dst4={network}`"
            ),
        );
    }
    check_rule(
        scene,
        "action=accept dst6=2001:db8::/32",
        "error KEY: 2001:db8::/32 in the rules of an IPv4 client in `action=accept dst6=2001:db8::/32`",
    );
    check_rule(
        scene,
        "action=accept dst4=192.0.2.1/32 dsthost=a.example",
        "error KEY: more than one of dst4, dst6 and dsthost in `action=accept dst4=192.0.2.1/32 dsthost=a.example`",
    );
    for name in ["", ".", ".a", "1.2", "01.2.3.4", "a b", "A.example", "*.example", "ex\u{e4}mple"]
    {
        if !name.contains(' ') {
            check_rule(
                scene,
                &format!("action=accept dsthost={name}"),
                &format!(
                    "error KEY: `{name}` is not a host name in `action=accept dsthost={name}`"
                ),
            );
        }
    }
    for ports in ["90-80", "65536", "http", "1-65536", "", "-1"] {
        check_rule(
            scene,
            &format!("action=accept proto=tcp dstports={ports}"),
            &format!(
                "error KEY: `{ports}` is not a port or a range of ports in `action=accept proto=tcp dstports={ports}`"
            ),
        );
    }
    check_rule(
        scene,
        "action=accept proto=icmp dstports=80-80",
        "error KEY: proto=icmp does not go with dstports in `action=accept proto=icmp dstports=80-80`",
    );
    check_rule(
        scene,
        "action=accept proto=icmp icmptype=300",
        "error KEY: `300` is not a number from 0 to 255 in `action=accept proto=icmp icmptype=300`",
    );
    check_rule(
        scene,
        "action=accept proto=icmp specialtarget=dns",
        "error KEY: proto=icmp does not go with specialtarget=dns in `action=accept proto=icmp specialtarget=dns`",
    );
    check_rule(
        scene,
        "action=accept specialtarget=foo",
        "error KEY: unknown special target `foo` in `action=accept specialtarget=foo`",
    );
    check_rule(
        scene,
        "action=accept dst4=192.0.2.1/32; drop",
        "error KEY: `192.0.2.1/32;` is not a network of the form address/prefix-length in `action=accept dst4=192.0.2.1/32; drop`",
    );
    check(
        scene,
        "drop",
        &[("0000", b"action=accept dsthost=\xff\xfe")],
        &format!(
            "{tree}/0000: cannot be read: not UTF-8 text in `action=accept dsthost=\u{fffd}\u{fffd}`"
        ),
    );
    check_rule(
        scene,
        "action=accept dsthost=\u{e9}",
        "error KEY: `\u{e9}` is not a host name in `action=accept dsthost=\u{e9}`",
    );
    // No `policy` at all.
    scene.server.remove("/qubes-firewall/10.137.0.1/");
    scene.server.write("/qubes-firewall/10.137.0.1/0000", b"action=accept");
    scene.server.write("/qubes-firewall/10.137.0.1", b"");
    assert_eq!(scene.next(), format!("{ONE}: {tree}: there is no `policy`"));
    scene.server.remove("/qubes-firewall/10.137.0.1/");
    scene.server.write("/qubes-firewall/10.137.0.1", b"");
    assert_eq!(scene.next(), format!("{ONE}: {tree}: there is no `policy`"));
    // After all of that, good rules are good rules, and nothing was lost on the way.
    check(scene, "drop", ACCEPT, "drop 0000");
}
