//! PURE: answers as they may leave by qrexec: printable ASCII and line ends, of bounded size.
//! Never cuts without saying so, and never leaves half a document of JSON.

use std::fmt::Write as _;

use firewall_core::told::failure::ErrorStatus;

/// Largest text, in bytes.
pub const MOST_TEXT: usize = 64 * 1024;
/// Largest JSON, in bytes.
pub const MOST_JSON: usize = 1024 * 1024;
/// What the line that says so takes of a text that is cut.
const ROOM: usize = 128;

/// A text for people.
pub fn text(told: &str) -> String {
    let mut text = String::new();
    for character in told.chars() {
        match character {
            '\n' | ' '..='~' => text.push(character),
            other => text.extend(other.escape_unicode()),
        }
    }
    if text.len() > MOST_TEXT {
        let all = text.len();
        // All of it is ASCII.
        text.truncate(MOST_TEXT - ROOM);
        text.truncate(text.rfind('\n').map_or(text.len(), |end| end + 1));
        let cut = all - text.len();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "CUT HERE: {cut} bytes or more follow; ask in the netvm for all");
    }
    text
}

/// JSON, of which there may be a document a line; an error instead of what is too large.
pub fn json(told: &str) -> String {
    let mut text = String::new();
    let mut units = [0; 2];
    for character in told.chars() {
        match character {
            '\n' | ' '..='~' => text.push(character),
            // Only strings have such characters.
            other => {
                for unit in other.encode_utf16(&mut units) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    if text.len() > MOST_JSON {
        return error(&format!("the answer has more than {MOST_JSON} bytes; ask for less"));
    }
    text
}

/// A document that says why there is no answer.
pub fn error(why: &str) -> String {
    let told = serde_json::to_string(&ErrorStatus::new(why)).unwrap_or_default();
    told + "\n"
}
