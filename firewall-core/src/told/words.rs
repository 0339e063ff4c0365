//! Verdicts and reasons of the kernel program, which knows no JSON, as words in JSON.
//! Never has a word of its own: counters and drop records have the same.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::fmt;

use firewall_common::verdict::{Reason, Verdict};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One of a closed list, each with its word.
pub trait Word: Copy + PartialEq + 'static {
    /// Name of the list, as in the JSON schema.
    const LIST: &'static str;
    /// What the words of the list are about, as in the JSON schema.
    const ABOUT: &'static str;
    /// All that the list has.
    const ALL: &'static [Self];

    /// The word for this one.
    fn name(self) -> &'static str;

    /// What has this word; `None` if it is not in the list.
    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }
}

impl Word for Verdict {
    const LIST: &'static str = "Verdict";
    const ABOUT: &'static str = "What the program does with a packet.";
    const ALL: &'static [Self] = Verdict::ALL;

    fn name(self) -> &'static str {
        Verdict::name(self)
    }
}

impl Word for Reason {
    const LIST: &'static str = "Reason";
    const ABOUT: &'static str = "Why a packet met its verdict.";
    const ALL: &'static [Self] = Reason::ALL;

    fn name(self) -> &'static str {
        Reason::name(self)
    }
}

/// Writes a verdict or a reason as its word; for `#[serde(with = "words")]`.
pub fn serialize<W: Word, S: Serializer>(word: &W, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word.name())
}

/// Reads a verdict or a reason from its word; for `#[serde(with = "words")]`. A word that is not in
/// the list is an error.
pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(deserializer: D) -> Result<W, D::Error> {
    let name = String::deserialize(deserializer)?;
    W::of_name(&name).ok_or_else(|| {
        de::Error::custom(format_args!("`{name}` is no {}", W::LIST.to_ascii_lowercase()))
    })
}

/// A word as a key, in the order of the alphabet, to be found by its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<W>(pub W);

impl<W: Word + Eq> Ord for Named<W> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name().cmp(other.0.name())
    }
}

impl<W: Word + Eq> PartialOrd for Named<W> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<W: Word> Borrow<str> for Named<W> {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl<W: Word> fmt::Display for Named<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl<W: Word> Serialize for Named<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de, W: Word> Deserialize<'de> for Named<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Self)
    }
}

impl<W: Word> JsonSchema for Named<W> {
    fn schema_name() -> Cow<'static, str> {
        W::LIST.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = W::ALL.iter().map(|it| it.name()).collect();
        json_schema!({ "description": W::ABOUT, "type": "string", "enum": names })
    }
}
