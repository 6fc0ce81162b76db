#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Devices written with paho-mqtt, in 3.1.1 and 5, against three nodes. What they assert is in
//! `tests/python/paho_device.py`.

use holdfast_tests::clients::dev::Cluster;
use holdfast_tests::clients::python;

fn scenario(name: &str) {
    let cluster = Cluster::shared(3);
    python::run(&cluster, "paho_device.py", name);
    cluster.assert_no_panic();
}

/// PUBACKs of MQTT 5 carry receipts that every node confirms.
#[test]
fn pubacks_carry_receipts() {
    scenario("receipts");
}

/// A full in-flight window is acknowledged and stored in order.
#[test]
fn in_flight_window_is_acknowledged_in_order() {
    scenario("window:3");
    scenario("window:5");
}

/// Get, reported and desired, as the design writes them.
#[test]
fn twin_is_one_document_for_device_and_operator() {
    scenario("twin:3");
    scenario("twin:5");
}

/// Refusals come with the protocol's own reason codes.
#[test]
fn refusals_have_the_protocols_reason_codes() {
    scenario("reasons");
}

/// MQTT over WebSocket, on every path that is understood.
#[test]
fn devices_may_come_over_websocket() {
    scenario("websocket:3");
    scenario("websocket:5");
}

/// Topic aliases, subscription identifiers, response topics and the client's packet size.
#[test]
fn mqtt5_properties_are_honoured() {
    scenario("mqtt5");
}

/// Wills are recorded after an abrupt end only.
#[test]
fn wills_are_recorded() {
    scenario("wills:3");
    scenario("wills:5");
}

/// Message ids, ours and Azure's, are stored once.
#[test]
fn message_ids_are_stored_once() {
    scenario("ids:3");
    scenario("ids:5");
}

/// A device whose node is killed goes on at another one: nothing acknowledged is lost, nothing is
/// stored twice, the order holds. On a cluster of its own, for the others must not notice.
#[test]
fn device_survives_the_kill_of_its_node() {
    let cluster = Cluster::up(3);
    for version in ["failover:3", "failover:5"] {
        python::run(&cluster, "paho_device.py", version);
    }
    cluster.assert_no_panic();
}
