#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // load lasts as long as it says
//! More than the cluster takes (G7): what is admitted is carried out, the rest is told so, memory
//! stays where the configuration put it, and no leader changes.
//!
//! Figures are compared within one run: the maximum is measured first, on the same cluster, so
//! that a slow machine is slow in both.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use holdfast_tests::clients::raw::{self, Raw};
use holdfast_tests::harness::{eventually, Cluster, Plan};
use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, FleetReport, Load, Progress};

/// Whoever compares figures has the machine for itself, as far as this program goes.
static MACHINE: RwLock<()> = RwLock::new(());

const DEVICES: usize = 300;
/// What the server allows a device to have unacknowledged.
const WINDOW: u16 = 32;
const MEASURED: Duration = Duration::from_secs(5);
/// Of each node; far below the default, so that a leak shows.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// A fleet that does not spare the server: half MQTT 5, half 3.1.1.
fn fleet(cluster: &Cluster, prefix: &str, devices: usize, load: Load) -> Fleet {
    let config = FleetConfig {
        endpoints: cluster.mqtt(),
        devices,
        device_prefix: prefix.to_owned(),
        load,
        payload_bytes: 256,
        record: false,
        timing: Timing {
            ack_timeout: Duration::from_secs(30),
            ..Default::default()
        },
        ..Default::default()
    };
    let fleet = Fleet::start(config).unwrap();
    assert!(
        fleet.wait_connected(devices, Duration::from_secs(60)),
        "devices connect"
    );
    fleet
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    published: u64,
    acknowledged: u64,
    refused: u64,
    held_back: u64,
    at: Instant,
}

impl Counts {
    fn of(fleet: &Fleet) -> Self {
        let progress = &fleet.progress;
        Self {
            published: Progress::read(&progress.published),
            acknowledged: Progress::read(&progress.acknowledged),
            refused: Progress::read(&progress.refused),
            held_back: Progress::read(&progress.held_back),
            at: Instant::now(),
        }
    }
}

/// What came of a load in the measured time.
#[derive(Debug)]
struct Seen {
    goodput: f64,
    offered: f64,
    not_admitted: u64,
    resident_max: u64,
}

fn watch(cluster: &Cluster, fleet: &Fleet) -> Seen {
    fleet.measure();
    let before = Counts::of(fleet);
    let mut resident_max = 0;
    while before.at.elapsed() < MEASURED {
        std::thread::sleep(Duration::from_millis(100));
        for id in cluster.ids() {
            resident_max = resident_max.max(cluster.process(id).resident_bytes().unwrap());
        }
    }
    let after = Counts::of(fleet);
    fleet.end_measurement();
    let seconds = (after.at - before.at).as_secs_f64();
    let sent = after.published - before.published;
    let held_back = after.held_back - before.held_back;
    Seen {
        goodput: (after.acknowledged - before.acknowledged) as f64 / seconds,
        offered: (sent + held_back) as f64 / seconds,
        not_admitted: held_back + after.refused - before.refused,
        resident_max,
    }
}

fn p99(report: &FleetReport) -> Duration {
    Duration::from_micros(report.latency.value_at_quantile(0.99))
}

fn terms(cluster: &Cluster) -> Vec<u64> {
    let status = eventually("a node tells the terms", Duration::from_secs(20), || cluster.status());
    status.shards.iter().map(|shard| shard.term).collect()
}

