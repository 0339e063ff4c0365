//! The checks: each asks one question of the real thing, and says what it saw.
//! Never relies on rules that another check left behind.

mod bulk;
mod cut;
mod life;
mod linear;
mod plug;
mod queues;
mod reach;

use anyhow::Result;

use crate::stage::Stage;

/// A check.
pub struct Check {
    pub name: &'static str,
    pub about: &'static str,
    /// What was seen, or what was seen instead.
    pub run: fn(&mut Stage) -> Result<String>,
}

/// All of them, in the order in which they run.
pub const CHECKS: [Check; 11] = [
    Check {
        name: "reach",
        about: "what rules accept gets through, what they deny is rejected and does not leave",
        run: reach::reach,
    },
    Check {
        name: "spoofed",
        about: "packets with an address that is not the qube's own do not leave",
        run: reach::spoofed,
    },
    Check {
        name: "fragments",
        about: "fragments of what rules accept get through, of what they deny none leaves",
        run: reach::fragments,
    },
    Check {
        name: "bulk",
        about: "long transfers in both directions are right byte by byte, in packets as netback makes them",
        run: bulk::bulk,
    },
    Check {
        name: "queues",
        about: "a vif with two queues works, and rules hold on each of them",
        run: queues::queues,
    },
    Check {
        name: "linear",
        about: "wherever a qube cuts a packet's headers in memory, rules hold",
        run: linear::linear,
    },
    Check { name: "plug", about: "a vif that is plugged in is judged at once", run: plug::plug },
    Check {
        name: "held",
        about: "nothing leaves from a new vif before the agent has seen it",
        run: plug::held,
    },
    Check {
        name: "killed",
        about: "a killed agent leaves all as it was, and a new one takes over",
        run: life::killed,
    },
    Check {
        name: "cut",
        about: "once rules are handled, no packet of an upload that they forbid leaves",
        run: cut::cut,
    },
    Check {
        name: "restart",
        about: "a qube that starts again has the rules of now, and nothing open that they deny",
        run: life::restart,
    },
];
