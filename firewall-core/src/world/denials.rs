//! How many denied packets were told, and how many were only counted.
//! Never knows what they were.

use firewall_common::abi::DropRecord;

/// How many denied packets were told, and how many of the same vifs were not.
#[derive(Debug, Default)]
pub(super) struct Denials {
    records: u64,
    suppressed: u64,
}

impl Denials {
    /// Takes in one record.
    pub(super) fn count(&mut self, record: &DropRecord) {
        self.records = self.records.saturating_add(1);
        self.suppressed = self.suppressed.saturating_add(record.suppressed.into());
    }

    /// Denied packets that were told.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Denied packets that were only counted.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed
    }
}
