//! Room for large answers: taken before they are asked for, given back once the client has read them.
//!
//! A page may have megabytes, and a client that asks for it and does not read it costs them until
//! the kernel gives it up (see `server`). So all large answers of a node share one budget, and a
//! body is handed to the socket in pieces, so that it is known when it is gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpMessage as _, ResponseError as _};
use actors::ports::CallError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::context::App;
use super::problem::{Ask, Problem};

/// Set aside for a page before it is asked for.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Pages up to this size are not counted; the library buffers as much of each.
const SMALL_PAGE_BYTES: usize = 32 * 1024;
/// Other answers up to this size are not counted: whoever watches the node must be served while
/// others do not read their pages.
const SMALL_BYTES: usize = 256 * 1024;
/// A body is given to the socket in pieces of this size.
const PIECE_BYTES: usize = 32 * 1024;
/// What one permit stands for.
const UNIT_BYTES: usize = 1024;

/// Bytes of large answers that this node may hold.
pub struct Answers(Arc<Semaphore>);

/// Room that is taken. Dropped, it is given back.
pub struct Room(OwnedSemaphorePermit);

impl Answers {
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes_max / UNIT_BYTES)))
    }

    /// Waits for the room of a page, first come, first served.
    pub async fn page(&self) -> Room {
        let permit = self.0.clone().acquire_many_owned(units(PAGE_BYTES)).await;
        Room(permit.expect("nobody closes this semaphore"))
    }

    fn try_take(&self, bytes: usize) -> Option<Room> {
        self.0.clone().try_acquire_many_owned(units(bytes)).ok().map(Room)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Room {
    /// Gives back what the answer does not need.
    fn shrunk_to(mut self, bytes: usize) -> Self {
        let needed = units(bytes) as usize;
        let spare = self.0.num_permits().saturating_sub(needed);
        drop(self.0.split(spare));
        self
    }
}

/// Holds the room of a large answer until it is read; refuses one there is no room for.
pub fn held(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let room = response.request().extensions_mut().remove::<Room>();
    let bytes = match response.response().body().size() {
        BodySize::Sized(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        // A stream has bounds of its own.
        BodySize::None | BodySize::Stream => return response,
    };
    if bytes <= if room.is_some() { SMALL_PAGE_BYTES } else { SMALL_BYTES } {
        return response;
    }
    let app = response.request().app_data::<Data<App>>().cloned();
    let room = match (room, app) {
        (Some(room), _) => Some(room.shrunk_to(bytes)),
        (None, Some(app)) => app.answers.try_take(bytes),
        (None, None) => None,
    };
    let Some(room) = room else {
        let refusal = crowded().error_response();
        return response.into_response(refusal);
    };
    response.map_body(|_, body| match body.try_into_bytes() {
        Ok(rest) => BoxBody::new(Paced { rest, _room: room }),
        Err(body) => body,
    })
}

/// Too many answers wait for clients to read them.
pub fn crowded() -> Problem {
    let what = "answers that clients have not read yet".to_owned();
    Problem::of_call(CallError::Overloaded { what }, Ask::Read)
}

/// A body in pieces, together with its room.
struct Paced {
    rest: Bytes,
    _room: Room,
}

impl MessageBody for Paced {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready((piece > 0).then(|| Ok(self.rest.split_to(piece))))
    }
}
