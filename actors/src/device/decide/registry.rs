//! The registration: created, changed and deleted under conditions.

use super::Scene;
use crate::device::{Event, Precondition, Refusal, Status};

impl Scene<'_> {
    pub(super) fn put_device(&self, status: Status, condition: Precondition) -> Result<Vec<Event>, Refusal> {
        self.meets(condition)?;
        Ok(match &self.state.registration {
            None => vec![Event::DeviceRegistered {
                status,
                automatic: false,
            }],
            Some(registration) if registration.status != status => vec![Event::StatusChanged { status }],
            Some(_) => Vec::new(),
        })
    }

    pub(super) fn patch_device(&self, status: Option<Status>, condition: Precondition) -> Result<Vec<Event>, Refusal> {
        let registration = self.registered()?;
        self.meets(condition)?;
        let change = status.filter(|status| *status != registration.status);
        Ok(change
            .map(|status| Event::StatusChanged { status })
            .into_iter()
            .collect())
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
