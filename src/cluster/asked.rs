//! A call that was begun and has no end yet. However it is given up, it ends in order: the other
//! node sees the end of the request, and its answer is awaited for a while. A stream that is reset
//! instead may be one of hundreds at once, as when a node was frozen, and costs both nodes more.

use std::time::Duration;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::{Request, Response, StatusCode};
use prost::Message;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::call::{CallError, Incoming, Outgoing, Role};
use super::peer::{Chosen, CountGuard};
use crate::lifecycle::Lifecycle;

/// How long the end of an abandoned call is awaited. Then its stream is
/// reset.
const LINGER: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Asked {
    outgoing: Option<Outgoing>,
    answer: Answer,
    /// Counts the call on its connection.
    guard: Option<CountGuard>,
    lifecycle: Lifecycle,
}

/// The answer, as far as it has arrived.
enum Answer {
    Nothing(ResponseFuture),
    Head(Incoming),
    /// All, or another owner reads the rest.
    Taken,
}

impl Asked {
    /// Sends a request with its first message.
    pub(super) fn new(
        chosen: Chosen,
        request: Request<()>,
        message: &impl Message,
        lifecycle: &Lifecycle,
    ) -> Result<Self, CallError> {
        let Chosen { mut requests, guard, .. } = chosen;
        let (response, stream) = requests.send_request(request, false)?;
        let mut outgoing = Outgoing::new(stream, Role::Caller);
        outgoing.push(message);
        outgoing.flush();
        let answer = Answer::Nothing(response);
        let lifecycle = lifecycle.clone();
        Ok(Self { outgoing: Some(outgoing), answer, guard: Some(guard), lifecycle })
    }

    /// Says that the request has no more than its first message.
    pub(super) fn is_all(&mut self) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.close();
        }
    }

    /// Waits for the head of the answer. Cancel-safe.
    pub(super) async fn head(&mut self) -> Result<(), CallError> {
        if let Answer::Nothing(response) = &mut self.answer {
            let response = response.await;
            // A response is asked for once.
            self.answer = Answer::Taken;
            self.answer = Answer::Head(messages_of(response?)?);
        }
        Ok(())
    }

    /// Waits for the next message of the answer, `None` at its end. Cancel-safe.
    pub(super) async fn message<M: Message + Default>(&mut self) -> Result<Option<M>, CallError> {
        self.head().await?;
        match &mut self.answer {
            Answer::Head(incoming) => incoming.message().await,
            Answer::Nothing(_) | Answer::Taken => Ok(None),
        }
    }

    /// Returns both halves of the call, which is the caller's from now on; `None` if no answer has
    /// arrived.
    pub(super) fn into_parts(mut self) -> Option<(Outgoing, Incoming, CountGuard)> {
        match std::mem::replace(&mut self.answer, Answer::Taken) {
            Answer::Head(incoming) => Some((self.outgoing.take()?, incoming, self.guard.take()?)),
            Answer::Nothing(_) | Answer::Taken => None,
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // The end of the request goes out first.
        self.outgoing.take();
        let guard = self.guard.take();
        let answer = std::mem::replace(&mut self.answer, Answer::Taken);
        let is_over = match &answer {
            Answer::Nothing(_) => false,
            Answer::Head(incoming) => incoming.is_over(),
            Answer::Taken => true,
        };
        if is_over || Handle::try_current().is_err() {
            return;
        }
        let lifecycle = self.lifecycle.clone();
        self.lifecycle.spawn(async move {
            tokio::select! {
                _in_time = timeout(LINGER, end_of(answer)) => {}
                () = lifecycle.over() => {}
            }
            drop(guard);
        });
    }
}

/// Waits for the end of an answer.
async fn end_of(answer: Answer) {
    let incoming = match answer {
        Answer::Nothing(response) => response.await.map(|it| Incoming::new(it.into_body())).ok(),
        Answer::Head(incoming) => Some(incoming),
        Answer::Taken => None,
    };
    if let Some(incoming) = incoming {
        incoming.drain().await;
    }
}

/// The messages after the head of a response.
fn messages_of(response: Response<RecvStream>) -> Result<Incoming, CallError> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status.into()),
        _ if response.status() != StatusCode::OK => {
            Err(CallError::Malformed("a response that is not 200"))
        }
        _ => Ok(Incoming::new(response.into_body())),
    }
}
