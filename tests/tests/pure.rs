//! Ring 1: does the meaning hold? Text, rules, policies and the agent's memory, without a
//! kernel. Runs anywhere.

mod pure {
    mod audits;
    mod explained;
    mod feed;
    mod files;
    mod manual;
    mod many_names;
    mod metrics;
    mod monitoring;
    mod names;
    mod names_age;
    mod packets;
    mod policies;
    mod rules;
    mod targets;
    mod tidy;
    mod told;
    mod top;
    mod world;
}
