//! Packets that somebody recorded: digits, or a file of tcpdump or Wireshark.
//! Never judges a packet.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

/// No packet is longer (an IPv6 jumbogram aside).
const MOST: usize = 1 << 17;
const HEADER: usize = 14;
/// Which bytes of the headers that Linux makes up have the ethertype, and their lengths
/// (LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2).
const COOKED: (usize, usize) = (14, 16);
const COOKED_2: (usize, usize) = (0, 20);

/// The frames that are meant: by hexadecimal digits, or by the name of a file. An error if it is
/// neither, or if the file is no whole capture file of a kind that is understood.
pub fn frames(given: &str) -> Result<Vec<Vec<u8>>> {
    let path = Path::new(given);
    if path.exists() {
        return file(path).with_context(|| given.to_owned());
    }
    let bytes = hex(given).with_context(|| {
        format!("`{given}` is neither a file nor a packet in hexadecimal digits")
    })?;
    Ok(vec![frame(bytes)])
}

/// Bytes as digits, with or without spaces and colons between them.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b':');
    let values: Option<Vec<u8>> = digits
        .map(|digit| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()))
        .collect();
    let values = values.filter(|values| !values.is_empty() && values.len() % 2 == 0)?;
    Some(values.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// With an Ethernet header: a bare IP packet gets one.
fn frame(bytes: Vec<u8>) -> Vec<u8> {
    let is_bare = match bytes.first() {
        Some(first) if first >> 4 == 4 => length(&bytes, 2, 0) == Some(bytes.len()),
        Some(first) if first >> 4 == 6 => length(&bytes, 4, 40) == Some(bytes.len()),
        _ => false,
    };
    if is_bare { dressed(&bytes) } else { bytes }
}

/// What a packet says about its own length.
fn length(bytes: &[u8], at: usize, more: usize) -> Option<usize> {
    let field = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([field[0], field[1]])) + more)
}

fn dressed(packet: &[u8]) -> Vec<u8> {
    let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let ethertype: [u8; 2] = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[0; HEADER - 2], ethertype.as_slice(), packet].concat()
}

/// All frames in a file.
fn file(path: &Path) -> Result<Vec<Vec<u8>>> {
    let file = std::fs::File::open(path)?;
    let not_one = |_| io::Error::other("not a capture file (pcap or pcapng)");
    let mut reader = create_reader(2 * MOST, file).map_err(not_one)?;
    let mut frames = Vec::new();
    // Of the interfaces that a pcapng file names, in order; a pcap file has one.
    let mut kinds: Vec<Linktype> = Vec::new();
    loop {
        match reader.next() {
            Ok((size, block)) => {
                frames.extend(of_block(&block, &mut kinds)?);
                reader.consume(size);
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_)) => {
                let before = reader.position();
                let refilled = reader.refill();
                ensure!(refilled.is_ok(), "a packet in it is longer than {MOST} bytes");
                ensure!(reader.position() != before || !reader.reader_exhausted(), "it ends early");
            }
            Err(error) => bail!("not understood: {:?}", error.to_owned_vec()),
        }
    }
    Ok(frames)
}

fn of_block(block: &PcapBlockOwned<'_>, kinds: &mut Vec<Linktype>) -> Result<Option<Vec<u8>>> {
    let (kind, data, length) = match block {
        PcapBlockOwned::LegacyHeader(header) => {
            *kinds = vec![header.network];
            return Ok(None);
        }
        PcapBlockOwned::Legacy(packet) => (kinds.first(), packet.data, packet.origlen),
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            kinds.clear();
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            kinds.push(interface.linktype);
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let index = usize::try_from(packet.if_id)?;
            let captured = usize::try_from(packet.caplen)?;
            (kinds.get(index), packet.data.get(..captured).unwrap_or(packet.data), packet.origlen)
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            (kinds.first(), packet.data, packet.origlen)
        }
        PcapBlockOwned::NG(_) => return Ok(None),
    };
    let kind = *kind.context("a packet before its interface")?;
    let mut data = data.to_vec();
    // What the recorder cut off was there; headers are what counts.
    data.resize(data.len().max(usize::try_from(length)?.min(MOST)), 0);
    of_kind(kind, data).map(Some)
}

/// A frame from what a kind of link gives.
fn of_kind(kind: Linktype, data: Vec<u8>) -> Result<Vec<u8>> {
    match kind {
        Linktype::ETHERNET => Ok(data),
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 | Linktype(12) => Ok(dressed(&data)),
        Linktype(113) => cooked(&data, COOKED),
        Linktype(276) => cooked(&data, COOKED_2),
        Linktype(other) => bail!("links of type {other} are not understood; record on the vif"),
    }
}

fn cooked(data: &[u8], (ethertype, length): (usize, usize)) -> Result<Vec<u8>> {
    let short = "a packet shorter than its header";
    let ethertype = data.get(ethertype..ethertype + 2).context(short)?;
    let payload = data.get(length..).context(short)?;
    Ok([&[0; HEADER - 2], ethertype, payload].concat())
}
