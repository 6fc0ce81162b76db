#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! Gateway devices written with paho-mqtt, acting for children in every shard. What they assert is
//! in `tests/python/paho_gateway.py`.

use holdfast_tests::clients::dev::Cluster;
use holdfast_tests::clients::python;

fn scenario(name: &str) {
    let cluster = Cluster::shared(3);
    python::run(&cluster, "paho_gateway.py", name);
    cluster.assert_no_panic();
}

/// Telemetry and twins of children are theirs, and so is their presence.
#[test]
fn a_gateway_acts_for_its_children() {
    scenario("acting:3");
    scenario("acting:5");
}

/// Each child has its own window of message ids.
#[test]
fn message_ids_of_children_are_stored_once() {
    scenario("ids:3");
    scenario("ids:5");
}

/// A gateway that may not act for a device is told, and goes on; also when it may no longer.
#[test]
fn a_gateway_is_refused_what_is_not_its_own() {
    scenario("refusals:5");
}

/// One live session per device, whoever holds it.
#[test]
fn the_newer_of_child_and_gateway_holds_the_session() {
    scenario("takeover:3");
    scenario("takeover:5");
}

/// Subscriptions of children are as durable as the gateway's own.
#[test]
fn a_gateway_comes_back_to_its_children() {
    scenario("reconnect:3");
    scenario("reconnect:5");
}

/// Methods of a child go through its gateway.
#[test]
fn methods_of_children_go_through_their_gateway() {
    scenario("methods:3");
    scenario("methods:5");
}

/// So do messages; but never to both.
#[test]
fn messages_of_children_go_through_their_gateway() {
    scenario("messages:3");
    scenario("messages:5");
}

/// What the gateway acknowledged is settled, what it did not comes again, at another node.
#[test]
fn messages_of_children_survive_the_kill_of_their_gateways_node() {
    let cluster = Cluster::up(3);
    python::run(&cluster, "paho_gateway.py", "orphaned:3");
    python::run(&cluster, "paho_gateway.py", "orphaned:5");
    cluster.assert_no_panic();
}

/// Nothing acknowledged is lost, nothing is stored twice, each child's order holds.
#[test]
fn children_survive_the_kill_of_their_leaders() {
    let cluster = Cluster::up(3);
    python::run(&cluster, "paho_gateway.py", "killed:3");
    python::run(&cluster, "paho_gateway.py", "killed:5");
    cluster.assert_no_panic();
}
