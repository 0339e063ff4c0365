//! Rules from QubesDB: real bytes over a real socket, to a daemon that can do everything
//! wrong. Needs no root.

mod qubesdb {
    mod malformed;
    mod scene;
    mod source;
}
