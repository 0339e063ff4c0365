//! Colours, for whoever has a terminal and did not say no.
//! Never says anything by colour alone.

use std::io::{self, IsTerminal as _};

/// What goes well.
pub const GOOD: u8 = 32;
/// What does not.
pub const BAD: u8 = 31;
/// What the eye should find.
pub const ODD: u8 = 36;

/// Text in a colour, if standard output takes colours.
pub fn painted(colour: u8, text: &str) -> String {
    if has_colours() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether standard output may have colours: only a terminal, and not if its user said no
/// (<https://no-color.org>).
pub fn has_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !refused
}
