//! Twin requests over topics: read, report, and the responses, which go to who subscribed to them.

use std::num::NonZeroU16;

use actors::device::{check_section_write, Answer, Command, Origin, Section, SectionWrite, TwinView, WriteMode};
use actors::ports::Reply;
use actors::wire::topic;
use rmqtt_codec::types::Publish;
use rmqtt_codec::v5::PublishAckReason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::acting::For;
use super::connection::Connection;
use super::inflight::{After, Outcome};
use super::publish::{digest, refusal_of, Admission};
use super::reasons::{self, End};
use super::response::ResponseTo;

/// The status of a request for whose answer there is no room.
pub(super) const TOO_MANY: u16 = 429;
/// What an answer has beside the documents.
const OVERHEAD_BYTES: usize = 1024;

/// Whether an answer may be asked for.
enum AnswerRoom {
    /// So many bytes are set aside for it.
    Promised(usize),
    /// The client has to read what it asked for before.
    Unread,
    /// The node's buffers are full.
    None,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// The request is acknowledged in its turn, the response follows; nothing is written.
    pub(super) fn on_twin_get(&mut self, publish: Box<Publish>, device: For, rid: Option<String>) -> Result<(), End> {
        let to = match self.response_to(&publish, &device, rid) {
            Ok(to) => to,
            Err((reason, why)) => return self.refuse(&publish, reason, why),
        };
        let promised = match self.room_for_answer() {
            AnswerRoom::Promised(bytes) => bytes,
            AnswerRoom::None if self.may_wait() => {
                self.held_since.get_or_insert(self.now);
                self.held = Some(publish);
                return Ok(());
            }
            AnswerRoom::None => {
                self.held_since = None;
                let packet_id = publish.packet_id;
                let why = "this node holds as many answers as it may; ask again later".to_owned();
                let after = After::TwinRead {
                    to,
                    promised: 0,
                    packet_id,
                };
                self.inflight
                    .push_local(after, Outcome::LocalTwin(TOO_MANY, why), self.now);
                return Ok(());
            }
            // Whoever asks more than it reads waits for itself.
            AnswerRoom::Unread => {
                self.held = Some(publish);
                return Ok(());
            }
        };
        self.held_since = None;
        if let Some(child) = device {
            // Whether it may ask at all, only the child can tell.
            let packet_id = publish.packet_id;
            let after = After::TwinRead {
                to,
                promised,
                packet_id,
            };
            self.read_for(&child, after, digest(&publish), Command::ReadTwin);
            return Ok(());
        }
        if let Some(packet_id) = publish.packet_id {
            let after = After::PubAck { packet_id };
            self.inflight
                .push_local(after, Outcome::Local(PublishAckReason::Success), self.now);
        }
        let after = After::TwinRead {
            to,
            promised,
            packet_id: None,
        };
        self.inflight.push_read(after, Command::ReadTwin, self.now);
        Ok(())
    }

    /// Sets room aside for the largest answer there can be, before anybody is asked for it.
    fn room_for_answer(&mut self) -> AnswerRoom {
        let policy = self.shared.policy.get();
        let bytes = 2 * policy.section_bytes_max + policy.tags_bytes_max + OVERHEAD_BYTES;
        // What waits for a PUBACK of the client waits in a queue of its own, with its own bound; to
        // wait for that here would keep the PUBACK from being read.
        let queued = if self.down.is_waiting() {
            self.down.queued_bytes()
        } else {
            0
        };
        let outstanding = self.session.promised() + self.socket.output.len() + queued;
        if outstanding > 0 && outstanding + bytes > self.shared.limits.answer_bytes_max {
            return AnswerRoom::Unread;
        }
        if self.session.promise(bytes) {
            AnswerRoom::Promised(bytes)
        } else {
            AnswerRoom::None
        }
    }

    fn may_wait(&self) -> bool {
        let wait = self.shared.limits.admission_wait;
        self.held_since.is_none_or(|since| self.now < since + wait)
    }

    /// A patch that breaks the rules is answered with a status, and in MQTT 5 in its PUBACK; the
    /// request itself was understood, so that even a 3.1.1 connection stays.
    pub(super) fn on_twin_reported(
        &mut self,
        publish: Box<Publish>,
        device: For,
        rid: Option<String>,
    ) -> Result<(), End> {
        let packet_id = publish.packet_id;
        let to = match self.response_to(&publish, &device, rid) {
            Ok(to) => to,
            Err((reason, why)) => return self.refuse(&publish, reason, why),
        };
        let write = match self.patch(&publish) {
            Ok(write) => write,
            Err((status, why)) => {
                let after = After::TwinReported { to, packet_id };
                self.inflight
                    .push_local(after, Outcome::LocalTwin(status, why), self.now);
                return Ok(());
            }
        };
        let digest = digest(&publish);
        let Admission::Granted { publish, bytes } = self.admit(publish)? else {
            return Ok(());
        };
        let delivery = packet_id.map(|packet_id| actors::device::Delivery {
            packet_id: packet_id.get(),
            dup: publish.dup,
            digest,
        });
        let after = After::TwinReported { to, packet_id };
        self.carry_out(device, after, digest, bytes, |fence| Command::UpdateTwin {
            origin: Origin::Session { fence, delivery },
            writes: vec![write],
            condition: None,
        });
        Ok(())
    }

