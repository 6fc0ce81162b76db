//! Random commands, events and times, from small ranges so that they meet each other.

#![allow(dead_code, clippy::unwrap_used)]

use actors::device::*;
use actors::id::{DeviceId, DeviceKey, Gateway, TenantId};
use actors::time::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub fn lamp() -> DeviceKey {
    DeviceKey::new(TenantId::DEFAULT, DeviceId::parse("lamp").unwrap())
}

/// Small bounds, so that random stories reach them.
pub fn tight_policy() -> Policy {
    Policy {
        auto_register: true,
        telemetry_count_max: 5,
        tags_bytes_max: 40,
        section_bytes_max: 60,
        twin_depth_max: 3,
        message_ids_max: 4,
        packet_ids_max: 3,
        subscriptions_max: 3,
        session_expiry_secs_max: 20,
        message_queue_max: 3,
        message_bytes_max: 8,
        message_ttl_secs: 5,
        message_ttl_secs_max: 20,
        message_deliveries_max: 2,
        dead_letters_max: 2,
        feedback_max: 4,
    }
}

/// Mostly small, now and then at the edge.
pub fn number() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 0..8u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => any::<u64>()]
}

pub fn short() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..12u32, 1 => any::<u32>()]
}

pub fn timestamp() -> impl Strategy<Value = Timestamp> {
    prop_oneof![6 => (0..60_000u64).prop_map(Timestamp), 1 => any::<u64>().prop_map(Timestamp)]
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![9 => Just(Status::Enabled), 1 => Just(Status::Disabled)]
}

fn precondition() -> impl Strategy<Value = Precondition> {
    prop_oneof![
        4 => Just(Precondition::None),
        1 => Just(Precondition::Exists),
        1 => Just(Precondition::Absent),
        1 => number().prop_map(Precondition::Etag),
    ]
}

pub fn gateway() -> impl Strategy<Value = Gateway> {
    (1..3u64, 1..3u64).prop_map(|(node, boot)| Gateway { node, boot })
}

pub fn fence() -> impl Strategy<Value = Fence> {
    (number(), number()).prop_map(|(generation, ordinal)| Fence { generation, ordinal })
}

fn delivery() -> impl Strategy<Value = Delivery> {
    (0..4u16, any::<bool>(), 0..3u64).prop_map(|(packet_id, dup, digest)| Delivery { packet_id, dup, digest })
}

pub fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        3 => (fence(), option::of(delivery())).prop_map(|(fence, delivery)| Origin::Session { fence, delivery }),
        1 => Just(Origin::Operator),
    ]
}

pub fn telemetry() -> impl Strategy<Value = Telemetry> {
    let stream = prop_oneof![9 => Just(String::new()), 1 => "[a-c/]{0,3}"];
    let id = option::of(prop_oneof![9 => "[a-c]", 1 => Just(String::new())]);
    (stream, id, option::of(timestamp()), vec(any::<u8>(), 0..8)).prop_map(|(stream, message_id, device_time, body)| {
        Telemetry {
            stream,
            message_id,
            device_time,
            body,
            ..Telemetry::default()
        }
    })
}

pub fn will() -> impl Strategy<Value = Will> {
    (prop_oneof![0..4u32, short()], telemetry()).prop_map(|(delay_secs, telemetry)| Will { delay_secs, telemetry })
}

fn cause() -> impl Strategy<Value = CloseCause> {
    prop_oneof![
        option::of(short()).prop_map(|expiry_secs| CloseCause::Graceful { expiry_secs }),
        Just(CloseCause::Abrupt),
        Just(CloseCause::GatewayLost),
    ]
}

fn subscriptions() -> impl Strategy<Value = Vec<Subscription>> {
    let filter = prop_oneof![
        6 => "[a-d]",
        3 => Just("devices/lamp/messages/+".to_owned()),
        1 => Just("devices/lamp/messages/a".to_owned()),
        1 => Just(String::new()),
    ];
    let one = filter.prop_map(|filter| Subscription {
        filter,
        qos: Qos::AtLeastOnce,
        identifier: 0,
    });
    vec(one, 0..4)
}

fn section() -> impl Strategy<Value = Section> {
    prop_oneof![Just(Section::Tags), Just(Section::Desired), Just(Section::Reported)]
}

