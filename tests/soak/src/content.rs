//! The data of the load: streams of pseudo-random bytes, each of which can be computed from its
//! offset, so that one lost, repeated, changed or swapped byte shows at once.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Streams that a late reader may still ask for.
const REMEMBERED: usize = 20_000;
/// What a stream begins with: this, its number in 16 hexadecimal digits, and a line feed.
const MAGIC: &str = "SOAK ";
pub(crate) const HEADER: usize = MAGIC.len() + 17;

/// What the bytes of a stream may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Any byte.
    Binary,
    /// Printable ASCII, which may be sent in text messages.
    Text,
}

/// One direction of a tunnel, as its sender knows it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    /// Who sends it: a client of the load.
    pub(crate) sender: String,
    /// The node of the sender.
    pub(crate) node: usize,
    pub(crate) alphabet: Alphabet,
    offered: AtomicU64,
    received: AtomicU64,
    claimed: AtomicBool,
    ending: OnceLock<Ending>,
    answer: OnceLock<Answer>,
}

/// What a gateway sends in answer to the stream of an app.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) stream: Arc<Stream>,
    /// How much the app sends, header included.
    pub(crate) question_bytes: u64,
    /// How much the gateway sends, header included.
    pub(crate) length: u64,
    /// Whether the gateway ends it.
    pub(crate) closed_by_gateway: bool,
    /// How often the app has tried to attach, and which of its tries this is.
    pub(crate) tries: Arc<AtomicU64>,
    pub(crate) number: u64,
}

impl Answer {
    /// Whether the app has come again: a node then ends what it still had of the app before.
    pub(crate) fn is_superseded(&self) -> bool {
        self.tries.load(Ordering::Acquire) != self.number
    }
}

/// How a sender has ended its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In order, after so many bytes.
    Orderly(u64),
    /// Without a goodbye.
    Abrupt,
    /// The sender itself lost its connection.
    Lost,
}

impl Stream {
    /// How the sender ended it, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// Records how the sender ends it; only the first time counts.
    pub(crate) fn end(&self, ending: Ending) {
        let _first = self.ending.set(ending);
    }

    /// Records what is to be answered.
    pub(crate) fn wants(&self, answer: Answer) {
        let _first = self.answer.set(answer);
    }

    /// What is to be answered, if it is the stream of an app.
    pub(crate) fn answer(&self) -> Option<&Answer> {
        self.answer.get()
    }

    /// How much has been offered to the connection, header included.
    pub(crate) fn offered(&self) -> u64 {
        self.offered.load(Ordering::Acquire)
    }

    /// How much the reader has received, header included.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// The next bytes to send.
    pub(crate) fn next(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let offset = self.offered.fetch_add(length as u64, Ordering::AcqRel);
        self.fill(offset, &mut bytes);
        bytes
    }

    /// What must be sent first.
    pub(crate) fn header(&self) -> Vec<u8> {
        self.next(HEADER)
    }

    /// The bytes at this offset.
    fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let header = format!("{MAGIC}{:016x}\n", self.id);
        let mut word = (u64::MAX, [0; 8]);
        for (place, byte) in (offset..).zip(bytes) {
            let in_header = usize::try_from(place).ok().and_then(|it| header.as_bytes().get(it));
            if let Some(of_header) = in_header {
                *byte = *of_header;
                continue;
            }
            if word.0 != place / 8 {
                word = (place / 8, mixed(self.id ^ (place / 8)).to_le_bytes());
            }
            let any = word.1[usize::try_from(place % 8).unwrap_or_default()];
            *byte = match self.alphabet {
                Alphabet::Binary => any,
                Alphabet::Text => b' ' + any % 64,
            };
        }
    }
}

