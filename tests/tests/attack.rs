//! The attacker's ring: a client that may send nothing and tries everything, beside honest
//! ones, in front of the real agent. Needs root.

mod attack {
    mod named;
    mod play;
    mod random;
    mod watching;
}