/// Objects, other JSON, and what only looks like it.
pub fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        "[0-9]{1,3}",
        "\"[a-z]{0,9}\"",
        Just("1e999".to_owned()),
        Just("-0.0".to_owned()),
    ];
    let value = leaf.prop_recursive(4, 12, 3, |inner| {
        let member = ("[a-c$]{0,2}", inner.clone()).prop_map(|(key, value)| format!("\"{key}\":{value}"));
        prop_oneof![
            vec(member, 0..3).prop_map(|members| format!("{{{}}}", members.join(","))),
            vec(inner, 0..3).prop_map(|items| format!("[{}]", items.join(" , "))),
        ]
    });
    let member = ("[a-c]", value.clone()).prop_map(|(key, value)| format!("\"{key}\":{value}"));
    prop_oneof![
        6 => "[a-c]".prop_map(|key| format!("{{\"{key}\": 1}}")),
        6 => vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(","))),
        1 => value,
        1 => any::<String>(),
        1 => "[\\[{\":\\\\\\]},a0]{0,20}",
        1 => (1..3000usize).prop_map(|depth| "{\"a\":".repeat(depth)),
    ]
}

fn writes() -> impl Strategy<Value = Vec<SectionWrite>> {
    let mode = prop_oneof![3 => Just(WriteMode::Merge), 1 => Just(WriteMode::Replace)];
    let one = (section(), mode, json()).prop_map(|(section, mode, json)| SectionWrite { section, mode, json });
    vec(one, 0..3)
}

fn twin_match() -> impl Strategy<Value = TwinMatch> {
    prop_oneof![
        number().prop_map(TwinMatch::Twin),
        (section(), number()).prop_map(|(section, version)| TwinMatch::Section(section, version)),
    ]
}

/// Two devices that may be gateways, or none.
fn gateway_device() -> impl Strategy<Value = Option<DeviceId>> {
    let named = prop_oneof![Just("hub"), Just("hub-2")].prop_map(|id| DeviceId::parse(id).unwrap());
    option::weighted(0.3, named)
}

fn message() -> impl Strategy<Value = Message> {
    let id = prop_oneof![12 => "[a-e]", 1 => Just("dead".to_owned()), 1 => Just("a/b".to_owned())];
    (id, vec(any::<u8>(), 0..3), option::weighted(0.1, "[a-z]{1,4}")).prop_map(|(id, body, content_type)| Message {
        id,
        content_type,
        properties: Vec::new(),
        body,
    })
}

fn ttl() -> impl Strategy<Value = Option<u32>> {
    option::of(prop_oneof![8 => 1..9u32, 4 => 9..=20u32, 1 => Just(0), 1 => any::<u32>()])
}

fn settled() -> impl Strategy<Value = Vec<Settlement>> {
    let one = (number(), any::<bool>()).prop_map(|(number, accepted)| Settlement { number, accepted });
    vec(one, 0..3)
}

/// Commands about messages.
pub fn messages() -> impl Strategy<Value = Command> {
    let some_id = || option::weighted(0.7, "[a-e]");
    prop_oneof![
        8 => (message(), ttl())
            .prop_map(|(message, ttl_secs)| Command::EnqueueMessage { message: Box::new(message), ttl_secs }),
        1 => Just(Command::ReadMessages),
        6 => (number(), vec(number(), 0..3), 0..4u16)
            .prop_map(|(generation, held, count_max)| Command::TakeMessages { generation, held, count_max }),
        4 => (number(), settled())
            .prop_map(|(generation, settled)| Command::SettleMessages { generation, settled }),
        1 => some_id().prop_map(|id| Command::PurgeMessages { id }),
        3 => ("[a-e]", ttl()).prop_map(|(id, ttl_secs)| Command::ReplayMessage { id, ttl_secs }),
        1 => some_id().prop_map(|id| Command::DropDeadLetters { id }),
        4 => Just(Command::TendMessages),
    ]
}

pub fn command() -> impl Strategy<Value = Command> {
    prop_oneof![3 => core_command(), 1 => messages()]
}

