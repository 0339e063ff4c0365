//! The gate, and in standalone mode NAT: the nftables rules that the agent owns, loaded
//! in one transaction. They never grow: whatever clients' rules say is in eBPF.
//! Never reads or touches a table of anybody else.
//!
//! `nft` is given text on its standard input, as an administrator would; what it has in
//! force can be compared with what is here by `nft list table`.
//!
//! Where nothing closes yet, a bare gate comes first. It needs nothing but nf_tables, so a
//! kernel that cannot take the whole gate stays closed.

mod lacking;
mod listed;

use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use futures_util::stream;
use netlink_proto::sys::protocols::NETLINK_NETFILTER;
use netlink_proto::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::libc::ENOBUFS;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

pub use self::listed::{Table, open_families};
use crate::edges::links::Pattern;
use crate::edges::wait::pace::Changes;
use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;

/// The kernel tells here of every change of nftables (`NFNLGRP_NFTABLES` of
/// uapi/linux/netfilter/nfnetlink.h).
const CHANGES: u32 = 7;
/// The gate is looked at no more often than this, whatever others do to their tables.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The table of mode standalone.
const NAT: &str = "qubes-firewall-nat";

/// Who does network address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Qubes OS does, in `table ip qubes`, which is left alone.
    Qubes,
    /// The agent does, in a table of its own: masquerade, DNS redirection, and no new
    /// connections towards clients.
    Standalone,
}

impl Mode {
    /// The word that people read.
    pub fn name(self) -> &'static str {
        firewall_core::told::status::Mode::from(self).name()
    }
}

impl From<Mode> for firewall_core::told::status::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Qubes => Self::Qubes,
            Mode::Standalone => Self::Standalone,
        }
    }
}

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Who does network address translation.
    pub mode: Mode,
    /// Which links are vifs.
    pub pattern: Pattern,
    /// Mask with the one bit that marks accepted packets.
    pub mark_bit: u32,
    /// In standalone mode, where DNS to the virtual resolvers goes.
    pub redirections: Vec<(Ipv4Addr, Ipv4Addr)>,
}

/// `nft` did not do what it was asked for.
#[derive(Debug, Error)]
pub enum GateError {
    /// No `nft`, or it cannot be talked to.
    #[error("cannot run `nft`: {0}; is nftables installed?")]
    Start(#[from] io::Error),
    /// `nft` refused.
    #[error("`nft` says: {0}")]
    Refused(String),
    /// What it lists is not understood.
    #[error("what `nft -j list table` prints is not understood: {0}")]
    Listing(#[from] serde_json::Error),
    /// The gate was refused, and a closed one is in force.
    #[error("{why}; the gate in force is closed: {closed}")]
    Closed {
        /// What was wrong with the gate.
        why: Box<Refusal>,
        /// What is in force instead.
        closed: &'static str,
    },
    /// The gate was refused, and nothing else closes.
    #[error("OPEN, nothing stops what clients send: {0}")]
    Open(Box<GateError>),
    /// The gate was refused, and nobody knows what is in force.
    #[error("whether anything stops what clients send is NOT KNOWN: {0}")]
    Unknown(Box<GateError>),
}

/// Why the kernel did not take the gate.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Modules that it needs are not there.
    #[error(
        "the kernel has no {}: load what is missing with `modprobe`, or boot a kernel that \
         has it", .0.join(", ")
    )]
    Modules(Vec<&'static str>),
    /// For another reason.
    #[error(transparent)]
    Other(GateError),
}

/// Changes of nftables, whoever makes them. Must be called inside a tokio runtime.
pub fn changes() -> io::Result<Changes> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(CHANGES)?;
    let told = stream::unfold(socket, async |socket| match socket.recv_from_full().await {
        Ok(_) => Some(((), socket)),
        // There were more than there was room for.
        Err(error) if error.raw_os_error() == Some(ENOBUFS) => Some(((), socket)),
        Err(_) => None,
    });
    Ok(Changes::new(Box::pin(told), BETWEEN_LOOKS))
}

/// The words of a family of addresses.
struct Family {
    family: &'static str,
    /// The protocol whose errors answer what is rejected.
    icmp: &'static str,
    /// Matches what connection tracking takes for errors (`icmp_is_err` in uapi/linux/icmp.h,
    /// `nf_conntrack_icmpv6_error` in net/netfilter/nf_conntrack_proto_icmpv6.c).
    errors: &'static str,
}

const IPV4: Family = Family {
    family: "ip",
    icmp: "icmp",
    errors: "meta l4proto icmp icmp type { 3, 4, 5, 11, 12 }",
};
const IPV6: Family =
    Family { family: "ip6", icmp: "icmpv6", errors: "meta l4proto icmpv6 icmpv6 type < 128" };

