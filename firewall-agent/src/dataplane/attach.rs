//! Where programs are attached, and the pins that keep them there.
//! Never detaches what polices a vif without putting another in its place, unless the
//! firewall is to be opened.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc};
use tracing::warn;

use super::pins::{
    entries, link_name, pin_directory, pin_link, pinned, remove_pin, subdirectories,
};
use super::{Attach, Dataplane, DataplaneError, early};

/// Priority and handle of the clsact filter. Fixed, so that a new agent replaces the
/// filter of an earlier one instead of adding another.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// A program, and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Ingress of a vif.
    FromClient,
    /// Ingress of any other link.
    FromUplink,
    /// Egress of any other link.
    ToUplink,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::FromClient, Self::FromUplink, Self::ToUplink];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FromClient => "from_client",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::FromClient | Self::FromUplink => TcAttachType::Ingress,
            Self::ToUplink => TcAttachType::Egress,
        }
    }

    pub(super) fn of(self, ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DataplaneError> {
        let program = ebpf.program_mut(self.name()).ok_or(DataplaneError::NoObject)?;
        Ok(program.try_into()?)
    }
}

/// Names of all programs that links lead to.
fn names() -> impl Iterator<Item = &'static str> {
    Program::ALL.into_iter().map(Program::name).chain([early::NAME])
}

/// What is attached to a link.
pub(super) struct Attachment {
    how: Attach,
    /// The link of tcx, as long as there is no place to pin it.
    held: Option<FdLink>,
}

impl Dataplane {
    /// Attaches the program to a vif, or takes over what an earlier agent attached there,
    /// without a moment between the old program and the new one. Returns how, in words.
    pub fn attach(&mut self, vif: u32, name: &str) -> Result<String, DataplaneError> {
        let how = self.attach_program(Program::FromClient, vif, name)?.name();
        if self.attach_early(vif, name) { Ok(format!("xdp, {how}")) } else { Ok(how.to_owned()) }
    }

    /// The same for the programs that guard clients' addresses on any other link.
    pub fn attach_uplink(&mut self, uplink: u32, name: &str) -> Result<String, DataplaneError> {
        self.attach_program(Program::FromUplink, uplink, name)?;
        Ok(self.attach_program(Program::ToUplink, uplink, name)?.name().to_owned())
    }

    fn attach_program(
        &mut self,
        program: Program,
        link: u32,
        name: &str,
    ) -> Result<Attach, DataplaneError> {
        // aya looks the interface up by name; it must be the same before and after.
        expect_index(name, link)?;
        let attachment = match self.options.attach {
            Attach::Tcx => self.attach_tcx(program, link, name),
            Attach::Clsact => self.attach_clsact(program, name),
            Attach::Auto => self
                .attach_tcx(program, link, name)
                .or_else(|refused| self.attach_clsact(program, name).map_err(|_| refused)),
        }?;
        let how = attachment.how;
        self.attached.insert((program, link), attachment);
        expect_index(name, link)?;
        self.detach_others(program, link, name, how)?;
        Ok(how)
    }

    /// Removes what an earlier agent attached in another way: it would judge by rules of
    /// the past, and if it came last, have the last word.
    fn detach_others(
        &self,
        program: Program,
        link: u32,
        name: &str,
        how: Attach,
    ) -> Result<(), DataplaneError> {
        for version in subdirectories(&self.options.pins)? {
            let is_own = version == self.links && how == Attach::Tcx;
            if !is_own {
                remove_pin(&version.join(link_name(program.name(), link)))?;
            }
        }
        if how == Attach::Tcx {
            // Mostly there is none.
            let _ = tc::qdisc_detach_program(name, program.direction(), program.name());
        }
        Ok(())
    }

