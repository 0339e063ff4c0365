//! Links that have another name than before.
//! Never attaches anything: what is attached to a link stays there under its new name.

use super::World;
use crate::client::Links;
use crate::events::{Effect, Notice};

impl World {
    /// A link stays the same under another name; but the name says whether it is a vif.
    pub(super) fn renamed(&mut self, links: &Links) -> Vec<Effect> {
        let vifs = links.vifs.iter().map(|vif| (vif.index, &vif.name, true));
        let uplinks = links.uplinks.iter().map(|(&index, name)| (index, name, false));
        let mut effects = Vec::new();
        for (index, name, is_vif) in vifs.chain(uplinks) {
            let Some(before) = self.link_name(index).filter(|before| before != name) else {
                continue;
            };
            let (from, to) = (before.to_owned(), name.clone());
            let was_vif = self.vifs.contains_key(&index);
            effects.push(Effect::Tell(Notice::Renamed { from, to, was_vif, is_vif }));
            if let Some((known, _)) = self.uplinks.get_mut(&index) {
                known.clone_from(name);
            }
        }
        effects
    }
}
