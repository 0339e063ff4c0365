//! What the agent waits for before it puts anything in force: what an earlier agent left in
//! force goes on as it is until rules and links are known.
//! Never waits again once both were.

use crate::client::Links;

/// How far the agent has come.
#[derive(Debug)]
pub(super) enum Start {
    /// Rules or links are not known yet.
    Awaiting {
        /// Whether rules are known.
        rules: bool,
        /// The links, if they are known.
        links: Option<Links>,
    },
    /// Both were known.
    Over,
}

impl Default for Start {
    fn default() -> Self {
        Self::Awaiting { rules: false, links: None }
    }
}

impl Start {
    /// All rules are known.
    pub(super) fn rules_are_known(&mut self) {
        match self {
            Self::Awaiting { rules, .. } => *rules = true,
            Self::Over => {}
        }
    }

    /// Returns links that are to be followed now. Others are kept.
    pub(super) fn links(&mut self, now: Links) -> Option<Links> {
        match self {
            Self::Awaiting { links, .. } => {
                *links = Some(now);
                None
            }
            Self::Over => Some(now),
        }
    }

    /// Returns the links that were kept, once rules are known as well.
    pub(super) fn take(&mut self) -> Option<Links> {
        let Self::Awaiting { rules: true, links } = self else {
            return None;
        };
        let links = links.take()?;
        *self = Self::Over;
        Some(links)
    }
}
