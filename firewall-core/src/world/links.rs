//! The links there are: vifs, uplinks, the netvm's own addresses, and what is attached to each
//! link. A link stays the same under another name; the name says whether it is a vif.
//! Never knows what is in force for a client, nor attaches anything itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use firewall_common::abi::Local;
use ipnet::IpNet;

use crate::client::{ClientId, Links, Route, Vif, may_be_client, routed_to};
use crate::events::{Effect, Notice, Why};
use crate::told::status::{Attachment, VifStatus};

/// How programs were attached to a link, or why not.
type Attached = Result<Attachment, Why>;

#[derive(Debug)]
struct KnownVif {
    vif: Vif,
    attached: Option<Attached>,
}

/// What is known about links.
#[derive(Debug, Default)]
pub(super) struct KnownLinks {
    vifs: BTreeMap<u32, KnownVif>,
    uplinks: BTreeMap<u32, (String, Option<Attached>)>,
    locals: BTreeMap<IpAddr, Local>,
    /// Clients whose address is behind a vif whether it has rules or not.
    at_home: BTreeSet<ClientId>,
    /// Routes that lead to vifs, and those for a part of the same networks that do not.
    routes: Vec<Route>,
    /// Vifs that are ports of another link: interface index to the name of that link.
    ports: BTreeMap<u32, String>,
}

impl KnownLinks {
    /// Takes in who is behind vifs, and where routes lead. Tells of vifs that are ports of another link
    /// now, or not any more.
    pub(super) fn place(&mut self, links: &mut Links) -> Vec<Effect> {
        let told = links.vifs.iter().filter_map(|vif| {
            let (before, now) = (self.ports.get(&vif.index), links.ports.get(&vif.index));
            let notice = Notice::Port { vif: vif.name.clone(), of: now.cloned() };
            (before != now).then_some(Effect::Tell(notice))
        });
        let effects = told.collect();
        self.ports.clone_from(&links.ports);
        self.at_home = links.clients();
        self.routes = std::mem::take(&mut links.routes);
        for route in &mut self.routes {
            route.vif = route.vif.filter(|vif| !self.ports.contains_key(vif));
        }
        let to_vifs = self.routes.iter().filter(|route| route.vif.is_some());
        let to_vifs: Vec<IpNet> = to_vifs.map(|route| route.network).collect();
        self.routes.retain(|route| to_vifs.iter().any(|network| network.contains(&route.network)));
        effects
    }

    /// All clients: those behind vifs, and of the networks that routes lead to behind one, the
    /// addresses that have rules.
    pub(super) fn clients(&self, with_rules: impl Iterator<Item = IpAddr>) -> BTreeSet<ClientId> {
        let named: BTreeSet<IpAddr> = self.at_home.iter().map(|client| client.address).collect();
        let others = with_rules.filter(|address| !named.contains(address));
        let routed = others.filter_map(|address| self.by_route(address));
        self.at_home.iter().copied().chain(routed).collect()
    }

    /// The client that an address with rules is because of a route; `None` if no route leads to it
    /// behind a vif, or it is behind one by itself.
    pub(super) fn routed(&self, address: IpAddr) -> Option<ClientId> {
        let routed = self.by_route(address)?;
        let is_at_home = self.at_home.iter().any(|client| client.address == address);
        (!is_at_home).then_some(routed)
    }

    fn by_route(&self, address: IpAddr) -> Option<ClientId> {
        if self.routes.is_empty() || self.locals.contains_key(&address) || !may_be_client(address) {
            return None;
        }
        routed_to(&self.routes, address).map(|vif| ClientId { vif, address })
    }

