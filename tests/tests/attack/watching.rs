//! The ring itself: what it is meant to see is seen, and an attacker that does nothing is not
//! blamed.

use firewall_tests::attack::content::{Content, Port};
use firewall_tests::attack::frame::Packet;
use firewall_tests::attack::place::Place;
use firewall_tests::attack::sequence::{Rules, Sequence, Step};
use firewall_tests::packets::family::{Family, PerFamily as _};

use super::play::check;

fn plain(family: Family) -> Packet {
    Packet::new(family, Place::Nobody, Content::Udp(Port::Marked, 100))
}

#[test]
fn plain_packets_pass_and_are_counted_while_the_attacker_is_open_or_audited() {
    let steps = |opening: [Step; 2]| {
        let sends = Family::BOTH.map(|family| Step::Send(vec![plain(family).into(); 5]));
        opening.into_iter().chain(sends)
    };
    check(
        "attack_plain",
        &[
            Sequence::new("nothing", []),
            Sequence::new("open", steps([Step::Rules(Rules::Accept), Step::Start])),
            Sequence::new("audited", steps([Step::Start, Step::Audit(true)])),
            Sequence::new("closed", steps([Step::Start, Step::Audit(false)])),
        ],
    );
}
