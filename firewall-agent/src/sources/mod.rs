//! Where rules come from. Each source is an edge: it reads text and says what changed,
//! and decides nothing.

pub mod files;
