//! The netvm's own DNS servers, from `resolv.conf`.
//! Never fails: a line that is not understood names no server.

use std::net::IpAddr;
use std::path::Path;

use tracing::warn;

/// The servers that a file names; none if it cannot be read.
pub fn read(path: &Path) -> Vec<IpAddr> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)),
        Err(error) => {
            warn!(path = %path.display(), %error, "no resolvers known");
            Vec::new()
        }
    }
}

/// The servers that a text names, each once, in order. White space of any kind and amount
/// separates; an address with a zone (`fe80::1%eth0`) cannot be a client's destination.
pub fn parse(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| word.parse().ok());
        if let Some(server) = server.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let expected: Vec<IpAddr> =
            expected.iter().filter_map(|address| address.parse().ok()).collect();
        assert_eq!(parse(text), expected, "{text:?}");
    }

    #[test]
    fn odd_lines_of_resolv_conf_name_no_server_and_harm_no_other() {
        check("", &[]);
        check("nameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("nameserver  192.0.2.53", &["192.0.2.53"]);
        check("nameserver\t192.0.2.53 # the router\r\n", &["192.0.2.53"]);
        check("nameserver fe80::1%eth0\nnameserver 2001:db8::53\n", &["2001:db8::53"]);
        check("nameserver\nnameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("nameserver 192.0.2.53\nnameserver 192.0.2.53\n", &["192.0.2.53"]);
        check("#nameserver 192.0.2.1\n;nameserver 192.0.2.2\nsearch example\n", &[]);
        check("nameserver 999.0.2.53\nnameserver host\n", &[]);
    }
}
