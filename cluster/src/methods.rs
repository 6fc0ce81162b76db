//! Calls to connected devices: from any node to the connection, whichever node holds it.
//!
//! Volatile: nothing is written. A look at the device at its shard's leader says which gateway
//! holds its session; the call goes straight there. What certainly did not reach the device may
//! be tried again while there is time; what may have reached it is never sent twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actors::device::{Answer, Command, Connection, Refusal, Status};
use actors::id::{DeviceKey, Gateway};
use actors::ports::{CallError, Reply};
use actors::wire::codec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::handle::Cluster;
use crate::router::protocol::KIND_METHOD;
use crate::transport::{Class, SendError};

/// Bytes of a call's payload, and of its answer's.
pub const METHOD_BYTES_MAX: usize = 128 * 1024;
/// Calls one node may have begun that are not answered.
pub const METHOD_CALLS_MAX: usize = 1_024;
/// Bytes of their payloads. Below what a peer takes before it reads no further commands from us.
pub const METHOD_CALL_BYTES_MAX: usize = 32 << 20;

/// Between two tries of a call that certainly did not reach the device.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long the state may name a connection that its node does not hold, before the caller is told.
const RETRY_PATIENCE: Duration = Duration::from_secs(2);
/// How much longer than its time a call is waited for: who holds the connection knows more exactly
/// what became of it.
const GRACE: Duration = Duration::from_millis(200);

/// A call on its way to the gateway that holds the device's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodCall {
    pub gateway: Gateway,
    pub key: DeviceKey,
    /// Of the session; a connection of another one does not take it.
    pub generation: u64,
    pub name: String,
    /// JSON.
    pub payload: String,
    /// From now on.
    pub timeout_ms: u64,
    /// W3C `traceparent`, for the receiver's log.
    pub trace: Option<String>,
}

/// What the device said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodAnswer {
    pub status: i32,
    /// JSON.
    pub payload: String,
}

/// Why there is no answer. Only `Unknown` and `BadAnswer` may have reached the device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MethodError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the device is not connected")]
    NotConnected,
    #[error("the device has not subscribed to its methods")]
    NotSubscribed,
    #[error("too much is waiting already ({what})")]
    Overloaded { what: String },
    /// The connection is not held here, or not any more; ask again where it is.
    #[error("the connection is not held here")]
    NotHere,
    #[error("{reason}")]
    NotDelivered { reason: String },
    /// It was sent, and no answer came.
    #[error("no answer came")]
    Unknown,
    /// The device answered with something that is no answer.
    #[error("{reason}")]
    BadAnswer { reason: String },
}

impl MethodError {
    /// As `holdfast_method_calls_total` names it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::NotConnected => "not_connected",
            Self::NotSubscribed => "not_subscribed",
            Self::Overloaded { .. } => "overloaded",
            Self::NotHere | Self::NotDelivered { .. } => "not_delivered",
            Self::Unknown => "unknown",
            Self::BadAnswer { .. } => "bad_answer",
        }
    }
}

pub type MethodResult = Result<MethodAnswer, MethodError>;

/// Answers a call exactly once. Dropped, it says `Unknown` if the call was sent, else `NotHere`.
pub struct MethodReply {
    answer: Option<Box<dyn FnOnce(MethodResult) + Send>>,
    sent: bool,
}

impl MethodReply {
    pub fn new(answer: impl FnOnce(MethodResult) + Send + 'static) -> Self {
        Self {
            answer: Some(Box::new(answer)),
            sent: false,
        }
    }

    /// From now on the device may have got it.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    pub fn send(mut self, result: MethodResult) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl Drop for MethodReply {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(if self.sent {
                MethodError::Unknown
            } else {
                MethodError::NotHere
            }));
        }
    }
}

impl std::fmt::Debug for MethodReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MethodReply")
    }
}

/// What this node's calls may take.
#[derive(Default)]
pub struct Budget {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// Gives back what a call took, however it ends.
struct Permit<'b> {
    budget: &'b Budget,
    bytes: usize,
}

impl Budget {
    fn admit(&self, bytes: usize) -> Option<Permit<'_>> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { budget: self, bytes };
        (calls < METHOD_CALLS_MAX && before + bytes <= METHOD_CALL_BYTES_MAX).then_some(permit)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.budget.calls.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Calls a method of a connected device and waits for its answer, at most `timeout`. `payload`
    /// is JSON.
    ///
    /// # Errors
    /// See [`MethodError`]; never `NotHere`.
    pub async fn invoke(&self, device: &DeviceKey, name: &str, payload: String, timeout: Duration) -> MethodResult {
        let started = Instant::now();
        let result = self.invoke_admitted(device, name, payload, started + timeout).await;
        let outcome = result.as_ref().map_or_else(MethodError::label, |_| "answered");
        metrics::counter!("holdfast_method_calls_total", "outcome" => outcome).increment(1);
        if result.is_ok() {
            metrics::histogram!("holdfast_method_seconds").record(started.elapsed().as_secs_f64());
        }
        result
    }

