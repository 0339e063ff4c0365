//! The gate, and in standalone mode NAT: the nftables rules that the agent owns, loaded
//! in one transaction. Clients' rules add nothing to them: what those say is in eBPF.
//! Never touches a table of anybody else, and reads of those only their chains, and where they lead DNS.
//!
//! `nft` is given text on its standard input, as an administrator would; what it has in
//! force can be compared with what is here by `nft list table`.
//!
//! Where nothing closes yet, a bare gate comes first. It needs nothing but nf_tables, so a
//! kernel that cannot take the whole gate stays closed.

mod added;
mod as_printed;
mod between;
mod errors;
mod lacking;
mod listed;
mod listing;
mod mending;
mod nft;
mod redirecting;
mod rules;
mod strict;
mod table;
pub mod trial;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use firewall_core::events::{GateLook, Why};
use firewall_core::uplinks::Uplinks;
use futures_util::stream;
use netlink_proto::sys::protocols::NETLINK_NETFILTER;
use netlink_proto::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::libc::ENOBUFS;
use tracing::warn;

pub use self::between::between;
pub use self::errors::{GateError, Refusal};
pub use self::listed::{is_strict, open_families, uplinks_in_force};
use self::mending::Difference;
pub use self::nft::NftError;
use self::redirecting::not_redirected;
use self::rules::{ANSWERS, FAMILIES, GATE, NAT, STRICT};
use self::table::{Table, removal};
use crate::edges::links::Pattern;
use crate::edges::wait::pace::Changes;

/// The kernel tells here of every change of nftables (`NFNLGRP_NFTABLES` of
/// uapi/linux/netfilter/nfnetlink.h).
const CHANGES: u32 = 7;
/// The gate is looked at no more often than this, whatever others do to their tables.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// How often mending is tried before everything is loaded anew: others may change their rules at the
/// same time.
const MENDING_TRIES: u32 = 8;
/// How long mending is tried at most: meanwhile the agent does nothing else.
const MENDING_PATIENCE: Duration = Duration::from_secs(5);
/// What is in force if nothing was loaded and something closed before.
const FROM_BEFORE: &str = "the one from before stays";

/// Who does network address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Qubes OS does, in `table ip qubes`, which is left alone.
    Qubes,
    /// The agent does, in a table of its own: masquerade, DNS redirection, and no new
    /// connections towards clients.
    Standalone,
    /// Nobody, because nothing is forwarded: this is a Whonix gateway. Rules decide what of its
    /// qubes gets to Tor.
    Whonix,
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
            Mode::Whonix => Self::Whonix,
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
    /// In standalone mode, where DNS goes: from a virtual resolver to a real one.
    pub redirections: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// The only links by which clients' packets may leave; `None`: any.
    pub uplinks: Option<Uplinks>,
    /// Rules of others that were found in front of the agent's: family and name of the table, number
    /// of the rule.
    pub in_front: BTreeSet<(&'static str, &'static str, u64)>,
}

/// How nftables was found.
pub struct Look {
    /// How the gate was found, and in mode standalone NAT.
    pub gate: GateLook,
    /// The virtual resolvers that no rule leads elsewhere; `None` in mode standalone, where the agent
    /// leads them.
    pub not_redirected: Option<Result<BTreeSet<Ipv4Addr>, Why>>,
}

