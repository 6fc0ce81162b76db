//! Every bound of the gateway in one place, with its unit and default.

use std::time::Duration;

/// What one gateway, and one connection, may hold. `node::config` checks the ranges.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections of this node; each one costs a file descriptor. Default 18,000.
    pub connections_max: usize,
    /// Clients beyond that which are told so at once; others are just closed. Default 256.
    pub turning_away_max: usize,
    /// Connections accepted per second; further ones wait in the listen backlog. Default 4,000.
    pub accepts_per_sec_max: u32,
    /// Clients whose CONNECT is being decided. Default 1,024; beyond, they are told to come back,
    /// and before it comes to that nobody more is accepted.
    pub handshakes_max: usize,
    /// From accept to a whole CONNECT. Default 5 s.
    pub connect_timeout: Duration,
    /// From CONNECT to the committed session; then the client is told to come back. Default 2 s.
    pub open_timeout: Duration,
    /// Remaining length of a CONNECT. Default 64 KiB.
    pub connect_bytes_max: u32,
    /// Remaining length of every later packet. Default 256 KiB, 1 KiB..=16 MiB.
    pub packet_bytes_max: u32,
    /// QoS 1 publishes an MQTT 5 client may have unacknowledged. Default 32.
    pub receive_maximum: u16,
    /// Commands of one connection not yet answered; beyond, its socket is not read. Default 256.
    pub in_flight_max: usize,
    /// As above, from where on QoS 0 publishes are dropped. Default 128.
    pub qos0_in_flight_max: usize,
    /// Payload bytes in flight over all connections of this node. Default 256 MiB.
    pub node_in_flight_bytes_max: usize,
    /// Children one connection of a gateway device acts for. Default 1,000.
    pub children_max: usize,
    /// How often a child that took its session away is looked at: is it still there? Default 10 s.
    pub child_look_every: Duration,
    /// Topic aliases a client may use in one connection (MQTT 5). Default 16.
    pub topic_alias_max: u16,
    /// How long a publish may wait for its turn before an MQTT 5 client is refused it. Default 1 s.
    pub admission_wait: Duration,
    /// Bytes that all connections of this node buffer: packets not complete yet, answers and
    /// downlinks not read yet. Beyond, the connections with most are closed. Default 256 MiB.
    pub buffer_bytes_max: usize,
    /// User properties of one packet. Default 64.
    pub user_properties_max: usize,
    /// Bytes waiting for one client to read them; beyond, it is not read from. Default 128 KiB.
    pub write_buffer_bytes_max: usize,
    /// Bytes of answers promised to one client, or not read by it; beyond, its next question waits
    /// in its socket. Default 256 KiB; one answer is always promised.
    pub answer_bytes_max: usize,
    /// How long that buffer may be over its bound, or make no progress. Default 30 s.
    pub slow_reader_timeout: Duration,
    /// Downlinks waiting for a client's window. Default 64; the newest are dropped.
    pub down_queue_max: usize,
    /// Bytes of those downlinks. Default 512 KiB.
    pub down_queue_bytes_max: usize,
    /// QoS 1 downlinks without PUBACK, where the client allows as many. Default 16.
    pub down_in_flight_max: usize,
    /// Longest keep-alive granted in MQTT 5, in seconds. Default 3600.
    pub keep_alive_secs_max: u16,
    /// How long a command is retried before its connection is closed unanswered. Default 10 s.
    pub commit_timeout: Duration,
    /// First and longest pause before a command is sent again. Default 20 ms and 200 ms.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// How long a closed connection may take to flush and to say goodbye. Default 1 s.
    pub linger: Duration,
    /// Over how long the re-announcements to a new leader are spread. Default 1 s.
    pub announce_spread: Duration,
    /// Ended sessions whose end is not committed yet. Default 65,536; beyond, dropped and counted.
    pub closes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 18_000,
            turning_away_max: 256,
            accepts_per_sec_max: 4_000,
            handshakes_max: 1_024,
            connect_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(2),
            connect_bytes_max: 64 * 1024,
            packet_bytes_max: 256 * 1024,
            receive_maximum: 32,
            in_flight_max: 256,
            qos0_in_flight_max: 128,
            node_in_flight_bytes_max: 256 * 1024 * 1024,
            children_max: 1_000,
            child_look_every: Duration::from_secs(10),
            topic_alias_max: 16,
            admission_wait: Duration::from_secs(1),
            buffer_bytes_max: 256 * 1024 * 1024,
            user_properties_max: 64,
            write_buffer_bytes_max: 128 * 1024,
            answer_bytes_max: 256 * 1024,
            slow_reader_timeout: Duration::from_secs(30),
            down_queue_max: 64,
            down_queue_bytes_max: 512 * 1024,
            down_in_flight_max: 16,
            keep_alive_secs_max: 3600,
            commit_timeout: Duration::from_secs(10),
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_millis(200),
            linger: Duration::from_secs(1),
            announce_spread: Duration::from_secs(1),
            closes_max: 65_536,
        }
    }
}
