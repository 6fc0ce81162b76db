//! How a group's leader reaches a replica: openraft's network over the node's transport.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actors::id::NodeId;
use actors::wire::codec;
use bytes::Bytes;
use futures::Stream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::OptionalSend;
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::append;
use super::machine::GroupShared;
use super::rpc;
use super::snapshot::{describe, Sender, SnapshotData, TransferError};
use super::types::{TypeConfig, Vote};
use crate::transport::{Class, SendError, Transport};

/// Makes the connections of one group.
pub struct GroupNetworkFactory {
    pub transport: Transport,
    pub shared: Arc<GroupShared>,
}

impl GroupNetworkFactory {
    fn link(&self, target: NodeId, class: Class) -> GroupLink {
        GroupLink {
            transport: self.transport.clone(),
            shared: self.shared.clone(),
            target,
            class,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetworkFactory {
    type Network = GroupLink;

    async fn new_client(&mut self, target: NodeId, _node: &()) -> GroupLink {
        self.link(target, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &()) -> GroupLink {
        self.link(target, Class::Control)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _node: &()) -> GroupLink {
        self.link(target, Class::Snapshot)
    }
}

/// One group's way to one replica. `class` is where its appends go.
pub struct GroupLink {
    transport: Transport,
    shared: Arc<GroupShared>,
    target: NodeId,
    class: Class,
}

impl GroupLink {
    async fn send(&self, class: Class, kind: u8, body: Bytes, ttl: Duration) -> Result<Bytes, RPCError<TypeConfig>> {
        self.transport
            .request(self.target, class, kind, body, ttl)
            .await
            .map_err(|e| match e {
                SendError::NotSent(_) => RPCError::Unreachable(Unreachable::new(&e)),
                SendError::NoAnswer(_) => RPCError::Network(NetworkError::new(&e)),
            })
    }

    async fn control<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: u8,
        request: &Q,
        ttl: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let body = rpc::envelope(self.shared.shard, &codec::encode(request));
        let answer = self.send(Class::Control, kind, body, ttl).await?;
        codec::decode(&answer).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }
}

impl RaftNetworkV2<TypeConfig> for GroupLink {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let body = rpc::encode_append(self.shared.shard, &rpc);
        // A heartbeat carries no entries wherever it comes from; it must not queue behind appends.
        let class = if rpc.entries.is_empty() {
            Class::Control
        } else {
            self.class
        };
        // A follower may be busy with its disk; give up only when its silence means something.
        let ttl = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(APPEND_DEADLINE)
        };
        let answer = self.send(class, rpc::KIND_APPEND, body, ttl).await?;
        codec::decode(&answer).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    fn stream_append<'s, S>(&'s mut self, requests: S, option: RPCOption) -> append::Answers<'s>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        append::stream(self, requests, option)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.control(rpc::KIND_VOTE, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.control(rpc::KIND_PRE_VOTE, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sender = Sender {
            transport: &self.transport,
            shared: &self.shared,
            target: self.target,
        };
        let what = describe(self.shared.shard, self.target);
        tracing::info!(%what, index = snapshot.meta.last_log_id.map(|id| id.index), "sending");
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sender.send(vote, snapshot) => match sent {
                Ok(vote) => {
                    tracing::info!(%what, "installed");
                    Ok(SnapshotResponse::new(vote))
                }
                Err(error @ TransferError::Send(SendError::NotSent(_))) => {
                    Err(StreamingError::Unreachable(Unreachable::new(&error)))
                }
                Err(error) => {
                    tracing::warn!(%what, %error, "not installed, will try again");
                    Err(StreamingError::Network(NetworkError::new(&error)))
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.control(rpc::KIND_TRANSFER, &req, option.hard_ttl()).await
    }
}

/// How long a follower may take to fsync an append before the leader sends it again.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);
