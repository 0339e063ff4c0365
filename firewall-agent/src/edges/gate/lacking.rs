//! Which modules of nftables the kernel lacks, if it refused the gate.
//! Never changes anything: `nft` is told to check only.

use super::nft;

/// What rules may say, a table that needs nothing else for it, and the module behind it.
const EXPRESSIONS: [(&str, &str, &str); 6] = [
    ("ct ", "table ip firewall-agent { chain probe { ct direction reply; }; }", "nft_ct"),
    (
        "reject with icmp ",
        "table ip firewall-agent { chain probe { reject with icmp type admin-prohibited; }; }",
        "nft_reject_ipv4",
    ),
    (
        "reject with icmpv6 ",
        "table ip6 firewall-agent { chain probe { reject with icmpv6 type admin-prohibited; }; }",
        "nft_reject_ipv6",
    ),
    (
        "type nat ",
        "table inet firewall-agent { chain probe { type nat hook postrouting priority srcnat; }; }",
        "nft_chain_nat",
    ),
    ("masquerade", "table inet firewall-agent { chain probe { masquerade; }; }", "nft_masq"),
    ("dnat ", "table inet firewall-agent { chain probe { dnat ip to 192.0.2.1; }; }", "nft_nat"),
];

/// The modules without which the kernel does not take what is in this text.
pub(super) async fn modules(text: &str) -> Vec<&'static str> {
    let mut lacking = Vec::new();
    for (words, table, module) in EXPRESSIONS {
        if text.contains(words) && !nft::is_loadable(table).await {
            lacking.push(module);
        }
    }
    lacking
}