fn core_command() -> impl Strategy<Value = Command> {
    let open = (gateway(), any::<bool>(), short(), option::of(will()), gateway_device()).prop_map(
        |(gateway, clean_start, expiry_secs, will, via)| {
            Command::OpenSession(Box::new(OpenSession {
                gateway,
                clean_start,
                expiry_secs,
                keep_alive_secs: 60,
                protocol: 5,
                will,
                via,
            }))
        },
    );
    let update = (origin(), writes(), option::weighted(0.2, twin_match()));
    let filters = vec("[a-d]", 0..3);
    prop_oneof![
        2 => vec(telemetry(), 0..4).prop_map(|telemetry| Command::RecordBatch { telemetry }),
        2 => (status(), precondition(), gateway_device())
            .prop_map(|(status, condition, gateway)| Command::PutDevice { status, condition, gateway }),
        1 => (option::of(status()), precondition(), option::of(gateway_device()))
            .prop_map(|(status, condition, gateway)| Command::PatchDevice { status, condition, gateway }),
        1 => precondition().prop_map(|condition| Command::DeleteDevice { condition }),
        1 => Just(Command::ReadDevice),
        5 => open,
        3 => (number(), cause()).prop_map(|(generation, cause)| Command::CloseSession { generation, cause }),
        2 => (number(), gateway())
            .prop_map(|(generation, gateway)| Command::AnnounceSession { generation, gateway }),
        3 => (fence(), subscriptions()).prop_map(|(fence, subscriptions)| Command::Subscribe { fence, subscriptions }),
        1 => (fence(), filters).prop_map(|(fence, filters)| Command::Unsubscribe { fence, filters }),
        10 => (origin(), telemetry()).prop_map(|(origin, telemetry)| Command::RecordTelemetry { origin, telemetry }),
        1 => Just(Command::ReadTwin),
        5 => update.prop_map(|(origin, writes, condition)| Command::UpdateTwin { origin, writes, condition }),
        2 => Just(Command::ExpireSession),
        2 => Just(Command::PublishWill),
        2 => (number(), option::of(timestamp()))
            .prop_map(|(before_seq, oldest_at)| Command::TrimTelemetry { before_seq, oldest_at }),
    ]
}

/// Whatever the random generation and ordinal are, most commands get live ones.
pub fn aim(command: &mut Command, state: &DeviceState) {
    let Some(session) = state.session.as_deref() else {
        return;
    };
    let next = session.last_ordinal.saturating_add(1);
    let aim_fence = |fence: &mut Fence| {
        if fence.ordinal > 1 {
            fence.generation = session.generation;
            fence.ordinal = next;
        } else if fence.ordinal == 1 {
            fence.generation = session.generation;
        }
    };
    match command {
        Command::Subscribe { fence, .. } | Command::Unsubscribe { fence, .. } => aim_fence(fence),
        Command::UpdateTwin { origin, writes, .. } => {
            let lawful = match origin {
                Origin::Session { .. } => Section::Reported,
                Origin::Operator => Section::Desired,
            };
            if let [write] = writes.as_mut_slice() {
                write.section = lawful;
            }
            if let Origin::Session { fence, .. } = origin {
                aim_fence(fence);
            }
        }
        Command::RecordTelemetry {
            origin: Origin::Session { fence, .. },
            ..
        } => aim_fence(fence),
        Command::CloseSession { generation, .. } if *generation > 2 => *generation = session.generation,
        Command::AnnounceSession { generation, gateway } if *generation > 2 => {
            *generation = session.generation;
            *gateway = session.gateway;
        }
        Command::TakeMessages { generation, held, .. } if *generation > 1 => {
            *generation = session.generation;
            held.iter_mut().for_each(|number| *number = nth_queued(state, *number));
        }
        Command::SettleMessages { generation, settled } if *generation > 1 => {
            *generation = session.generation;
            settled.iter_mut().for_each(|s| s.number = nth_queued(state, s.number));
        }
        Command::TrimTelemetry { before_seq, .. } if *before_seq < 8 => {
            *before_seq = before_seq.saturating_add(state.telemetry.first_seq);
        }
        _ => {}
    }
}

