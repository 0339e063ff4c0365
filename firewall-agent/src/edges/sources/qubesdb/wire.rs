//! PURE: the bytes of QubesDB's protocol, and its paths.
//! Never reads or writes anywhere.
//!
//! Source: `qubesdb.h` and `db-daemon.c` of qubes-core-qubesdb 4.3. A message is a header of
//! 72 bytes in the machine's byte order, then its data: kind (1 byte), path (64, NUL
//! terminated), 3 of padding, length of the data (4).

use std::fmt;

use thiserror::Error;

/// Length of a header, in bytes.
pub const HEADER: usize = 72;
/// Longest path, in bytes. The daemon cuts longer ones silently.
const MAX_PATH: usize = 63;
/// Where the length of the data stands in a header.
const LENGTH_AT: usize = 68;
/// Most bytes of data in a message that is understood.
pub const MAX_DATA: usize = 3072;

/// Not a path of QubesDB.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not a path of QubesDB: 1 to 63 of the characters A-Z a-z 0-9 - _ / . : @, / first"
)]
pub struct NotAPath(String);

/// A key, like `/qubes-firewall/10.137.0.12/0000`; or the beginning of keys, with a `/` at
/// the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The path that a text is; an error if it is none.
    pub fn new(text: impl Into<String>) -> Result<Self, NotAPath> {
        let text = text.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.:@".contains(&byte);
        let fits = text.len() <= MAX_PATH && text.starts_with('/');
        if fits && text.bytes().all(allowed) { Ok(Self(text)) } else { Err(NotAPath(text)) }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path stands for all keys that begin with it.
    pub fn is_prefix(&self) -> bool {
        self.0.ends_with('/')
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the protocol's")]
pub enum Request {
    Read = 0,
    Write = 1,
    Multiread = 2,
    List = 3,
    Rm = 4,
    Watch = 5,
}

/// What the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the protocol's")]
pub enum Response {
    Ok,
    NoEntry,
    Error,
    Read,
    Multiread,
    List,
    Watch,
}

impl Response {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            7 => Self::Ok,
            8 => Self::NoEntry,
            9 => Self::Error,
            10 => Self::Read,
            11 => Self::Multiread,
            12 => Self::List,
            13 => Self::Watch,
            _ => return None,
        })
    }
}

/// Bytes that are no response of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The first byte is not the number of a response.
    #[error("{0} is not the number of a response")]
    Kind(u8),
    /// More bytes of data than a message may have.
    #[error("{0} bytes of data in a message; there may be {MAX_DATA}")]
    Length(u32),
    /// A path without an end, or not text.
    #[error("a message without a path that can be read")]
    Path,
}

/// Header of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What kind of response it is.
    pub response: Response,
    /// The path that the response is about; empty at the end of a series.
    pub path: String,
    /// How many bytes of data follow.
    pub length: usize,
}

/// The bytes of a request, header and data.
pub fn request(request: Request, path: &Path, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + data.len());
    bytes.push(request as u8);
    bytes.extend_from_slice(path.0.as_bytes());
    bytes.resize(LENGTH_AT, 0);
    // Whoever writes keeps values far below 4 GiB.
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The header of a response, from its bytes; an error if they are none.
pub fn header(bytes: &[u8; HEADER]) -> Result<Header, WireError> {
    let [kind, rest @ ..] = bytes;
    let response = Response::from_number(*kind).ok_or(WireError::Kind(*kind))?;
    let path = rest.split_at(MAX_PATH + 1).0;
    let end = path.iter().position(|byte| *byte == 0).ok_or(WireError::Path)?;
    let path = std::str::from_utf8(path.split_at(end).0).map_err(|_| WireError::Path)?;
    let length = bytes.last_chunk().copied().map(u32::from_ne_bytes).unwrap_or_default();
    let fits = usize::try_from(length).ok().filter(|length| *length <= MAX_DATA);
    let length = fits.ok_or(WireError::Length(length))?;
    Ok(Header { response, path: path.to_owned(), length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_an_end_and_few_characters() {
        let check = |text: &str, expected: bool| {
            assert_eq!(Path::new(text).is_ok(), expected, "{text}");
        };
        check("/qubes-firewall/10.137.0.12/0000", true);
        check("/qubes-firewall/fd09:24ef:4179::a89:b/", true);
        check("/a@b_c.D", true);
        check("/", true);
        check("", false);
        check("qubes-firewall", false);
        check("-/a", false);
        check("/a b", false);
        check("/a\0", false);
        check("/\u{e4}", false);
        check(&format!("/{}", "a".repeat(62)), true);
        check(&format!("/{}", "a".repeat(63)), false);
    }

    #[test]
    fn a_request_is_a_header_and_data() {
        let path = Path::new("/ab").expect("a path");
        let bytes = request(Request::Write, &path, b"value");
        assert_eq!(bytes.len(), 77);
        assert_eq!(&bytes[..5], b"\x01/ab\0");
        assert!(bytes[5..68].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[68..72], &5_u32.to_ne_bytes());
        assert_eq!(&bytes[72..], b"value");
    }

    #[test]
    fn a_response_is_understood_or_refused() {
        let bytes = |kind: u8, path: &[u8], length: u32| {
            let mut bytes = [0; HEADER];
            bytes[0] = kind;
            bytes[1..=path.len()].copy_from_slice(path);
            bytes[65..68].copy_from_slice(b"pad");
            bytes[68..].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let ok =
            |response, path: &str, length| Ok(Header { response, path: path.to_owned(), length });
        let check = |bytes, expected| assert_eq!(header(&bytes), expected);
        check(bytes(7, b"/a", 0), ok(Response::Ok, "/a", 0));
        check(bytes(11, b"", 0), ok(Response::Multiread, "", 0));
        check(bytes(13, &[b'a'; 63], 0), ok(Response::Watch, &"a".repeat(63), 0));
        check(bytes(10, b"/a", 3072), ok(Response::Read, "/a", 3072));
        check(bytes(10, b"/a", 3073), Err(WireError::Length(3073)));
        check(bytes(10, b"/a", u32::MAX), Err(WireError::Length(u32::MAX)));
        check(bytes(10, &[b'a'; 64], 0), Err(WireError::Path));
        check(bytes(10, b"\xff", 0), Err(WireError::Path));
        check(bytes(0, b"/a", 0), Err(WireError::Kind(0)));
        check(bytes(14, b"/a", 0), Err(WireError::Kind(14)));
    }
}