    async fn invoke_admitted(&self, device: &DeviceKey, name: &str, payload: String, end: Instant) -> MethodResult {
        let permit = self.running.methods.admit(payload.len());
        let _permit = permit.ok_or_else(|| MethodError::Overloaded {
            what: "method calls of this node".into(),
        })?;
        let patience = (Instant::now() + RETRY_PATIENCE).min(end);
        loop {
            let connection = self.connection(device, end).await?;
            let call = MethodCall {
                gateway: connection.gateway,
                key: device.clone(),
                generation: connection.generation,
                name: name.to_owned(),
                payload: payload.clone(),
                timeout_ms: millis(end.saturating_duration_since(Instant::now())),
                trace: self.running.router.trace(),
            };
            match self.hand_over(call, end).await {
                Err(MethodError::NotHere) if Instant::now() + RETRY_PAUSE < patience => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(MethodError::NotHere) => {
                    let node = connection.gateway.node;
                    return Err(MethodError::NotDelivered {
                        reason: format!("node {node}, which held the device's connection, did not take the call"),
                    });
                }
                ended => return ended,
            }
        }
    }

    /// The device's live connection, as of now.
    async fn connection(&self, device: &DeviceKey, end: Instant) -> Result<Connection, MethodError> {
        let left = end.saturating_duration_since(Instant::now());
        let view = match self.call(device, Command::ReadDevice, left).await {
            Ok(Reply {
                answer: Answer::Device(view),
                ..
            }) => view,
            Ok(_) => return Err(MethodError::Refused(Refusal::NotRegistered)),
            Err(CallError::Refused(refusal)) => return Err(MethodError::Refused(refusal)),
            Err(error) => {
                return Err(MethodError::NotDelivered {
                    reason: format!("where the device is connected could not be learnt in time: {error}"),
                })
            }
        };
        if view.status == Status::Disabled {
            return Err(MethodError::Refused(Refusal::Disabled));
        }
        let connection = view.connection.filter(|c| c.connected);
        connection.ok_or(MethodError::NotConnected)
    }

    async fn hand_over(&self, call: MethodCall, end: Instant) -> MethodResult {
        let running = &self.running;
        let left = end.saturating_duration_since(Instant::now()) + GRACE;
        if call.gateway == running.me {
            let (tx, rx) = oneshot::channel();
            let reply = MethodReply::new(move |result| {
                let _ = tx.send(result);
            });
            running.peers.downlinks.invoke(call, reply);
            let answered = tokio::time::timeout(left, rx).await;
            return answered.map_or(Err(MethodError::Unknown), |r| r.unwrap_or(Err(MethodError::Unknown)));
        }
        let node = call.gateway.node;
        let body = Bytes::from(codec::encode(&call));
        let asked = running.transport.request(node, Class::Device, KIND_METHOD, body, left);
        match asked.await {
            Ok(bytes) => codec::decode::<MethodResult>(&bytes).unwrap_or(Err(MethodError::Unknown)),
            Err(SendError::NotSent(_)) => Err(MethodError::NotHere),
            Err(SendError::NoAnswer(_)) => Err(MethodError::Unknown),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sent: bool) -> MethodError {
        let (tx, rx) = std::sync::mpsc::channel();
        let mut reply = MethodReply::new(move |result| tx.send(result).unwrap());
        if sent {
            reply.sent();
        }
        drop(reply);
        rx.recv().unwrap().unwrap_err()
    }

    /// What was not sent may be tried again; what was sent may not.
    #[test]
    fn a_call_that_is_dropped_tells_whether_it_was_sent() {
        assert_eq!(told(false), MethodError::NotHere);
        assert_eq!(told(true), MethodError::Unknown);
    }

    #[test]
    fn calls_and_their_bytes_are_bounded_and_given_back() {
        let budget = Budget::default();
        let all: Vec<_> = (0..METHOD_CALLS_MAX).map(|_| budget.admit(1).unwrap()).collect();
        assert!(budget.admit(1).is_none());
        drop(all);
        let large = budget.admit(METHOD_CALL_BYTES_MAX).unwrap();
        assert!(budget.admit(1).is_none());
        drop(large);
        assert!(budget.admit(1).is_some());
    }
}
