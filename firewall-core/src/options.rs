//! Options of the agent that dom0 sets, by keys of the netvm itself in QubesDB.
//! Never knows which options there are.

use std::collections::BTreeMap;

/// How the keys begin. dom0 writes `/vm-config/firewall-NAME` for `qvm-features NETVM
/// vm-config.firewall-NAME VALUE` (`qubes.py` of qubes-core-admin-addon-vm-config, and the Qubes
/// documentation, "vm-interface").
pub const PREFIX: &str = "/vm-config/firewall-";

/// What dom0 says: values, by name of an option.
pub type Said = BTreeMap<String, String>;
