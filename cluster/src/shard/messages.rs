//! Messages to devices as rows: the head of a queue, the content of each message, and feedback.
//!
//! What they mean is decided in `actors::device`; here they are written as events say, and read.

use std::io;

use actors::device::{
    DeadLetter, DeviceState, Event, Message, MessageQueued, Messages, MessagesView, Outcome, Queued, TakenMessage,
};
use actors::id::DeviceKey;
use actors::time::Timestamp;
use actors::wire::codec;
use actors::wire::receipt::Receipt;
use serde::{Deserialize, Serialize};

use super::rows::Get;
use crate::api::{FeedbackPage, FeedbackRow, MessagePage, MessageQuery, MessageRow, MessageSelection, MessageState};
use crate::raft::machine::{GroupShared, Position, Rows};
use crate::storage::keys::{self, KeyRange, Space};

/// Bytes of content of one page; it holds at least one message.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Serialize)]
struct ContentRef<'a> {
    position: Position,
    message: &'a Message,
}

#[derive(Deserialize)]
struct Content {
    position: Position,
    message: Message,
}

#[derive(Serialize, Deserialize)]
struct Feedback {
    message_id: String,
    outcome: Outcome,
    at: Timestamp,
    enqueued_at: Timestamp,
    deliveries: u16,
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// What an event does to the rows of messages besides the head; told before it is applied, written
/// after.
pub enum Effect<'a> {
    Stored(&'a MessageQueued),
    Ended {
        queued: Queued,
        outcome: Outcome,
        seq: u64,
        kept: bool,
    },
    Dropped {
        row: u64,
    },
    FeedbackTrimmed {
        from: u64,
        before: u64,
    },
    /// The head alone.
    Moved,
    Forgotten,
}

/// `None` when the event leaves messages alone, or does not fit.
pub fn effect<'a>(state: &DeviceState, event: &'a Event) -> Option<Effect<'a>> {
    Some(match event {
        Event::MessageQueued(queued) => Effect::Stored(queued),
        Event::MessageEnded {
            number,
            outcome,
            feedback_seq,
            kept,
        } => Effect::Ended {
            queued: state.messages().queued(*number)?.clone(),
            outcome: *outcome,
            seq: *feedback_seq,
            kept: *kept,
        },
        Event::DeadLetterDropped { number } => Effect::Dropped {
            row: state.messages().dead_letter(*number)?.row,
        },
        Event::FeedbackTrimmed { before_seq } => Effect::FeedbackTrimmed {
            from: state.messages().trimmed_feedback.saturating_add(1),
            before: *before_seq,
        },
        Event::MessageSent { .. } | Event::DeadLetterReplayed { .. } | Event::MessagesNudged { .. } => Effect::Moved,
        Event::DeviceDeleted if state.messages.is_some() => Effect::Forgotten,
        _ => return None,
    })
}

impl Effect<'_> {
    /// `(at, position)`: when the leader decided, and where it stands in the log.
    pub fn write(self, (at, position): (Timestamp, Position), key: &DeviceKey, rows: &mut Rows<'_>) {
        let space = rows.space;
        match self {
            Effect::Stored(queued) => {
                let message = &queued.message;
                let content = codec::encode(&ContentRef { position, message });
                rows.put(space.message(key, queued.number), content);
            }
            Effect::Ended {
                queued,
                outcome,
                seq,
                kept,
            } => {
                if !kept {
                    rows.delete(space.message(key, queued.row));
                }
                let feedback = Feedback {
                    message_id: queued.id.into(),
                    outcome,
                    at,
                    enqueued_at: queued.enqueued_at,
                    deliveries: queued.deliveries,
                };
                rows.put(space.feedback(key, seq), codec::encode(&feedback));
            }
            Effect::Dropped { row } => rows.delete(space.message(key, row)),
            Effect::FeedbackTrimmed { from, before } => rows.delete_range(KeyRange {
                from: space.feedback(key, from),
                to: space.feedback(key, before),
            }),
            Effect::Moved => {}
            Effect::Forgotten => {
                rows.delete_range(space.messages_of(key));
                rows.delete_range(space.feedback_of(key));
            }
        }
    }
}

/// Writes the head as it is after an item's events.
pub fn write_head(state: &DeviceState, key: &DeviceKey, rows: &mut Rows<'_>) {
    let row = rows.space.message_queue(key);
    match state.messages.as_deref() {
        Some(messages) => rows.put(row, codec::encode(messages)),
        None => rows.delete(row),
    }
}

/// # Errors
/// The disk failed or holds damaged bytes.
pub fn load_head(from: &(impl Get + ?Sized), space: Space, key: &DeviceKey) -> io::Result<Messages> {
    let bytes = from.get(&space.message_queue(key))?;
    let bytes = bytes.ok_or_else(|| invalid("the head of a message queue is missing"))?;
    codec::decode(&bytes).map_err(invalid)
}

/// Counts what a leader decides of messages; what then does not commit is counted all the same.
pub fn count(events: &[Event]) {
    for event in events {
        let label = match event {
            Event::MessageQueued(_) => "queued",
            Event::MessageSent { .. } => "sent",
            Event::MessageEnded { outcome, .. } => outcome.name(),
            Event::DeadLetterReplayed { .. } => "replayed",
            Event::DeadLetterDropped { .. } => "dropped",
            _ => continue,
        };
        metrics::counter!("holdfast_messages_total", "event" => label).increment(1);
    }
}

