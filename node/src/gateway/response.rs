//! Where the answer to a request goes: the topic with its request id, or, in MQTT 5, the response
//! topic the request names, with its correlation data.

use actors::id::DeviceId;
use actors::wire::topic::{self, TopicError};
use bytes::Bytes;
use rmqtt_codec::types::Publish;
use rmqtt_codec::v5::{PublishAckReason, PublishProperties};

/// Bytes of correlation data: it is kept until the request is answered.
const CORRELATION_BYTES_MAX: usize = 4 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub struct ResponseTo {
    pub topic: String,
    pub correlation: Option<Bytes>,
}

impl ResponseTo {
    /// Of a request to `device`; `by_rid` is the topic that goes with its request id, if it has one.
    ///
    /// # Errors
    /// The request does not say where to, or says what it may not; for the PUBACK, and to count.
    pub fn of(
        device: &DeviceId,
        by_rid: Option<String>,
        publish: &Publish,
    ) -> Result<Self, (PublishAckReason, &'static str)> {
        let properties = publish.properties.as_ref();
        let correlation = properties.and_then(|p| p.correlation_data.as_ref());
        if correlation.is_some_and(|data| data.len() > CORRELATION_BYTES_MAX) {
            return Err((PublishAckReason::QuotaExceeded, "correlation_too_large"));
        }
        let named = properties.and_then(|p| p.response_topic.as_ref());
        let topic = match (named, by_rid) {
            (Some(named), _) => {
                topic::check_below(device, named).map_err(|error| match error {
                    TopicError::Foreign => (PublishAckReason::NotAuthorized, "foreign_response_topic"),
                    _ => (PublishAckReason::TopicNameInvalid, "response_topic"),
                })?;
                named.to_string()
            }
            (None, Some(by_rid)) => by_rid,
            (None, None) => return Err((PublishAckReason::TopicNameInvalid, "no_response_topic")),
        };
        // A copy of its own: the data share the memory of the whole packet.
        let correlation = correlation.map(|data| Bytes::copy_from_slice(data));
        Ok(Self { topic, correlation })
    }

    /// The properties of the answer.
    pub fn properties(&self) -> Option<Box<PublishProperties>> {
        let correlation_data = Some(self.correlation.clone()?);
        Some(Box::new(PublishProperties {
            correlation_data,
            ..PublishProperties::default()
        }))
    }
}