/// At two and at five times the maximum, goodput stays, nobody is elected, and half a load is
/// served in time again as soon as the overload is over.
#[test]
fn overload_costs_neither_goodput_nor_leaders_nor_memory() {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start_plan(Plan {
        nodes: 3,
        env: vec![("HOLDFAST_LIMITS_MEMORY_BYTES_MAX".into(), MEMORY_BYTES_MAX.to_string())],
    });
    let busy = fleet(&cluster, "busy", DEVICES, Load::Closed { window: 16 });
    busy.publish();
    std::thread::sleep(Duration::from_secs(2));
    let max = watch(&cluster, &busy);
    busy.finish(Duration::from_secs(20)).unwrap();
    println!("maximum: {max:?}");
    let before = terms(&cluster);

    for factor in [2.0, 5.0] {
        let calm = fleet(
            &cluster,
            "calm",
            DEVICES,
            Load::shed(max.goodput / 3.0, DEVICES, WINDOW),
        );
        let load = Load::shed(max.goodput * factor, DEVICES, WINDOW);
        let over = fleet(&cluster, "over", DEVICES, load);
        over.publish();
        std::thread::sleep(Duration::from_secs(1));
        let seen = watch(&cluster, &over);
        let reconnects = Progress::read(&over.progress.reconnects);
        let report = over.finish(Duration::ZERO).unwrap();
        let ended = Instant::now();
        calm.publish();
        println!("{factor} times: {seen:?}, p99 {:?}", p99(&report));

        assert!(seen.offered > max.goodput * 1.2, "this was no overload");
        assert!(seen.not_admitted > 0, "nobody was held back or refused");
        assert!(
            seen.goodput > max.goodput * 0.5,
            "goodput fell from {:.0} to {:.0} a second",
            max.goodput,
            seen.goodput
        );
        assert_eq!(reconnects, 0, "overload cost connections");
        assert!(
            seen.resident_max < MEMORY_BYTES_MAX,
            "a node held {} bytes",
            seen.resident_max
        );
        // All windows full, at this goodput; a queue that grows would go on from here.
        let window_full = DEVICES as f64 * f64::from(WINDOW) / seen.goodput;
        let bound = Duration::from_secs_f64(window_full * 3.0 + 1.0);
        assert!(p99(&report) < bound, "p99 {:?}, {bound:?} are explained", p99(&report));

        recovered(&calm, ended);
        calm.finish(Duration::from_secs(20)).unwrap();
    }
    assert_eq!(terms(&cluster), before, "a leader changed under load");
}

/// Within ten seconds there is a half second in which nothing is held back, refused or late.
fn recovered(calm: &Fleet, since: Instant) {
    let mut before = Counts::of(calm);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = Counts::of(calm);
        let sent = now.published - before.published;
        let served = (now.acknowledged - before.acknowledged) * 100 >= sent * 90;
        let spared = now.refused == before.refused && now.held_back == before.held_back;
        if sent > 0 && served && spared {
            println!("recovered after {:?}", since.elapsed());
            return;
        }
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "not recovered: {before:?} to {now:?}"
        );
        before = now;
    }
}

/// One attempt to connect; the code of its CONNACK, `None` when there was none.
fn knock(address: std::net::SocketAddr, version: u8, id: &str) -> Option<u8> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(4))).ok()?;
    stream.write_all(&raw::connect(version, id, 60)).ok()?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    (head[0] == 0x20).then_some(head[3])
}

/// Connects from `threads` threads for `time`; how many attempts were answered with each code.
fn storm(cluster: &Cluster, threads: usize, time: Duration) -> BTreeMap<(u8, Option<u8>), u64> {
    let (addresses, until) = (cluster.mqtt(), Instant::now() + time);
    let knocking = |thread: usize| {
        let mut answers: BTreeMap<_, u64> = BTreeMap::new();
        for number in 0.. {
            if Instant::now() >= until {
                break;
            }
            let version = if number % 2 == 0 { 4 } else { 5 };
            let address = addresses[(thread + number) % addresses.len()];
            let id = format!("storm-{thread}-{}", number % 50);
            *answers.entry((version, knock(address, version, &id))).or_default() += 1;
        }
        answers
    };
    let mut all = BTreeMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || knocking(thread)))
            .collect();
        for thread in threads {
            for (answer, count) in thread.join().unwrap() {
                *all.entry(answer).or_default() += count;
            }
        }
    });
    all
}

