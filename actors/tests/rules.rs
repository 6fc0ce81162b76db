//! The rules of a device as tables: a row is a short story, and how its last step ends.

#![allow(clippy::unwrap_used)]

use actors::device::*;
use actors::id::{DeviceId, DeviceKey, Gateway, TenantId};
use actors::time::Timestamp;

/// A device, driven by words.
struct Story {
    key: DeviceKey,
    state: DeviceState,
    policy: Policy,
    now: Timestamp,
    events: Vec<Event>,
}

impl Story {
    fn new() -> Self {
        Self {
            key: DeviceKey::new(TenantId::DEFAULT, DeviceId::parse("lamp").unwrap()),
            state: DeviceState::default(),
            policy: Policy {
                message_ids_max: 3,
                packet_ids_max: 3,
                subscriptions_max: 2,
                telemetry_count_max: 4,
                tags_bytes_max: 64,
                section_bytes_max: 64,
                session_expiry_secs_max: 100,
                ..Policy::default()
            },
            now: Timestamp(1_000_000),
            events: Vec::new(),
        }
    }

    fn ask(&mut self, command: &Command) -> Result<Answer, Refusal> {
        let before = self.state.clone();
        self.events = decide(&self.key, &before, command, &self.policy, self.now)?;
        for event in &self.events {
            apply(&mut self.state, event, self.now).expect("a decided event fits");
        }
        Ok(answer(&self.key.device, &before, &self.state, command, &self.events))
    }

    fn step(&mut self, step: &str) -> String {
        let words: Vec<&str> = step.split_whitespace().collect();
        let named = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| named(name).map(|text| text.parse::<u64>().unwrap());
        let name = |word: &str| named(word).map(|id| DeviceId::parse(id).unwrap());
        let has = |name: &str| words.contains(&name);
        let gateway = Gateway {
            node: number("node").unwrap_or(1),
            boot: 1,
        };
        let generation = number("gen").unwrap_or(self.state.last_generation);
        let fence = |ordinal: &str| Fence {
            generation,
            ordinal: ordinal.parse().unwrap(),
        };
        let condition = match named("if") {
            Some("exists") => Precondition::Exists,
            Some("absent") => Precondition::Absent,
            Some(etag) => Precondition::Etag(etag.parse().unwrap()),
            None => Precondition::None,
        };
        let telemetry = |body: &str| Telemetry {
            body: body.into(),
            message_id: named("id").map(str::to_owned),
            ..Telemetry::default()
        };
        let write = |section, json: &str| SectionWrite {
            section,
            mode: if has("replace") {
                WriteMode::Replace
            } else {
                WriteMode::Merge
            },
            json: json.to_owned(),
        };
        let close = |cause| Command::CloseSession { generation, cause };
        let command = match words[0] {
            "put" => Command::PutDevice {
                status: Status::Enabled,
                condition,
                gateway: name("gateway"),
            },
            "assign" => Command::PatchDevice {
                status: None,
                condition,
                gateway: Some(name("gateway")),
            },
            "disable" => Command::PatchDevice {
                status: Some(Status::Disabled),
                condition,
                gateway: None,
            },
            "enable" => Command::PatchDevice {
                status: Some(Status::Enabled),
                condition,
                gateway: None,
            },
            "delete" => Command::DeleteDevice { condition },
            "read" => Command::ReadDevice,
            "open" => Command::OpenSession(Box::new(OpenSession {
                gateway,
                clean_start: has("clean"),
                expiry_secs: number("expiry").unwrap_or(0) as u32,
                keep_alive_secs: 60,
                protocol: 5,
                will: number("will").map(|delay| Will {
                    delay_secs: delay as u32,
                    telemetry: telemetry("gone"),
                }),
                via: name("via"),
            })),
            "close" => close(CloseCause::Graceful {
                expiry_secs: number("expiry").map(|secs| secs as u32),
            }),
            "abort" => close(CloseCause::Abrupt),
            "lose" => close(CloseCause::GatewayLost),
            "announce" => Command::AnnounceSession { generation, gateway },
            "expire" => Command::ExpireSession,
            "will" => Command::PublishWill,
            "sub" => Command::Subscribe {
                fence: fence(words[1]),
                subscriptions: words[2..]
                    .iter()
                    .map(|filter| Subscription {
                        filter: (*filter).to_owned(),
                        qos: Qos::AtLeastOnce,
                        identifier: 0,
                    })
                    .collect(),
            },
            "unsub" => Command::Unsubscribe {
                fence: fence(words[1]),
                filters: words[2..].iter().map(|filter| (*filter).to_owned()).collect(),
            },
            // body:id, or body
            "batch" => Command::RecordBatch {
                telemetry: words[1..]
                    .iter()
                    .map(|word| {
                        let (body, id) = word
                            .split_once(':')
                            .map_or((*word, None), |(body, id)| (body, Some(id)));
                        Telemetry {
                            body: body.into(),
                            message_id: id.map(str::to_owned),
                            ..Telemetry::default()
                        }
                    })
                    .collect(),
            },
            "pub" => Command::RecordTelemetry {
                origin: Origin::Session {
                    fence: fence(words[1]),
                    delivery: number("pid").map(|pid| Delivery {
                        packet_id: pid as u16,
                        dup: has("dup"),
                        digest: xxhash_rust::xxh3::xxh3_64(words[2].as_bytes()),
                    }),
                },
                telemetry: telemetry(words[2]),
            },
            "ingest" => Command::RecordTelemetry {
                origin: Origin::Operator,
                telemetry: telemetry(words[1]),
            },
            "report" => Command::UpdateTwin {
                origin: Origin::Session {
                    fence: fence(words[1]),
                    delivery: None,
                },
                writes: vec![write(
                    if has("tags") { Section::Tags } else { Section::Reported },
                    words[2],
                )],
                condition: number("match").map(TwinMatch::Twin),
            },
            "desire" => Command::UpdateTwin {
                origin: Origin::Operator,
                writes: vec![write(Section::Desired, words[1])],
                condition: number("match").map(|version| TwinMatch::Section(Section::Desired, version)),
            },
            "trim" => Command::TrimTelemetry {
                before_seq: words[1].parse().unwrap(),
                oldest_at: number("oldest").map(Timestamp),
            },
            "wait" => {
                self.now = self.now.plus_millis(words[1].parse::<u64>().unwrap() * 1000);
                return String::new();
            }
            "twin" => {
                let json = |section| {
                    self.state
                        .twin
                        .section(section)
                        .json
                        .as_deref()
                        .unwrap_or("{}")
                        .to_owned()
                };
                return format!("{} {}", json(Section::Desired), json(Section::Reported));
            }
            "head" => {
                let head = &self.state.telemetry;
                return format!("{}..{}", head.first_seq, head.last_seq);
            }
            "session" => return shown_session(&self.state),
            other => panic!("no such word: {other}"),
        };
        shown(self.ask(&command))
    }
}

