//! Tells every peer what this node leads, at once when it changes and again now and then: nodes
//! without a replica of a shard have nobody else to learn it from.

use std::sync::Arc;
use std::time::Duration;

use actors::shell::house::{PartError, StopSignal};
use actors::wire::codec;
use bytes::Bytes;

use crate::router::protocol::KIND_LEADS;
use crate::router::Router;
use crate::transport::{Class, Transport};

/// Between two tellings of the same.
const AGAIN: Duration = Duration::from_millis(500);

pub struct Herald {
    pub router: Arc<Router>,
    pub transport: Transport,
}

impl Herald {
    /// # Errors
    /// Never; the signature is that of a part.
    pub async fn run(&self, mut stop: StopSignal) -> Result<(), PartError> {
        let mut changes = self.router.leadership_changes();
        loop {
            self.tell();
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = changes.changed() => changed?,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    fn tell(&self) {
        let leads = self.router.led_here();
        if leads.is_empty() {
            return;
        }
        let body = Bytes::from(codec::encode(&leads));
        for peer in self.transport.peers() {
            // One that is not connected is told when it is.
            let _ = self.transport.notify(peer, Class::Device, KIND_LEADS, body.clone());
        }
    }
}
