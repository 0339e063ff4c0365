//! Options of the agent that somebody set, as they are told.
//! Never knows which options there are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An option of the agent that somebody set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OptionStatus {
    /// Name of the option, without `--`.
    pub name: String,
    /// Value of the option, or values with commas between them; `on` if it takes none.
    pub value: String,
    /// Who set it.
    pub from: OptionFrom,
}

/// Who set an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptionFrom {
    /// The command line.
    Options,
    /// The key `/vm-config/firewall-NAME` of QubesDB; of an option with several values, it may have
    /// added to those of the command line.
    Qubesdb,
}