fn nth_queued(state: &DeviceState, n: u64) -> u64 {
    let queue = &state.messages().queue;
    let at = n.checked_rem(queue.len() as u64).unwrap_or(0);
    queue.get(at as usize).map_or(n, |queued| queued.number)
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::Disabled),
        number().prop_map(|max| Refusal::TooManySubscriptions { max })
    ]
}

fn recorded() -> impl Strategy<Value = TelemetryRecorded> {
    let packet = option::of((0..4u16, 0..3u64));
    (number(), number(), any::<bool>(), packet, 0..5u16, 0..5u16, telemetry()).prop_map(
        |(seq, ordinal, will, packet, message_ids_max, packet_ids_max, telemetry)| TelemetryRecorded {
            seq,
            ordinal,
            will,
            packet,
            message_ids_max,
            packet_ids_max,
            telemetry,
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    (0..Outcome::ALL.len()).prop_map(|at| Outcome::ALL[at])
}

fn message_event() -> impl Strategy<Value = Event> {
    let queued = (number(), timestamp(), 0..4u16, any::<u64>(), message()).prop_map(
        |(number, expires_at, ids_max, digest, message)| {
            Event::MessageQueued(Box::new(MessageQueued {
                number,
                expires_at,
                ids_max,
                digest,
                message,
            }))
        },
    );
    prop_oneof![
        queued,
        (number(), number(), any::<u16>(), any::<bool>()).prop_map(|(number, generation, packet_id, resent)| {
            Event::MessageSent {
                number,
                generation,
                packet_id,
                resent,
            }
        }),
        (number(), outcome(), number(), any::<bool>()).prop_map(|(number, outcome, feedback_seq, kept)| {
            Event::MessageEnded {
                number,
                outcome,
                feedback_seq,
                kept,
            }
        }),
        number().prop_map(|number| Event::DeadLetterDropped { number }),
        (number(), number(), timestamp()).prop_map(|(number, new_number, expires_at)| {
            Event::DeadLetterReplayed {
                number,
                new_number,
                expires_at,
            }
        }),
        number().prop_map(|before_seq| Event::FeedbackTrimmed { before_seq }),
        option::of(timestamp()).prop_map(|next| Event::MessagesNudged { next }),
    ]
}

pub fn event() -> impl Strategy<Value = Event> {
    prop_oneof![4 => core_event(), 1 => message_event()]
}

fn core_event() -> impl Strategy<Value = Event> {
    let opened = (
        number(),
        gateway(),
        any::<bool>(),
        short(),
        option::of(will()),
        gateway_device(),
    )
        .prop_map(|(generation, gateway, clean, expiry_secs, will, via)| {
            Event::SessionOpened(Box::new(SessionOpened {
                generation,
                gateway,
                clean,
                expiry_secs,
                keep_alive_secs: 1,
                protocol: 4,
                will,
                via,
            }))
        });
    let changed = (section(), number(), number(), json()).prop_map(|(section, ordinal, section_version, json)| {
        Event::TwinSectionChanged(Box::new(TwinSectionChanged {
            section,
            ordinal,
            section_version,
            json,
        }))
    });
    prop_oneof![
        2 => (status(), any::<bool>()).prop_map(|(status, automatic)| Event::DeviceRegistered { status, automatic }),
        1 => status().prop_map(|status| Event::StatusChanged { status }),
        1 => Just(Event::DeviceDeleted),
        4 => opened,
        2 => (number(), cause()).prop_map(|(generation, cause)| Event::SessionClosed { generation, cause }),
        1 => (number(), gateway()).prop_map(|(generation, gateway)| Event::SessionResumed { generation, gateway }),
        1 => number().prop_map(|generation| Event::SessionExpired { generation }),
        2 => (number(), subscriptions())
            .prop_map(|(ordinal, subscriptions)| Event::Subscribed { ordinal, subscriptions }),
        1 => (number(), vec("[a-d]", 0..3)).prop_map(|(ordinal, filters)| Event::Unsubscribed { ordinal, filters }),
        4 => recorded().prop_map(|recorded| Event::TelemetryRecorded(Box::new(recorded))),
        2 => (number(), option::of(timestamp()))
            .prop_map(|(before_seq, oldest_at)| Event::TelemetryTrimmed { before_seq, oldest_at }),
        3 => changed,
        1 => number().prop_map(|ordinal| Event::OrdinalAdvanced { ordinal }),
        1 => (number(), refusal()).prop_map(|(ordinal, refusal)| Event::SessionCommandRefused {
            ordinal,
            refusal: Box::new(refusal)
        }),
        1 => number().prop_map(|generation| Event::WillDropped { generation }),
        1 => gateway_device().prop_map(|gateway| Event::GatewayAssigned { gateway }),
    ]
}

fn twin() -> impl Strategy<Value = Twin> {
    (number(), vec((section(), number(), option::of(json())), 0..3)).prop_map(|(version, sections)| {
        let mut twin = Twin::default();
        twin.version = version;
        for (section, version, json) in sections {
            let kept = twin.section_mut(section);
            kept.version = version;
            kept.json = json.map(Into::into);
        }
        twin
    })
}

fn session() -> impl Strategy<Value = Session> {
    let ids = (number(), gateway(), any::<bool>(), any::<bool>(), short(), number());
    let rest = (
        vec((number(), refusal()), 0..3),
        subscriptions(),
        option::of(will()),
        option::of(timestamp()),
        option::of(timestamp()),
        gateway_device(),
    );
    (ids, rest).prop_map(|(ids, (refused, subscriptions, will, will_due, expires_at, via))| {
        let (generation, gateway, connected, lost, expiry_secs, last_ordinal) = ids;
        Session {
            generation,
            gateway,
            connected,
            lost,
            since: Timestamp(0),
            expiry_secs,
            keep_alive_secs: 0,
            protocol: 5,
            last_ordinal,
            refused,
            subscriptions,
            will: will.map(Box::new),
            will_due,
            expires_at,
            via,
            first_generation: generation.saturating_sub(last_ordinal),
        }
    })
}

fn queue() -> impl Strategy<Value = Messages> {
    let queued = (
        number(),
        "[a-e]",
        number(),
        timestamp(),
        0..4u16,
        number(),
        any::<u16>(),
    )
        .prop_map(
            |(number, id, row, expires_at, deliveries, generation, packet_id)| Queued {
                number,
                row,
                id: id.into(),
                bytes: 1,
                enqueued_at: Timestamp(0),
                expires_at,
                deliveries,
                generation,
                packet_id,
                resent: false,
            },
        );
    let dead = (number(), "[a-e]", outcome()).prop_map(|(number, id, reason)| DeadLetter {
        number,
        row: number,
        id: id.into(),
        bytes: 1,
        enqueued_at: Timestamp(0),
        died_at: Timestamp(1),
        deliveries: 0,
        reason,
    });
    (
        vec(queued, 0..4),
        vec(dead, 0..4),
        number(),
        number(),
        any::<u16>(),
        any::<u8>(),
        option::of(timestamp()),
    )
        .prop_map(
            |(queue, dead, last_feedback, trimmed_feedback, last_packet_id, nudges, nudge_at)| {
                let mut messages = Messages::default();
                messages.queue = queue;
                messages.dead = dead;
                messages.last_feedback = last_feedback;
                messages.trimmed_feedback = trimmed_feedback;
                messages.last_packet_id = last_packet_id;
                messages.nudges = nudges;
                messages.nudge_at = nudge_at;
                messages
            },
        )
}

/// A state no history leads to, most of the time.
pub fn wild_state() -> impl Strategy<Value = DeviceState> {
    let registration = (status(), number(), gateway_device()).prop_map(|(status, etag, gateway)| Registration {
        status,
        etag,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        automatic: false,
        gateway,
    });
    let head =
        (number(), number(), option::of(timestamp())).prop_map(|(last_seq, first_seq, oldest_at)| TelemetryHead {
            last_seq,
            first_seq,
            oldest_at,
            last_at: oldest_at,
        });
    (
        number(),
        option::weighted(0.8, registration),
        number(),
        option::weighted(0.8, session()),
        head,
        twin(),
        option::of(queue()),
    )
        .prop_map(
            |(version, registration, last_generation, session, telemetry, twin, messages)| DeviceState {
                messages: messages.map(Box::new),
                version,
                registration,
                last_generation,
                session: session.map(Box::new),
                telemetry,
                twin,
                ..DeviceState::default()
            },
        )
}
