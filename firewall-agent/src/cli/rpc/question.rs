//! PURE: what a call by qrexec asks: a service, its caller, and an argument, which is a stranger's.
//! Never takes anything for an option, and never takes the caller's word for who it is.

use clap::ValueEnum;
use firewall_core::introductions::is_name;
use firewall_core::protocol::{ICMP, ICMPV6, TCP, UDP};
use firewall_core::told::own::Aim;

use crate::cli::explain::target::{Host, Service as Protocol, Target};
use crate::cli::who::Who;

/// Longest argument, in bytes. What is asked for with two IPv6 addresses takes half of it.
const LONGEST: usize = 255;
/// How long denied packets are watched, in seconds, if nothing else is said, and at most.
const SECONDS: u64 = 10;
const MOST_SECONDS: u64 = 60;

/// A service, by its name in qrexec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// What `status` says.
    #[value(name = "firewall.Status")]
    Status,
    /// What `show` says of one client.
    #[value(name = "firewall.Show")]
    Show,
    /// What `explain` says.
    #[value(name = "firewall.Explain")]
    Explain,
    /// What `monitor` says, for some seconds.
    #[value(name = "firewall.Monitor")]
    Monitor,
    /// What a qube may know about itself.
    #[value(name = "firewall.Why")]
    Why,
}

/// How an answer is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What `status` says.
    Status,
    /// What `show` says of one client.
    Show(Who),
    /// What `explain` says.
    Explain(Who, Destination),
    /// Denied packets for so many seconds.
    Monitor {
        /// For how many seconds.
        seconds: u64,
        /// Whether rules are wanted that would allow them.
        learn: bool,
    },
    /// What a qube may know about itself, and about a packet to an address.
    Why {
        /// Name of the qube that calls.
        qube: String,
        /// Where the packet is to go.
        aim: Option<Aim>,
    },
}

/// A destination as `explain --to` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// As it is written.
    pub text: String,
    target: Target,
}

impl Service {
    /// The service's name, with what may stand behind it.
    fn usage(self) -> &'static str {
        match self {
            Self::Status => "firewall.Status[+json]",
            Self::Show => "firewall.Show+CLIENT[+json]",
            Self::Explain => "firewall.Explain+CLIENT+ADDRESS+PORT+PROTO[+json]",
            Self::Monitor => "firewall.Monitor[+SECONDS][+learn|+json], 1 to 60 seconds",
            Self::Why => "firewall.Why[+ADDRESS+PORT+PROTO][+json]",
        }
    }
}

/// How an answer to this argument is to look, whatever else is wrong with it.
pub fn form(argument: &[u8]) -> Form {
    let is_json = argument == b"json" || argument.ends_with(b"+json");
    if is_json { Form::Json } else { Form::Text }
}

/// Reads a call. An error says in one line what may be asked.
pub fn question(
    service: Service,
    caller: Option<&[u8]>,
    argument: &[u8],
) -> Result<Question, String> {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-".contains(byte);
    if argument.len() > LONGEST || !argument.iter().all(is_allowed) {
        return Err(format!(
            "the argument has bytes that qrexec does not allow, or more than {LONGEST}; call it as {}",
            service.usage()
        ));
    }
    let argument = String::from_utf8_lossy(argument);
    let mut fields: Vec<&str> = argument.split('+').collect();
    if argument.is_empty() {
        fields.clear();
    }
    if fields.last() == Some(&"json") {
        fields.pop();
    }
    let read = match (service, fields.as_slice()) {
        (Service::Status, []) => Some(Ok(Question::Status)),
        (Service::Show, [client]) => Some(who(client).map(Question::Show)),
        (Service::Explain, [client, to @ ..]) if !to.is_empty() => {
            Some(who(client).and_then(|client| Ok(Question::Explain(client, Destination::of(to)?))))
        }
        (Service::Monitor, fields) => monitor(fields, form(argument.as_bytes())),
        (Service::Why, to) => Some(why(caller, to)),
        (Service::Status | Service::Show | Service::Explain, _) => None,
    };
    let usage = || format!("call it as {}", service.usage());
    read.ok_or_else(usage)?.map_err(|why| format!("{why}; {}", usage()))
}

fn who(client: &str) -> Result<Who, String> {
    colons(client)
        .parse()
        .map_err(|_| format!("`{client}` is neither an address nor a qube's name"))
}

/// An address as it is written elsewhere; qrexec takes no colons.
fn colons(field: &str) -> String {
    let written = field.replace('_', ":");
    let is_address = written.parse::<std::net::Ipv6Addr>().is_ok();
    if is_address { written } else { field.to_owned() }
}

fn monitor(fields: &[&str], form: Form) -> Option<Result<Question, String>> {
    let (fields, learn) = match fields {
        [before @ .., "learn"] => (before, true),
        fields => (fields, false),
    };
    let seconds = match fields {
        [] => SECONDS,
        [seconds] => seconds.parse().ok().filter(|it| (1..=MOST_SECONDS).contains(it))?,
        _ => return None,
    };
    if learn && form == Form::Json {
        return Some(Err("rules are lines for people, not JSON".to_owned()));
    }
    Some(Ok(Question::Monitor { seconds, learn }))
}

fn why(caller: Option<&[u8]>, to: &[&str]) -> Result<Question, String> {
    let caller = caller.map(String::from_utf8_lossy);
    let Some(qube) = caller.filter(|it| is_name(it)) else {
        return Err("qrexec did not say which qube calls".to_owned());
    };
    if qube == "dom0" {
        return Err(
            "it tells a qube about itself, and dom0 has no rules: ask firewall.Show".to_owned()
        );
    }
    let aim = if to.is_empty() { None } else { Some(Destination::of(to)?.aim()?) };
    Ok(Question::Why { qube: qube.into_owned(), aim })
}

impl Destination {
    /// Reads `ADDRESS`, `PORT` and `PROTO`, or `ADDRESS` and what has no ports.
    fn of(fields: &[&str]) -> Result<Self, String> {
        let (host, service) = match fields {
            [host, port, protocol @ ("tcp" | "udp")] => (host, format!(":{port}/{protocol}")),
            [host, kind, "icmp"] => (host, format!("/icmp:{kind}")),
            [host, protocol] => (host, format!("/{protocol}")),
            _ => return Err("a destination is ADDRESS+PORT+tcp, udp or icmp".to_owned()),
        };
        let host = colons(host);
        let text = if host.contains(':') { format!("[{host}]{service}") } else { host + &service };
        let target = text.parse()?;
        Ok(Self { text, target })
    }

    /// An address: where names lead may be known because of others' rules.
    fn aim(&self) -> Result<Aim, String> {
        let Host::Address(destination) = self.target.host else {
            return Err("give an address, not a name".to_owned());
        };
        let is_v4 = destination.is_ipv4();
        let (icmp, ping) = if is_v4 { (ICMP, 8) } else { (ICMPV6, 128) };
        let (protocol, port) = match self.target.service {
            Protocol::Tcp(port) => (TCP, port),
            Protocol::Udp(port) => (UDP, port),
            Protocol::Icmp(kind) => (icmp, kind.unwrap_or(ping).into()),
            Protocol::Other(number) => (number, 0),
        };
        Ok(Aim { destination, protocol, port })
    }
}
