//! Fragments: cutting packets into pieces, and putting pieces together.
//! Never cuts as a kernel would: where, and in which order, is an argument.

use std::ops::Range;

use crate::packets::{FRAGMENT, checksum};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const MORE: u16 = 0x2000;

/// The bytes `range` of what follows the IP header of a plain packet, as a fragment. It
/// starts at a multiple of 8, and is the last one if it reaches the packet's end.
pub fn piece(packet: &[u8], identification: u16, range: Range<usize>) -> Vec<u8> {
    assert!(range.start.is_multiple_of(8), "no fragment can start at {}", range.start);
    let offset = (range.start / 8) as u16;
    if packet[0] >> 4 == 4 {
        let (header, body) = packet.split_at(V4_HEADER);
        let more = if range.end < body.len() { MORE } else { 0 };
        let mut piece = header.to_vec();
        piece[2..4].copy_from_slice(&((V4_HEADER + range.len()) as u16).to_be_bytes());
        piece[4..6].copy_from_slice(&identification.to_be_bytes());
        piece[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        piece[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&piece);
        piece[10..12].copy_from_slice(&sum.to_be_bytes());
        piece.extend(&body[range]);
        piece
    } else {
        let (header, body) = packet.split_at(V6_HEADER);
        let more = u16::from(range.end < body.len());
        let mut piece = header.to_vec();
        piece[4..6].copy_from_slice(&((8 + range.len()) as u16).to_be_bytes());
        piece[6] = FRAGMENT;
        piece.extend([header[6], 0]);
        piece.extend((offset << 3 | more).to_be_bytes());
        piece.extend([0, 0]);
        piece.extend(identification.to_be_bytes());
        piece.extend(&body[range]);
        piece
    }
}

/// A packet cut at these places.
pub fn pieces(packet: &[u8], identification: u16, cuts: &[usize]) -> Vec<Vec<u8>> {
    let header = if packet[0] >> 4 == 4 { V4_HEADER } else { V6_HEADER };
    let starts = [0].into_iter().chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([packet.len() - header]);
    starts.zip(ends).map(|(start, end)| piece(packet, identification, start..end)).collect()
}

/// What followed the IP header of the packet that these are, or are the fragments of.
/// `None` if something is missing.
pub fn whole(packets: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut parts: Vec<(u16, bool, &[u8])> = packets.iter().map(|it| part(it)).collect();
    parts.sort_by_key(|(offset, _, _)| *offset);
    let mut whole = Vec::new();
    for (offset, _, data) in &parts {
        if usize::from(*offset) * 8 != whole.len() {
            return None;
        }
        whole.extend(*data);
    }
    let (_, more, _) = parts.last()?;
    (!more).then_some(whole)
}

/// Offset in units of 8 bytes, whether more follow, and the data.
fn part(packet: &[u8]) -> (u16, bool, &[u8]) {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0xf) * 4;
        let end = usize::from(word(2));
        (word(6) & 0x1fff, word(6) & MORE != 0, &packet[header..end])
    } else {
        let end = V6_HEADER + usize::from(word(4));
        match packet[6] {
            FRAGMENT => (word(42) >> 3, word(42) & 1 != 0, &packet[V6_HEADER + 8..end]),
            _ => (0, false, &packet[V6_HEADER..end]),
        }
    }
}
