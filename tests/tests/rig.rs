//! Ring 3: does the product work? The real agent in a netvm of namespaces, real sockets,
//! real nft. Needs root.

mod rig {
    mod answers;
    mod audit;
    mod bridged;
    mod clients;
    mod closed;
    mod cutting;
    mod cutting_many;
    mod cycles;
    mod early;
    mod errors;
    mod ethernet;
    mod explained;
    mod files;
    mod filters;
    mod fragments;
    mod handled;
    mod headers;
    mod input;
    mod life;
    mod local;
    mod marks;
    mod memory;
    mod metrics;
    mod monitor;
    mod named;
    mod names;
    mod names_life;
    mod names_many;
    mod names_odd;
    mod nat;
    mod offload;
    mod others;
    mod own_recipes;
    mod own_rules;
    mod packages;
    mod qubesdb;
    mod renamed;
    mod repair;
    mod scene;
    mod service;
    mod strict;
    mod traffic;
    mod tunnel;
    mod unread;
    mod uplinks;
    mod uplinks_life;
    mod vifs;
    mod waiting;
    mod world;
}
