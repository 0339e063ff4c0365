//! What the kernel says is attached to a link, whoever attached it.
//! Never goes by a name alone, since some kernels keep none, and changes nothing.
//!
//! A filter of clsact is known by its priority and handle, and by its name if it has one; a program
//! of tcx by its number. The kernel tells these to whoever may attach one; to look at the programs
//! themselves takes more.

use std::io;
use std::mem::size_of;

use aya::programs::TcAttachType;
use aya::programs::tc::TcHandle;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    self, TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHeader, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;

/// Priority and handle of the clsact filter. Fixed, so that a new agent replaces the
/// filter of an earlier one instead of adding another.
pub(super) const CLSACT_PRIORITY: u16 = 1;
pub(super) const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// The qdisc that has filters in both directions.
pub(super) const CLSACT: &str = "clsact";

/// `BPF_PROG_QUERY`, and where tcx has its programs (uapi/linux/bpf.h).
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Most programs of tcx at one place (`BPF_MPROG_MAX` of linux/bpf_mprog.h).
const MOST_PROGRAMS: u32 = 64;

/// The part of `union bpf_attr` for the query.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Numbers of the programs of tcx at a link, in their order; none if there is no such link.
pub(super) fn tcx_programs(link: u32, direction: TcAttachType) -> io::Result<Vec<u32>> {
    let attach_type = match direction {
        TcAttachType::Ingress => BPF_TCX_INGRESS,
        TcAttachType::Egress => BPF_TCX_EGRESS,
        TcAttachType::Custom(_) => return Ok(Vec::new()),
    };
    let mut programs = vec![0_u32; MOST_PROGRAMS as usize];
    let mut query = Query {
        target: link,
        attach_type,
        programs: programs.as_mut_ptr() as u64,
        count: MOST_PROGRAMS,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes `query`, as long as it is said to be, and writes no
    // more than `count` numbers to `programs`; both outlive the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    match Errno::result(outcome) {
        Ok(_) => {
            programs.truncate(query.count as usize);
            Ok(programs)
        }
        // No such link any more.
        Err(Errno::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What is at the place of our filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Nothing.
    None,
    /// Ours, with the number of its program.
    Own(u32),
    /// Somebody else's, who chose the same place.
    Foreign,
}

/// Which qdisc has the place of clsact at a link; `None` if none has.
pub(super) fn qdisc(link: u32) -> io::Result<Option<String>> {
    let index = i32::try_from(link).map_err(io::Error::other)?;
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index));
    // Some kernels tell of all links.
    let ours = dump(request)?.into_iter().filter(|qdisc| qdisc.header.index == index);
    let kind = |attribute: &TcAttribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    };
    let mut there = ours.filter(|qdisc| qdisc.header.parent == tc::TcHandle::CLSACT);
    Ok(there.find_map(|qdisc| qdisc.attributes.iter().find_map(kind)))
}

/// The filter of clsact that has our priority and handle. Whoever attaches a filter gives it a
/// name; a filter with a name that is not in `names` is not ours.
pub(super) fn filter(link: u32, direction: TcAttachType, names: &[&str]) -> io::Result<Filter> {
    let minor = match direction {
        TcAttachType::Ingress => tc::TcHandle::MIN_INGRESS,
        // Without clsact, the kernel would tell of another place instead.
        TcAttachType::Egress if qdisc(link)?.as_deref() != Some(CLSACT) => return Ok(Filter::None),
        TcAttachType::Egress => tc::TcHandle::MIN_EGRESS,
        TcAttachType::Custom(_) => return Ok(Filter::None),
    };
    let header = TcHeader {
        index: i32::try_from(link).map_err(io::Error::other)?,
        parent: tc::TcHandle { major: tc::TcHandle::CLSACT.major, minor },
        ..TcHeader::default()
    };
    let request = RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(header, Vec::new()));
    let filters = match dump(request) {
        // No such link any more.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(Filter::None),
        filters => filters?,
    };
    let at_our_place = filters.into_iter().find(|filter| {
        let handle = TcHandle::new(filter.header.handle.major, filter.header.handle.minor);
        filter.header.info >> 16 == u32::from(CLSACT_PRIORITY) && handle == CLSACT_HANDLE
    });
    Ok(at_our_place.map_or(Filter::None, |filter| kind(&filter.attributes, names)))
}

fn kind(attributes: &[TcAttribute], names: &[&str]) -> Filter {
    let (mut is_bpf, mut name, mut program) = (false, "", None);
    for attribute in attributes {
        match attribute {
            TcAttribute::Kind(kind) => is_bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(it)) => name = it.as_str(),
                        TcOption::Bpf(TcFilterBpfOption::ProgId(it)) => program = Some(*it),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // On a kernel that keeps no names of programs, the filter has none either.
    match program.filter(|_| is_bpf && (name.is_empty() || names.contains(&name))) {
        Some(program) => Filter::Own(program),
        None => Filter::Foreign,
    }
}

/// All answers to a question of traffic control. The kernel answers at once.
fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<TcMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
            let message = message.map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewTrafficFilter(it)
                    | RouteNetlinkMessage::NewQueueDiscipline(it),
                ) => found.push(it),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
