//! The words between the world and the edges: what happened, and what to do.
//! Never holds behaviour.

mod effect;
mod event;
mod notice;
mod task;

pub use self::effect::{Effect, Installation};
pub use self::event::{Event, GateLook, Why};
pub use self::notice::Notice;
pub use self::task::Task;
