//! The gate, and in standalone mode NAT: the nftables rules that the agent owns, loaded
//! in one transaction. They never grow: whatever clients' rules say is in eBPF.
//! Never reads or touches a table of anybody else.
//!
//! `nft` is given text on its standard input, as an administrator would; what it has in
//! force can be compared with what is here by `nft list table`.

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

use crate::links::Pattern;
use crate::pace::Changes;
use crate::rules::resolve::VIRTUAL_RESOLVERS;

/// The kernel tells here of every change of nftables (`NFNLGRP_NFTABLES` of
/// uapi/linux/netfilter/nfnetlink.h).
const CHANGES: u32 = 7;
/// The gate is looked at no more often than this, whatever others do to their tables.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

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
        match self {
            Self::Qubes => "qubes",
            Self::Standalone => "standalone",
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

/// The gate could not be loaded; what was in force before still is.
#[derive(Debug, Error)]
pub enum GateError {
    /// No `nft`, or it cannot be talked to.
    #[error("cannot run `nft`: {0}")]
    Start(#[from] io::Error),
    /// `nft` refused.
    #[error("`nft` says: {0}")]
    Refused(String),
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

impl Gate {
    /// Loads the rules in one transaction: what was there before goes as these come.
    pub async fn load(&self) -> Result<(), GateError> {
        run(&self.text()).await
    }

    /// Whether the rules are in force, or somebody removed them. Looks at what keeps the
    /// gate closed; what users add to the tables is theirs.
    pub async fn is_loaded(&self) -> Result<bool, GateError> {
        let mark = format!("{:#010x}", self.mark_bit);
        for family in ["ip", "ip6"] {
            let list = ["list", "table", family, "qubes-firewall"];
            let output = Command::new("nft").args(list).kill_on_drop(true).output().await?;
            let text = String::from_utf8_lossy(&output.stdout);
            if !text.contains("policy drop") || !text.contains(&mark) || !text.contains("reject") {
                return Ok(false);
            }
        }
        if self.mode == Mode::Qubes {
            return Ok(true);
        }
        let list = ["list", "table", "inet", "qubes-firewall-nat"];
        let output = Command::new("nft").args(list).kill_on_drop(true).output().await?;
        Ok(output.status.success())
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
        run(&text).await
    }

    /// The rules as nftables writes them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write_gate(&mut text, "ip", "icmp");
        self.write_gate(&mut text, "ip6", "icmpv6");
        // In any mode the table of the other mode must not stay behind.
        text.push_str("table inet qubes-firewall-nat {}\ndelete table inet qubes-firewall-nat\n");
        match self.mode {
            Mode::Qubes => {}
            Mode::Standalone => self.write_nat(&mut text),
        }
        text
    }

    /// The well-known names are Qubes': users' scripts use the chains `forward` and
    /// `qubes-forward`, so both judge by the mark. No packet gets as far as the policy: it is
    /// in force later than the rules ([`close`]).
    fn write_gate(&self, text: &mut String, family: &str, icmp: &str) {
        let Self { pattern, mark_bit, .. } = self;
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
		{mark} comment "accepted by a qube's rules"
		iifname != "{pattern}" accept comment "not from a qube"
		ct direction reply accept comment "answers to connections towards a qube"
		meta l4proto {icmp} ct state related accept comment "errors about known connections"
		jump qubes-forward
	}}
	chain qubes-forward {{
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
    run(&text).await?;
    run(&bare).await
}

/// Has `nft` carry out a text, as a whole or not at all.
async fn run(text: &str) -> Result<(), GateError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
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
