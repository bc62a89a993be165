//! WebSocket frames (RFC 6455): to the node with a mask, from the node without.

use anyhow::{bail, ensure};

/// Clients must mask what they send; that it cannot be guessed protects browsers, not tunnels.
pub(super) const MASK: [u8; 4] = [0x5a, 0xc3, 0x96, 0x0f];
const LAST: u8 = 0x80;
const MASKED: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn of(bits: u8) -> anyhow::Result<Self> {
        let known = [Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong];
        let found = known.into_iter().chain([Self::Continuation]).find(|code| *code as u8 == bits);
        match found {
            Some(code) => Ok(code),
            None => bail!("a frame of the unknown kind {bits}"),
        }
    }

    pub(super) fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// The header of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) opcode: Opcode,
    pub(super) is_last: bool,
    pub(super) payload: u64,
    /// How long this head is.
    pub(super) length: usize,
}

impl Head {
    /// None: there is more to come.
    pub(super) fn parse(data: &[u8]) -> anyhow::Result<Option<Self>> {
        let [first, second, rest @ ..] = data else { return Ok(None) };
        ensure!(first & 0x70 == 0, "a frame with reserved bits");
        ensure!(second & MASKED == 0, "a frame with a mask from the server");
        let (payload, length) = match second & 0x7f {
            126 => match rest.first_chunk() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 4),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        let opcode = Opcode::of(first & 0x0f)?;
        Ok(Some(Self { opcode, is_last: first & LAST != 0, payload, length }))
    }
}

/// A whole message as a client sends it.
pub(crate) fn pack(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![LAST | opcode as u8];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..126), _) => frame.push(MASKED + short),
        (_, Ok(medium)) => {
            frame.push(MASKED + 126);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(MASKED + 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> Vec<u8> {
    pack(Opcode::Pong, payload)
}

/// The end, in order.
pub(crate) fn close() -> Vec<u8> {
    pack(Opcode::Close, &1000_u16.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_how_long_it_is() {
        for (size, length) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = pack(Opcode::Binary, &vec![7; size]);
            assert_eq!(frame.len(), length + MASK.len() + size);
            // As the server would send it.
            let mut answer = frame[..length].to_vec();
            answer[1] &= !MASKED;
            let head = Head::parse(&answer).expect("valid").expect("complete");
            let payload = size as u64;
            let expected = Head { opcode: Opcode::Binary, is_last: true, payload, length };
            assert_eq!(head, expected);
            assert_eq!(Head::parse(&answer[..length - 1]).expect("valid"), None);
        }
    }

    #[test]
    fn what_no_server_sends_is_an_error() {
        assert!(Head::parse(&pack(Opcode::Text, b"masked")).is_err());
        assert!(Head::parse(&[0x83, 0]).is_err(), "unknown");
        assert!(Head::parse(&[0xc1, 0]).is_err(), "compressed");
    }
}
