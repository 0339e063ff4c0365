//! The number by which packets tell whether a verdict that was kept still counts.
//! Never goes back.

use std::io;

use super::mapped::MappedArray;

/// The number, as packets see it and as it is known here.
pub struct Epoch {
    shown: MappedArray<u64>,
    number: u64,
}

impl Epoch {
    /// Begins with 1: 0 is in entries that nobody wrote.
    pub fn new(shown: MappedArray<u64>) -> io::Result<Self> {
        let mut epoch = Self { shown, number: 0 };
        epoch.advance()?;
        Ok(epoch)
    }

    /// Voids all verdicts that are kept; to be called right after each change of what
    /// packets see.
    pub fn advance(&mut self) -> io::Result<()> {
        // At a billion changes a second, a number comes again after 584 years.
        self.number = self.number.wrapping_add(1);
        self.shown.publish(0, self.number)
    }
}