/// Clients that come in a crowd cost those who are connected little, and none of them is told
/// anything that it would take as final.
#[test]
fn a_storm_of_connects_spares_the_connected() {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::up(3);
    let (devices, threads) = (60, 6);
    let load = Load::open(600.0, devices, 8);
    let quiet = fleet(&cluster, "before", devices, load);
    quiet.publish();
    watch(&cluster, &quiet);
    let before = p99(&quiet.finish(Duration::from_secs(10)).unwrap());

    let connected = fleet(&cluster, "connected", devices, load);
    connected.publish();
    let few = storm(&cluster, threads, Duration::from_secs(3));
    let terms_before = terms(&cluster);
    connected.measure();
    let many = storm(&cluster, threads * 10, Duration::from_secs(5));
    connected.end_measurement();
    let reconnects = Progress::read(&connected.progress.reconnects);
    let report = connected.finish(Duration::from_secs(10)).unwrap();
    println!(
        "p99 {before:?} before, {:?} in the storm; {few:?}, then {many:?}",
        p99(&report)
    );

    for ((version, code), _) in few.iter().chain(&many) {
        let retryable: &[u8] = if *version == 5 {
            &[0, 0x88, 0x89, 0x97, 0x9f]
        } else {
            &[0, 3]
        };
        let fine = code.is_none_or(|code| retryable.contains(&code));
        assert!(fine, "version {version} was answered {code:?}");
    }
    assert!(many.values().sum::<u64>() > 100, "this was no storm: {many:?}");
    assert_eq!(reconnects, 0, "the storm cost connections");
    assert_eq!(report.ledger.unknown(), 0, "the storm cost acknowledgements");
    // The storm itself takes processor time of this machine, so the margin is wide.
    let bound = before * 20 + Duration::from_millis(500);
    assert!(p99(&report) < bound, "p99 {:?}, allowed {bound:?}", p99(&report));
    assert_eq!(terms(&cluster), terms_before, "a leader changed in the storm");
}

/// A full node says so in the client's own words instead of cutting it off.
#[test]
fn one_connection_too_many_is_told_to_come_back() {
    let _beside = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start_plan(Plan {
        nodes: 1,
        env: vec![("HOLDFAST_LIMITS_CONNECTIONS_MAX".into(), "2".into())],
    });
    let address = cluster.mqtt()[0];
    let _first = Raw::connected(address, 5, "first");
    let second = Raw::connected(address, 4, "second");
    assert_eq!(knock(address, 5, "third"), Some(0x97));
    assert_eq!(knock(address, 4, "third"), Some(3));
    drop(second);
    eventually("there is room again", Duration::from_secs(20), || {
        let answer = knock(address, 5, "third");
        (answer == Some(0)).then_some(()).ok_or(format!("{answer:?}"))
    });
}

/// What one client that does not read may cost: answers and what is written, and as much again
/// because buffers grow by doubling.
const UNREAD_BYTES_MAX: u64 = 2 * (256 << 10);
/// What the memory of a busy node moves by anyway.
const NOISE_BYTES: u64 = 48 << 20;