fn shown_session(state: &DeviceState) -> String {
    let Some(session) = state.session.as_deref() else {
        return "none".to_owned();
    };
    let presence = if session.connected { "connected" } else { "offline" };
    let filters: Vec<_> = session.subscriptions.iter().map(|kept| kept.filter.as_str()).collect();
    let will = if session.will.is_some() { " will" } else { "" };
    format!("{presence} [{}]{will}", filters.join(" "))
}

fn shown(result: Result<Answer, Refusal>) -> String {
    match result {
        Ok(Answer::Device(view)) => format!("{:?} etag={}", view.status, view.etag).to_lowercase(),
        Ok(Answer::SessionOpened {
            generation,
            session_present,
            ..
        }) => {
            format!("gen={generation} {}", if session_present { "present" } else { "new" })
        }
        Ok(Answer::Telemetry { seq, repeated }) => format!("seq={seq}{}", if repeated { " again" } else { "" }),
        Ok(Answer::TwinUpdated { versions, .. }) => format!("versions={versions:?}"),
        Ok(Answer::Refused(refusal)) => format!("refused {}", name_of(&refusal)),
        Ok(Answer::Twin(_)) => "twin".to_owned(),
        Ok(Answer::Deleted) => "deleted".to_owned(),
        Ok(Answer::Done | Answer::SessionLive { .. }) => "done".to_owned(),
        Ok(Answer::Batch(items)) => {
            let item = |(seq, repeated): &(u64, bool)| format!("{seq}{}", if *repeated { " again" } else { "" });
            items.iter().map(item).collect::<Vec<_>>().join(", ")
        }
        // Messages have stories of their own.
        Ok(answer) => format!("{answer:?}"),
        Err(refusal) => format!("error {}", name_of(&refusal)),
    }
}

