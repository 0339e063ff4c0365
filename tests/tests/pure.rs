//! Ring 1: does the meaning hold? Text, rules, policies and the agent's memory, without a
//! kernel. Runs anywhere.

mod pure {
    mod audits;
    mod conntrack;
    mod dom0;
    mod explained;
    mod feed;
    mod files;
    mod gateway;
    mod handled;
    mod introductions;
    mod layers;
    mod manual;
    mod many_names;
    mod memory;
    mod metrics;
    mod monitoring;
    mod names;
    mod names_age;
    mod options;
    mod packets;
    mod parts;
    mod policies;
    mod retries;
    mod routed;
    mod rpc;
    mod rules;
    mod settling;
    mod stage;
    mod targets;
    mod tidy;
    mod told;
    mod top;
    mod uplinks;
    mod whonix_page;
    mod wider;
    mod world;
}
