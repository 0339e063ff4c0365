//! Colours, for whoever has a terminal and did not say no.
//! Never says anything by colour alone.

use std::io::{self, IsTerminal as _};

/// What goes well.
pub const GOOD: u8 = 32;
/// What does not.
pub const BAD: u8 = 31;
/// What the eye should find.
pub const ODD: u8 = 36;

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colours(bool);

impl Colours {
    /// None.
    pub const NONE: Self = Self(false);

    /// As standard output takes them: only a terminal, and not if its user said no
    /// (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(io::stdout().is_terminal() && !refused)
    }

    /// Whether there are any.
    pub fn are_wanted(self) -> bool {
        self.0
    }

    /// Text in a colour.
    pub fn paint(self, colour: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