/// The content of what was handed to a connection. A message that ended meanwhile is left out.
///
/// # Errors
/// The disk failed or holds damaged bytes.
pub fn contents(
    shared: &GroupShared,
    key: &DeviceKey,
    taken: Vec<TakenMessage>,
) -> io::Result<Vec<(TakenMessage, Message)>> {
    let (space, view) = shared.pinned()?;
    let mut found = Vec::with_capacity(taken.len());
    for taken in taken {
        if let Some(content) = content(&*view, space, key, taken.row)? {
            found.push((taken, content.message));
        }
    }
    Ok(found)
}

fn content(from: &(impl Get + ?Sized), space: Space, key: &DeviceKey, row: u64) -> io::Result<Option<Content>> {
    let bytes = from.get(&space.message(key, row))?;
    bytes.map(|bytes| codec::decode(&bytes).map_err(invalid)).transpose()
}

/// Messages in the order of their numbers, with their content.
///
/// # Errors
/// As [`contents`].
pub fn page(
    shared: &GroupShared,
    key: &DeviceKey,
    head: MessagesView,
    query: &MessageQuery,
) -> io::Result<MessagePage> {
    let (space, view) = shared.pinned()?;
    let limit = query.limit.clamp(1, 1000) as usize;
    let mut page = MessagePage::default();
    let (mut bytes, mut last) = (0, 0);
    for entry in entries(head, &query.which).filter(|entry| entry.number > query.after_number) {
        if page.rows.len() == limit || bytes > PAGE_BYTES_MAX {
            page.next = Some(last);
            break;
        }
        last = entry.number;
        let Some(content) = content(&*view, space, key, entry.row)? else {
            continue;
        };
        bytes += content.message.bytes();
        page.rows.push(MessageRow {
            number: entry.number,
            state: entry.state,
            enqueued_at: entry.enqueued_at,
            expires_at: entry.expires_at,
            deliveries: entry.deliveries,
            receipt: Receipt {
                shard: shared.shard,
                term: content.position.term,
                index: content.position.index,
                seq: 0,
            },
            message: content.message,
        });
    }
    Ok(page)
}

struct Entry {
    number: u64,
    row: u64,
    state: MessageState,
    enqueued_at: Timestamp,
    expires_at: Option<Timestamp>,
    deliveries: u16,
}

fn entries(head: MessagesView, which: &MessageSelection) -> impl Iterator<Item = Entry> {
    let live = head.live;
    let (queue, dead) = match which {
        MessageSelection::Queue => (head.queue, Vec::new()),
        MessageSelection::Dead => {
            let mut dead = head.dead;
            dead.sort_by_key(|letter| letter.number);
            (Vec::new(), dead)
        }
        MessageSelection::Id(id) => {
            let (mut queue, mut dead) = (head.queue, head.dead);
            queue.retain(|queued| *queued.id == **id);
            dead.retain(|letter| *letter.id == **id);
            (queue, dead)
        }
    };
    let queue = queue.into_iter().map(move |queued| of_queued(&queued, live));
    queue.chain(dead.into_iter().map(|letter| of_dead(&letter)))
}

fn of_queued(queued: &Queued, live: Option<u64>) -> Entry {
    Entry {
        number: queued.number,
        row: queued.row,
        state: if live == Some(queued.generation) {
            MessageState::Delivering
        } else {
            MessageState::Queued
        },
        enqueued_at: queued.enqueued_at,
        expires_at: Some(queued.expires_at),
        deliveries: queued.deliveries,
    }
}

fn of_dead(letter: &DeadLetter) -> Entry {
    Entry {
        number: letter.number,
        row: letter.row,
        state: MessageState::Dead {
            reason: letter.reason,
            at: letter.died_at,
        },
        enqueued_at: letter.enqueued_at,
        expires_at: None,
        deliveries: letter.deliveries,
    }
}

/// Feedback after `after_seq`, in the order of the ends.
///
/// # Errors
/// As [`contents`].
pub fn feedback(shared: &GroupShared, key: &DeviceKey, after_seq: u64, limit: u32) -> io::Result<FeedbackPage> {
    let (space, view) = shared.pinned()?;
    let KeyRange { from, to } = space.feedback_from(key, after_seq.saturating_add(1));
    let limit = limit.clamp(1, 1000) as usize;
    let mut page = FeedbackPage::default();
    let mut damaged = None;
    view.scan(&from, &to, &mut |row, value| {
        if page.rows.len() == limit {
            page.next = page.rows.last().map(|row: &FeedbackRow| row.seq);
            return false;
        }
        let decoded = codec::decode::<Feedback>(value).map_err(invalid);
        match (keys::parse_feedback_seq(row), decoded) {
            (Some(seq), Ok(feedback)) => {
                page.rows.push(FeedbackRow {
                    seq,
                    message_id: feedback.message_id,
                    outcome: feedback.outcome,
                    at: feedback.at,
                    enqueued_at: feedback.enqueued_at,
                    deliveries: feedback.deliveries,
                });
                true
            }
            (_, Err(error)) => {
                damaged = Some(error);
                false
            }
            (None, _) => {
                damaged = Some(invalid("feedback key cannot be read"));
                false
            }
        }
    })?;
    damaged.map_or(Ok(page), Err)
}
