//! Colours, for whoever has a terminal and did not say no.
//! Never says anything by colour alone.

use std::io;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

/// The colour of what goes well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// The colour of what does not go well.
pub const BAD: Style = AnsiColor::Red.on_default();
/// The colour of what the eye should find.
pub const ODD: Style = AnsiColor::Cyan.on_default();

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colours(bool);

impl Colours {
    /// No colours.
    pub const NONE: Self = Self(false);

    /// Colours as standard output takes them: only a terminal, and not if its user said no, in one
    /// of the ways that all programs share (`NO_COLOR` of <https://no-color.org>, `CLICOLOR`,
    /// `TERM=dumb`).
    pub fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// Colours as standard error takes them, by what [`Self::of_stdout`] goes by.
    pub fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &impl RawStream) -> Self {
        Self(AutoStream::choice(stream) != ColorChoice::Never)
    }

    /// Whether there are colours.
    pub fn are_wanted(self) -> bool {
        self.0
    }

    /// A text in a colour, if there are colours.
    pub fn paint(self, colour: Style, text: &str) -> String {
        if self.0 { format!("{colour}{text}{colour:#}") } else { text.to_owned() }
    }
}
