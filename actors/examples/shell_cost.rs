//! What the actor layer costs: resident bytes per active and per passive device, CPU per message.
//!
//! Prints one JSON line. `cargo run --release -p actors --example shell_cost [DEVICES]`
//! (default 100,000). The journal settles at once and the store makes up its devices, so that
//! nothing but the actor layer is measured; `core_ns` is the same work without actors.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::{env, fs, io};

use actors::device::{
    answer, apply, decide, Command, Delivery, DeviceState, Fence, OpenSession, Origin, Policy, Precondition, Status,
    Telemetry,
};
use actors::id::{DeviceId, DeviceKey, Gateway, TenantId};
use actors::ports::{Journal, Reply, ReplyTo, Store, Submission, Ticket};
use actors::shell::{on_this_local_set, HostLimits, HostParts, LivePolicy, Rules, ShardHost};
use actors::time::{Clock, Timestamp};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const IDLE_MS: u64 = 1_000;
/// Delivered before the actors get their turn, as a gateway's batch is.
const BATCH: u64 = 256;
/// How often all devices become passive and as many others active, between two looks at memory.
const PASSIVE_ROUNDS: u64 = 4;
const PAGE_BYTES: u64 = 4096;

struct Settled(Cell<u64>);

impl Journal for Settled {
    fn submit(&self, item: Submission) -> Ticket {
        self.0.set(self.0.get() + 1);
        let answer = item.outcome.expect("all that is sent here is accepted");
        item.reply.send(Ok(Reply { answer, receipt: None }));
        Ticket(self.0.get())
    }

    fn settled(&self) -> Ticket {
        Ticket(self.0.get())
    }
}

/// Every device is registered and connected and has sent nothing yet.
struct Connected(DeviceState);

impl Store for Connected {
    fn load(&self, _: &DeviceKey) -> io::Result<DeviceState> {
        Ok(self.0.clone())
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn monotonic_ms(&self) -> u64 {
        0
    }
}

struct Bench {
    host: ShardHost,
    answered: Arc<AtomicU64>,
    sent: u64,
    first_device: u64,
    now_ms: u64,
}

fn main() -> io::Result<()> {
    let devices = env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(devices))
}

async fn measure(devices: u64) -> io::Result<()> {
    let mut bench = Bench::new(devices);
    // Buffers of batches and the runtime's own queues are nobody's device.
    bench.telemetry(BATCH, 1..=1).await?;
    bench.passivate_all().await?;

    let start = resident_bytes()?;
    bench.telemetry(devices, 1..=8).await?;
    let active = resident_bytes()?;
    bench.telemetry(devices, 9..=40).await?;
    let full = resident_bytes()?;

    let cpu = cpu_ns()?;
    let sent = bench.sent;
    bench.telemetry(devices, 41..=60).await?;
    let message_ns = (cpu_ns()? - cpu) / (bench.sent - sent);

    // The allocator keeps what was freed; if others can live in it, nothing was left behind.
    let mut resident = [0; 2];
    for resident in &mut resident {
        for _ in 0..PASSIVE_ROUNDS {
            bench.passivate_all().await?;
            bench.first_device += devices;
            bench.telemetry(devices, 1..=8).await?;
        }
        *resident = resident_bytes()?;
    }

    let per_device = |from: u64, to: u64| to.saturating_sub(from) / devices;
    println!(
        "{{\"bench\":\"shell_cost\",\"devices\":{devices},\"state_bytes\":{},\"active_bytes\":{},\
         \"active_bytes_window_full\":{},\"passive_bytes\":{},\"message_ns\":{message_ns},\"core_ns\":{}}}",
        size_of::<DeviceState>(),
        per_device(start, active),
        per_device(start, full),
        per_device(resident[0], resident[1]) / PASSIVE_ROUNDS,
        core_ns(20 * devices)?,
    );
    Ok(())
}

