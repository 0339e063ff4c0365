//! The XDP stage of vifs: drops what the program at tc would drop as well, before the kernel
//! spends anything on it.
//! Never needed: where it cannot be, packets meet only the program at tc.

use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};
use tracing::warn;

use super::pins::{link_name, pin_directory, pin_link, pinned, remove_pin, subdirectories};
use super::{Dataplane, DataplaneError, floor, name_of, refused};

/// Its name, in the object and in pins.
pub(super) const NAME: &str = "from_client_early";

impl Dataplane {
    /// Puts the stage in front of a vif if that is wanted, or takes over the one that is
    /// there; takes it away if it is not. Returns whether there is one.
    pub(super) fn attach_early(&mut self, vif: u32) -> bool {
        let outcome = self.remove_early(vif).and_then(|()| match self.options.xdp {
            true => self.try_early(vif),
            false => Ok(()),
        });
        let is_there = self.options.xdp && outcome.is_ok();
        if let Err(error) = outcome {
            warn!(link = ?name_of(vif).ok(), %error, "no XDP stage");
        }
        if is_there {
            self.early.insert(vif)
        } else {
            self.early.remove(&vif)
        };
        is_there
    }

    /// Vifs whose stage somebody took away.
    pub(super) fn lost_early(&self) -> impl Iterator<Item = u32> {
        self.early.iter().copied().filter(|vif| !self.is_early(*vif).unwrap_or(false))
    }

    fn is_early(&self, vif: u32) -> Result<bool, DataplaneError> {
        let own = self.ebpf.program(NAME).ok_or(DataplaneError::NoObject)?.info()?.id();
        let there = pinned(&self.links.join(link_name(NAME, vif)))?;
        let there = there.map(|link| FdLink::from(link).info()).transpose()?;
        Ok(there.is_some_and(|link| link.program_id() == own))
    }

    /// Removes stages that are not wanted: of other versions, or of this one as well.
    fn remove_early(&self, vif: u32) -> Result<(), DataplaneError> {
        let versions = subdirectories(&self.options.pins)?;
        let mut unwanted =
            versions.iter().filter(|version| !self.options.xdp || **version != self.links);
        unwanted.try_for_each(|version| remove_pin(&version.join(link_name(NAME, vif))))
    }

    /// Takes the stage away from a link that is no vif.
    pub(super) fn remove_stage(&mut self, link: u32) -> Result<(), DataplaneError> {
        self.early.remove(&link);
        let versions = subdirectories(&self.options.pins)?;
        versions.iter().try_for_each(|version| remove_pin(&version.join(link_name(NAME, link))))
    }

    fn try_early(&mut self, vif: u32) -> Result<(), DataplaneError> {
        floor::check_early()?;
        let pin = pin_directory(&self.options.pins)?.join(link_name(NAME, vif));
        let program: &mut Xdp =
            self.ebpf.program_mut(NAME).ok_or(DataplaneError::NoObject)?.try_into()?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(NAME, error))?;
        }
        if let Some(pinned) = pinned(&pin)? {
            match program.attach_to_link(XdpLink::try_from(FdLink::from(pinned))?) {
                Ok(link) => {
                    // The pin keeps the link; this handle may go.
                    drop(program.take_link(link)?);
                    return Ok(());
                }
                // It belonged to a device of the same index that is gone.
                Err(_) => remove_pin(&pin)?,
            }
        }
        let link = program.attach_to_if_index(vif, XdpMode::Driver)?;
        pin_link(program.take_link(link)?.try_into()?, &pin)
    }
}
