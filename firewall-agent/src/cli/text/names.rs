//! Names in rules as text for people: where they lead, and who uses them.
//! Never asks anybody anything.

use std::fmt::Write as _;

use firewall_core::told::status::NameStatus;

/// A name that no packet depends on.
pub(super) const NO_MATTER: &str = "not looked up, it makes no difference";

/// Most addresses of a name that are shown; JSON has all.
const MOST_SHOWN: usize = 8;

/// Where a name leads.
pub(super) fn leads(name: &NameStatus) -> String {
    let mut parts: Vec<String> = Vec::new();
    for it in name.addresses.iter().take(MOST_SHOWN) {
        let mut text = format!("{} ({} s", it.address, it.age_seconds);
        if !it.in_answer {
            text.push_str(", in no answer any more");
        }
        if !it.usable {
            text.push_str(", not for accept rules");
        }
        text.push(')');
        parts.push(text);
    }
    let more = name.addresses.len() - parts.len();
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    if name.addresses.is_empty() {
        let is_answered = name.answered_seconds_ago.is_some();
        parts.push(if is_answered { "no address of this family" } else { "not resolved" }.into());
    }
    let mut text = parts.join(", ");
    if let Some(problem) = &name.problem {
        let _ = write!(text, "; {problem}");
    }
    if name.failures > 1 {
        let _ = write!(text, " ({} times)", name.failures);
    }
    let _ = write!(text, "; asked again in {} s", name.next_seconds_left);
    text
}

/// The rules that use a name.
pub(super) fn users(name: &NameStatus) -> String {
    let users = name.users.iter().map(|(client, numbers)| {
        let word = if numbers.len() == 1 { "rule" } else { "rules" };
        let numbers: Vec<String> = numbers.iter().map(|it| format!("{it:04}")).collect();
        format!("{word} {} of {client}", numbers.join(", "))
    });
    users.collect::<Vec<_>>().join(", ")
}
