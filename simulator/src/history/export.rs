//! A record as JSON, for whoever judges a run by other means than ours.

use actors::id::ShardId;
use actors::wire::receipt::Receipt;
use serde_json::{json, Value};

use super::op::{Kind, NoteKind, Op, Outcome, Record};

/// One line of an export; `device` is the id of the record's subject. Times are µs since the run
/// began, members that say nothing are left out.
pub fn entry(record: &Record, device: &str) -> Value {
    match record {
        Record::Note(note) => {
            let what = match note.kind {
                NoteKind::Connected => "connected",
                NoteKind::Lost => "lost",
                NoteKind::Left => "left",
                NoteKind::ConnectFailed => "connect_failed",
            };
            json!({ "kind": "connection", "device": device, "what": what, "at_us": note.at_us, "code": note.code })
        }
        Record::Op(op) => operation(op, device),
    }
}

fn operation(op: &Op, device: &str) -> Value {
    let (outcome, code) = match op.outcome {
        Outcome::Ok => ("ok", None),
        Outcome::Refused(code) => ("refused", Some(code)),
        Outcome::Unknown => ("unknown", None),
        Outcome::Dropped => ("dropped", None),
    };
    let mut entry = json!({
        "kind": op.kind,
        "device": device,
        "n": op.n,
        "intended_us": op.intended_us,
        "sent_us": op.sent_us,
        "done_us": op.done_us,
        "sends": op.sends,
        "outcome": outcome,
    });
    let mut put = |name: &str, value: Value| entry[name] = value;
    if let Some(code) = code {
        put("code", json!(code));
    }
    if op.version > 0 {
        let is_telemetry = matches!(op.kind, Kind::Telemetry | Kind::Repeat);
        put(if is_telemetry { "seq" } else { "version" }, json!(op.version));
    }
    if op.other > 0 {
        put("reported_version", json!(op.other));
    }
    if let Some(place) = op.place {
        let receipt = Receipt {
            shard: ShardId(place.shard),
            term: place.term,
            index: place.index,
            seq: op.version,
        };
        put("receipt", json!(receipt.to_string()));
    }
    if op.digest != 0 {
        put("crc32c", json!(op.digest));
    }
    for (name, is_so) in [
        ("has_id", op.has_id),
        ("disordered", op.disordered),
        ("unconfirmed", op.unconfirmed),
    ] {
        if is_so {
            put(name, json!(true));
        }
    }
    entry
}
