//! Whether this node still has what its peers remember it to have: they hold it to the directory
//! and the run they met last, and leaders to the entries it has acknowledged.
//!
//! Catches what no checksum can: a log whose end is missing, and an older copy of a directory.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::shell::house::{PartError, StopSignal};

use super::replicas::Replicas;
use crate::raft::log;
use crate::router::protocol::{Acked, Ask, Told};
use crate::storage::keys;
use crate::transport::Refusal;

/// How long a starting node waits for peers that do not answer, before it opens its replicas.
const FIRST_CONTACT: Duration = Duration::from_millis(600);
const POLL: Duration = Duration::from_millis(10);
/// How often peers that have come since are asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const ASK_DEADLINE: Duration = Duration::from_millis(500);

/// By peer: the run that was asked last.
type Asked = BTreeMap<NodeId, u64>;

impl Replicas {
    /// Before any replica takes part: hears what the peers that can be reached remember of this
    /// node. Returns why it must not take part, if so.
    ///
    /// # Errors
    /// The own log cannot be read.
    pub async fn first_contact(&self) -> io::Result<Option<String>> {
        let others: Vec<NodeId> = self.others();
        let deadline = tokio::time::Instant::now() + FIRST_CONTACT;
        loop {
            if let Some(reason) = self.refused() {
                return Ok(Some(reason));
            }
            let all = others.iter().all(|id| self.peers.is_connected(*id));
            if all || tokio::time::Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.compare(&mut Asked::new()).await
    }

    /// Goes on asking peers that were not there at the start, for as long as the node runs.
    ///
    /// # Errors
    /// The own log cannot be read.
    pub async fn watch_standing(&self, mut stop: StopSignal) -> Result<(), PartError> {
        let mut asked = Asked::new();
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let reason = match self.refused() {
                // A directory that never took part is judged where it waits to.
                Some(reason) => Some(reason),
                None => self.compare(&mut asked).await?,
            };
            if let Some(reason) = reason {
                self.alarm.quarantine("directory", reason);
            }
        }
    }

    /// Why peers refuse this node for good, if one does.
    pub fn refused(&self) -> Option<String> {
        let by_peer = |reason| self.transport.counters().disowned_for(reason) > 0;
        let (node, dir) = (self.peers.me.node, self.env.config.data_dir.display());
        if by_peer(Refusal::Ledger) {
            return Some(format!(
                "peers know node {node} with another data directory than {dir}: what it promised is not in here"
            ));
        }
        by_peer(Refusal::OlderCopy).then(|| {
            format!(
                "{dir} is an older copy (or a copy) of what node {node} ran on: peers remember a later run, and what \
                 it promised since is not in here"
            )
        })
    }

    async fn compare(&self, asked: &mut Asked) -> io::Result<Option<String>> {
        for peer in self.others() {
            let Some(link) = self.peers.link(peer) else { continue };
            if asked.get(&peer) == Some(&link.boot) {
                continue;
            }
            let ask = Ask::Acked {
                node: self.peers.me.node,
            };
            if let Ok(Told::Acked(known)) = self.asking.node(peer, ask, ASK_DEADLINE).await {
                asked.insert(peer, link.boot);
                for acked in known {
                    if let Some(reason) = self.lost(peer, &acked)? {
                        return Ok(Some(reason));
                    }
                }
            }
        }
        Ok(None)
    }

    /// What a leader knows to be on this disk, and is not.
    fn lost(&self, leader: NodeId, acked: &Acked) -> io::Result<Option<String>> {
        let Acked { shard, term, at } = *acked;
        if log::holds(&*self.log, shard, at.term, at.index)? != Some(false) || self.applied_on_disk(shard)? >= at.index
        {
            return Ok(None);
        }
        let reached = log::reached(&*self.log, shard)?;
        // A later leader may have cut what an earlier one had sent. Read after the log: it only grows.
        if reached.term > term {
            return Ok(None);
        }
        Ok(Some(format!(
            "node {leader}, the leader of shard {shard}, has this node's word for entry {} of term {}, but its log \
             ends at {}: its end was lost, or an older copy was put back",
            at.index, at.term, reached.last
        )))
    }

    fn applied_on_disk(&self, shard: ShardId) -> io::Result<u64> {
        let Some(bytes) = self.state.get(&keys::meta(shard))? else {
            return Ok(0);
        };
        let meta: crate::raft::machine::GroupMeta = actors::wire::codec::decode(&bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        Ok(meta.applied_index())
    }

    fn others(&self) -> Vec<NodeId> {
        self.transport.peers()
    }
}