fn name_of(refusal: &Refusal) -> String {
    let text = format!("{refusal:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// `step; step; … -> how the last one ends`
fn check(row: &str) {
    let (steps, expected) = row.rsplit_once(" -> ").expect("a row has an arrow");
    let mut story = Story::new();
    let mut last = String::new();
    for step in steps.split(';').map(str::trim) {
        last = story.step(step);
    }
    assert_eq!(last, expected, "{row}");
}

#[test]
fn registrations_obey_their_conditions() {
    check("put -> enabled etag=1");
    check("put; put -> enabled etag=1");
    check("put if=absent; put if=absent -> error AlreadyRegistered");
    check("put if=exists -> error NotRegistered");
    check("put if=1 -> error NotRegistered");
    check("put; disable -> disabled etag=2");
    check("put; disable if=1; enable if=1 -> error StaleVersion");
    check("put; disable; enable if=2 -> enabled etag=3");
    check("disable -> error NotRegistered");
    check("read -> error NotRegistered");
    check("delete -> error NotRegistered");
    check("put; delete if=7 -> error StaleVersion");
    check("put; delete; read -> error NotRegistered");
    check("put; ingest a; delete; put -> enabled etag=4");
    check("put; ingest a; delete; put; ingest b -> seq=1");
    check("put; ingest a id=x; delete; put; ingest a id=x -> seq=1");
    check("put; open; delete; session -> none");
    check("put; open; delete; put; open -> gen=2 new");
    check("put; disable; ingest a -> error Disabled");
}

#[test]
fn a_connection_takes_over_or_resumes_the_session() {
    check("open -> error NotRegistered");
    check("put; disable; open -> error Disabled");
    check("put; open -> gen=1 new");
    check("put; open expiry=9; open expiry=9 -> gen=2 present");
    check("put; open expiry=9; open clean expiry=9 -> gen=2 new");
    check("put; open; open -> gen=2 new");
    check("put; open expiry=9; abort; wait 8; open -> gen=2 present");
    check("put; open expiry=9; abort; wait 9; open -> gen=2 new");
    check("put; open expiry=900; abort; wait 99; open -> gen=2 present");
    check("put; open expiry=900; abort; wait 100; open -> gen=2 new");
    check("put; open expiry=9; sub 1 a b; open expiry=9; session -> connected [a b]");
    check("put; open expiry=9; sub 1 a b; open clean; session -> connected []");
    check("put; open expiry=9; sub 1 a; abort; wait 9; open; session -> connected []");
    check("put; open; close; session -> none");
    check("put; open expiry=9; close; session -> offline []");
    check("put; open expiry=9; close expiry=0; session -> none");
    check("put; open; close expiry=9; session -> none");
    check("put; open expiry=9; open expiry=9; close gen=1; session -> connected []");
    check("put; open expiry=9; close; close -> done");
    check("put; open expiry=9; close; wait 8; expire; session -> offline []");
    check("put; open expiry=9; close; wait 9; expire; session -> none");
    check("put; open expiry=9; wait 99; expire; session -> connected []");
    check("put; open; disable; close; read -> disabled etag=3");
}

#[test]
fn a_lost_gateway_may_come_back() {
    check("put; open expiry=9; lose; session -> offline []");
    check("put; open expiry=9; lose; announce; session -> connected []");
    check("put; open expiry=9; announce -> done");
    check("put; open expiry=9; announce node=2 -> error StaleSession");
    check("put; open expiry=9; open expiry=9; announce gen=1 -> error StaleSession");
    check("put; open expiry=9; close; announce -> error StaleSession");
    check("put; open expiry=9; lose; wait 9; announce -> error StaleSession");
    check("put; open; lose; announce -> error StaleSession");
    check("put; open expiry=9; lose; pub 1 a -> seq=1");
    check("put; open expiry=9; lose; pub 1 a; session -> connected []");
    check("put; open expiry=9; close; pub 1 a -> error StaleSession");
    check("put; open expiry=9 will=0; lose; close; will; head -> 1..1");
    check("put; open expiry=9 will=5; lose; close; wait 5; will; head -> 1..0");
}

#[test]
fn wills_follow_mqtt_5() {
    check("put; open will=0; close; head -> 1..0");
    check("put; open will=0; abort; head -> 1..1");
    check("put; open will=0; lose; head -> 1..1");
    check("put; open will=5; abort; head -> 1..1");
    check("put; open expiry=9 will=5; abort; head -> 1..0");
    check("put; open expiry=9 will=5; abort; wait 4; will; head -> 1..0");
    check("put; open expiry=9 will=5; abort; wait 5; will; head -> 1..1");
    check("put; open expiry=9 will=5; abort; wait 5; will; will; head -> 1..1");
    check("put; open expiry=9 will=50; abort; wait 9; will; head -> 1..1");
    check("put; open expiry=9 will=50; abort; wait 9; expire; head -> 1..1");
    check("put; open expiry=9 will=5; abort; wait 4; open expiry=9; head -> 1..0");
    check("put; open expiry=9 will=5; abort; wait 5; open expiry=9; head -> 1..1");
    check("put; open expiry=9 will=5; abort; wait 4; open clean; head -> 1..1");
    check("put; open expiry=9 will=5; abort; wait 99; open; head -> 1..1");
    check("put; open expiry=9 will=0; open expiry=9; head -> 1..1");
    check("put; open expiry=9 will=5; open expiry=9; head -> 1..0");
    check("put; open expiry=9 will=5; open clean; head -> 1..1");
    check("put; open will=5; open; head -> 1..1");
    check("put; open expiry=9 will=5; abort; open expiry=9; wait 9; will; head -> 1..0");
    check("put; open will=0; disable; abort; head -> 1..0");
    check("put; open expiry=9 will=5; abort; disable; wait 5; will; head -> 1..0");
    check("put; open will=0 id=w; ingest a id=w; abort; head -> 1..1");
    check("put; open expiry=9 will=5 id=w; ingest a id=w; abort; wait 5; will; session -> offline []");
}

#[test]
fn every_command_of_a_session_has_its_turn_once() {
    check("put; open; pub 1 a -> seq=1");
    check("put; open; pub 2 a -> error OrdinalGap");
    check("put; open; pub 0 a -> error OrdinalGap");
    check("put; open; pub 1 a; pub 1 a -> seq=0 again");
    check("put; open; pub 1 a id=x; pub 1 a id=x -> seq=1 again");
    check("put; open; pub 1 a pid=7; pub 1 a pid=7 -> seq=1 again");
    check("put; open; pub 1 a; pub 2 b -> seq=2");
    check("put; open; open; pub 1 a gen=1 -> error StaleSession");
    check("put; open; pub 1 a; open; pub 1 b -> seq=2");
    check("put; open; disable; pub 1 a -> error Disabled");
    check("put; open; delete; pub 1 a -> error NotRegistered");
    check("put; open; sub 1 a b; sub 2 c -> refused TooManySubscriptions");
    check("put; open; sub 1 a b; sub 2 c; sub 2 c -> refused TooManySubscriptions");
    check("put; open; sub 1 a b; sub 2 c; sub 3 b -> done");
    check("put; open; sub 1 a b; unsub 2 a x; session -> connected [b]");
    check("put; open; unsub 1 a; pub 2 a -> seq=1");
    check("put; open; sub 1; pub 2 a -> seq=1");
    check("put; open; report 1 {\"a\":1} -> versions=[0, 0, 1]");
    check("put; open; report 1 {\"a\":1}; report 1 {\"a\":1} -> versions=[0, 0, 1]");
    check("put; open; report 1 [] -> refused SectionInvalid");
    check("put; open; report 1 []; report 1 [] -> refused SectionInvalid");
    check("put; open; report 1 []; pub 2 a -> seq=1");
    check("put; open; report 1 {} tags -> refused SectionForbidden");
    check("put; open; report 1 {} match=1 -> refused StaleVersion");
}

/// G3, DESIGN §2; the windows here hold three.
#[test]
fn a_retry_is_stored_once() {
    check("put; open; pub 1 a id=x; pub 2 a id=x -> seq=1 again");
    check("put; open; pub 1 a id=x; pub 2 a id=x; pub 3 b id=y -> seq=2");
    check("put; open; pub 1 a id=x; open; pub 1 a id=x -> seq=1 again");
    check("put; open; pub 1 a id=x; ingest a id=x -> seq=1 again");
    check("put; ingest a id=x; ingest a id=x; head -> 1..1");
    check("put; ingest a id=x; ingest a id=1; ingest a id=2; ingest a id=x -> seq=1 again");
    check("put; ingest a id=x; ingest a id=1; ingest a id=2; ingest a id=3; ingest a id=x -> seq=5");
    check("put; ingest a id= -> error TelemetryInvalid");
    // Without an id: (packet id, digest), and only for DUP.
    check("put; open; pub 1 a pid=7; open clean; pub 1 a pid=7 dup -> seq=1 again");
    check("put; open; pub 1 a pid=7; open clean; pub 1 a pid=7 -> seq=2");
    check("put; open; pub 1 a pid=7; open; pub 1 b pid=7 dup -> seq=2");
    check("put; open; pub 1 a pid=7; open; pub 1 a pid=8 dup -> seq=2");
    check("put; open; pub 1 a pid=7; pub 2 b pid=7; open; pub 1 a pid=7 dup -> seq=3");
    check("put; open; pub 1 a pid=7; close; open; pub 1 a pid=7 dup; pub 2 b -> seq=2");
    check("put; open; pub 1 a pid=7 dup; open; pub 1 a pid=7 dup -> seq=1 again");
    check("put; open; pub 1 a pid=1; pub 2 a pid=2; pub 3 a pid=3; open; pub 1 a pid=1 dup -> seq=1 again");
    check("put; open; pub 1 a pid=1; pub 2 a pid=2; pub 3 a pid=3; pub 4 a pid=4; open; pub 1 a pid=1 dup -> seq=5");
    check("put; open; pub 1 a pid=7; delete; put; open; pub 1 a pid=7 dup -> seq=1");
}

#[test]
fn telemetry_rows_are_bounded() {
    check("put; ingest a; ingest b; ingest c; ingest d; head -> 1..4");
    check("put; ingest a; ingest b; ingest c; ingest d; ingest e; head -> 2..5");
    check("put; ingest a; ingest b; trim 2 oldest=5; head -> 2..2");
    check("put; ingest a; ingest b; trim 3; head -> 3..2");
    check("put; ingest a; ingest b; trim 3; ingest c; head -> 3..3");
    check("put; ingest a; ingest b; trim 9; head -> 1..2");
    check("put; ingest a; ingest b; trim 0; head -> 1..2");
    check("trim 1; head -> 1..0");
}

#[test]
fn twin_sections_merge_within_bounds() {
    check("desire {} -> error NotRegistered");
    check("put; desire {\"b\":1,\"a\":{\"x\":null,\"y\":2}}; twin -> {\"a\":{\"y\":2},\"b\":1} {}");
    check("put; desire {\"a\":{\"x\":1,\"y\":2}}; desire {\"a\":{\"x\":null}}; twin -> {\"a\":{\"y\":2}} {}");
    check("put; desire {\"a\":1}; desire {\"a\":{\"b\":1}}; twin -> {\"a\":{\"b\":1}} {}");
    check("put; desire {\"a\":1}; desire {\"b\":[null]} replace; twin -> {\"b\":[null]} {}");
    check("put; desire {\"a\":1,\"a\":2}; twin -> {\"a\":2} {}");
    check("put; desire {\"a\":1}; desire {\"a\":1} -> versions=[0, 2, 0]");
    check("put; desire {\"a\":1} match=0 -> versions=[0, 1, 0]");
    check("put; desire {\"a\":1} match=1 -> error StaleVersion");
    check("put; disable; desire {\"a\":1} -> versions=[0, 1, 0]");
    check("put; desire {\"a\" -> error SectionInvalid");
    check("put; desire \"a\" -> error SectionInvalid");
    check("put; desire {\"\":1} -> error SectionInvalid");
    check("put; desire {\"$version\":1} -> error SectionInvalid");
    check("put; desire {\"a\":{\"$x\":1}} -> versions=[0, 1, 0]");
    check("put; desire {\"a\\u0000\":1} -> error SectionInvalid");
    check("put; desire {\"a\":[[[[[[[[[]]]]]]]]]} -> versions=[0, 1, 0]");
    check("put; desire {\"a\":[[[[[[[[[[]]]]]]]]]]} -> error SectionTooDeep");
    let text = |len: usize| "x".repeat(len - 8);
    check(&format!("put; desire {{\"a\":\"{}\"}} -> versions=[0, 1, 0]", text(64)));
    check(&format!(
        "put; desire {{\"a\":\"{}\"}} -> error SectionTooLarge",
        text(65)
    ));
    check(&format!(
        "put; desire {{\"b\":1}}; desire {{\"a\":\"{}\"}} -> error SectionTooLarge",
        text(64)
    ));
    check(&format!("put; desire {} -> error SectionTooDeep", "[".repeat(200)));
}

/// What a device that only sends telemetry costs in memory, its windows full.
#[test]
fn an_active_device_is_small() {
    let mut story = Story::new();
    story.policy = Policy::default();
    story.step("put");
    story.step("open");
    for n in 1..=100 {
        story.step(&format!("pub {n} a pid={n}"));
    }
    let bytes = size_of::<DeviceState>() + size_of::<Session>() + story.state.windows.heap_bytes();
    println!(
        "{bytes} bytes: state {}, session {}",
        size_of::<DeviceState>(),
        size_of::<Session>()
    );
    assert!(bytes <= 768, "{bytes} bytes");
}

#[test]
fn a_quarantined_device_refuses_everything() {
    let mut story = Story::new();
    story.step("put");
    story.state.quarantined = true;
    assert_eq!(story.step("read"), "error Quarantined");
    assert_eq!(story.step("ingest a"), "error Quarantined");
    assert!(apply(&mut story.state, &Event::DeviceDeleted, story.now).is_err());
}

#[test]
fn a_first_connection_registers_where_that_is_allowed() {
    let mut story = Story::new();
    story.policy.auto_register = true;
    assert_eq!(story.step("open"), "gen=1 new");
    assert!(story.state.registration.as_ref().unwrap().automatic);
    assert_eq!(story.step("disable"), "disabled etag=3");
    assert_eq!(story.step("open"), "error Disabled");
}

#[test]
fn a_desired_patch_carries_its_version() {
    let write = |json: &str| SectionWrite {
        section: Section::Desired,
        mode: WriteMode::Merge,
        json: json.to_owned(),
    };
    assert_eq!(
        desired_patch_json(&write("{\"b\":null,\"a\":1}"), 7),
        r#"{"$version":7,"a":1,"b":null}"#
    );
    assert_eq!(desired_patch_json(&write("?"), 7), r#"{"$version":7}"#);
}

/// The child's registration names who may act for it, and nobody else does.
#[test]
fn a_gateway_acts_for_its_own_children_only() {
    check("open via=hub -> error NotRegistered");
    check("put; open via=hub -> error NotGateway");
    check("put gateway=hub; open via=hub -> gen=1 new");
    check("put gateway=hub; open via=hub-2 -> error NotGateway");
    check("put gateway=hub; put; open via=hub -> error NotGateway");
    check("put; assign gateway=hub; open via=hub -> gen=1 new");
    check("put; assign gateway=hub -> enabled etag=2");
    check("put gateway=hub; assign gateway=hub -> enabled etag=2");
    check("put; assign gateway=lamp -> error GatewayInvalid");
    check("put gateway=hub; disable; open via=hub -> error Disabled");
    check("put gateway=hub; delete; put; open via=hub -> error NotGateway");
}

/// The session of a gateway ends with its right to hold it; one of the child's own does not.
#[test]
fn a_session_ends_with_the_right_to_hold_it() {
    check("put gateway=hub; open via=hub; pub 1 x; assign; pub 2 x -> error StaleSession");
    check("put gateway=hub; open via=hub; assign gateway=hub-2; pub 1 x -> error StaleSession");
    check("put gateway=hub; open via=hub; assign gateway=hub; pub 1 x -> seq=1");
    check("put gateway=hub; open; assign; pub 1 x -> seq=1");
}

/// The newest wins, and a session does not pass from one kind of holder to the other.
#[test]
fn child_and_gateway_take_over_from_each_other() {
    check("put gateway=hub; open via=hub; open; pub 1 x gen=1 -> error StaleSession");
    check("put gateway=hub; open; open via=hub; pub 1 x gen=1 -> error StaleSession");
    check("put gateway=hub; open via=hub expiry=9; open via=hub -> gen=2 present");
    check("put gateway=hub; open via=hub expiry=9; open -> gen=2 new");
    check("put gateway=hub; open expiry=9; open via=hub -> gen=2 new");
    check("put gateway=hub; open via=hub; pub 1 x id=a; open; pub 1 x id=a -> seq=1 again");
}

/// As if the messages had come one by one.
#[test]
fn a_batch_is_stored_in_order_and_each_id_once() {
    check("batch a -> error NotRegistered");
    check("put; batch a b:m b:m c -> 1, 2, 2 again, 3");
    check("put; batch a:m; batch a:m x a:m -> 1 again, 2, 1 again");
    check("put; batch a:m; batch b:n -> 2");
    check("put; disable; batch a -> error Disabled");
    check("put; open; batch a b; pub 1 x -> seq=3");
}
