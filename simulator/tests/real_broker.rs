//! The fleet against a broker of other people's making: Debian's mosquitto.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};

struct Broker {
    child: Option<Child>,
    config: std::path::PathBuf,
    address: SocketAddr,
}

impl Broker {
    fn start(name: &str) -> Broker {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = std::env::temp_dir().join(format!("holdfast-{name}-{}.conf", std::process::id()));
        let mut file = std::fs::File::create(&config).unwrap();
        writeln!(
            file,
            "listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000"
        )
        .unwrap();
        let mut broker = Broker {
            child: None,
            config,
            address: ([127, 0, 0, 1], port).into(),
        };
        broker.run();
        broker
    }

    fn run(&mut self) {
        let child = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(&self.config)
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("Debian's mosquitto is installed"));
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < end, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.config);
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every publish is acknowledged once, in both versions of the protocol, also when the broker was
/// killed in the middle and what was outstanding had to be sent again.
#[test]
fn every_publish_is_acknowledged_once_across_a_broker_restart() {
    let mut broker = Broker::start("restart");
    let per_device = 2_000;
    let config = FleetConfig {
        endpoints: vec![broker.address],
        devices: 20,
        load: Load::Closed { window: 16 },
        timing: Timing {
            messages_per_device_max: per_device,
            ..Default::default()
        },
        threads: 2,
        ..Default::default()
    };
    let fleet = Fleet::start(config).unwrap();
    assert!(fleet.wait_connected(20, Duration::from_secs(10)));
    fleet.measure();
    fleet.publish();
    eventually("nothing is acknowledged", || {
        Progress::read(&fleet.progress.acknowledged) > 5_000
    });
    broker.kill();
    broker.run();
    let all = 20 * u64::from(per_device);
    eventually("not all is acknowledged", || {
        Progress::read(&fleet.progress.acknowledged) == all
    });
    let report = fleet.finish(Duration::from_secs(10)).unwrap();
    assert_eq!(report.ledger.acknowledged(), all);
    assert_eq!(report.ledger.unknown(), 0);
    assert!(report.ledger.reconnects() >= 20);
    assert_eq!(report.latency.len(), all);
    for device in &report.ledger.devices {
        let numbers: Vec<u32> = device.acks.iter().map(|ack| ack.n).collect();
        assert_eq!(numbers, (1..=per_device).collect::<Vec<_>>(), "{}", device.device);
    }
}

/// An open load keeps its rate, and the window does not make it lose its place.
#[test]
fn open_load_sends_what_was_intended() {
    let broker = Broker::start("open");
    let config = FleetConfig {
        endpoints: vec![broker.address],
        devices: 10,
        load: Load::open(1_000.0, 10, 8),
        timing: Timing {
            messages_per_device_max: 100,
            ..Default::default()
        },
        ..Default::default()
    };
    let fleet = Fleet::start(config).unwrap();
    assert!(fleet.wait_connected(10, Duration::from_secs(10)));
    let started = Instant::now();
    fleet.publish();
    eventually("not all is acknowledged", || {
        Progress::read(&fleet.progress.acknowledged) == 1_000
    });
    // 100 messages 10 ms apart cannot take less: nothing is sent before it is due.
    assert!(started.elapsed() >= Duration::from_millis(985));
    fleet.finish(Duration::from_secs(10)).unwrap();
}
