//! Between the messages of `bridge.proto` and the types of this program.

use bytes::Bytes;
use nymea_remoteproxy_proto::bridge::v1 as proto;
use nymea_remoteproxy_proto::bridge::v1::frame::Content;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use proto::close;
use proto::probe_reply::Life as ReplyLife;
use proto::refused::Reason;
use thiserror::Error;
use uuid::Uuid;

use super::{AppCall, MAX_NODE_NAME, VERSION};
use crate::ids::{NodeId, OfferId};
use crate::protocol::{Chunk, Close, Generation, Identity, Kind, Profile};
use crate::rendezvous::Secret;
use crate::transport::End;

/// Why a node does not give an endpoint away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The endpoint does not wait here any more.
    #[error("the endpoint has left its node")]
    Gone,
    /// The endpoint has another partner.
    #[error("the endpoint has another partner")]
    Taken,
    /// The secret is wrong.
    #[error("the secret of the offer is wrong")]
    Denied,
    /// The nodes are of releases that do not understand each other.
    #[error("the other node speaks version {0} of the bridge, this one {VERSION}")]
    Version(u32),
    /// Both endpoints have the same UUID.
    #[error("both endpoints have the same UUID")]
    Loop,
    /// The node is not the one that was meant, and cannot know whether the endpoint waits.
    #[error("a node other than the intended one answered")]
    WrongNode,
}

impl Refusal {
    /// A short constant name for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Taken => "taken",
            Self::Denied => "denied",
            Self::Version(_) => "version",
            Self::Loop => "loop",
            Self::WrongNode => "wrong_node",
        }
    }
}

/// The state of a registered endpoint after a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The endpoint has given a sign of life.
    Alive,
    /// A fact: its connection is over, or the node has no such registration.
    Ended,
    /// Neither is known. It keeps its registration.
    Unknown,
}

impl Life {
    /// The state as one lower-case word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Ended => "gone",
            Self::Unknown => "unknown",
        }
    }
}

pub(super) fn frame(content: Content) -> proto::Frame {
    proto::Frame { content: Some(content) }
}

pub(super) fn attach(
    (offer, secret): (OfferId, Secret),
    (profile, app): (&Profile, Option<&AppCall>),
    node: &str,
    meant: &NodeId,
) -> proto::Frame {
    let app = app.map(|app| proto::App {
        registration: bytes_of(app.id),
        peer_address: app.peer_address.clone(),
    });
    frame(Content::Attach(proto::Attach {
        version: VERSION,
        offer: bytes_of(offer),
        secret: secret.0.to_vec().into(),
        profile: Some(profile_to_proto(profile)),
        node: node.into(),
        app,
        finished: true,
        meant: meant.as_str().into(),
    }))
}

/// The request of an attach; refused if it is malformed.
pub(super) fn read_attach(attach: &proto::Attach) -> Result<Asked, Refusal> {
    if attach.version != VERSION {
        return Err(Refusal::Version(VERSION));
    }
    let (offer, secret) = read_offer(&attach.offer, &attach.secret)?;
    let profile = attach.profile.clone().map(profile_from_proto);
    let profile = profile.ok_or(Refusal::Denied)?;
    let app = match &attach.app {
        Some(app) => Some(AppCall {
            id: id_from(&app.registration)?,
            peer_address: app.peer_address.clone(),
        }),
        None => None,
    };
    Ok(Asked { offer, secret, profile, app })
}

/// The request of an attach.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) offer: OfferId,
    pub(super) secret: Secret,
    pub(super) profile: Profile,
    pub(super) app: Option<AppCall>,
}

pub(super) fn probe(
    (registration, secret): (OfferId, Secret),
    node: &str,
    meant: &NodeId,
) -> proto::ProbeRequest {
    let (registration, secret) = (bytes_of(registration), secret.0.to_vec().into());
    let (meant, node) = (meant.as_str().into(), node.into());
    proto::ProbeRequest { registration, secret, meant, node }
}

pub(super) fn life(life: Life) -> proto::ProbeReply {
    let said = match life {
        Life::Alive => ReplyLife::Alive,
        Life::Ended => ReplyLife::Ended,
        Life::Unknown => ReplyLife::Unknown,
    };
    let alive = life != Life::Ended;
    proto::ProbeReply { alive, life: said.into(), node: String::new() }
}

/// The answer to a probe that means another node than the one with this id.
pub(super) fn probed_wrong_node(id: &NodeId) -> proto::ProbeReply {
    let node = id.as_str().into();
    proto::ProbeReply { alive: true, life: ReplyLife::WrongNode.into(), node }
}