impl Gate {
    /// Loads the rules in one transaction: what was there before goes as these come. What
    /// closes stays until then, and if nothing does, the bare gate comes first.
    pub async fn load(&self) -> Result<(), GateError> {
        let before = open_families().await.map(|open| open.is_empty());
        if let Ok(false) = before {
            self.load_bare().await?;
        }
        let text = self.text();
        let Err(error) = run(&LOAD, &text).await else {
            return Ok(());
        };
        if before.is_err() {
            self.load_bare().await?;
        }
        let modules = lacking::modules(&text).await;
        let is_lacking = !modules.is_empty();
        let why = if is_lacking { Refusal::Modules(modules) } else { Refusal::Other(error) };
        let closed = match before {
            Ok(true) => FROM_BEFORE,
            Ok(false) | Err(_) => "nothing is forwarded from clients",
        };
        Err(GateError::Closed { why: Box::new(why), closed })
    }

    async fn load_bare(&self) -> Result<(), GateError> {
        let Err(error) = run(&LOAD, &self.bare()).await else {
            return Ok(());
        };
        let error = Box::new(error);
        Err(match open_families().await {
            Ok(open) if open.is_empty() => {
                GateError::Closed { why: Box::new(Refusal::Other(*error)), closed: FROM_BEFORE }
            }
            Ok(_) => GateError::Open(error),
            Err(_) => GateError::Unknown(error),
        })
    }

    /// What somebody changed of what is to be in force; nothing if all of it is there. What
    /// users add to the tables is theirs.
    pub async fn difference(&self) -> Result<Option<String>, GateError> {
        for (family, name, text) in self.tables() {
            let found = match list(family, name).await {
                Ok(None) => Some("there is none".to_owned()),
                Ok(Some(table)) => table.difference(&seal(&text), &rules_of(&text)),
                Err(GateError::Listing(error)) => Some(error.to_string()),
                Err(error) => return Err(error),
            };
            if let Some(found) = found {
                return Ok(Some(format!("table {family} {name}: {found}")));
            }
        }
        let is_stray = self.mode == Mode::Qubes && list("inet", NAT).await?.is_some();
        Ok(is_stray.then(|| format!("table inet {NAT}: it belongs to mode standalone")))
    }

    /// Removes the gate, so that everything is forwarded that nobody else stops.
    pub async fn remove(&self) -> Result<(), GateError> {
        let families = ["ip", "ip6"];
        let text: String = families
            .map(|family| {
                let table = format!("{family} qubes-firewall");
                format!("table {table} {{}}\ndelete table {table}\n")
            })
            .concat();
        run(&LOAD, &text).await
    }

    /// The rules as nftables writes them.
    pub fn text(&self) -> String {
        // In any mode the table of the other mode must not stay behind.
        let mut text = format!("table inet {NAT} {{}}\ndelete table inet {NAT}\n");
        for (_, _, table) in self.tables() {
            text.push_str(&sealed(&table));
        }
        text
    }

    /// Family, name and text of each table.
    fn tables(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut tables = Vec::new();
        for family in [IPV4, IPV6] {
            let mut text = String::new();
            self.write_gate(&mut text, &family);
            tables.push((family.family, "qubes-firewall", text));
        }
        match self.mode {
            Mode::Qubes => {}
            Mode::Standalone => {
                let mut text = String::new();
                self.write_nat(&mut text);
                tables.push(("inet", NAT, text));
            }
        }
        tables
    }

    /// A gate of which every kernel with nf_tables is capable: what comes from a vif goes
    /// nowhere.
    fn bare(&self) -> String {
        let pattern = self.pattern.as_str();
        let families = ["ip", "ip6"].map(|family| {
            format!(
                r#"table {family} qubes-firewall {{}}
delete table {family} qubes-firewall
table {family} qubes-firewall {{
	comment "The whole gate is not there (yet): `firewall-agent status` says why"
	chain forward {{
		type filter hook forward priority filter; policy drop;
		iifname != "{pattern}" accept comment "not from a qube"
		drop
	}}
}}
"#
            )
        });
        families.concat()
    }

