//! From the first byte of HTTP to a WebSocket: one request head in, one answer out. Other requests get
//! a plain answer that says what this server is.

use std::future::poll_fn;
use std::io;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::{create_response, write_response};

use crate::trace_parent::TraceParent;
use crate::transport::wire::Wire;
use crate::transport::{AcceptError, Refusal};

/// The largest request head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// The most header fields.
const MAX_HEADERS: usize = 64;

/// What a good request leads to.
pub(super) struct Upgraded {
    /// The bytes received after the request.
    pub(super) rest: BytesMut,
    /// The trace that its client wants to be continued (W3C Trace Context).
    pub(super) trace_parent: Option<TraceParent>,
}

/// Says by the header of a good request whether there is no room for its client.
pub(super) type Refuse<'a> = dyn FnMut(&HeaderMap) -> Option<Refusal> + Send + 'a;

/// Reads the upgrade request and answers it.
pub(super) async fn upgrade(
    wire: &mut impl Wire,
    refuse: &mut Refuse<'_>,
) -> Result<Upgraded, AcceptError> {
    match handshake(wire, refuse).await {
        Err(Rejected { status, why, error }) => {
            answer(wire, status, why).await;
            Err(error.unwrap_or(AcceptError::NoUpgrade { status: status.as_u16(), why }))
        }
        Ok(Err(error)) => Err(AcceptError::Io(error)),
        Ok(Ok(upgraded)) => Ok(upgraded),
    }
}

/// A request that gets an HTTP answer instead of a WebSocket.
struct Rejected {
    status: StatusCode,
    why: &'static str,
    error: Option<AcceptError>,
}

impl Rejected {
    fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why, error: None }
    }
}

async fn handshake(
    wire: &mut impl Wire,
    refuse: &mut Refuse<'_>,
) -> Result<io::Result<Upgraded>, Rejected> {
    let mut head = BytesMut::new();
    let (request, length) = loop {
        match poll_fn(|cx| wire.poll_fill(cx, &mut head)).await {
            Ok(0) => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Ok(Err(error)),
        }
        let parsed = parse(&head)?;
        let length = parsed.as_ref().map_or(head.len(), |(_, length)| *length);
        if length > MAX_HEAD {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Rejected::new(status, "The request head is larger than 8 KiB."));
        }
        if let Some(parsed) = parsed {
            break parsed;
        }
    };
    let response = create_response(&request).map_err(|error| reject(&error))?;
    if let Some(refusal) = refuse(request.headers()) {
        let (status, why) = (StatusCode::SERVICE_UNAVAILABLE, "No room now. Try again later.");
        return Err(Rejected { status, why, error: Some(AcceptError::Refused(refusal)) });
    }
    let mut bytes = Vec::with_capacity(256);
    write_response(&mut bytes, &response).expect("a Vec takes everything");
    wire.stage(&bytes);
    // A malformed one is ignored.
    let trace_parent = request.headers().get("traceparent");
    let trace_parent = trace_parent.and_then(|value| value.to_str().ok()?.parse().ok());
    head.advance(length);
    let written = poll_fn(|cx| wire.poll_drain(cx)).await;
    Ok(written.map(|()| Upgraded { rest: head, trace_parent }))
}

/// The request and the length of its head, once the head is complete.
fn parse(head: &[u8]) -> Result<Option<(Request<()>, usize)>, Rejected> {
    let malformed = || Rejected::new(StatusCode::BAD_REQUEST, "This is not an HTTP request.");
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(head).map_err(|_| malformed())? else {
        return Ok(None);
    };
    let method = parsed.method.and_then(|name| Method::from_bytes(name.as_bytes()).ok());
    let mut request = Request::new(());
    *request.method_mut() = method.ok_or_else(malformed)?;
    *request.version_mut() =
        if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    for header in parsed.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| malformed())?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| malformed())?;
        request.headers_mut().append(name, value);
    }
    Ok(Some((request, length)))
}

fn reject(error: &WsError) -> Rejected {
    match error {
        WsError::Protocol(ProtocolError::WrongHttpMethod) => {
            Rejected::new(StatusCode::METHOD_NOT_ALLOWED, "A WebSocket upgrade is a GET.")
        }
        WsError::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingSecWebSocketVersionHeader,
        ) => Rejected::new(
            StatusCode::UPGRADE_REQUIRED,
            "This is a nymea remote proxy. It speaks WebSocket (version 13) only.",
        ),
        _ => Rejected::new(StatusCode::BAD_REQUEST, "The WebSocket upgrade is malformed."),
    }
}

/// Best effort: the client may be gone, and the connection ends anyway.
async fn answer(wire: &mut impl Wire, status: StatusCode, why: &str) {
    let extra = match status {
        StatusCode::UPGRADE_REQUIRED => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        StatusCode::SERVICE_UNAVAILABLE => "Retry-After: 5\r\n",
        StatusCode::METHOD_NOT_ALLOWED => "Allow: GET\r\n",
        _ => "",
    };
    let response = format!(
        "HTTP/1.1 {status}\r\n{extra}Connection: close\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{why}\n",
        why.len() + 1
    );
    wire.stage(response.as_bytes());
    let _gone_anyway = poll_fn(|cx| wire.poll_shutdown(cx)).await;
}