/// The state of a registered endpoint from a reply, unless the wrong node answered.
pub(super) fn read_life(reply: &proto::ProbeReply) -> Result<Life, Refusal> {
    Ok(match (ReplyLife::try_from(reply.life), reply.alive) {
        (Ok(ReplyLife::WrongNode), _) => return Err(Refusal::WrongNode),
        // An older release has no other way to say it than `alive`.
        (Ok(ReplyLife::Alive), _) | (Ok(ReplyLife::Unspecified), true) => Life::Alive,
        (Ok(ReplyLife::Ended), _) | (Ok(ReplyLife::Unspecified), false) => Life::Ended,
        // Also what only a newer release knows.
        (Ok(ReplyLife::Unknown) | Err(_), _) => Life::Unknown,
    })
}

/// The id of an offer or a registration, and its secret; refused if they do not make sense.
pub(super) fn read_offer(id: &[u8], secret: &[u8]) -> Result<(OfferId, Secret), Refusal> {
    let secret = <[u8; 16]>::try_from(secret).map_err(|_| Refusal::Denied)?;
    Ok((id_from(id)?, Secret(secret)))
}

pub(super) fn id_from(bytes: &[u8]) -> Result<OfferId, Refusal> {
    Uuid::from_slice(bytes).map(OfferId::from).map_err(|_| Refusal::Denied)
}

pub(super) fn bytes_of(id: OfferId) -> Bytes {
    id.as_uuid().as_bytes().to_vec().into()
}

pub(super) fn close(close: Close) -> proto::Frame {
    let reason = match close {
        Close::OtherLeft => close::Reason::Left,
        Close::Disconnected => close::Reason::Disconnected,
        Close::Backlog => close::Reason::Backlog,
        _ => close::Reason::Lost,
    };
    frame(Content::Close(proto::Close { reason: reason.into() }))
}

pub(super) fn read_close(close: proto::Close) -> End {
    match close.reason() {
        close::Reason::Left => End::Left,
        close::Reason::Disconnected => End::Closed(Close::Disconnected),
        close::Reason::Backlog => End::Closed(Close::Backlog),
        close::Reason::Lost | close::Reason::Unspecified => End::Failed,
    }
}

pub(super) fn attached(profile: &Profile, node: &str) -> proto::Frame {
    let profile = Some(profile_to_proto(profile));
    frame(Content::Attached(proto::Attached { profile, node: node.into(), finished: true }))
}

pub(super) fn refused(refusal: Refusal, id: &NodeId) -> proto::Frame {
    let reason = match refusal {
        Refusal::Gone => Reason::Gone,
        Refusal::Taken => Reason::Taken,
        Refusal::Denied => Reason::Denied,
        Refusal::Version(_) => Reason::Version,
        Refusal::Loop => Reason::Loop,
        Refusal::WrongNode => Reason::WrongNode,
    };
    let node = id.as_str().into();
    frame(Content::Refused(proto::Refused { reason: reason.into(), version: VERSION, node }))
}

pub(super) fn read_refused(refused: &proto::Refused) -> Refusal {
    match refused.reason() {
        Reason::Gone => Refusal::Gone,
        Reason::Taken => Refusal::Taken,
        Reason::Denied | Reason::Unspecified => Refusal::Denied,
        Reason::Version => Refusal::Version(refused.version),
        Reason::Loop => Refusal::Loop,
        Reason::WrongNode => Refusal::WrongNode,
    }
}

/// The name of a node, as another one sends it.
pub(super) fn name_of(said: &str) -> &str {
    match said {
        "" => "unknown",
        said => &said[..said.floor_char_boundary(MAX_NODE_NAME)],
    }
}

/// Writes the beginning of a frame of data, up to its payload, which need not be copied.
pub(super) fn put_data_head(chunk: &Chunk, out: &mut Vec<u8>) {
    const CONTENT_DATA: u32 = 4;
    const DATA_PAYLOAD: u32 = 3;
    let (text, stream) = (chunk.kind == Kind::Text, chunk.kind == Kind::Stream);
    // A node that knows no streams makes a message of each piece.
    let last = chunk.last || stream;
    let before = proto::Data { text, last, payload: Bytes::new(), stream };
    let payload = chunk.data.len();
    let head = before.encoded_len() + key_len(DATA_PAYLOAD) + encoded_len_varint(payload as u64);
    encode_key(CONTENT_DATA, WireType::LengthDelimited, out);
    encode_varint((head + payload) as u64, out);
    before.encode(out).expect("a vector has room");
    // Fields may have any order: whatever its number, this is the last one.
    encode_key(DATA_PAYLOAD, WireType::LengthDelimited, out);
    encode_varint(payload as u64, out);
}

pub(super) fn read_data(data: proto::Data) -> Chunk {
    let kind = match (data.stream, data.text) {
        (true, _) => return Chunk::stream(data.payload),
        (false, true) => Kind::Text,
        (false, false) => Kind::Binary,
    };
    Chunk { kind, data: data.payload, last: data.last }
}

