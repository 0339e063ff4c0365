//! Waits until the programs have ended that run now, sooner than the kernel's own wait does.
//! Never believes that one has ended where the machine does not promise it.
//!
//! Programs of tc and XDP run with softirqs disabled (`__netif_receive_skb_core`,
//! `__dev_queue_xmit`, NAPI), which counts as a part that is not preempted
//! (`__local_bh_disable_ip` in kernel/softirq.c) but on PREEMPT_RT. So a thread that runs on a
//! processor knows that no program is in its middle there. A visit to each processor takes some
//! tenths of a millisecond; the kernel's own wait for all readers takes 10 to 30 milliseconds.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};
use nix::unistd::Pid;

use super::memory_model::may_cache;

/// Which processors may run programs: numbers and ranges of numbers, `0-3,5` say.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// How long visits may take. A thread that runs before all others (SCHED_FIFO) may keep a processor
/// for itself; the kernel's own wait needs no turn there.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whether visits are being made.
static IS_VISITING: AtomicBool = AtomicBool::new(false);

/// Waits until all programs have ended that run now. An error, and nothing is known, on a machine
/// where visits do not tell, and where some processor is not open to visits: outside of the agent's
/// cpuset, in a sandbox without `sched_setaffinity`, or kept by somebody else.
pub(super) fn wait_by_visits() -> io::Result<()> {
    if !may_cache() {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    if IS_VISITING.swap(true, Ordering::Relaxed) {
        return Err(io::Error::from(io::ErrorKind::WouldBlock));
    }
    let (sender, end) = channel();
    // A thread of its own, since a thread stays where the last visit brought it.
    let visitor = thread::Builder::new().name("visitor".to_owned()).spawn(move || {
        let outcome = online().and_then(|all| all.into_iter().try_for_each(visit));
        IS_VISITING.store(false, Ordering::Relaxed);
        // Nobody waits any more if it took too long.
        let _ = sender.send(outcome);
    });
    if let Err(error) = visitor {
        IS_VISITING.store(false, Ordering::Relaxed);
        return Err(error);
    }
    end.recv_timeout(PATIENCE).unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Has this thread run on a processor.
fn visit(processor: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    if sched_getcpu()? == processor { Ok(()) } else { Err(io::Error::other("not brought there")) }
}

/// The processors that may run programs. A processor that joins later runs none that has begun now.
fn online() -> io::Result<Vec<usize>> {
    let mut file = File::open(ONLINE)?;
    if fstatfs(&file)?.filesystem_type() != SYSFS_MAGIC {
        // What some containers put there tells only of the container's processors.
        return Err(io::Error::other(format!("{ONLINE} is not the kernel's")));
    }
    let mut list = String::new();
    file.read_to_string(&mut list)?;
    parse(&list).ok_or_else(|| io::Error::other(format!("cannot read {ONLINE}: {list:?}")))
}

/// Reads a list of processors; `None` if the list is empty, or is not understood.
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut processors = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last < first {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_whole_or_not_at_all() {
        assert_eq!(parse("0\n"), Some(vec![0]));
        assert_eq!(parse("0-3\n"), Some(vec![0, 1, 2, 3]));
        assert_eq!(parse("0-1,4,6-7\n"), Some(vec![0, 1, 4, 6, 7]));
        for wrong in ["", "\n", "0-", "-1", "3-2", "0,,1", "0-3:1/2", "all"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_processor_is_visited() -> io::Result<()> {
        let visitor = thread::spawn(|| {
            online()?.into_iter().try_for_each(|processor| {
                visit(processor)?;
                assert_eq!(sched_getcpu()?, processor);
                io::Result::Ok(())
            })
        });
        visitor.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
    }
}