    /// Tells of links that have another name than before. What is attached to one stays there.
    pub(super) fn rename(&mut self, links: &Links) -> Vec<Effect> {
        let vifs = links.vifs.iter().map(|vif| (vif.index, &vif.name, true));
        let uplinks = links.uplinks.iter().map(|(&index, name)| (index, name, false));
        let mut effects = Vec::new();
        for (index, name, is_vif) in vifs.chain(uplinks) {
            let Some(before) = self.name(index).filter(|before| before != name) else {
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

    /// Takes in the netvm's own addresses. Returns what to do if they are others than before.
    pub(super) fn set_locals(&mut self, locals: &BTreeMap<IpAddr, Local>) -> Option<Effect> {
        if *locals == self.locals {
            return None;
        }
        self.locals.clone_from(locals);
        Some(self.locals_effect())
    }

    /// What makes the kernel know the netvm's own addresses.
    pub(super) fn locals_effect(&self) -> Effect {
        Effect::SetLocals(self.locals.clone())
    }

    /// Forgets links that are gone, or of another kind now.
    pub(super) fn leave(&mut self, links: &Links) -> Vec<Effect> {
        let present: BTreeSet<u32> = links.vifs.iter().map(|vif| vif.index).collect();
        let vifs = self.vifs.extract_if(.., |link, _| !present.contains(link));
        let mut gone: Vec<u32> = vifs.map(|(link, _)| link).collect();
        let uplinks = self.uplinks.extract_if(.., |link, _| !links.uplinks.contains_key(link));
        gone.extend(uplinks.map(|(link, _)| link));
        gone.into_iter().map(|link| Effect::Forget { link }).collect()
    }

    /// Takes in the uplinks. What could not be attached is tried again.
    pub(super) fn guard(&mut self, uplinks: BTreeMap<u32, String>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (uplink, name) in uplinks {
            let known = self.uplinks.get(&uplink);
            if known.is_none_or(|(_, attached)| matches!(attached, Some(Err(_)))) {
                effects.push(Effect::AttachUplink { uplink, name: name.clone() });
                self.uplinks.insert(uplink, (name, None));
            }
        }
        effects
    }

    /// Takes in the vifs. What could not be attached is tried again.
    pub(super) fn police(&mut self, vifs: Vec<Vif>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for vif in vifs {
            let known = self.vifs.remove(&vif.index);
            let attached = match known.map(|known| known.attached) {
                Some(attached @ (None | Some(Ok(_)))) => attached,
                None | Some(Some(Err(_))) => {
                    effects.push(Effect::Attach { vif: vif.index, name: vif.name.clone() });
                    None
                }
            };
            self.vifs.insert(vif.index, KnownVif { vif, attached });
        }
        effects
    }

    /// Takes in what came of attaching to a link.
    pub(super) fn attached(&mut self, link: u32, outcome: Attached) -> Option<Effect> {
        let (name, attached, is_vif) = if let Some(known) = self.vifs.get_mut(&link) {
            (known.vif.name.clone(), &mut known.attached, true)
        } else {
            let (name, attached) = self.uplinks.get_mut(&link)?;
            (name.clone(), attached, false)
        };
        *attached = Some(outcome.clone());
        Some(Effect::Tell(match outcome {
            Ok(how) => Notice::Attached { link: name, how },
            Err(why) => Notice::NotAttached { link: name, is_vif, why },
        }))
    }

    /// Somebody took the programs of these links away: they are attached again.
    pub(super) fn detached(&mut self, links: &BTreeSet<u32>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for &link in links {
            if let Some(known) = self.vifs.get_mut(&link) {
                known.attached = None;
                let name = known.vif.name.clone();
                effects.push(Effect::Tell(Notice::Detached { link: name.clone() }));
                effects.push(Effect::Attach { vif: link, name });
            } else if let Some((name, attached)) = self.uplinks.get_mut(&link) {
                *attached = None;
                effects.push(Effect::Tell(Notice::Detached { link: name.clone() }));
                effects.push(Effect::AttachUplink { uplink: link, name: name.clone() });
            }
        }
        effects
    }

    /// Name of a link.
    pub(super) fn name(&self, link: u32) -> Option<&str> {
        let vif = self.vifs.get(&link).map(|known| known.vif.name.as_str());
        vif.or_else(|| self.uplinks.get(&link).map(|(name, _)| name.as_str()))
    }

    /// Interface indices of all links that programs are, or are to be, attached to.
    pub(super) fn in_use(&self) -> Vec<u32> {
        self.vifs.keys().chain(self.uplinks.keys()).copied().collect()
    }

    /// What kind of address of the netvm's own this is, if it is one.
    pub(super) fn local(&self, address: IpAddr) -> Option<Local> {
        self.locals.get(&address).copied()
    }

    /// Links that are not guarded against clients' addresses, with the reason.
    pub(super) fn unguarded(&self) -> BTreeMap<String, String> {
        let failed = self.uplinks.values().filter_map(|(name, attached)| match attached {
            Some(Err(why)) => Some((name.clone(), why.to_string())),
            Some(Ok(_)) | None => None,
        });
        failed.collect()
    }

    /// All vifs, with those of these clients that are behind each.
    pub(super) fn vif_statuses(&self, clients: &[ClientId]) -> Vec<VifStatus> {
        let behind = |index: u32| {
            let all = clients.iter().filter(move |client| client.vif == index);
            all.map(|client| client.address)
        };
        let networks = |index: u32| {
            let routes = self.routes.iter().filter(move |route| route.vif == Some(index));
            routes.map(|route| route.network).collect::<BTreeSet<IpNet>>()
        };
        let vifs = self.vifs.values().map(|known| VifStatus {
            index: known.vif.index,
            name: known.vif.name.clone(),
            attached: known.attached.as_ref().and_then(|it| it.as_ref().ok()).copied(),
            problem: known.attached.as_ref().and_then(|it| it.as_ref().err()).map(Why::to_string),
            addresses: behind(known.vif.index).collect(),
            networks: networks(known.vif.index).into_iter().collect(),
            port_of: self.ports.get(&known.vif.index).cloned(),
        });
        vifs.collect()
    }
}