fn profile_to_proto(profile: &Profile) -> proto::Profile {
    let generation = match profile.generation {
        Generation::One => 1,
        Generation::Two => 2,
        Generation::Three => 3,
    };
    let Identity { uuid, name } = profile.identity.clone();
    proto::Profile { generation, uuid, name }
}

pub(super) fn profile_from_proto(profile: proto::Profile) -> Profile {
    let proto::Profile { generation, uuid, name } = profile;
    let generation = match generation {
        1 => Generation::One,
        3 => Generation::Three,
        _ => Generation::Two,
    };
    Profile { generation, identity: Identity { uuid, name } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_chunk_survives_the_wire() {
        let part = Chunk { last: false, ..Chunk::binary("part") };
        let long = Chunk::binary(vec![7; 70_000]);
        let empty = Chunk::text("");
        for chunk in [Chunk::text("t"), Chunk::binary("b"), part, Chunk::stream("s"), long, empty] {
            let mut sent = Vec::new();
            put_data_head(&chunk, &mut sent);
            sent.extend_from_slice(&chunk.data);
            let frame = proto::Frame::decode(&*sent).expect("a frame");
            let Some(Content::Data(data)) = frame.content else { panic!("data") };
            assert_eq!(read_data(data), chunk);
        }
    }

    #[test]
    fn an_attach_survives_the_wire_and_nonsense_does_not() {
        let profile = Profile {
            generation: Generation::Two,
            identity: Identity { uuid: "u".into(), name: "n".into() },
        };
        let (offer, secret) = (OfferId::random(), Secret([7; 16]));
        let asked = (&profile, None);
        let meant = NodeId::new("node2", 7);
        let sent = attach((offer, secret), asked, "node1", &meant);
        let Some(Content::Attach(sent)) = sent.content else { panic!("an attach") };
        assert_eq!(sent.meant, "node2-0000000000000007");
        let read = Asked { offer, secret, profile: profile.clone(), app: None };
        assert_eq!(read_attach(&sent), Ok(read));
        let app = AppCall { id: OfferId::random(), peer_address: "[::1]:1".into() };
        let asked = (&profile, Some(&app));
        let of_an_app = attach((offer, secret), asked, "node1", &meant);
        let Some(Content::Attach(of_an_app)) = of_an_app.content else { panic!("an attach") };
        assert_eq!(read_attach(&of_an_app).expect("an app").app, Some(app));
        let other = proto::Attach { version: VERSION + 1, ..sent.clone() };
        assert_eq!(read_attach(&other), Err(Refusal::Version(VERSION)));
        let cut = proto::Attach { secret: vec![7; 15].into(), ..sent.clone() };
        assert_eq!(read_attach(&cut), Err(Refusal::Denied));
        let nobody = proto::Attach { profile: None, ..sent };
        assert_eq!(read_attach(&nobody), Err(Refusal::Denied));
    }

    #[test]
    fn only_an_explicit_answer_says_that_an_endpoint_is_gone() {
        for said in [Life::Alive, Life::Ended, Life::Unknown] {
            let reply = life(said);
            assert_eq!(read_life(&reply), Ok(said));
            // What a node of an older release reads.
            assert_eq!(reply.alive, said != Life::Ended);
        }
        let wrong = probed_wrong_node(&NodeId::new("node1", 1));
        assert_eq!((read_life(&wrong), wrong.alive), (Err(Refusal::WrongNode), true));
        let newer = proto::ProbeReply { alive: false, life: 77, node: String::new() };
        assert_eq!(read_life(&newer), Ok(Life::Unknown));
        let older = |alive| proto::ProbeReply { alive, ..proto::ProbeReply::default() };
        assert_eq!(read_life(&older(true)), Ok(Life::Alive));
        assert_eq!(read_life(&older(false)), Ok(Life::Ended));
    }

    #[test]
    fn messages_about_the_node_that_is_meant_are_these_bytes() {
        let id = NodeId::new("n", 0x00AB);
        let written = b"n-00000000000000ab";
        let refused = refused(Refusal::WrongNode, &id).encode_to_vec();
        assert_eq!(refused, [&b"\x1a\x18\x08\x06\x10\x01\x1a\x12"[..], written].concat());
        let reply = probed_wrong_node(&id).encode_to_vec();
        assert_eq!(reply, [&b"\x08\x01\x10\x04\x1a\x12"[..], written].concat());
        let registration = (OfferId::from(Uuid::nil()), Secret([7; 16]));
        let request = probe(registration, "m", &id).encode_to_vec();
        let (id, secret) = ([0; 16], [7; 16]);
        let parts =
            [&b"\x0a\x10"[..], &id, b"\x12\x10", &secret, b"\x1a\x12", written, b"\x22\x01m"];
        assert_eq!(request, parts.concat());
    }
}