    /// The well-known names are Qubes': users' scripts use the chains `forward` and
    /// `qubes-forward`, so both judge by the mark. No packet gets as far as the policy: it is
    /// in force later than the rules ([`close`]).
    ///
    /// An ICMP error that has the mark is about a packet to its sender; whether there was such a
    /// packet, connection tracking knows. `established` tells answers from errors: those are
    /// `related`, in the direction of the packet that met them.
    fn write_gate(&self, text: &mut String, family: &Family) {
        let Self { pattern, mark_bit, .. } = self;
        let Family { family, icmp, errors } = family;
        let pattern = pattern.as_str();
        let mark = format!("meta mark & {mark_bit:#010x} != 0 accept");
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"table {family} qubes-firewall {{}}
delete table {family} qubes-firewall
table {family} qubes-firewall {{
	comment "The rules of qubes are not here but in eBPF: run `firewall-agent show`"
	chain forward {{
		type filter hook forward priority filter; policy drop;
		{errors} iifname "{pattern}" ct state != related drop comment "errors about no known connection"
		{mark} comment "accepted by a qube's rules"
		iifname != "{pattern}" accept comment "not from a qube"
		ct state established ct direction reply accept comment "answers to connections towards a qube"
		jump qubes-forward
	}}
	chain qubes-forward {{
		{errors} ct state != related drop
		{mark}
		reject with {icmp} type admin-prohibited
	}}
}}
"#
        );
    }

    fn write_nat(&self, text: &mut String) {
        let Self { pattern, mark_bit, redirections, .. } = self;
        let pattern = pattern.as_str();
        let mut redirect = String::new();
        for (virtual_resolver, real) in redirections {
            for protocol in ["udp", "tcp"] {
                let _ = write!(
                    redirect,
                    "\n\t\tiifname \"{pattern}\" ip daddr {virtual_resolver} {protocol} dport 53 \
                     dnat ip to {real}"
                );
            }
        }
        if redirections.is_empty() {
            // Nobody upstream is to see what was meant for a resolver that does not exist.
            for virtual_resolver in VIRTUAL_RESOLVERS {
                let _ = write!(
                    redirect,
                    "\n\t\tiifname \"{pattern}\" ip daddr {virtual_resolver} \
                     meta l4proto {{ tcp, udp }} th dport 53 drop"
                );
            }
        }
        let _ = write!(
            text,
            r#"table inet qubes-firewall-nat {{
	comment "Loaded by firewall-agent in standalone mode; on Qubes OS `table ip qubes` does this"
	chain dnat-dns {{
		type nat hook prerouting priority dstnat; policy accept;{redirect}
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		ct state invalid drop comment "cannot be translated, so must not leave"
		ct state established,related accept
		oifname "{pattern}" drop comment "no new connections towards qubes"
	}}
	chain translate {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "{pattern}" meta mark & {mark_bit:#010x} != 0 masquerade
	}}
}}
"#
        );
    }
}

/// Puts tables in the place of the gate that forward nothing.
///
/// The kernel has a new chain accept by its policy until the whole transaction is in force,
/// and has by then taken the old chain away (`nft_chain_commit_drop_policy` in
/// net/netfilter/nf_tables_api.c). A rule is in force at once; it goes when the policy is.
pub async fn close() -> Result<(), GateError> {
    let mut text =
        "table inet qubes-firewall-nat {}\ndelete table inet qubes-firewall-nat\n".to_owned();
    let mut bare = String::new();
    for family in ["ip", "ip6"] {
        let _ = write!(
            text,
            r#"table {family} qubes-firewall {{}}
delete table {family} qubes-firewall
table {family} qubes-firewall {{
	chain forward {{
		type filter hook forward priority filter; policy drop;
		drop
	}}
}}
"#
        );
        let _ = writeln!(bare, "flush chain {family} qubes-firewall forward");
    }
    run(&LOAD, &text).await?;
    run(&LOAD, &bare).await
}

/// Lines of rules in a table's text, with the name of their chain.
fn rule_lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut chain = "";
    text.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix("\tchain ") {
            chain = name.trim_end_matches(" {");
        }
        let rule = line.strip_prefix("\t\t")?;
        (!rule.starts_with("type ")).then_some((chain, rule))
    })
}

/// How many rules each chain has.
fn rules_of(text: &str) -> Vec<(String, usize)> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("\tchain ")) {
        let name = line.trim_end_matches(" {");
        let rules = rule_lines(text).filter(|(chain, _)| *chain == name).count();
        counted.push((name.to_owned(), rules));
    }
    counted
}

/// What the comment of a table's last rule says, by which the table is known again: another
/// text has another seal (FNV-1a, which is the same in every version of the agent).
fn seal(text: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("the last rule of gate {hash:016x}")
}

/// The text with its seal at its last rule.
fn sealed(text: &str) -> String {
    let Some((_, last)) = rule_lines(text).last() else {
        return text.to_owned();
    };
    match text.rfind(last) {
        Some(at) => {
            let (before, after) = text.split_at(at + last.len());
            let seal = seal(text);
            match before.strip_suffix('"') {
                Some(before) => format!("{before}; {seal}\"{after}"),
                None => format!("{before} comment \"{seal}\"{after}"),
            }
        }
        None => text.to_owned(),
    }
}

const FROM_BEFORE: &str = "the one from before stays";

/// How `nft` is told to load a text.
const LOAD: [&str; 2] = ["-f", "-"];

/// A table as it is in force; `None` if there is none.
async fn list(family: &str, name: &str) -> Result<Option<Table>, GateError> {
    // Messages are to be those of everywhere.
    let output = Command::new("nft")
        .args(["-j", "list", "table", family, name])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(Some(Table::parse(&output.stdout)?));
    }
    let says = String::from_utf8_lossy(&output.stderr);
    match says.contains("No such file or directory") {
        true => Ok(None),
        false => Err(GateError::Refused(says.trim().to_owned())),
    }
}

/// Has `nft` carry out a text, as a whole or not at all.
async fn run(arguments: &[&str], text: &str) -> Result<(), GateError> {
    let mut nft = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = nft.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(GateError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
