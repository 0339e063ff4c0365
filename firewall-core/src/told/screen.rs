//! What of the news the user at the screen is told as well.
//! Never what can wait until somebody reads the log.

use crate::events::Notice;
use crate::told::status::Mode;

/// What the user is told. Where the agent is not one of Qubes OS, there is no such user.
pub fn on_screen(notice: &Notice, mode: Mode) -> Option<String> {
    let Notice::Blocked { client, why } = notice else {
        return None;
    };
    match mode {
        Mode::Qubes => Some(format!("{client} is blocked: {why}")),
        Mode::Standalone => None,
    }
}
