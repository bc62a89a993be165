//! Frames without data, such as pings: a client that has no tunnel yet may not send any number.

use std::time::{Duration, Instant};

use crate::protocol::Chunk;

/// So many within [`TIME`] are too many. A request may be cut into frames of one byte each, with
/// empty ones in between.
const FRAMES: u32 = 16 * 1024;
const TIME: Duration = Duration::from_secs(10);

/// Counts the frames of one client.
#[derive(Debug)]
pub(super) struct IdleFrames {
    count: u32,
    since: Instant,
}

impl IdleFrames {
    pub(super) fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    /// Counts one more. Returns whether they are too many.
    pub(super) fn add(&mut self, now: impl FnOnce() -> Instant) -> bool {
        self.count += 1;
        if self.count < FRAMES {
            return false;
        }
        let now = now();
        let too_many = now.saturating_duration_since(self.since) < TIME;
        *self = Self::new(now);
        too_many
    }
}

/// The state of a client's input before it has a tunnel.
#[derive(Debug)]
pub(super) struct Prelude {
    /// Counted until there is a tunnel.
    idle: Option<IdleFrames>,
    /// The message of the last request has not ended: its rest is not for the tunnel.
    within_request: bool,
}

impl Prelude {
    pub(super) fn new(now: Instant) -> Self {
        Self { idle: Some(IdleFrames::new(now)), within_request: false }
    }

    /// Notes that there is a tunnel, and whether the message of the last request goes on.
    pub(super) fn ends(&mut self, within_request: bool) {
        *self = Self { idle: None, within_request };
    }

    /// Counts a frame without data. Returns whether there are too many.
    pub(super) fn add_idle(&mut self) -> bool {
        self.idle.as_mut().is_some_and(|idle| idle.add(Instant::now))
    }

    /// Whether a chunk is the rest of a request; an error if it cannot be.
    pub(super) fn is_rest(&mut self, chunk: &Chunk) -> Result<bool, ()> {
        let is_rest = self.within_request;
        if is_rest && !chunk.data.iter().all(u8::is_ascii_whitespace) {
            return Err(());
        }
        self.within_request = is_rest && !chunk.last;
        Ok(is_rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_too_many_only_within_a_short_time() {
        let start = Instant::now();
        let mut idle = IdleFrames::new(start);
        let mut add = |at: Duration| (0..FRAMES).filter(|_| idle.add(|| start + at)).count();
        assert_eq!((add(TIME), add(2 * TIME)), (0, 0));
        assert_eq!(add(2 * TIME + TIME / 2), 1);
    }
}
