//! Compares what arrives with what was sent, byte by byte.

use anyhow::{bail, ensure};

use super::message::{Kind, Message, NUMBER, digits};

/// The messages that one end expects, in their order.
pub(crate) struct Check {
    kind: Kind,
    /// The next message.
    expected: Vec<u8>,
    /// How much of it is there.
    position: usize,
    next: u64,
}

impl Check {
    pub(crate) fn new(message: &Message) -> Self {
        Self { kind: message.kind, expected: message.numbered(0), position: 0, next: 0 }
    }

    /// Whole messages so far.
    pub(crate) fn received(&self) -> u64 {
        self.next
    }

    /// All bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.next * self.expected.len() as u64 + self.position as u64
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes the next piece. Message boundaries, if there are any, are reported to [`Check::end`].
    pub(super) fn piece(&mut self, mut data: &[u8]) -> anyhow::Result<()> {
        while !data.is_empty() {
            let rest = &self.expected[self.position..];
            ensure!(!rest.is_empty(), "message {} is longer than what was sent", self.next);
            let (now, later) = data.split_at(data.len().min(rest.len()));
            if *now != rest[..now.len()] {
                return self.differs(now);
            }
            self.position += now.len();
            data = later;
            if self.kind == Kind::Bytes && self.position == self.expected.len() {
                self.advance();
            }
        }
        Ok(())
    }

    /// A message has ended.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.position == self.expected.len(),
            "message {} was cut after {} bytes",
            self.next,
            self.position
        );
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        self.next += 1;
        self.position = 0;
        self.expected[..NUMBER].copy_from_slice(&digits(self.next));
    }

    fn differs(&self, data: &[u8]) -> anyhow::Result<()> {
        let same = data.iter().zip(&self.expected[self.position..]).take_while(|(a, b)| a == b);
        let place = self.position + same.count();
        if place < NUMBER {
            bail!("message {} was lost, doubled or overtaken: another one came", self.next)
        }
        bail!("message {} was changed at byte {place}", self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 30;

    fn expecting(kind: Kind) -> (Check, impl Fn(u64) -> Vec<u8>) {
        let message = Message::new(kind, SIZE);
        (Check::new(&message), move |number| message.numbered(number))
    }

    fn said(result: anyhow::Result<()>) -> String {
        result.expect_err("an error").to_string()
    }

    #[test]
    fn pieces_of_any_size_are_fine() {
        for size in [1, 7, 8, 29, 30, 31, 60] {
            let (mut check, sent) = expecting(Kind::Bytes);
            let all: Vec<u8> = (0..10).flat_map(sent).collect();
            for piece in all.chunks(size) {
                check.piece(piece).expect("as sent");
            }
            assert_eq!((check.received(), check.bytes()), (10, 300));
        }
    }

    #[test]
    fn messages_that_are_lost_doubled_or_overtaken_are_noticed() {
        for second in [0, 2, 3] {
            let (mut check, sent) = expecting(Kind::Binary);
            check.piece(&sent(0)).and_then(|()| check.end()).expect("as sent");
            assert!(said(check.piece(&sent(second))).contains("message 1 was lost, doubled"));
        }
    }

    #[test]
    fn every_byte_counts() {
        let (_, sent) = expecting(Kind::Text);
        for place in NUMBER..SIZE {
            let (mut check, mut message) = (expecting(Kind::Text).0, sent(0));
            message[place] ^= 1;
            assert!(said(check.piece(&message)).ends_with(&format!("changed at byte {place}")));
        }
    }

    #[test]
    fn boundaries_count() {
        let (mut check, sent) = expecting(Kind::Text);
        check.piece(&sent(0)[..20]).expect("as sent");
        assert!(said(check.end()).contains("cut after 20 bytes"));
        let (mut check, sent) = expecting(Kind::Text);
        check.piece(&sent(0)).expect("as sent");
        assert!(said(check.piece(&sent(1))).contains("longer"));
    }
}
