//! Writes to the twin: all of a command's or none.

use super::Scene;
use crate::device::twin::written;
use crate::device::{Event, Origin, Refusal, Section, SectionWrite, TwinMatch, TwinSectionChanged};

impl Scene<'_> {
    pub(super) fn update_twin(
        &self,
        origin: &Origin,
        writes: &[SectionWrite],
        condition: Option<TwinMatch>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        self.matches(condition)?;
        let mut ordinal = match origin {
            Origin::Session { fence, .. } => fence.ordinal,
            Origin::Operator => 0,
        };
        for (index, write) in writes.iter().enumerate() {
            let section = write.section;
            if !may_write(origin, section) {
                return Err(Refusal::SectionForbidden { section });
            }
            if writes[..index].iter().any(|earlier| earlier.section == section) {
                let reason = "written twice in one command".to_owned();
                return Err(Refusal::SectionInvalid { section, reason });
            }
            let kept = self.state.twin.section(section);
            let json = written(kept.json.as_deref(), write, self.policy)?;
            events.push(Event::TwinSectionChanged(Box::new(TwinSectionChanged {
                section,
                // The first event takes the command's turn.
                ordinal: std::mem::take(&mut ordinal),
                section_version: kept.version.saturating_add(1),
                json,
            })));
        }
        Ok(())
    }

    fn matches(&self, condition: Option<TwinMatch>) -> Result<(), Refusal> {
        let twin = &self.state.twin;
        let (expected, current) = match condition {
            None => return Ok(()),
            Some(TwinMatch::Twin(expected)) => (expected, twin.version),
            Some(TwinMatch::Section(section, expected)) => (expected, twin.section(section).version),
        };
        if expected == current {
            Ok(())
        } else {
            Err(Refusal::StaleVersion { expected, current })
        }
    }
}

fn may_write(origin: &Origin, section: Section) -> bool {
    match origin {
        Origin::Session { .. } => section == Section::Reported,
        Origin::Operator => section != Section::Reported,
    }
}
