//! Which parts of a table of fixed size are free.
//! Never touches the table itself.

use std::collections::BTreeMap;
use std::ops::Range;

/// Free ranges of indices, none touching another.
#[derive(Debug)]
pub struct Ranges {
    /// Start to length.
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// All of `range` is free.
    pub fn new(range: Range<u32>) -> Self {
        Self { free: BTreeMap::from([(range.start, range.end - range.start)]) }
    }

    /// Whether nothing is free.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes the first free range of this length; `None` if there is no such range. Length 0 is
    /// always there.
    pub fn take(&mut self, length: u32) -> Option<Range<u32>> {
        if length == 0 {
            return Some(0..0);
        }
        let (&start, &free) = self.free.iter().find(|(_, free)| **free >= length)?;
        self.free.remove(&start);
        if free > length {
            self.free.insert(start + length, free - length);
        }
        Some(start..start + length)
    }

    /// Gives a range back that was taken.
    pub fn give(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut ranges = Ranges::new(0..10);
        let [a, b, c] = [3, 3, 4].map(|length| ranges.take(length).expect("room"));
        assert_eq!([&a, &b, &c], [&(0..3), &(3..6), &(6..10)]);
        assert!(ranges.is_empty());
        assert_eq!(ranges.take(1), None);
        ranges.give(a);
        ranges.give(c);
        assert_eq!(ranges.take(5), None);
        ranges.give(b);
        assert_eq!(ranges.take(10), Some(0..10));
    }

    #[test]
    fn nothing_is_always_there() {
        let mut ranges = Ranges::new(1..2);
        assert_eq!(ranges.take(1), Some(1..2));
        assert_eq!(ranges.take(0), Some(0..0));
        ranges.give(0..0);
        assert_eq!(ranges.take(1), None);
    }
}
