//! Live events: what happens to devices, told to whoever watches, as it is committed.
//!
//! [`hub::Hub`] is an actix actor that follows the shards somebody watches and sorts what happens
//! into the subscribers' bounded outboxes; [`session::Watch`] is one subscriber's side, from which
//! `http::events` takes frames to write. Knows no sockets, and nothing of how events become
//! durable: pages of them come through [`source::Source`].

mod cursor;
mod event;
mod feed;
mod filter;
pub mod hub;
mod outbox;
pub mod session;
pub mod source;
#[cfg(test)]
mod tests;

pub use cursor::Cursor;
pub use filter::{BadFilter, Filter};
