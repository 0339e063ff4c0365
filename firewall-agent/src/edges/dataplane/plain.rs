//! Plain bytes, as aya takes them for the keys and values of maps.
//! Never says what is plain: zerocopy proves it, where a type is declared.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plain<T>(pub T);

// SAFETY: `repr(transparent)`; any bytes are a `T` (`FromBytes`), a `T` has no bytes that nobody
// wrote (`IntoBytes`), and none that change while they are read (`Immutable`).
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> aya::Pod for Plain<T> {}
