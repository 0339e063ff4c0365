//! What `explain` is asked on the command line.
//! Never opens a file that is named there.

use std::path::PathBuf;

use clap::Args;

use super::target::Target;
use crate::cli::ask::Ask;
use crate::cli::who::Who;

/// Which packet.
#[derive(Debug, Args)]
pub struct Explain {
    /// The client that sends the packet, by its address, or by the name of a qube that dom0 has
    /// introduced. With --packet it is the packet's source, if not given; with --rules the name of the
    /// file.
    #[arg(long, value_name = "CLIENT")]
    pub from: Option<Who>,
    /// Where to: 198.51.100.7:443/tcp, [2001:db8::7]:53/udp, git.example:22/tcp,
    /// 198.51.100.7/icmp (a ping), 198.51.100.7/icmp:3, 198.51.100.7/47 (a protocol by its
    /// number). A name means the addresses that the agent knows for it.
    #[arg(
        long,
        value_name = "HOST[:PORT]/PROTO",
        required_unless_present = "packet",
        conflicts_with = "packet"
    )]
    pub to: Option<Target>,
    /// A packet in hexadecimal digits, with or without its Ethernet header, or a file that
    /// tcpdump or Wireshark wrote (pcap or pcapng).
    #[arg(long, value_name = "HEX|FILE")]
    pub packet: Option<String>,
    /// Explain by this file of rules, and ask neither the agent nor the kernel. What it says is so in
    /// a netvm that forwards; in a Whonix gateway, which judges more, ask its agent.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// List every rule that was tried, however many there are.
    #[arg(long)]
    pub all: bool,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}