/// `SplitMix64`.
pub(crate) fn mixed(seed: u64) -> u64 {
    let mut word = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// All streams of the run by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    state: Mutex<Remembered>,
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct Remembered {
    streams: HashMap<u64, Arc<Stream>>,
    /// Their numbers, the oldest first.
    order: VecDeque<u64>,
}

impl Streams {
    /// Creates a stream with content of its own.
    pub(crate) fn create(&self, sender: &str, node: usize, alphabet: Alphabet) -> Arc<Stream> {
        let id = mixed(self.count.fetch_add(1, Ordering::Relaxed));
        let stream = Arc::new(Stream {
            id,
            sender: sender.to_owned(),
            node,
            alphabet,
            offered: AtomicU64::new(0),
            received: AtomicU64::new(0),
            claimed: AtomicBool::new(false),
            ending: OnceLock::new(),
            answer: OnceLock::new(),
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.streams.insert(id, Arc::clone(&stream));
        state.order.push_back(id);
        if state.order.len() > REMEMBERED
            && let Some(oldest) = state.order.pop_front()
        {
            state.streams.remove(&oldest);
        }
        stream
    }

    fn get(&self, id: u64) -> Option<Arc<Stream>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.streams.get(&id).cloned()
    }
}

/// Checks what a reader receives.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    header: Vec<u8>,
    stream: Option<Arc<Stream>>,
    received: u64,
}

impl Checker {
    /// The stream that is being received, once its header was.
    pub(crate) fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref()
    }

    /// How much was received.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Checks the next bytes, which must be of a stream of `sender`. `Err` says what is wrong.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        streams: &Streams,
        sender: &str,
    ) -> Result<(), String> {
        let mut bytes = bytes;
        if self.stream.is_none() {
            let (head, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
            self.header.extend_from_slice(head);
            bytes = rest;
            self.received += head.len() as u64;
            if self.header.len() == HEADER {
                self.stream = Some(self.claim(streams, sender)?);
            }
        }
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut expected = vec![0; bytes.len()];
        stream.fill(self.received, &mut expected);
        if expected != bytes {
            let place = expected.iter().zip(bytes).position(|(one, other)| one != other);
            let offset = self.received + place.unwrap_or_default() as u64;
            return Err(format!("stream {:x} of {sender} differs at byte {offset}", stream.id));
        }
        self.received += bytes.len() as u64;
        stream.received.store(self.received, Ordering::Release);
        if self.received > stream.offered() {
            return Err(format!("stream {:x} of {sender} has more than was sent", stream.id));
        }
        Ok(())
    }

    fn claim(&self, streams: &Streams, sender: &str) -> Result<Arc<Stream>, String> {
        let shown = String::from_utf8_lossy(&self.header);
        let id = shown.strip_prefix(MAGIC).and_then(|rest| rest.strip_suffix('\n'));
        let stream = id.and_then(|id| streams.get(u64::from_str_radix(id, 16).ok()?));
        let stream = stream.ok_or_else(|| format!("no header of {sender}: {shown:?}"))?;
        if stream.sender != sender {
            return Err(format!("a stream of {} in place of one of {sender}", stream.sender));
        }
        if stream.claimed.swap(true, Ordering::AcqRel) {
            return Err(format!("stream {:x} of {sender} was received twice", stream.id));
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(streams: &Streams) -> Vec<u8> {
        let stream = streams.create("one", 0, Alphabet::Binary);
        let mut sent = stream.header();
        sent.extend(stream.next(1000));
        sent.extend(stream.next(3));
        sent
    }

    #[test]
    fn what_was_sent_is_right_however_it_is_cut() {
        let streams = Streams::default();
        for size in [1, 7, 22, 1000, 5000] {
            let mut checker = Checker::default();
            let sent = sent(&streams);
            for piece in sent.chunks(size) {
                checker.push(piece, &streams, "one").expect("right");
            }
            assert_eq!(checker.received(), sent.len() as u64);
        }
    }

    #[test]
    fn a_lost_byte_a_swapped_stream_and_an_unsent_byte_are_wrong() {
        let streams = Streams::default();
        let mut lost = sent(&streams);
        lost.remove(500);
        assert!(Checker::default().push(&lost, &streams, "one").is_err());
        assert!(Checker::default().push(&sent(&streams), &streams, "other").is_err());
        let stream = streams.create("one", 0, Alphabet::Text);
        let mut more = vec![0; 100];
        stream.fill(0, &mut more);
        assert!(Checker::default().push(&more, &streams, "one").is_err());
        let twice = sent(&streams);
        assert!(Checker::default().push(&twice, &streams, "one").is_ok());
        assert!(Checker::default().push(&twice, &streams, "one").is_err());
    }
}
