//! Promises of a shard: how its log becomes rows, how its journal answers, what its reads say.

mod apply;
mod journal;
mod reads;
/// The random commands that the device rules are tested with.
#[path = "../../../../actors/tests/common/mod.rs"]
mod stories;