/// Changes of nftables, whoever makes them. Must be called inside a tokio runtime. An error means
/// that the kernel gives no socket that tells of changes.
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
    /// Makes the rules as they should be, in one transaction. What others added to the chains stays
    /// where it was; only if that fails, everything goes and comes anew.
    pub async fn mend(&mut self) -> Result<(), GateError> {
        let begin = Instant::now();
        for _ in 0..MENDING_TRIES {
            if begin.elapsed() > MENDING_PATIENCE {
                break;
            }
            let mut text = self.stray().await.unwrap_or_default();
            for table in self.tables() {
                text += &match listed::list(table.family, table.name).await {
                    Ok(Some(listed)) => mending::text(&table, &listed, |number| {
                        self.in_front.contains(&(table.family, table.name, number))
                    }),
                    Ok(None) | Err(_) => table.text(),
                };
            }
            // What was listed may be gone by now.
            if nft::load(&text).await.is_ok() && self.is_there().await {
                return Ok(());
            }
        }
        warn!(
            "the gate cannot be mended around the rules that others added; all of it is loaded anew"
        );
        self.load().await?;
        match self.is_there().await {
            true => Ok(()),
            false => Err(GateError::Closed {
                why: Box::new(Refusal::Other(NftError::Idle)),
                closed: FROM_BEFORE,
            }),
        }
    }

    /// Whether the rules are found as they should be, as far as `nft` tells: not everything that is
    /// called `nft` does what it is told.
    async fn is_there(&mut self) -> bool {
        !matches!(self.look_at_tables().await, Ok(GateLook::Changed(_)))
    }

    /// Loads the rules in one transaction: what was there before goes as these come. What
    /// closes stays until then, and if nothing does, the bare gate comes first. The error says
    /// what is in force instead.
    pub async fn load(&self) -> Result<(), GateError> {
        let before = self.open().await.map(|open| open.is_empty());
        if let Ok(false) = before {
            self.load_bare().await?;
        }
        let text = self.stray().await.unwrap_or_default() + &self.text();
        let Err(error) = nft::load(&text).await else {
            return self.verify().await;
        };
        if before.is_err() {
            self.load_bare().await?;
        }
        let modules = lacking::modules(&text).await;
        let is_lacking = !modules.is_empty();
        let why = if is_lacking { Refusal::Modules(modules) } else { Refusal::Other(error) };
        let closed = match (before, self.mode) {
            (Ok(true), _) => FROM_BEFORE,
            (Ok(false) | Err(_), Mode::Whonix) => "nothing of clients gets to Tor",
            (Ok(false) | Err(_), Mode::Qubes | Mode::Standalone) => {
                "nothing is forwarded from clients"
            }
        };
        Err(GateError::Closed { why: Box::new(why), closed })
    }

    /// Whether what was loaded is there: not everything that is called `nft` does what it is told.
    async fn verify(&self) -> Result<(), GateError> {
        match self.open().await {
            Ok(open) if open.is_empty() => Ok(()),
            Ok(_) => Err(GateError::Open(NftError::Idle)),
            Err(error) => Err(GateError::Unseen(Box::new(error))),
        }
    }

    async fn load_bare(&self) -> Result<(), GateError> {
        let pattern = self.pattern.as_str();
        let tables = match self.mode {
            Mode::Qubes | Mode::Standalone => {
                FAMILIES.map(|family| rules::bare(family, pattern)).into()
            }
            Mode::Whonix => strict::bare_gate(pattern),
        };
        let text: String = tables.iter().map(Table::text).collect();
        let Err(error) = nft::load(&text).await else {
            return self.verify().await;
        };
        Err(match self.open().await {
            Ok(open) if open.is_empty() => {
                GateError::Closed { why: Box::new(Refusal::Other(error)), closed: FROM_BEFORE }
            }
            Ok(_) => GateError::Open(error),
            Err(_) => GateError::Unknown(error),
        })
    }

    /// Looks at nftables, once: at the agent's tables, and in mode qubes at the chains of others that
    /// may lead DNS.
    pub async fn look(&mut self) -> Look {
        let gate = self.look_at_tables().await;
        let gate = gate.unwrap_or_else(|error| GateLook::Unknown(Why::of(error)));
        let not_redirected = match self.mode {
            Mode::Standalone | Mode::Whonix => None,
            Mode::Qubes => Some(not_redirected().await.map_err(Why::of)),
        };
        Look { gate, not_redirected }
    }

    /// How what is to be in force is found, and whether tables of another mode are there.
    async fn look_at_tables(&mut self) -> Result<GateLook, GateError> {
        match self.look_at_own().await? {
            look @ (GateLook::Whole(_) | GateLook::Appended(_)) => {
                Ok(match self.strays().await?.first() {
                    Some((family, name, mode)) => GateLook::Changed(format!(
                        "table {family} {name}: it belongs to mode {}",
                        mode.name()
                    )),
                    None => look,
                })
            }
            look => Ok(look),
        }
    }

    /// Where nothing of this firewall stops what clients send: `ip`, `ip6`, and in a Whonix gateway
    /// `inet`.
    pub async fn open(&self) -> Result<Vec<&'static str>, GateError> {
        open_families(self.mode == Mode::Whonix).await
    }

    /// Makes exactly these vifs answer what programs denied. Those that are gone have nothing to answer.
    pub async fn answer_denied(vifs: &BTreeSet<String>) -> Result<(), GateError> {
        let there = vifs.iter().filter(|vif| nix::net::if_::if_nametoindex(vif.as_str()).is_ok());
        let vifs: BTreeSet<String> = there.cloned().collect();
        if let Some(listed) = listed::list("netdev", ANSWERS).await?
            && strict::are_answering(&vifs, &listed)
        {
            return Ok(());
        }
        Ok(nft::load(&strict::answers_text(&vifs)).await?)
    }

    /// How what is to be in force is found. What users add to the tables is theirs.
    async fn look_at_own(&mut self) -> Result<GateLook, GateError> {
        let (mut appended, mut added, mut in_front) = (None, Vec::new(), BTreeSet::new());
        for table in self.tables() {
            let Table { family, name, .. } = table;
            let changed = |how| Ok(GateLook::Changed(format!("table {family} {name}: {how}")));
            let listed = match listed::list(family, name).await {
                Ok(Some(listed)) => listed,
                Ok(None) => return changed("there is none".to_owned()),
                Err(GateError::Listing(error)) => return changed(error.to_string()),
                Err(error) => return Err(error),
            };
            let numbers = mending::in_front(&table, &listed).into_iter();
            in_front.extend(numbers.map(|number| (family, name, number)));
            match mending::difference(&table, &listed) {
                Some(Difference::Lost(how)) => return changed(how),
                Some(Difference::Appended(how)) => {
                    appended = Some(format!("table {family} {name}: {how}"));
                }
                None if added::is_any(&listed) => {
                    let text = nft::text(family, name).await?.unwrap_or_default();
                    added.extend(added::rules(&table, &listed, &text));
                }
                None => {}
            }
        }
        self.in_front = in_front;
        Ok(appended.map_or(GateLook::Whole(added), GateLook::Appended))
    }

    /// Removes the gate, so that everything is forwarded that nobody else stops. NAT stays.
    pub async fn remove(&self) -> Result<(), GateError> {
        Ok(nft::load(&FAMILIES.map(|family| removal(family.name, GATE)).concat()).await?)
    }

    /// The rules as text for `nft`.
    pub fn text(&self) -> String {
        self.tables().iter().map(Table::text).collect::<String>()
    }

    /// Text that removes the tables of other modes that there are: a kernel may not know of all their
    /// families.
    async fn stray(&self) -> Result<String, GateError> {
        let strays = self.strays().await?;
        Ok(strays.iter().map(|(family, name, _)| removal(family, name)).collect())
    }

    /// Tables there are of other modes than this one.
    async fn strays(&self) -> Result<Vec<(&'static str, &'static str, Mode)>, GateError> {
        let there = of_one_mode().await?.into_iter();
        Ok(there.filter(|(_, _, mode)| *mode != self.mode).collect())
    }

    fn tables(&self) -> Vec<Table> {
        let Self { mode, pattern, redirections, uplinks, in_front: _ } = self;
        let pattern = pattern.as_str();
        let gates = FAMILIES.iter().map(|family| rules::gate(*family, pattern, uplinks.as_ref()));
        let nat = match mode {
            Mode::Qubes => None,
            Mode::Standalone => Some(rules::nat(pattern, redirections)),
            Mode::Whonix => return strict::gate(pattern),
        };
        gates.chain(nat).collect()
    }
}

