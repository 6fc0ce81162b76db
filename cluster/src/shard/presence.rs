//! Devices whose gateway is gone: found through the gateway index and marked offline, as events.

use std::collections::BTreeMap;
use std::io;

use actors::device::{CloseCause, Command};
use actors::id::{DeviceKey, Gateway};

use crate::raft::machine::GroupShared;
use crate::storage::keys::{self, KeyRange};

/// Devices marked offline per sweep.
const SWEEP_MAX: usize = 512;
/// Gateways looked at per sweep.
const GATEWAYS_MAX: usize = 256;

/// What this node knows of a gateway's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayLife {
    Alive,
    /// Not heard of; it may be alive behind a broken network.
    Silent,
    /// The process has ended: another run of the same node is known.
    Gone,
}

/// Remembers since when each gateway has been silent.
#[derive(Default)]
pub struct Presence {
    silent_since_ms: BTreeMap<Gateway, u64>,
}

impl Presence {
    /// Sessions of gateways that are gone, or silent for longer than the grace period.
    ///
    /// # Errors
    /// The disk failed or holds damaged bytes.
    pub fn sweep(
        &mut self,
        shared: &GroupShared,
        now_ms: u64,
        grace_ms: u64,
        life: &dyn Fn(Gateway) -> GatewayLife,
    ) -> io::Result<Vec<(DeviceKey, Command)>> {
        let (space, view) = shared.pinned()?;
        let mut lost = Vec::new();
        let mut known = BTreeMap::new();
        let KeyRange { mut from, to } = space.gateways();
        for _ in 0..GATEWAYS_MAX {
            let mut first = None;
            view.scan(&from, &to, &mut |row, _| {
                first = keys::parse_gateway(row);
                false
            })?;
            let Some((gateway, _)) = first else { break };
            let KeyRange { from: start, to: end } = space.gateway_of(gateway);
            let over = match life(gateway) {
                GatewayLife::Alive => false,
                GatewayLife::Gone => true,
                GatewayLife::Silent => {
                    let since = *self.silent_since_ms.get(&gateway).unwrap_or(&now_ms);
                    known.insert(gateway, since);
                    now_ms.saturating_sub(since) >= grace_ms
                }
            };
            if over {
                view.scan(&start, &end, &mut |row, value| {
                    if let (Some((_, key)), Ok(generation)) = (keys::parse_gateway(row), <[u8; 8]>::try_from(value)) {
                        let generation = u64::from_be_bytes(generation);
                        lost.push((
                            key,
                            Command::CloseSession {
                                generation,
                                cause: CloseCause::GatewayLost,
                            },
                        ));
                    }
                    lost.len() < SWEEP_MAX
                })?;
            }
            from = end;
        }
        self.silent_since_ms = known;
        Ok(lost)
    }
}
