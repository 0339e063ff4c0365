//! Where programs are attached, and the pins that keep them there.
//! Never detaches what polices a vif without putting another in its place, unless the
//! firewall is to be opened, or the link is no vif any more.
//!
//! A link is known by its index: a name can change at any time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, Link as _};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc};
use tracing::warn;

use super::attached::{CLSACT, CLSACT_HANDLE, CLSACT_PRIORITY, Filter, filter, tcx_programs};
use super::pins::{
    entries, link_name, move_pin, pin_directory, pin_link, pinned, remove_pin, subdirectories,
};
use super::{Attach, Dataplane, DataplaneError, early, name_of, with_sources};
use firewall_core::told::status;

/// A program, and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Ingress of a vif.
    FromClient,
    /// Egress of a vif.
    ToClient,
    /// Ingress of any other link.
    FromUplink,
    /// Egress of any other link.
    ToUplink,
}

impl Program {
    pub(super) const ALL: [Self; 4] =
        [Self::FromClient, Self::ToClient, Self::FromUplink, Self::ToUplink];
    const OF_VIF: [Self; 2] = [Self::FromClient, Self::ToClient];
    const OF_UPLINK: [Self; 2] = [Self::FromUplink, Self::ToUplink];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FromClient => "from_client",
            Self::ToClient => "to_client",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }

    pub(super) fn direction(self) -> TcAttachType {
        match self {
            Self::FromClient | Self::FromUplink => TcAttachType::Ingress,
            Self::ToClient | Self::ToUplink => TcAttachType::Egress,
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
    /// without a moment between the old program and the new one. Returns how it is attached.
    pub fn attach(&mut self, vif: u32) -> Result<status::Attachment, DataplaneError> {
        let how = self.attach_all(&Program::OF_VIF, vif)?;
        Ok(told(how, self.attach_early(vif)))
    }

    /// Attaches the programs that guard clients' addresses to any other link. Returns how
    /// they are attached.
    pub fn attach_uplink(&mut self, uplink: u32) -> Result<status::Attachment, DataplaneError> {
        self.remove_stage(uplink)?;
        Ok(told(self.attach_all(&Program::OF_UPLINK, uplink)?, false))
    }

    /// Attaches these programs to a link, and takes all others of ours away: it may have been
    /// another kind of link before, under another name.
    fn attach_all(&mut self, wanted: &[Program], link: u32) -> Result<Attach, DataplaneError> {
        let others = Program::ALL.into_iter().filter(|program| !wanted.contains(program));
        for program in others.clone() {
            self.attached.remove(&(program, link));
        }
        let mut how = self.options.attach;
        for &program in wanted {
            how = self.attach_program(program, link)?;
        }
        for program in others {
            // Two programs of one direction have one place for a filter.
            let is_taken = wanted.iter().any(|it| it.direction() == program.direction());
            self.detach_others(program, link, !(is_taken && how == Attach::Clsact))?;
        }
        Ok(how)
    }

    fn attach_program(&mut self, program: Program, link: u32) -> Result<Attach, DataplaneError> {
        // aya looks the interface up by name; it must be the same before and after.
        let name = name_of(link)?;
        let attachment = match self.options.attach {
            Attach::Tcx => self.attach_tcx(program, link, &name),
            Attach::Clsact => self.attach_clsact(program, link, &name),
            Attach::Auto => self.attach_tcx(program, link, &name).or_else(|tcx| {
                let attached = self.attach_clsact(program, link, &name);
                attached.map_err(|clsact| DataplaneError::Neither {
                    tcx: tcx.to_string(),
                    clsact: clsact.to_string(),
                })
            }),
        }?;
        let how = attachment.how;
        self.attached.insert((program, link), attachment);
        let now = name_of(link)?;
        if now != name {
            return Err(DataplaneError::Renamed { name, vif: link });
        }
        // What is left of an earlier agent would judge by rules of the past.
        for version in subdirectories(&self.options.pins)? {
            let is_own = version == self.links && how == Attach::Tcx;
            if !is_own {
                remove_pin(&version.join(link_name(program.name(), link)))?;
            }
        }
        if how == Attach::Tcx {
            detach_filter(program, link)?;
        }
        Ok(how)
    }

    /// Takes a program away from a link of another kind.
    fn detach_others(
        &self,
        program: Program,
        link: u32,
        with_filter: bool,
    ) -> Result<(), DataplaneError> {
        for version in subdirectories(&self.options.pins)? {
            remove_pin(&version.join(link_name(program.name(), link)))?;
        }
        if with_filter { detach_filter(program, link) } else { Ok(()) }
    }

    fn attach_tcx(
        &mut self,
        which: Program,
        link: u32,
        name: &str,
    ) -> Result<Attachment, DataplaneError> {
        let pin = self.link_path(which, link);
        let name_of_pin = link_name(which.name(), link);
        let others = subdirectories(&self.options.pins)?.into_iter();
        let others = others.map(|version| version.join(&name_of_pin)).filter(|it| *it != pin);
        let program = which.of(&mut self.ebpf)?;
        for earlier in std::iter::once(pin.clone()).chain(others) {
            let Some(pinned) = pinned(&earlier)? else {
                continue;
            };
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            match program.attach_to_link(link) {
                Ok(link) => {
                    // The pin keeps the link; this handle may go.
                    drop(program.take_link(link)?);
                    // Another version's. Had that program to be detached instead, it would still
                    // run for a while beside this one: the kernel does so when it has time.
                    move_pin(&earlier, &pin)?;
                    return Ok(Attachment { how: Attach::Tcx, held: None });
                }
                // It belonged to a device of the same index that is gone.
                Err(_) => remove_pin(&earlier)?,
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

    fn attach_clsact(
        &mut self,
        which: Program,
        link: u32,
        name: &str,
    ) -> Result<Attachment, DataplaneError> {
        let direction = which.direction();
        let attached = Attachment { how: Attach::Clsact, held: None };
        let earlier = filter(link, direction, &Program::ALL.map(Program::name))?;
        let program = which.of(&mut self.ebpf)?;
        let added = match earlier {
            Filter::Foreign => return Err(DataplaneError::Taken { name: name.to_owned() }),
            Filter::Own(_) => {
                let (priority, handle) = (CLSACT_PRIORITY, CLSACT_HANDLE);
                let earlier =
                    SchedClassifierLink::attached(name, direction, priority, handle, None)?;
                program.attach_to_link(earlier)?
            }
            Filter::None => {
                // One that is there already is as good, but for one that takes what comes in only:
                // a filter for what goes out would come to stand there too.
                let qdisc = tc::qdisc_add_clsact(name);
                if direction == TcAttachType::Egress
                    && let Some(other) = super::attached::qdisc(link)?.filter(|it| it != CLSACT)
                {
                    return Err(DataplaneError::Clsact {
                        qdisc: format!("`{other}` has its place"),
                        filter: format!("`tc qdisc del dev {name} {other}` makes room"),
                    });
                }
                let options = NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: CLSACT_HANDLE,
                    ..NlOptions::default()
                };
                let options = TcAttachOptions::Netlink(options);
                let added = program.attach_with_options(name, direction, options);
                added.map_err(|filter| DataplaneError::Clsact {
                    qdisc: qdisc.map_or_else(|error| with_sources(&error), |()| "added".to_owned()),
                    filter: with_sources(&filter),
                })?
            }
        };
        // Dropping it would detach: the filter is to outlive the agent.
        std::mem::forget(program.take_link(added)?);
        Ok(attached)
    }

    /// Looks whether everything is still attached, pins what could not be pinned before, and
    /// returns the links whose programs somebody took away.
    pub fn check(&mut self) -> BTreeSet<u32> {
        self.pin_held();
        let early: Vec<u32> = self.lost_early().collect();
        let all: Vec<(Program, u32, Attach)> =
            self.attached.iter().map(|(&(which, link), it)| (which, link, it.how)).collect();
        let lost = all.into_iter().filter(|&(which, link, how)| {
            // Of a link that is gone, rtnetlink tells.
            !self.is_attached(which, link, how).unwrap_or(false) && name_of(link).is_ok()
        });
        lost.map(|(_, link, _)| link).chain(early).collect()
    }

    fn is_attached(
        &mut self,
        which: Program,
        link: u32,
        how: Attach,
    ) -> Result<bool, DataplaneError> {
        let own = which.of(&mut self.ebpf)?.info()?.id();
        let direction = which.direction();
        Ok(match how {
            Attach::Auto | Attach::Tcx => tcx_programs(link, direction)?.contains(&own),
            Attach::Clsact => filter(link, direction, &[which.name()])? == Filter::Own(own),
        })
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

    /// Removes what is left of a link that is gone, or is of another kind now. From a link that is
    /// gone, the kernel detached the programs.
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

/// How programs are attached, with an XDP stage or without, as status tells it.
fn told(how: Attach, has_stage: bool) -> status::Attachment {
    match (how, has_stage) {
        (Attach::Auto | Attach::Tcx, false) => status::Attachment::Tcx,
        (Attach::Auto | Attach::Tcx, true) => status::Attachment::XdpAndTcx,
        (Attach::Clsact, false) => status::Attachment::Clsact,
        (Attach::Clsact, true) => status::Attachment::XdpAndClsact,
    }
}

/// Detaches every program of any agent, whatever link it is attached to. What is held by
/// this process alone goes when it ends.
pub fn detach_all(pins: &Path) -> Result<(), DataplaneError> {
    let links = nix::net::if_::if_nameindex().map_err(DataplaneError::Links)?;
    for link in &links {
        Program::ALL.into_iter().try_for_each(|it| detach_filter(it, link.index()))?;
    }
    for version in subdirectories(pins)? {
        entries(&version)?.iter().try_for_each(|pin| remove_pin(pin))?;
        // With something in it that is not ours, it stays.
        let _ = fs::remove_dir(version);
    }
    let _ = fs::remove_dir(pins);
    Ok(())
}

/// Takes the clsact filter away, whichever of our programs it has; mostly there is none.
fn detach_filter(program: Program, link: u32) -> Result<(), DataplaneError> {
    let direction = program.direction();
    match filter(link, direction, &Program::ALL.map(Program::name))? {
        Filter::None | Filter::Foreign => return Ok(()),
        Filter::Own(_) => {}
    }
    let (priority, handle) = (CLSACT_PRIORITY, CLSACT_HANDLE);
    let earlier =
        SchedClassifierLink::attached(&name_of(link)?, direction, priority, handle, None)?;
    Ok(earlier.detach()?)
}