    fn response_to(
        &self,
        publish: &Publish,
        device: &For,
        rid: Option<String>,
    ) -> Result<ResponseTo, (PublishAckReason, &'static str)> {
        let device = device.as_ref().unwrap_or(&self.key.device);
        let by_rid = rid.map(|rid| topic::twin_response(device, &rid));
        ResponseTo::of(device, by_rid, publish)
    }

    fn patch(&self, publish: &Publish) -> Result<SectionWrite, (u16, String)> {
        let text = std::str::from_utf8(&publish.payload).map_err(|_| (400, "the patch is not UTF-8".to_owned()))?;
        let write = SectionWrite {
            section: Section::Reported,
            mode: WriteMode::Merge,
            json: text.to_owned(),
        };
        check_section_write(&write, &self.shared.policy.get())
            .map_err(|refusal| (reasons::twin_status(&refusal), refusal.to_string()))?;
        Ok(write)
    }

    /// # Errors
    /// Never, as below.
    pub(super) fn answer_twin_get(
        &mut self,
        to: ResponseTo,
        packet_id: Option<NonZeroU16>,
        outcome: Outcome,
    ) -> Result<(), End> {
        if let Some(packet_id) = packet_id {
            let understood = Outcome::Local(PublishAckReason::Success);
            let refused = refusal_of(&outcome).is_some() || matches!(outcome, Outcome::LocalTwin(..));
            let refused = refused && self.protocol.is_v5();
            self.acknowledge(packet_id, if refused { &outcome } else { &understood })?;
        }
        let refusal = refusal_of(&outcome).map(|r| problem(reasons::twin_status(r), &r.to_string()));
        let body = match (refusal, outcome) {
            (Some(problem), _) => problem,
            (None, Outcome::LocalTwin(status, why)) => problem(status, &why),
            (
                None,
                Outcome::Device(Ok(Reply {
                    answer: Answer::Twin(view),
                    ..
                })),
            ) => twin_json(&view),
            _ => problem(500, "the device gave no twin"),
        };
        self.respond(to, body);
        Ok(())
    }

    /// # Errors
    /// Never in MQTT 5; a 3.1.1 connection stays too, because the response says it.
    pub(super) fn answer_twin_reported(
        &mut self,
        to: ResponseTo,
        packet_id: Option<NonZeroU16>,
        outcome: Outcome,
    ) -> Result<(), End> {
        let body = match (&outcome, refusal_of(&outcome)) {
            (_, Some(refusal)) => problem(reasons::twin_status(refusal), &refusal.to_string()),
            (Outcome::LocalTwin(status, why), _) => problem(*status, why),
            (Outcome::Device(Ok(reply)), _) => updated_json(&reply.answer),
            _ => problem(500, "the device gave no answer"),
        };
        if let Some(packet_id) = packet_id {
            let understood = Outcome::Local(PublishAckReason::Success);
            let told = if self.protocol.is_v5() { &outcome } else { &understood };
            self.acknowledge(packet_id, told)?;
        }
        self.respond(to, body);
        Ok(())
    }

    fn respond(&mut self, to: ResponseTo, body: String) {
        let properties = to.properties();
        self.publish_down_with(to.topic, body.into_bytes(), properties);
    }
}

fn twin_json(view: &TwinView) -> String {
    let section = |wanted: Section| view.sections.iter().find(|s| s.section == wanted);
    let json = |wanted| section(wanted).map_or("{}", |s| s.json.as_str());
    let version = |wanted| section(wanted).map_or(0, |s| s.version);
    format!(
        r#"{{"status":200,"desired":{},"reported":{},"versions":{{"desired":{},"reported":{}}}}}"#,
        json(Section::Desired),
        json(Section::Reported),
        version(Section::Desired),
        version(Section::Reported),
    )
}

fn updated_json(answer: &Answer) -> String {
    match answer {
        Answer::TwinUpdated { versions, .. } => {
            format!(r#"{{"status":204,"version":{}}}"#, versions[Section::Reported as usize])
        }
        // Acknowledged again: done before, and the version is not at hand.
        _ => r#"{"status":204}"#.to_owned(),
    }
}

fn problem(status: u16, why: &str) -> String {
    serde_json::json!({ "status": status, "error": why }).to_string()
}