/// Clients that ask again and again for large answers, and read none of them.
fn deaf_clients(cluster: &Cluster, count: usize) -> Vec<Raw> {
    let large = format!(r#"{{"large":"{}"}}"#, "x".repeat(30_000));
    let mut clients: Vec<Raw> = (0..count)
        .map(|number| {
            let id = format!("deaf-{number}");
            let mut raw = Raw::connected(cluster.mqtt()[0], 5, &id);
            raw.send(&raw::subscribe(5, 1, format!("devices/{id}/twin/res/#"), 0));
            raw.next_packet();
            raw.send(&raw::publish(
                5,
                format!("devices/{id}/twin/reported/1"),
                2,
                false,
                large.as_bytes(),
            ));
            raw.puback(2);
            raw
        })
        .collect();
    for (number, raw) in clients.iter_mut().enumerate() {
        raw.write_patience(Duration::from_millis(50));
        for rid in 0..200 {
            // QoS 0, or the client would wait for room to send.
            let mut body = raw::text(format!("devices/deaf-{number}/twin/get/{rid}"));
            body.push(0);
            if !raw.try_send(&raw::packet(0x30, &body)) {
                break;
            }
        }
    }
    clients
}

/// Clients that never read what they asked for are closed in time, and cost no more than their
/// buffers; everybody else is served meanwhile.
#[test]
fn clients_that_never_read_cost_bounded_memory() {
    let _beside = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    const CLIENTS: usize = 100;
    let cluster = Cluster::start_plan(Plan {
        nodes: 1,
        env: vec![("HOLDFAST_LIMITS_SLOW_READER_TIMEOUT".into(), "5s".into())],
    });
    let mut healthy = Raw::connected(cluster.mqtt()[0], 5, "healthy");
    let resident = || cluster.process(1).resident_bytes().unwrap();
    let before = resident();
    let clients = deaf_clients(&cluster, CLIENTS);
    for packet_id in 1..=20 {
        healthy.send(&raw::publish(5, "devices/healthy/telemetry", packet_id, false, b"1"));
        assert_eq!(healthy.puback(packet_id), 0);
    }
    let mut most = resident();
    eventually("those who do not read are closed", Duration::from_secs(60), || {
        most = most.max(resident());
        let open = cluster.counter(1, "holdfast_mqtt_connections");
        (open <= 1.0).then_some(()).ok_or(format!("{open} are open"))
    });
    let (grown, bound) = (
        most.saturating_sub(before),
        CLIENTS as u64 * UNREAD_BYTES_MAX + NOISE_BYTES,
    );
    println!("resident memory grew by {} KiB of {}", grown >> 10, bound >> 10);
    assert!(grown < bound, "{CLIENTS} clients that never read cost {grown} bytes");
    drop(clients);
}

/// Where room is short, those who do not read make room at once, and nobody else is closed.
#[test]
fn clients_that_never_read_make_room() {
    let _beside = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    const BUFFERS: u64 = 8 << 20;
    let cluster = Cluster::start_plan(Plan {
        nodes: 1,
        env: vec![
            ("HOLDFAST_LIMITS_SLOW_READER_TIMEOUT".into(), "1h".into()),
            ("HOLDFAST_LIMITS_BUFFER_BYTES_MAX".into(), BUFFERS.to_string()),
        ],
    });
    let mut healthy = Raw::connected(cluster.mqtt()[0], 5, "healthy");
    healthy.send(&raw::subscribe(5, 1, "devices/healthy/twin/res/#", 0));
    healthy.next_packet();
    let clients = deaf_clients(&cluster, 60);
    eventually("there is room for an answer", Duration::from_secs(60), || {
        healthy.send(&raw::publish(5, "devices/healthy/twin/get/1", 7, false, b""));
        let accepted = healthy.puback(7) == 0;
        let (_, answer) = healthy.next_packet().expect("an answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(accepted, answer.contains(r#""status":200"#), "{answer}");
        accepted.then_some(()).ok_or(answer)
    });
    drop(clients);
}

/// Clients that read and never acknowledge are kept, at the price of their window.
#[test]
fn clients_that_never_acknowledge_cost_bounded_memory() {
    let _beside = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    const CLIENTS: usize = 20;
    let cluster = Cluster::up(1);
    let address = cluster.mqtt()[0];
    let mut clients: Vec<Raw> = (0..CLIENTS)
        .map(|number| {
            let id = format!("mute-{number}");
            let mut raw = Raw::connected(address, 5, &id);
            raw.send(&raw::subscribe(5, 1, format!("devices/{id}/twin/desired"), 1));
            raw.next_packet();
            raw
        })
        .collect();
    let before = cluster.process(1).resident_bytes().unwrap();
    let http = holdfast_tests::harness::client(Duration::from_secs(20));
    let url = |number: usize| format!("http://{}/api/v1/devices/mute-{number}/twin", cluster.http()[0]);
    cluster.runtime().block_on(async {
        for round in 0..120 {
            let sent = (0..CLIENTS).map(|number| {
                let body = serde_json::json!({"desired": {"round": round, "pad": "x".repeat(4_000)}});
                http.patch(url(number))
                    .bearer_auth(&cluster.file.token)
                    .json(&body)
                    .send()
            });
            for answer in futures::future::join_all(sent).await {
                answer.unwrap().error_for_status().unwrap();
            }
        }
    });
    let grown = cluster.process(1).resident_bytes().unwrap().saturating_sub(before);
    println!("resident memory grew by {} KiB", grown >> 10);
    assert!(
        grown < 128 << 20,
        "{CLIENTS} clients that never acknowledge cost {grown} bytes"
    );
    assert!(
        cluster.counter(1, "holdfast_mqtt_downlinks_dropped_total") > 0.0,
        "nothing was bounded"
    );
    for raw in &mut clients {
        raw.send(&[0xc0, 0]);
        let mut downlinks = 0;
        while raw.next_packet().expect("it is still connected").0 != 0xd0 {
            downlinks += 1;
        }
        assert!(downlinks <= 16, "{downlinks} were sent without an acknowledgement");
    }
}
