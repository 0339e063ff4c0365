//! What to write instead of what is wrong.
//! Never finds anything wrong; see `parse.rs`.

use super::Family;
use super::problem::Problem;

impl Problem {
    /// What to do about the problem, as people read it.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::NoPolicy => "add a line `policy = drop`: what happens when no rule matches",
            Self::NotAnAction(_) => "write `accept` or `drop`; `drop` rejects with an ICMP error",
            Self::UnknownKey(_) => "number rules with four digits, like 0000, 0001; gaps are fine",
            Self::KeyTwice(_) => "give each rule a number of its own; the number orders the rules",
            Self::TooLong => "split the rule, or use one network instead of many names",
            Self::EmptyOption => {
                "write one space between options, none in front and none at the end"
            }
            Self::NotAnOption(word) => {
                return format!("write it as option=value, or take `{word}` out");
            }
            Self::UnknownOption(option) => return unknown_option(option),
            Self::OptionTwice(_) => "give it once; for two values write two rules",
            Self::OutOfOrder(..) => {
                "the order is action, dst4 or dst6 or dsthost, proto, specialtarget, dstports, \
                 icmptype"
            }
            Self::NoAction => "begin with `action=accept` or `action=drop`",
            Self::TwoDestinations => "a rule has one destination: write a rule for each",
            Self::NotANetwork(value) => return network(value),
            Self::OtherFamily(_, Family::V4) => {
                "a qube's IPv6 address has rules of its own: this one belongs there"
            }
            Self::OtherFamily(_, Family::V6) => {
                "a qube's IPv4 address has rules of its own: this one belongs there"
            }
            Self::NotAName(value) => return name(value),
            Self::UnknownProtocol(_) => {
                "write tcp, udp or icmp (which means ICMPv6 for an IPv6 client); a rule without \
                 proto matches all others too"
            }
            Self::UnknownTarget(_) => "the only one is `specialtarget=dns`",
            Self::NotPorts(_) => {
                "write a port or a range like 443 or 8000-8080, 0 to 65535, low first"
            }
            Self::NotAnIcmpType(_) => "write the number: a ping is 8 in IPv4 and 128 in IPv6",
            Self::Conflict(..) => "no packet can be both: take one of them out",
            Self::NoCommit => {
                "end the file with a line `commit`, with its line end; without it the file counts \
                 as half written"
            }
            Self::AfterCommit => "move it in front of `commit`, which is the last line",
            Self::NotAnEntry => "write `key = value`, with one space on either side of `=`",
            Self::CarriageReturn => {
                "end lines with a line feed only: `sed -i 's/\\r$//' FILE`, and no editor of Windows"
            }
            Self::Unreadable(_) => "make it a file of UTF-8 text that root can read",
        };
        text.to_owned()
    }
}

fn unknown_option(option: &str) -> String {
    match option {
        "expire" | "comment" => {
            format!("dom0 keeps `{option}` to itself and does not send it; take it out")
        }
        "dstport" | "port" | "ports" => "write `dstports=`".to_owned(),
        "dst" | "dest" | "host" | "to" => {
            "write `dst4=`, `dst6=` or `dsthost=`; `dsthost` takes names only".to_owned()
        }
        "protocol" => "write `proto=`".to_owned(),
        _ => "options are action, dst4, dst6, dsthost, proto, specialtarget, dstports, icmptype"
            .to_owned(),
    }
}

fn network(value: &str) -> String {
    let looks_like_name = value.bytes().any(|byte| matches!(byte, b'g'..=b'z' | b'G'..=b'Z'));
    if looks_like_name {
        return format!("for a name write `dsthost={}`", value.to_lowercase());
    }
    "write an address, or a network like 192.0.2.0/24 or 2001:db8::/32".to_owned()
}

fn name(value: &str) -> String {
    let address = value.split('/').next().unwrap_or(value);
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => format!("for an address write `dst4={value}`"),
        Ok(std::net::IpAddr::V6(_)) => format!("for an address write `dst6={value}`"),
        Err(_) if value.starts_with("*.") => {
            "there are no patterns of names: write a rule for each name".to_owned()
        }
        Err(_) if value.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            format!("write it in lower case: `dsthost={}`", value.to_lowercase())
        }
        Err(_) => {
            "letters a to z, digits, `-` and `_`, in labels with dots between them".to_owned()
        }
    }
}
