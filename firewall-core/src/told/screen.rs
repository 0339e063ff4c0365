//! What of the news the user at the screen is told as well.
//! Never tells what can wait until somebody reads the log.

use crate::events::Notice;
use crate::told::status::Mode;

/// What the user at the screen is told about a notice; `None` if nothing. In mode standalone there
/// is no such user.
pub fn on_screen(notice: &Notice, mode: Mode) -> Option<String> {
    let Notice::Blocked { client, why } = notice else {
        return None;
    };
    match mode {
        Mode::Qubes | Mode::Whonix => Some(format!("{client} is blocked: {why}")),
        Mode::Standalone => None,
    }
}
