//! Waiting for changes.
//! Never looks at what has changed.

pub mod directory;
pub mod pace;
