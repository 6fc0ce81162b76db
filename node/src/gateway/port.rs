//! What the gateway needs from the devices, as a trait: the cluster, or a memory in tests.

use actors::device::Command;
use actors::id::{DeviceKey, Gateway, NodeId, ShardId};
use actors::ports::{CallError, CallResult, ReplyTo};
use cluster::api::{MessagesTaken, TakeMessages};
use tokio::sync::{oneshot, watch};

/// Called once, from any thread.
pub type TakenTo = Box<dyn FnOnce(Result<MessagesTaken, CallError>) + Send>;

/// How long messages are asked for before the connection asks anew.
const TAKE_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// Routes commands to devices. See [`cluster::Cluster::submit`] for the promises of order.
pub trait Devices: Send + Sync + 'static {
    /// One attempt; `reply` is called once, from any thread, possibly before this returns.
    fn submit(&self, device: DeviceKey, command: Command, reply: ReplyTo);
    fn shard_of(&self, device: &DeviceKey) -> ShardId;
    fn leader(&self, shard: ShardId) -> Option<NodeId>;
    /// Changes whenever the leader of any shard is known to have changed.
    fn leadership_changes(&self) -> watch::Receiver<u64>;
    /// This run of this node, as sessions record it.
    fn gateway(&self) -> Gateway;
    fn draining(&self) -> bool;
    /// Draining, and nothing is led here any more.
    fn drained(&self) -> bool;
    /// Why new telemetry is refused before it is given an ordinal, if it is: the disk is nearly
    /// full, or the memory.
    fn refuses_telemetry(&self) -> Option<&'static str> {
        None
    }
    /// Hands messages of the device's queue to a connection. To be called on an arbiter.
    fn take_messages(&self, device: DeviceKey, take: TakeMessages, reply: TakenTo);
}

impl Devices for cluster::Cluster {
    fn submit(&self, device: DeviceKey, command: Command, reply: ReplyTo) {
        cluster::Cluster::submit(self, device, command, reply);
    }
    fn shard_of(&self, device: &DeviceKey) -> ShardId {
        cluster::Cluster::shard_of(self, device)
    }
    fn leader(&self, shard: ShardId) -> Option<NodeId> {
        cluster::Cluster::leader(self, shard)
    }
    fn leadership_changes(&self) -> watch::Receiver<u64> {
        cluster::Cluster::leadership_changes(self)
    }
    fn gateway(&self) -> Gateway {
        cluster::Cluster::gateway(self)
    }
    fn draining(&self) -> bool {
        cluster::Cluster::draining(self)
    }
    fn drained(&self) -> bool {
        cluster::Cluster::drained(self)
    }
    fn refuses_telemetry(&self) -> Option<&'static str> {
        cluster::Cluster::refuses_telemetry(self)
    }
    fn take_messages(&self, device: DeviceKey, take: TakeMessages, reply: TakenTo) {
        let cluster = self.clone();
        actix_rt::spawn(async move {
            reply(cluster.take_messages(&device, take, TAKE_DEADLINE).await);
        });
    }
}

/// One attempt, as a future.
pub(super) async fn ask(devices: &dyn Devices, device: &DeviceKey, command: Command) -> CallResult {
    let (answer, answered) = oneshot::channel();
    let reply = ReplyTo::new(move |result| {
        // Nobody waits any more: the asker gave up and counted it.
        let _ = answer.send(result);
    });
    devices.submit(device.clone(), command, reply);
    answered.await.unwrap_or(Err(CallError::Unknown))
}
