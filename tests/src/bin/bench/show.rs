//! What all kinds of measurements look like on a terminal.
//! Never measures.

use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// What one kind of measurement found.
pub struct Report {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
}

/// A table whose first column is a name, and all others numbers.
pub fn table<const N: usize>(header: [&str; N], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A bar of so many steps.
pub fn progress(steps: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {elapsed} of {duration} {msg}")?;
    let bar = ProgressBar::new(steps as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}
