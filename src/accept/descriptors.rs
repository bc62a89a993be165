//! File descriptors, of which a process may have a limited number. The last of them are kept from
//! clients: with none left, a node could answer neither operators nor other nodes, nor query Redis.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use rlimit::Resource;

/// The file descriptors that clients cannot use, if there are many.
const KEPT: u64 = 64;
/// The same, of few.
const KEPT_AT_LEAST: u64 = 8;
/// What a node needs besides the connections of clients, at most: the kept ones, connections that
/// are still silent, listeners, other nodes, Redis, the authentication server.
const OTHERS: u64 = 256;

/// The most file descriptors of this process.
pub fn allowed() -> u64 {
    // Where the system does not say, it does not limit.
    rlimit::getrlimit(Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// The connections of clients that are possible, at most `wanted`.
pub fn connections_within(wanted: usize) -> usize {
    let allowed = allowed();
    let possible = allowed - (allowed / 4).min(OTHERS);
    wanted.min(usize::try_from(possible).unwrap_or(usize::MAX))
}

/// Connections of clients that may be silent at once.
pub fn silent_within(wanted: usize) -> usize {
    wanted.min(usize::try_from(allowed() / 8).unwrap_or(usize::MAX)).max(1)
}

/// Whether this descriptor is one of the last. The system gives out the lowest number that is free.
pub(super) fn is_of_the_last(descriptor: RawFd) -> bool {
    let allowed = allowed();
    let kept = (allowed / 16).clamp(KEPT_AT_LEAST, KEPT);
    u64::try_from(descriptor).is_ok_and(|number| number.saturating_add(kept) >= allowed)
}

/// Whether clients get none now.
pub fn are_used_up() -> bool {
    match File::open("/dev/null") {
        Ok(file) => is_of_the_last(file.as_raw_fd()),
        Err(_) => true,
    }
}
