//! Arguments, and what a person sees.
//! Never changes anything in the kernel itself: modules of the daemon do, for `prepare` and `run`.

pub mod ask;
pub mod audit;
pub mod check;
pub mod colour;
pub mod doctor;
pub mod explain;
pub mod learn;
pub mod manual;
pub mod monitor;
pub mod notify;
pub mod remains;
pub mod rpc;
pub mod run;
pub mod said;
pub mod schema;
pub mod serve;
pub mod show;
pub mod sockets;
pub mod text;
pub mod top;
pub mod who;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use self::run::{Prepare, Run, SourceKind};
pub use self::serve::{prepare, run};

/// Exit code of whatever goes wrong and is not an answer.
pub const EXIT_ERROR: u8 = 2;
/// Exit code when the agent runs but something needs attention.
pub const EXIT_PROBLEM: u8 = 1;
/// Exit code when the kernel's tables say something else than the agent.
pub const EXIT_DISAGREEMENT: u8 = 4;
/// Exit code when no agent runs.
pub const EXIT_NOT_RUNNING: u8 = 3;

const DEFAULT_SOCKET: &str = "/run/firewall-agent/control.sock";
const DEFAULT_RULES: &str = "/etc/firewall-agent/rules.d";
const DEFAULT_PINS: &str = "/sys/fs/bpf/firewall-agent";

/// The firewall service of a Qubes OS netvm: each qube's rules become an eBPF policy that
/// decides about every packet in constant time.
///
/// Rules stay where they are, in dom0. To see what became of them, run
/// `firewall-agent show` in the netvm.
#[derive(Debug, Parser)]
#[command(name = "firewall-agent", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Close the gate, then run the administrator's scripts; the service does this first.
    ///
    /// Mounts a BPF file system for pins if there is none, and loads the nftables rules that
    /// forward nothing from clients yet. In modes `qubes` and `whonix` it then runs, in this order, the
    /// executables of /etc/qubes/qubes-firewall.d and of /rw/config/qubes-firewall.d, and
    /// /rw/config/qubes-firewall-user-script; not those in /rw if the service custom-persist
    /// is on.
    Prepare(Prepare),
    /// Run the service in the foreground.
    ///
    /// SIGHUP makes it read everything again. When it ends, in whatever way, the policies
    /// in force stay in force and nothing new is forwarded, as long as the gate is there.
    Run(Run),
    /// Say whether all is well: the agent, vifs, clients, and every problem.
    ///
    /// Exit code 0: all is well. 1: something needs attention; or no agent runs, and the netvm
    /// is OPEN, or nobody knows. 3: no agent runs, and nothing new is forwarded.
    Status(ask::Ask),
    /// Show clients' rules as they are in force, with what each of them has counted.
    ///
    /// Exit codes as with `status`.
    Show(show::Show),
    /// Show denied packets as they happen, or learn which rules would allow them.
    ///
    /// Each line is one packet: when, from whom, where to in the words that `explain` takes,
    /// what was done, by which rule or for which reason, and the generation of the policy.
    /// The kernel tells at most 20 packets a second of each vif; lines say how many were left
    /// out. Exit code 0: ended by Ctrl-C or --count. 3: no agent runs, or it has ended. 2: any
    /// other error.
    Monitor(monitor::Monitor),
    /// Watch clients, rates and trouble on a terminal.
    ///
    /// Arrow keys select, Enter shows a client's rules, s sorts, / filters, q quits. Exit
    /// code 0: quit. 2: there is no terminal (`status --json` is for scripts). 3: no agent
    /// runs.
    Top(top::Top),
    /// Let what a client's rules deny pass for a while, to find out what they would break.
    ///
    /// What would have been rejected is forwarded, counted and shown by `monitor`: until it
    /// ends, the client may send anything to anybody. Nothing else that is dropped passes. It
    /// ends by itself, even if no agent runs then, and with the agent that comes next; then
    /// what the rules deny is cut. Exit code 0: done. 2: that client cannot be audited. 3: no
    /// agent runs.
    Audit(audit::Audit),
    /// Say which rule decides about a packet, why, and what becomes of it.
    ///
    /// The answer is the kernel's: the same function runs on the agent's policy and on the
    /// kernel's own tables. Exit code 0: the packet is forwarded, or is for the netvm itself.
    /// 1: it is not. 3: neither an agent nor the kernel can tell. 4: they contradict each
    /// other, which is a bug. 2: any other error.
    Explain(explain::Explain),
    /// Look at this machine: what the firewall needs, what there is, and what that means.
    ///
    /// For a netvm in which something does not work, or a new kernel: looks at the kernel, nftables, QubesDB,
    /// services and the agent, and has the kernel check programs and rules without putting any in force.
    /// Its output is for reports of faults; --mask keeps addresses out of it. Exit code 0: no problem.
    /// 1: problems. 2: it cannot look, say, without root.
    Doctor(doctor::Doctor),
    /// Leave this netvm to another firewall; removing the package does this.
    ///
    /// Removes this firewall's programs and rules, and leaves tables behind that forward
    /// NOTHING until today's qubes-firewall has added its rules to them. Stop the service
    /// first.
    HandOver {
        /// Directory on a BPF file system, where programs are pinned.
        #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_PINS)]
        pins: PathBuf,
    },
    /// Show messages from standard input, a socket, on the user's screen; started by its socket.
    #[command(hide = true)]
    Notify(notify::Notify),
    /// Give sockets to whoever asks by standard input, a socket; started by its socket.
    #[command(hide = true)]
    Sockets,
    /// Print completions of the commands for a shell.
    Completions(manual::Completions),
    /// Print the JSON schema of whatever commands print with --json.
    ///
    /// One schema (draft 2020-12) of all documents: `anyOf` lists them by command, and `$defs`
    /// has their parts. docs/json.md tells what they mean, and when they change.
    Schema,
    /// Write manual pages into a directory.
    #[command(hide = true)]
    Manual(manual::Manual),
    /// Answer a call by qrexec; the files in /etc/qubes-rpc start this.
    #[command(hide = true)]
    Rpc(rpc::Rpc),
    /// Look for mistakes in a file of rules, without an agent.
    ///
    /// Names each error, which would block the client, and each rule that hardly says what was
    /// meant, with its place and what to write instead. Exit code 0: nothing to mend. 1: errors
    /// or warnings. 2: the file cannot be read, or it is not clear whose it is.
    Check(check::Check),
}

impl Command {
    /// Whether scripts read what the command prints, even if that is no answer.
    pub fn is_for_scripts(&self) -> bool {
        match self {
            Self::Status(ask) => ask.json,
            Self::Show(show) => show.ask.json,
            Self::Monitor(monitor) => monitor.ask.json,
            Self::Audit(audit) => audit.ask.json,
            Self::Explain(explain) => explain.ask.json,
            Self::Check(check) => check.json,
            Self::Doctor(doctor) => doctor.ask.json,
            Self::Prepare(_)
            | Self::Run(_)
            | Self::Top(_)
            | Self::HandOver { .. }
            | Self::Notify(_)
            | Self::Sockets
            | Self::Completions(_)
            | Self::Schema
            | Self::Rpc(_)
            | Self::Manual(_) => false,
        }
    }
}
