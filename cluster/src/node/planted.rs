//! The planted bug `drop-on-reconnect`: the first message that a peer forwards after it came back is
//! acknowledged and dropped.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use actors::device::{Answer, Command, Origin};
use actors::id::NodeId;
use actors::planted::{is, Planted};
use actors::ports::{CallResult, Reply};

use crate::router::protocol::ForwardedCall;

#[derive(Default)]
pub struct DropOnReconnect(Mutex<Peers>);

#[derive(Default)]
struct Peers {
    met: BTreeSet<NodeId>,
    /// Came back, and have forwarded nothing since.
    back: BTreeSet<NodeId>,
}

impl DropOnReconnect {
    pub fn connected(&self, peer: NodeId) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !peers.met.insert(peer) && is(Planted::DropOnReconnect) {
            peers.back.insert(peer);
        }
    }

    /// Takes the message out of the first such command; its turn passes.
    pub fn strikes(&self, from: NodeId, call: &mut ForwardedCall) -> bool {
        let Command::RecordTelemetry {
            origin: Origin::Session { fence, .. },
            ..
        } = &call.command
        else {
            return false;
        };
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let back = peers.back.remove(&from);
        if back {
            let (fence, filters) = (fence.clone(), Vec::new());
            call.command = Command::Unsubscribe { fence, filters };
        }
        back
    }
}

/// As if the message had been recorded.
pub fn acknowledged(result: CallResult) -> CallResult {
    let (seq, repeated) = (0, false);
    result.map(|reply| Reply {
        answer: Answer::Telemetry { seq, repeated },
        ..reply
    })
}