/// Tables there are that belong to one mode: family and name of each, and the mode.
async fn of_one_mode() -> Result<Vec<(&'static str, &'static str, Mode)>, GateError> {
    let there = listing::tables().await?;
    let is_there = |family: &str, name: &str| {
        there.iter().any(|(its_family, its_name)| its_family == family && its_name == name)
    };
    let all = [
        ("inet", NAT, Mode::Standalone),
        ("inet", STRICT, Mode::Whonix),
        ("netdev", ANSWERS, Mode::Whonix),
    ];
    Ok(all.into_iter().filter(|(family, name, _)| is_there(family, name)).collect())
}

/// Puts tables in the place of the gate that forward nothing, and removes NAT. In a Whonix gateway,
/// which forwards nothing, what enters it is Whonix' business again, as without this firewall.
pub async fn close() -> Result<(), GateError> {
    let tables = FAMILIES.map(|family| rules::closed(family).text());
    let others = of_one_mode().await?.into_iter().map(|(family, name, _)| removal(family, name));
    nft::load(&(others.collect::<String>() + &tables.concat())).await?;
    // By now the policy is in force.
    let bare = FAMILIES.map(|family| format!("flush chain {} {GATE} forward\n", family.name));
    Ok(nft::load(&bare.concat()).await?)
}
