//! Any mix of traffic, commits, failures, panics, passivation and resets.

use std::collections::BTreeMap;

use super::*;

const DEVICES: [&str; 3] = ["a", "b", "c"];
const STEPS: usize = 400;

/// Small and seeded; the quality of its numbers does not matter here.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) % sides
    }
}

/// Whatever happens, an acknowledged telemetry is in the journal under its seq, once, the seqs of
/// a device have no gap, every caller is answered, and no head ever disagreed with what was
/// committed.
#[tokio::test]
async fn no_acknowledged_event_is_lost_in_any_mix() {
    for seed in 1..=40 {
        on_one_thread(mix(seed)).await;
    }
}

async fn mix(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut f = Fixture::new(HostLimits {
        active_max: 2,
        passivate_after_ms: 50,
        mailbox_max: 4,
        ..HostLimits::default()
    });
    for device in DEVICES {
        f.call("put", device, register()).await.unwrap();
        f.heard.lock().unwrap().clear();
    }
    f.ledger.set_mode(Mode::Held);
    let mut sent = 0;
    for _ in 0..STEPS {
        let device = DEVICES[dice.roll(3) as usize];
        match dice.roll(12) {
            0..=4 => {
                f.send(device, device, telemetry());
                sent += 1;
            }
            5 => {
                f.send(device, device, telemetry_of("boom"));
                sent += 1;
            }
            6..=8 => f.ledger.commit(dice.roll(4) as usize),
            9 => f.tick_after(dice.roll(40)),
            10 => quiet().await,
            _ if dice.roll(4) == 0 => {
                f.ledger.fail_pending();
                f.host.reset();
            }
            _ => f.host.on_settled().unwrap(),
        }
    }
    for _ in 0..10 {
        quiet().await;
        f.ledger.commit_all();
        f.tick_after(1);
    }
    assert_eq!(f.host.counts().outstanding, 0, "seed {seed}: somebody was not answered");
    assert_eq!(f.heard.lock().unwrap().len(), sent, "seed {seed}");
    assert_eq!(
        f.ledger.misfits(),
        0,
        "seed {seed}: a head did not rest on what was committed"
    );
    check_acknowledged(&f, seed);
}

fn check_acknowledged(f: &Fixture, seed: u64) {
    let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (key, event) in f.ledger.events() {
        if let Event::TelemetryRecorded(recorded) = event {
            stored.entry(key.device.to_string()).or_default().push(recorded.seq);
        }
    }
    for (device, seqs) in &stored {
        let gap_free: Vec<u64> = (1..=seqs.len() as u64).collect();
        assert_eq!(*seqs, gap_free, "seed {seed}, device {device}");
    }
    let mut acknowledged: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (device, result) in &*f.heard.lock().unwrap() {
        if let Ok(reply) = result {
            acknowledged
                .entry((*device).to_owned())
                .or_default()
                .push(seq(reply.answer.clone()));
        }
    }
    assert_eq!(
        acknowledged, stored,
        "seed {seed}: here every stored one is acknowledged, in order"
    );
}
