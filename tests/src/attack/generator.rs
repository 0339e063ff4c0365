//! Random hostile sequences: any frame that the ring has words for, and what happens in
//! between. A third of them is one datagram in pieces with something happening between these.
//! Never random without a seed.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use super::content::{Content, Port, Quote};
use super::frame::{Checksum, Flaw, Frame, Header, Packet};
use super::place::{Flow, Place, View, Whose};
use super::sequence::{Rules, Sequence, Step};
use crate::packets::family::{Family, PerFamily as _};

/// Most steps of a sequence.
const STEPS: usize = 6;
/// Most frames sent at once, but for a flood.
const FRAMES: usize = 8;
/// Most frames of a flood, and of one in four. Neighbours are fewer: the kernel has one table
/// for all namespaces, and whoever else runs tests must not be harmed.
const FLOOD: u16 = 120;
const GREAT_FLOOD: u16 = 1500;
const NEIGHBOURS: u16 = 600;
/// How many units of 8 bytes a datagram in pieces has at most.
const UNITS: u16 = 300;

/// A source of sequences.
pub struct Generator {
    random: StdRng,
    seed: u64,
    count: u64,
}

impl Generator {
    /// The same seed gives the same sequences in the same order.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), seed, count: 0 }
    }

    /// The next one.
    pub fn sequence(&mut self) -> Sequence {
        self.count += 1;
        let mut steps = Vec::new();
        if self.random.random_ratio(1, 3) {
            steps = self.datagram_in_pieces();
        } else {
            for _ in 0..self.random.random_range(1..=STEPS) {
                steps.push(self.step());
            }
        }
        Sequence::new(format!("seed {} number {}", self.seed, self.count), steps)
    }

    fn step(&mut self) -> Step {
        match self.random.random_range(0..20) {
            0..14 => Step::Send(self.frames()),
            14..16 => self.flood(),
            _ => self.event(),
        }
    }

    fn flood(&mut self) -> Step {
        let family = self.family();
        let frame = match self.random.random_range(0..4) {
            0 => {
                let contents = [
                    Content::Echo(0),
                    Content::Udp(Port::Is(9), 0),
                    Content::Tcp(Port::Is(9), 0x10, 0),
                    Content::Sctp(Port::Is(9)),
                ];
                let places = [Place::Gateway, Place::Uplink, Place::Multicast, Place::Network];
                let to = self.one_of(&places);
                Packet::new(family, to, self.one_of(&contents)).into()
            }
            1 => {
                let start = self.one_of(&[0, 120]);
                let packet = Packet::new(family, self.place(), Content::Udp(Port::Marked, 1900));
                packet.piece(self.random.random(), start, start + 120).into()
            }
            2 => Frame::Arp(self.random.random_range(1..=2), Place::Numbered, Place::Gateway),
            _ => self.frame(),
        };
        if self.random.random_ratio(3, 4) {
            return Step::Flood(frame, self.random.random_range(2..=FLOOD));
        }
        match frame {
            Frame::Arp(..) => Step::Flood(frame, NEIGHBOURS),
            Frame::Ip(_) | Frame::Other(..) => Step::Flood(frame, GREAT_FLOOD),
        }
    }

    /// Something that changes what the attacker may send, or who judges it.
    fn event(&mut self) -> Step {
        match self.random.random_range(0..16) {
            0..4 => Step::Rules(Rules::Accept),
            4..8 => Step::Rules(Rules::Deny),
            8 => Step::Rules(Rules::Broken),
            9 => Step::Rules(Rules::Gone),
            10..12 => Step::Audit(true),
            12..14 => Step::Audit(false),
            14 => Step::Kill,
            _ => Step::Start,
        }
    }

    fn frames(&mut self) -> Vec<Frame> {
        let count = self.random.random_range(1..=FRAMES);
        if self.random.random_ratio(1, 12) {
            let plain = Packet::new(self.family(), Place::Nobody, Content::Udp(Port::Marked, 64));
            return vec![plain.into(); count];
        }
        (0..count).map(|_| self.frame()).collect()
    }

    /// A large datagram in pieces, in any order, some missing and some twice, with events
    /// between them.
    fn datagram_in_pieces(&mut self) -> Vec<Step> {
        let mut packet = self.packet();
        packet.to = *[Place::Server, Place::Nobody, Place::Honest(0), Place::Gateway]
            .choose(&mut self.random)
            .unwrap_or(&Place::Server);
        packet.headers.retain(|_| packet.family == Family::V6);
        packet.flaws.clear();
        if self.random.random_ratio(2, 3) {
            packet.content = Content::Udp(Port::Marked, UNITS * 8);
            packet.from = Place::Own;
        }
        let identification = self.random.random();
        let mut cuts: Vec<u16> = (0..self.random.random_range(1..=3_u16))
            .map(|_| self.random.random_range(1..UNITS / 2))
            .collect();
        cuts.sort_unstable();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([u16::MAX]);
        let mut pieces: Vec<Frame> = starts
            .zip(ends)
            .map(|(start, end)| packet.clone().piece(identification, start, end).into())
            .collect();
        if self.random.random_ratio(1, 3) {
            pieces.shuffle(&mut self.random);
        }
        if self.random.random_ratio(1, 5)
            && let Some(piece) = pieces.choose(&mut self.random).cloned()
        {
            pieces.push(piece);
        }
        let mut steps = vec![self.event()];
        for piece in pieces {
            steps.push(Step::Send(vec![piece]));
            if self.random.random_ratio(1, 2) {
                steps.push(self.event());
            }
        }
        steps
    }

    fn frame(&mut self) -> Frame {
        match self.random.random_range(0..20) {
            0 => Frame::Arp(self.random.random_range(1..=2), self.place(), self.place()),
            1 => {
                let ethertype = [0x0026, 0x0800, 0x86dd, 0x8100, 0x88cc, 0x8864, 0x0806];
                let ethertype = self.one_of(&ethertype);
                // A tag that is not whole is dropped by the kernel itself, uncounted.
                Frame::Other(ethertype, self.random.random_range(8..200))
            }
            _ => self.packet().into(),
        }
    }

    fn packet(&mut self) -> Packet {
        let family = self.family();
        let content = self.content(family);
        let mut packet = Packet::new(family, self.place(), content);
        if let Content::Error { .. } = content
            && self.random.random_ratio(3, 4)
        {
            packet.to = self.one_of(&[
                Place::Server,
                Place::Uplink,
                Place::Gateway,
                Place::Honest(0),
                Place::Honest(1),
            ]);
        }
        if self.random.random_ratio(1, 12) {
            packet.from = self.place();
        }
        if self.random.random_ratio(1, 10) {
            packet.hops = self.one_of(&[0, 1, 2, 255]);
        }
        if self.random.random_ratio(1, 6) {
            let headers = [
                Header::Options,
                Header::Route,
                Header::Authentication,
                Header::Destination,
                Header::Atomic,
            ];
            let count = self.random.random_range(1..=3);
            packet.headers = (0..count).map(|_| self.one_of(&headers)).collect();
        }
        packet.checksum = match self.random.random_range(0..10) {
            0 => Checksum::Wrong,
            1 => Checksum::Zero,
            _ => Checksum::Right,
        };
        let has_options = family == Family::V4 && !packet.headers.is_empty();
        if self.random.random_ratio(1, 8) && !has_options {
            let start = self.random.random_range(0..4) * self.random.random_range(0..20);
            let end = start + self.random.random_range(0..40);
            packet = packet.piece(self.random.random(), start, end);
        }
        while self.random.random_ratio(1, 8) {
            let flaw = self.flaw();
            packet.flaws.push(flaw);
        }
        packet
    }

    fn content(&mut self, family: Family) -> Content {
        let size = self.random.random_range(0..1300);
        let port = self.one_of(&[Port::Marked, Port::Marked, Port::Served, Port::Is(53)]);
        match self.random.random_range(0..20) {
            0..4 => Content::Udp(port, size),
            4..7 => {
                let flags = self.one_of(&[0x02, 0x10, 0x12, 0x04, 0x14, 0x01, 0x00, 0x29]);
                Content::Tcp(port, flags, size)
            }
            7 => Content::Echo(size),
            8..14 => self.error(family, size),
            14 => Content::Icmp(self.random.random(), self.random.random_range(0..16), size),
            15 if self.random.random_ratio(1, 2) => Content::Sctp(port),
            15 => Content::Neighbour(self.random.random_range(133..=137), self.place()),
            16..18 => Content::Other(self.one_of(&[0, 2, 4, 41, 47, 50, 89, 132, 136, 200]), size),
            _ => {
                let size = self.random.random_range(1..12_000);
                Content::Large(self.one_of(&[Flow::Udp, Flow::Tcp]), size)
            }
        }
    }

    fn error(&mut self, family: Family, size: u16) -> Content {
        let kinds = family.of([&[3, 3, 4, 5, 11, 12][..], &[1, 1, 2, 3, 4, 100, 127, 137][..]]);
        let whose = [Whose::Honest(0), Whose::Honest(1), Whose::Netvm, Whose::Own];
        let views = [View::Sent, View::SentOn, View::Answer, View::AnswerIn];
        let about = Quote {
            whose: self.one_of(&whose),
            flow: self.one_of(&[Flow::Udp, Flow::Tcp, Flow::Ping]),
            view: self.one_of(&views),
            later: self.random.random_ratio(1, 16),
        };
        let field = self.one_of(&[None, None, Some(552), Some(1280), Some(0)]);
        let code = self.random.random_range(0..6);
        Content::Error { kind: self.one_of(kinds), code, field, about, size }
    }

    fn flaw(&mut self) -> Flaw {
        match self.random.random_range(0..8) {
            // Not the ethertype, which could become that of a tag.
            0..4 => Flaw::Byte(self.random.random_range(14..80), self.random.random()),
            4 => Flaw::Cut(self.random.random_range(20..120)),
            5 => Flaw::Padding(self.random.random_range(1..60)),
            6 => Flaw::OtherHost,
            _ => Flaw::Tagged,
        }
    }

    fn family(&mut self) -> Family {
        self.one_of(&Family::BOTH)
    }

    fn place(&mut self) -> Place {
        if self.random.random_ratio(1, 2) {
            return self.one_of(&[Place::Server, Place::Nobody, Place::Marked]);
        }
        self.one_of(&Place::ALL)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.random_range(0..choices.len())]
    }
}
