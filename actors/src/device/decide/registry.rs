//! The registration: created, changed and deleted under conditions.

use super::Scene;
use crate::device::{CloseCause, Event, Precondition, Refusal, Status};
use crate::id::DeviceId;

impl Scene<'_> {
    pub(super) fn put_device(
        &self,
        status: Status,
        gateway: &Option<DeviceId>,
        condition: Precondition,
    ) -> Result<Vec<Event>, Refusal> {
        self.meets(condition)?;
        if self.state.registration.is_some() {
            return self.patch_device(Some(status), Some(gateway), condition);
        }
        let mut events = vec![Event::DeviceRegistered {
            status,
            automatic: false,
        }];
        self.assign_gateway(None, gateway, &mut events)?;
        Ok(events)
    }

    pub(super) fn patch_device(
        &self,
        status: Option<Status>,
        gateway: Option<&Option<DeviceId>>,
        condition: Precondition,
    ) -> Result<Vec<Event>, Refusal> {
        let registration = self.registered()?;
        self.meets(condition)?;
        let change = status.filter(|status| *status != registration.status);
        let mut events = Vec::from_iter(change.map(|status| Event::StatusChanged { status }));
        if let Some(gateway) = gateway {
            self.assign_gateway(registration.gateway.as_ref(), gateway, &mut events)?;
        }
        Ok(events)
    }

    /// A session that runs over the connection of another gateway ends: that one may act for the
    /// device no more.
    fn assign_gateway(
        &self,
        old: Option<&DeviceId>,
        new: &Option<DeviceId>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        if new.as_ref() == Some(&self.key.device) {
            let reason = "a device is not its own gateway; leave it out".to_owned();
            return Err(Refusal::GatewayInvalid { reason });
        }
        if old == new.as_ref() {
            return Ok(());
        }
        let session = self.state.session.as_deref();
        let orphan = session.filter(|s| (s.connected || s.lost) && s.via.is_some() && s.via != *new);
        events.extend(orphan.map(|session| Event::SessionClosed {
            generation: session.generation,
            cause: CloseCause::Abrupt,
        }));
        let gateway = new.clone();
        events.push(Event::GatewayAssigned { gateway });
        Ok(())
    }

    pub(super) fn delete_device(&self, condition: Precondition) -> Result<Vec<Event>, Refusal> {
        self.registered()?;
        self.meets(condition)?;
        Ok(vec![Event::DeviceDeleted])
    }

    fn meets(&self, condition: Precondition) -> Result<(), Refusal> {
        match condition {
            Precondition::None => Ok(()),
            Precondition::Exists => self.registered().map(drop),
            Precondition::Absent => match self.state.registration {
                None => Ok(()),
                Some(_) => Err(Refusal::AlreadyRegistered),
            },
            Precondition::Etag(expected) => {
                let current = self.registered()?.etag;
                if current == expected {
                    Ok(())
                } else {
                    Err(Refusal::StaleVersion { expected, current })
                }
            }
        }
    }
}