impl Bench {
    fn new(devices: u64) -> Self {
        let host = ShardHost::new(HostParts {
            rules: Rc::new(Rules::new(LivePolicy::default(), Arc::new(Still))),
            journal: Rc::new(Settled(Cell::new(0))),
            store: Rc::new(Connected(connected())),
            spawn: on_this_local_set(),
            limits: HostLimits {
                active_max: usize::try_from(devices).expect("a count of devices fits memory"),
                passivate_after_ms: IDLE_MS,
                ..HostLimits::default()
            },
        });
        Self {
            host,
            answered: Arc::default(),
            sent: 0,
            first_device: 0,
            now_ms: 0,
        }
    }

    /// Each device sends the telemetry with these ordinals.
    async fn telemetry(&mut self, devices: u64, ordinals: std::ops::RangeInclusive<u64>) -> io::Result<()> {
        for ordinal in ordinals {
            for device in 0..devices {
                let answered = Arc::clone(&self.answered);
                let reply = ReplyTo::new(move |result| {
                    result.expect("nothing is refused here");
                    answered.fetch_add(1, Ordering::Relaxed);
                });
                self.host
                    .deliver(key(self.first_device + device), telemetry(ordinal), reply)?;
                self.sent += 1;
                if self.sent.is_multiple_of(BATCH) || device + 1 == devices {
                    self.all_answered().await;
                }
            }
        }
        Ok(())
    }

    async fn all_answered(&self) {
        while self.answered.load(Ordering::Relaxed) < self.sent {
            tokio::task::yield_now().await;
        }
    }

    async fn passivate_all(&mut self) -> io::Result<()> {
        self.now_ms += IDLE_MS + 1;
        while self.host.counts().active > 0 {
            self.host.tick(self.now_ms)?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

fn key(device: u64) -> DeviceKey {
    let id = DeviceId::parse(&format!("device-{device:08}")).expect("the name obeys the rules");
    DeviceKey::new(TenantId::DEFAULT, id)
}

/// A QoS 1 publish without a message id, which is what most devices send.
fn telemetry(ordinal: u64) -> Command {
    Command::RecordTelemetry {
        origin: Origin::Session {
            fence: Fence { generation: 1, ordinal },
            delivery: Some(Delivery {
                packet_id: u16::try_from(ordinal).expect("few messages are sent"),
                dup: false,
                digest: ordinal.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            }),
        },
        telemetry: Telemetry {
            body: vec![b'x'; 256],
            ..Telemetry::default()
        },
    }
}

fn connected() -> DeviceState {
    let mut state = DeviceState::default();
    let put = Command::PutDevice {
        status: Status::Enabled,
        condition: Precondition::None,
        gateway: None,
    };
    let open = Command::OpenSession(Box::new(OpenSession {
        gateway: Gateway { node: 1, boot: 1 },
        clean_start: true,
        expiry_secs: 3_600,
        keep_alive_secs: 60,
        protocol: 5,
        will: None,
        via: None,
    }));
    for command in [put, open] {
        carry_out(&key(0), &mut state, &command);
    }
    state
}

fn carry_out(key: &DeviceKey, state: &mut DeviceState, command: &Command) {
    let events = decide(key, state, command, &Policy::default(), NOW).expect("the command is acceptable");
    for event in &events {
        apply(state, event, NOW).expect("a decided event fits");
    }
    std::hint::black_box(answer(&key.device, state, state, command, &events));
}

/// CPU of one telemetry without actors, host and reply: making, deciding and applying it.
fn core_ns(messages: u64) -> io::Result<u64> {
    let mut state = connected();
    let cpu = cpu_ns()?;
    for ordinal in 1..=messages {
        let mut command = telemetry(ordinal % 60_000);
        if let Command::RecordTelemetry {
            origin: Origin::Session { fence, .. },
            ..
        } = &mut command
        {
            fence.ordinal = ordinal;
        }
        carry_out(&key(ordinal), &mut state, &command);
    }
    Ok((cpu_ns()? - cpu) / messages)
}

fn resident_bytes() -> io::Result<u64> {
    number("/proc/self/statm", 1).map(|pages| pages * PAGE_BYTES)
}

/// CPU time of this thread, which is the only one.
fn cpu_ns() -> io::Result<u64> {
    number("/proc/thread-self/schedstat", 0)
}

fn number(file: &str, column: usize) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let word = text.split_whitespace().nth(column);
    word.and_then(|w| w.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{file} has no number in column {column}")))
}
