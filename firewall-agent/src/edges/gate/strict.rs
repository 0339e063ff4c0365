//! The rules of the gate in a Whonix gateway, where nothing is forwarded: what comes from a vif and has
//! no permit comes no further than conntrack, and what a program denied is answered at its vif.
//! Never loads them, and never knows Whonix' own tables.

use std::collections::BTreeSet;

use super::listed::Listed;
use super::listing;
use super::rules::{
    ANSWERS, FAMILIES, FORWARD, FORWARDING, GATE, STRICT, USERS, bare, closing, permitted,
};
use super::table::{Chain, Hook, Rule, Table, removal};

/// Right behind conntrack (-200), which puts fragments together and knows errors; in front of where
/// Whonix leads packets to Tor (-100).
const ENTERING: Hook = Hook { kind: "filter", hook: "prerouting", priority: -199, policy: "drop" };

/// All tables that close.
pub(super) fn gate(pattern: &str) -> Vec<Table> {
    let comment = "The rules of qubes are not here but in eBPF: run `firewall-agent show`";
    let entering = entering(pattern, comment, permitted().into());
    FAMILIES.iter().map(|family| shut(family.name, pattern)).chain([entering]).collect()
}

/// The same of which every kernel with nf_tables is capable: nothing comes in from a vif.
pub(super) fn bare_gate(pattern: &str) -> Vec<Table> {
    let comment = "The whole gate is not there (yet): `firewall-agent status` says why";
    let entering = entering(pattern, comment, Vec::new());
    FAMILIES.iter().map(|family| bare(*family, pattern)).chain([entering]).collect()
}

fn entering(pattern: &str, comment: &'static str, but: Vec<Rule>) -> Table {
    let first = closing(pattern, but);
    let chain = Chain { name: "prerouting", hook: Some(ENTERING), first, last: None };
    Table { family: "inet", name: STRICT, comment, chains: vec![chain] }
}

/// The gate as scripts of users expect it, which forwards nothing from a vif.
fn shut(family: &'static str, pattern: &str) -> Table {
    let first = closing(pattern, []);
    let users = Chain { name: USERS, hook: None, first: Vec::new(), last: None };
    Table {
        family,
        name: GATE,
        comment: "A Whonix gateway forwards nothing: see `table inet qubes-firewall-strict`",
        chains: vec![Chain { name: FORWARD, hook: Some(FORWARDING), first, last: None }, users],
    }
}

/// The rules that answer what a program denied, behind that program: an answer of any later chain would
/// meet Whonix' own chain `output`, and go nowhere. The program makes what it denies a frame for another
/// machine, which the kernel drops behind these chains; it lets no other such frame pass. Nobody
/// answers what is for many, or a part of something. The last rule names the vif for its seal alone: not
/// every nft tells at which device a chain is.
fn answers(vif: &str) -> Vec<Rule> {
    let silent = [
        "meta pkttype != other accept",
        "ip daddr { 224.0.0.0/4, 255.255.255.255 } accept",
        "ip6 daddr ff00::/8 accept",
        "ip frag-off & 0x3fff != 0 accept",
        "exthdr frag exists accept",
    ];
    let reject = format!(
        "iifname \"{vif}\" meta protocol {{ ip, ip6 }} reject with icmpx type admin-prohibited"
    );
    silent.into_iter().map(Rule::plain).chain([Rule::plain(reject)]).collect()
}

/// Text that makes exactly these vifs answer, each by a chain of its own.
pub(super) fn answers_text(vifs: &BTreeSet<String>) -> String {
    let mut text = removal("netdev", ANSWERS);
    text += &format!("table netdev {ANSWERS} {{\n");
    // What a link may be called is more than what a chain may be.
    for (number, vif) in vifs.iter().enumerate() {
        text += &format!("\tchain answer{number} {{\n\t\ttype filter hook ingress device ");
        text += &format!("\"{vif}\" priority 0; policy accept;\n");
        text.extend(answers(vif).iter().map(|rule| format!("\t\t{rule}\n")));
        text += "\t}\n";
    }
    text + "}\n"
}

/// Whether exactly these vifs answer, as far as the table tells.
pub(super) fn are_answering(vifs: &BTreeSet<String>, listed: &Listed) -> bool {
    let is_chain_of = |vif: &str, chain: &listing::Chain| {
        let wanted: Vec<String> = answers(vif).iter().map(Rule::seal).collect();
        let rules = listed.rules.iter().filter(|rule| rule.chain == chain.name);
        let found = rules.map(|rule| rule.seal().map(str::to_owned));
        chain.may_be_at(vif) && found.eq(wanted.into_iter().map(Some))
    };
    let has_chain = |vif: &String| listed.chains.iter().any(|chain| is_chain_of(vif, chain));
    !listed.is_asleep && listed.chains.len() == vifs.len() && vifs.iter().all(has_chain)
}
