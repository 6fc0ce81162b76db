//! How long the stages of a write take, from samples: a clock read per message would show.

use std::cell::{Cell, OnceCell};

use actors::device::{decide, Command, DeviceState, Event, Policy, Refusal};
use actors::id::DeviceKey;
use actors::time::Timestamp;
use tokio::time::Instant;

/// One message in so many is timed.
const SAMPLE_EVERY: u32 = 16;

thread_local! {
    static TURN: Cell<u32> = const { Cell::new(0) };
    static DECIDE_SECONDS: OnceCell<metrics::Histogram> = const { OnceCell::new() };
}

pub fn histogram(stage: &'static str) -> metrics::Histogram {
    metrics::histogram!("holdfast_stage_seconds", "stage" => stage)
}

/// The time now, for one message in [`SAMPLE_EVERY`].
pub fn sample() -> Option<Instant> {
    TURN.with(|turn| {
        let n = turn.get().wrapping_add(1);
        turn.set(n);
        n.is_multiple_of(SAMPLE_EVERY).then(Instant::now)
    })
}

/// [`decide`], timed now and then, with what it does to messages counted.
///
/// # Errors
/// As `decide`.
pub fn timed_decide(
    key: &DeviceKey,
    state: &DeviceState,
    command: &Command,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let started = sample();
    let decided = decide(key, state, command, policy, now);
    if let (false, Ok(events)) = (matches!(command, Command::RecordTelemetry { .. }), &decided) {
        super::messages::count(events);
    }
    let Some(started) = started else {
        return decided;
    };
    DECIDE_SECONDS.with(|cell| {
        cell.get_or_init(|| histogram("decide"))
            .record(started.elapsed().as_secs_f64())
    });
    decided
}