    fn attach_tcx(
        &mut self,
        which: Program,
        link: u32,
        name: &str,
    ) -> Result<Attachment, DataplaneError> {
        let pin = self.link_path(which, link);
        let program = which.of(&mut self.ebpf)?;
        if let Some(pinned) = pinned(&pin)? {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            match program.attach_to_link(link) {
                Ok(link) => {
                    // The pin keeps the link; this handle may go.
                    drop(program.take_link(link)?);
                    return Ok(Attachment { how: Attach::Tcx, held: None });
                }
                // It belonged to a device of the same index that is gone.
                Err(_) => remove_pin(&pin)?,
            }
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(name, which.direction(), order)?;
        let link: FdLink = program.take_link(link)?.try_into()?;
        if pin_directory(&self.options.pins).is_err() {
            return Ok(Attachment { how: Attach::Tcx, held: Some(link) });
        }
        pin_link(link, &pin)?;
        Ok(Attachment { how: Attach::Tcx, held: None })
    }

    fn attach_clsact(&mut self, which: Program, name: &str) -> Result<Attachment, DataplaneError> {
        if self.replace_clsact(which, name).is_err() {
            // A qdisc that is there already is as good; attaching tells.
            let _ = tc::qdisc_add_clsact(name);
            let options = NlOptions {
                priority: CLSACT_PRIORITY,
                handle: CLSACT_HANDLE,
                ..NlOptions::default()
            };
            let options = TcAttachOptions::Netlink(options);
            let program = which.of(&mut self.ebpf)?;
            let link = program.attach_with_options(name, which.direction(), options)?;
            // Dropping it would detach: the filter is to outlive the agent.
            std::mem::forget(program.take_link(link)?);
        }
        Ok(Attachment { how: Attach::Clsact, held: None })
    }

    /// Puts the program in the place of the filter that is there; there must be one.
    fn replace_clsact(&mut self, which: Program, name: &str) -> Result<(), DataplaneError> {
        let program = which.of(&mut self.ebpf)?;
        let earlier = SchedClassifierLink::attached(
            name,
            which.direction(),
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        );
        let earlier = earlier.map_err(TcError::from)?;
        let link = program.attach_to_link(earlier)?;
        std::mem::forget(program.take_link(link)?);
        Ok(())
    }

    /// Looks whether everything is still attached, pins what could not be pinned before, and
    /// returns the links whose programs somebody took away.
    pub fn check<'a>(&mut self, name_of: impl Fn(u32) -> Option<&'a str>) -> BTreeSet<u32> {
        self.pin_held();
        let early: Vec<u32> = self.lost_early().collect();
        let all: Vec<(Program, u32, Attach)> =
            self.attached.iter().map(|(&(which, link), it)| (which, link, it.how)).collect();
        let lost = all.into_iter().filter(|&(which, link, how)| {
            let name = name_of(link).filter(|name| expect_index(name, link).is_ok());
            // Of a link that is gone, or has another name, rtnetlink tells.
            name.is_some_and(|name| !self.is_attached(which, name, how))
        });
        lost.map(|(_, link, _)| link).chain(early).collect()
    }

    fn is_attached(&mut self, which: Program, name: &str, how: Attach) -> bool {
        match how {
            Attach::Auto | Attach::Tcx => self.is_attached_by_tcx(which, name).unwrap_or(false),
            Attach::Clsact => self.replace_clsact(which, name).is_ok(),
        }
    }

    fn is_attached_by_tcx(&mut self, which: Program, name: &str) -> Result<bool, DataplaneError> {
        let own = which.of(&mut self.ebpf)?.info()?.id();
        let (_, there) = SchedClassifier::query_tcx(name, which.direction())?;
        Ok(there.iter().any(|program| program.id() == own))
    }

    /// How many programs end with this process, because there is no place to pin them.
    pub fn unpinned(&self) -> usize {
        self.attached.values().filter(|attachment| attachment.held.is_some()).count()
    }

    fn pin_held(&mut self) {
        if self.unpinned() == 0 || pin_directory(&self.options.pins).is_err() {
            return;
        }
        for (&(which, link), attachment) in &mut self.attached {
            let pin = self.links.join(link_name(which.name(), link));
            // What cannot be pinned is detached by that; the check finds it.
            let pinned = attachment.held.take().map(|held| pin_link(held, &pin));
            if let Some(Err(error)) = pinned {
                warn!(%error, "not pinned");
            }
        }
    }

    /// Removes what is left of a link that is gone. The kernel detached the programs.
    pub fn forget(&mut self, link: u32) -> Result<(), DataplaneError> {
        self.attached.retain(|(_, attached), _| *attached != link);
        self.early.remove(&link);
        names().try_for_each(|name| remove_pin(&self.links.join(link_name(name, link))))
    }

    /// Removes pins of links that went while no agent was there to see it.
    pub fn forget_all_but(&mut self, present: &[u32]) -> Result<(), DataplaneError> {
        for path in entries(&self.links)? {
            let expected = present
                .iter()
                .any(|link| names().any(|name| self.links.join(link_name(name, *link)) == path));
            if !expected {
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    fn link_path(&self, program: Program, link: u32) -> PathBuf {
        self.links.join(link_name(program.name(), link))
    }
}

/// Detaches every program of any agent, whatever link it is attached to. What is held by
/// this process alone goes when it ends.
pub fn detach_all(pins: &Path) -> Result<(), DataplaneError> {
    let links = nix::net::if_::if_nameindex().map_err(DataplaneError::Links)?;
    for name in links.iter().filter_map(|link| link.name().to_str().ok()) {
        for program in Program::ALL {
            // Mostly there is none.
            let _ = tc::qdisc_detach_program(name, program.direction(), program.name());
        }
    }
    for version in subdirectories(pins)? {
        entries(&version)?.iter().try_for_each(|pin| remove_pin(pin))?;
        // With something in it that is not ours, it stays.
        let _ = fs::remove_dir(version);
    }
    let _ = fs::remove_dir(pins);
    Ok(())
}

fn expect_index(name: &str, vif: u32) -> Result<(), DataplaneError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) if index == vif => Ok(()),
        _ => Err(DataplaneError::Renamed { name: name.to_owned(), vif }),
    }
}
