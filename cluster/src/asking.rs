//! Puts an [`Ask`] to the right node, this one included, and again while that is certain to be
//! harmless.

use std::sync::Arc;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::ports::CallError;
use actors::wire::codec;
use bytes::Bytes;
use tokio::time::Instant;

use crate::admin::AdminAsk;
use crate::catalog::CatalogCommand;
use crate::router::protocol::{Ask, AskResult, KIND_ASK};
use crate::router::Router;
use crate::service::Service;
use crate::transport::{Class, SendError};

const RETRY_PAUSE: Duration = Duration::from_millis(20);

pub struct Asking {
    pub router: Arc<Router>,
    pub service: Arc<Service>,
}

impl Asking {
    /// Asks one node, once.
    ///
    /// # Errors
    /// `NotLeader` when it was not reached, `Unknown` when no answer came.
    pub async fn node(&self, node: NodeId, ask: Ask, deadline: Duration) -> AskResult {
        if node == self.router.node {
            let answered = tokio::time::timeout(deadline, self.service.answer(ask)).await;
            return answered.unwrap_or(Err(CallError::Unknown));
        }
        let unreached = CallError::NotLeader {
            shard: ShardId::CATALOG,
            leader: None,
        };
        let Some(transport) = self.router.transport() else {
            return Err(unreached);
        };
        let body = Bytes::from(codec::encode(&ask));
        match transport.request(node, Class::Device, KIND_ASK, body, deadline).await {
            Ok(bytes) => codec::decode::<AskResult>(&bytes).unwrap_or(Err(CallError::Unknown)),
            Err(SendError::NotSent(_)) => Err(unreached),
            Err(SendError::NoAnswer(_)) => Err(CallError::Unknown),
        }
    }

    /// This node and its peers in turn: whoever knows the leader says so.
    fn anybody(&self, turn: usize) -> NodeId {
        let peers = self
            .router
            .transport()
            .map(crate::transport::Transport::peers)
            .unwrap_or_default();
        match turn % (peers.len() + 1) {
            0 => self.router.node,
            at => peers[at - 1],
        }
    }

    /// Asks the leader of `shard`, following it until `deadline`. What may not be written
    /// twice is not asked again after `Unknown`.
    ///
    /// # Errors
    /// The last one met.
    pub async fn leader(&self, shard: ShardId, ask: Ask, deadline: Duration) -> AskResult {
        let end = Instant::now() + deadline;
        let mut hint = None;
        let mut around = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let leader = hint.take().or_else(|| self.router.leader(shard)).unwrap_or_else(|| {
                around += 1;
                self.anybody(around - 1)
            });
            // A paused leader must not use up all the time there is.
            let attempt = left.min(Duration::from_secs(3));
            let error = match self.node(leader, ask.clone(), attempt).await {
                Ok(told) => return Ok(told),
                Err(CallError::Unknown) if acts_twice(&ask) => return Err(CallError::Unknown),
                Err(
                    error @ CallError::NotLeader {
                        leader: Some(other), ..
                    },
                ) if other != leader => {
                    hint = Some(other);
                    error
                }
                Err(error @ (CallError::NotLeader { .. } | CallError::Unknown | CallError::Overloaded { .. })) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() + RETRY_PAUSE >= end {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Whether a late first attempt could undo, or do again, what somebody saw done since.
fn acts_twice(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Catalog(CatalogCommand::SetDraining { .. })
            | Ask::Admin(AdminAsk::CreateToken { .. } | AdminAsk::RevokeToken { .. })
    )
}
