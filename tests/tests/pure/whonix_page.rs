//! What docs/whonix.md says of ports and addresses of a gateway, against the rig's own tables.
//! Never starts anything.

use std::fs;
use std::path::Path;

use firewall_tests::whonix::tables::{CONTROL_PORT, DNS_PORT, OWN_DNS_PORT, SOCKS, TRANS_PORT};

#[test]
fn the_page_about_whonix_names_its_ports_and_addresses() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/whonix.md");
    let page = fs::read_to_string(path).expect("docs/whonix.md");
    let range = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let socks = SOCKS.map(range).join(", ");
    let words = [
        format!("ports {socks} |"),
        format!("TransPort ({TRANS_PORT})"),
        format!("DNSPort ({DNS_PORT})"),
        format!("port {CONTROL_PORT}"),
        format!("loopback, port {OWN_DNS_PORT}"),
    ];
    for word in &words {
        assert!(page.contains(word), "docs/whonix.md does not say `{word}`");
    }
    for (address, length) in firewall_core::tor::ADDRESSES {
        let network = format!("{address}/{length}");
        let is_there = page.contains(&network) || page.contains(&address.to_string());
        assert!(is_there, "docs/whonix.md does not name {network}");
    }
}
