//! What the HTTP edge asks of the cluster, as a trait narrow enough to stand in for it in tests.

use std::sync::Arc;
use std::time::Duration;

use actors::device::Command;
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::ports::{CallError, CallResult};
use actors::wire::receipt::Receipt;
use cluster::admin::{AdminAsk, AdminDone, Denied};
use cluster::api::{
    ClusterStatus, DevicePage, FeedbackPage, ListQuery, MessagePage, MessageQuery, MethodResult, ReceiptState,
    ReplicaDigest, ScrubReport, TelemetryPage, TelemetryQuery,
};
use cluster::faults::Faults;
use cluster::Cluster;
use futures::future::LocalBoxFuture;

/// See the methods of the same names of [`Cluster`] for what comes back.
pub trait Backend: Send + Sync + 'static {
    fn shard_of(&self, device: &DeviceKey) -> ShardId;
    fn call<'a>(
        &'a self,
        device: &'a DeviceKey,
        command: Command,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, CallResult>;
    fn telemetry<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: TelemetryQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<TelemetryPage, CallError>>;
    fn messages<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: MessageQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<MessagePage, CallError>>;
    /// `(after_seq, limit)`
    fn feedback<'a>(
        &'a self,
        device: &'a DeviceKey,
        page: (u64, u32),
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<FeedbackPage, CallError>>;
    fn list_devices(&self, query: ListQuery, deadline: Duration) -> LocalBoxFuture<'_, Result<DevicePage, CallError>>;
    fn receipt(&self, receipt: Receipt, deadline: Duration) -> LocalBoxFuture<'_, Result<ReceiptState, CallError>>;
    fn invoke<'a>(
        &'a self,
        device: &'a DeviceKey,
        name: &'a str,
        payload: String,
        timeout: Duration,
    ) -> LocalBoxFuture<'a, MethodResult>;
    fn status(&self) -> LocalBoxFuture<'_, ClusterStatus>;
    fn digest(
        &self,
        shard: ShardId,
        index: Option<u64>,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Vec<ReplicaDigest>, CallError>>;
    fn set_draining(
        &self,
        node: NodeId,
        draining: bool,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<(), CallError>>;
    fn scrub(&self, node: NodeId, deadline: Duration) -> LocalBoxFuture<'_, Result<ScrubReport, CallError>>;
    fn admin(
        &self,
        ask: AdminAsk,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Result<AdminDone, Denied>, CallError>>;
    /// Whether this node is marked as draining.
    fn draining(&self) -> bool;
    /// Why this node takes no part in anything, if it does not.
    fn quarantine(&self) -> Option<String> {
        None
    }
    /// Where faults may be installed, if this is a real node.
    fn faults(&self) -> Option<Arc<Faults>> {
        None
    }
    /// Whether every shard is known to have a leader.
    fn ready(&self) -> bool;
}

impl Backend for Cluster {
    fn shard_of(&self, device: &DeviceKey) -> ShardId {
        Cluster::shard_of(self, device)
    }

    fn call<'a>(
        &'a self,
        device: &'a DeviceKey,
        command: Command,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, CallResult> {
        Box::pin(Cluster::call(self, device, command, deadline))
    }

    fn telemetry<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: TelemetryQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<TelemetryPage, CallError>> {
        Box::pin(Cluster::telemetry(self, device, query, deadline))
    }

    fn messages<'a>(
        &'a self,
        device: &'a DeviceKey,
        query: MessageQuery,
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<MessagePage, CallError>> {
        Box::pin(Cluster::messages(self, device, query, deadline))
    }

    fn feedback<'a>(
        &'a self,
        device: &'a DeviceKey,
        page: (u64, u32),
        deadline: Duration,
    ) -> LocalBoxFuture<'a, Result<FeedbackPage, CallError>> {
        Box::pin(Cluster::feedback(self, device, page, deadline))
    }

    fn list_devices(&self, query: ListQuery, deadline: Duration) -> LocalBoxFuture<'_, Result<DevicePage, CallError>> {
        Box::pin(Cluster::list_devices(self, query, deadline))
    }

    fn receipt(&self, receipt: Receipt, deadline: Duration) -> LocalBoxFuture<'_, Result<ReceiptState, CallError>> {
        Box::pin(Cluster::receipt(self, receipt, deadline))
    }

    fn invoke<'a>(
        &'a self,
        device: &'a DeviceKey,
        name: &'a str,
        payload: String,
        timeout: Duration,
    ) -> LocalBoxFuture<'a, MethodResult> {
        Box::pin(Cluster::invoke(self, device, name, payload, timeout))
    }

    fn status(&self) -> LocalBoxFuture<'_, ClusterStatus> {
        Box::pin(Cluster::status(self))
    }

    fn digest(
        &self,
        shard: ShardId,
        index: Option<u64>,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Vec<ReplicaDigest>, CallError>> {
        Box::pin(Cluster::digest(self, shard, index, deadline))
    }

    fn set_draining(
        &self,
        node: NodeId,
        draining: bool,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<(), CallError>> {
        Box::pin(Cluster::set_draining(self, node, draining, deadline))
    }

    fn scrub(&self, node: NodeId, deadline: Duration) -> LocalBoxFuture<'_, Result<ScrubReport, CallError>> {
        Box::pin(Cluster::scrub(self, node, deadline))
    }

    fn admin(
        &self,
        ask: AdminAsk,
        deadline: Duration,
    ) -> LocalBoxFuture<'_, Result<Result<AdminDone, Denied>, CallError>> {
        Box::pin(Cluster::admin(self, ask, deadline))
    }

    fn draining(&self) -> bool {
        Cluster::draining(self)
    }

    fn quarantine(&self) -> Option<String> {
        Cluster::quarantine(self).map(str::to_owned)
    }

    fn faults(&self) -> Option<Arc<Faults>> {
        Some(Cluster::faults(self))
    }

    fn ready(&self) -> bool {
        Cluster::ready(self)
    }
}
