//! Where live events come from, as a trait: the cluster, or a list in tests.

use actors::id::{DeviceKey, ShardId};
use actors::ports::CallError;
use cluster::api::{LivePage, LiveQuery};
use cluster::Cluster;
use futures::future::LocalBoxFuture;

/// See [`Cluster::live`].
pub trait Source: Send + Sync + 'static {
    fn shards(&self) -> u16;
    fn shard_for(&self, device: &DeviceKey) -> ShardId;
    fn page(&self, query: LiveQuery, attempt: usize) -> LocalBoxFuture<'_, Result<LivePage, CallError>>;
}

impl Source for Cluster {
    fn shards(&self) -> u16 {
        self.shard_count()
    }

    fn shard_for(&self, device: &DeviceKey) -> ShardId {
        Cluster::shard_of(self, device)
    }

    fn page(&self, query: LiveQuery, attempt: usize) -> LocalBoxFuture<'_, Result<LivePage, CallError>> {
        Box::pin(self.live(query, attempt))
    }
}
