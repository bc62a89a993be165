//! Frames without data, such as pings: a client that has no tunnel yet may not send any number.

use std::time::{Duration, Instant};

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
