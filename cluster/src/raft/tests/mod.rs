//! Promises of one Raft group: its log, its state, its snapshots, its replicas together.

mod crashes;
mod cuts;
mod group;
mod log;
mod membership;
mod suite;
