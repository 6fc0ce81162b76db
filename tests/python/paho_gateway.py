"""A gateway device written with paho-mqtt, and its children.

Usage: paho_gateway.py SCENARIO CLUSTER_JSON. As paho_device.py, whose parts it uses.
"""

import json
import sys
import threading

import paho.mqtt.client as mqtt

from paho_device import CLUSTER, Device, ask, eventually, http, telemetry

PREFIX = sys.argv[1].replace(":", "-")


def register(name, gateway=None):
    status, answer = http("PUT", "/api/v1/devices/" + name, {"gateway": gateway})
    assert status in (200, 201) and answer["gateway"] == gateway, answer


def assign(name, gateway):
    status, answer = http("PATCH", "/api/v1/devices/" + name, {"gateway": gateway})
    assert status == 200 and answer["gateway"] == gateway, answer


def connection(name):
    return http("GET", "/api/v1/devices/" + name)[1]["connection"]


def family(version, count, **options):
    """A connected gateway and the names of its children."""
    hub = Device(PREFIX + "-hub", version, **options)
    register(hub.name)
    children = ["%s-child-%d" % (PREFIX, n) for n in range(count)]
    for child in children:
        register(child, hub.name)
    return hub.connected(), children


def topic(child, rest="telemetry"):
    return "devices/%s/%s" % (child, rest)


def acting(version):
    """Telemetry and twins of children, each in its own device."""
    hub, children = family(version, 3)
    for turn in range(5):
        for child in children:
            reason, _ = hub.publish(json.dumps({"turn": turn}), topic(child))
            assert reason == "Success", reason
    for child in children:
        rows = telemetry(child)
        assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5], rows
        assert [row["body"]["turn"] for row in rows] == list(range(5)), rows
        assert connection(child)["via"] == hub.name
    assert telemetry(hub.name) == []
    status, listed = http("GET", "/api/v1/devices?filter=gateway%3D" + hub.name)
    assert status == 200 and [d["id"] for d in listed["items"]] == children, listed

    child = children[0]
    assert hub.subscribe(topic(child, "#")) == 1
    hub.publish("{\"on\":true}", topic(child, "twin/reported/1"))
    assert hub.message(topic(child, "twin/res/1"))["status"] == 204
    hub.publish("", topic(child, "twin/get/2"))
    assert hub.message(topic(child, "twin/res/2"))["reported"] == {"on": True}
    status, _ = http("PATCH", "/api/v1/devices/%s/twin" % child, {"desired": {"level": 3}})
    assert status == 200
    desired = hub.message(topic(child, "twin/desired"))
    assert desired["level"] == 3 and desired["$version"] == 1, desired

    hub.close()
    for child in children:
        eventually(child + " is offline with its gateway", lambda: connection(child)["state"] == "disconnected")


def ids(version):
    """A message id is stored once per child, whoever sends it."""
    hub, (one, two) = family(version, 2)
    for child in (one, two, one):
        if version == mqtt.MQTTv5:
            reason, _ = hub.publish("x", topic(child), properties=[("message-id", "m-1")])
        else:
            reason, _ = hub.publish("x", topic(child, "messages/events/$.mid=m-1"))
        assert reason == "Success", reason
    assert len(telemetry(one)) == 1 and len(telemetry(two)) == 1
    hub.close()


def refusals(_):
    """Who is not its child, and who is one no more."""
    hub, (child, banned) = family(mqtt.MQTTv5, 2)
    other = PREFIX + "-other"
    register(other)
    for name in (other, PREFIX + "-unknown"):
        reason, _ = hub.publish("x", topic(name))
        assert reason.value == 0x87, (name, reason)
        assert hub.subscribe(topic(name, "#")).value == 0x87
        assert telemetry(other) == []
    assert http("PATCH", "/api/v1/devices/" + banned, {"status": "disabled"})[0] == 200
    assert hub.publish("x", topic(banned))[0].value == 0x87
    assert hub.publish("x", topic(child))[0] == "Success", "the connection goes on"

    assign(child, None)
    assert hub.publish("x", topic(child))[0].value == 0x87
    assert connection(child)["state"] == "disconnected"
    assign(child, hub.name)
    assert hub.publish("y", topic(child))[0] == "Success"
    assert [row["seq"] for row in telemetry(child)] == [1, 2]
    status, problem = http("PATCH", "/api/v1/devices/" + child, {"gateway": child})
    assert status == 400 and problem["type"].endswith("invalid-body"), problem
    hub.close()

    # 3.1.1 has no code but 0x80, and no answer to a publish: as for any foreign topic.
    old = Device(PREFIX + "-old", mqtt.MQTTv311)
    register(old.name)
    old.connected()
    assert old.subscribe(topic(other, "#")).value == 0x80
    old.client.publish(topic(other), "x", qos=1)
    assert old.ends.get(timeout=60) != "Success"
    old.client.loop_stop()
    assert telemetry(other) == []


def takeover(version):
    """The newer one of child and gateway holds the child's session."""
    hub, (name, sibling) = family(version, 2)
    assert hub.subscribe(topic(name, "#")) == 1
    hub.publish("1", topic(name))
    assert connection(name)["via"] == hub.name
    child = Device(name, version).connected()
    assert "via" not in connection(name)
    assert not child.flags.session_present
    child.publish("2", topic(name))
    hub.publish("1", topic(sibling))
    assert "via" not in connection(name), "a gateway that does nothing for it takes nothing"
    hub.publish("3", topic(name))
    child.ends.get(timeout=60)
    child.client.loop_stop()
    assert connection(name)["via"] == hub.name
    assert [row["body"] for row in telemetry(name)] == [1, 2, 3]
    # Its subscription is back.
    assert http("PATCH", "/api/v1/devices/%s/twin" % name, {"desired": {"level": 1}})[0] == 200
    assert hub.message(topic(name, "twin/desired"))["level"] == 1
    hub.close()


def reconnect(version):
    """A gateway that comes back to its session, on another node, still hears for its children."""
    hub, (one, two) = family(version, 2, clean=False, expiry=600)
    for child in (one, two):
        assert hub.subscribe(topic(child, "#")) == 1
    hub.client.unsubscribe(topic(two, "#"))
    hub.publish("x", topic(two))
    hub.vanish()
    for child in (one, two):
        eventually(child + " is offline with its gateway", lambda: connection(child)["state"] == "disconnected")
    hub = Device(hub.name, version, clean=False, expiry=600).connected(2)
    assert hub.flags.session_present
    eventually("the child is back", lambda: connection(one).get("via") == hub.name and connection(one)["state"] == "connected")
    assert http("PATCH", "/api/v1/devices/%s/twin" % one, {"desired": {"level": 1}})[0] == 200
    assert hub.message(topic(one, "twin/desired"))["level"] == 1
    assert connection(two)["state"] == "disconnected", "it has no subscriptions"
    hub.close()


def methods(version):
    """Operators call methods of children, from any node; the gateway answers."""
    hub, children = family(version, 2)
    for child in children:
        assert hub.subscribe(topic(child, "methods/#")) == 1
    for node, child in enumerate(children, 1):
        answers = []

        def call():
            path = "/api/v1/devices/%s/methods/blink" % child
            answers.append(http("POST", path, {"payload": {"times": node}, "timeout_ms": 20_000}, node=node))

        caller = threading.Thread(target=call)
        caller.start()
        message = hub.messages.get(timeout=60)
        assert message.topic.startswith(topic(child, "methods/blink/")), message.topic
        assert json.loads(message.payload) == {"times": node}
        rid = message.topic.rsplit("/", 1)[1]
        hub.publish(json.dumps({"status": 200, "payload": child}), topic(child, "methods/res/" + rid))
        caller.join()
        assert answers == [(200, {"status": 200, "payload": child})], answers
    hub.close()


def queue(child, message_id, node=1):
    path = "/api/v1/devices/%s/messages" % child
    body = {"payload": message_id, "message_id": message_id}

    def sent():
        # Again under the same id where its leader has just died: it is queued once.
        status, told = http("POST", path, body, node=node)
        assert status in (200, 201, 503, 504), told
        return status < 300

    eventually(message_id + " is queued for " + child, sent)


def waiting(child):
    status, told = http("GET", "/api/v1/devices/%s/messages" % child)
    assert status == 200, told
    return [item["message_id"] for item in told["items"]]


def outcomes(child):
    status, told = http("GET", "/api/v1/devices/%s/messages/feedback" % child)
    assert status == 200, told
    return [(item["message_id"], item["outcome"], item["delivery_count"]) for item in told["items"]]


def arrive(device, count):
    """Message ids by child, in the order in which they came."""
    came = {}
    for _ in range(count):
        message = device.messages.get(timeout=60)
        _, child, kind, message_id = message.topic.split("/")
        assert kind == "messages" and json.loads(message.payload) == message_id, message.topic
        assert message.qos == 1 and not message.dup
        came.setdefault(child, []).append(message_id)
    return came


def messages(version):
    """Messages to children come through their gateway, in order, and its PUBACK settles them."""
    hub, children = family(version, 3)
    ids = ["m-%02d" % n for n in range(12)]
    # Half of them wait for the gateway, half come while it listens; from every node.
    for number, message_id in enumerate(ids[:6]):
        for child in children:
            queue(child, message_id, number % 3 + 1)
    for child in children:
        assert hub.subscribe(topic(child, "messages/#")) == 1
    for number, message_id in enumerate(ids[6:]):
        for child in children:
            queue(child, message_id, number % 3 + 1)
    came = arrive(hub, len(children) * len(ids))
    assert came == {child: ids for child in children}, came
    for child in children:
        eventually(child + " has none left", lambda: not waiting(child))
        assert outcomes(child) == [(message_id, "completed", 1) for message_id in ids], outcomes(child)

    # Its own are not the children's, and one is not the other's.
    assert hub.subscribe(hub.topic("messages/#")) == 1
    queue(hub.name, "own")
    assert arrive(hub, 1) == {hub.name: ["own"]}

    # A child that is connected by itself gets them itself, and alone.
    name = children[0]
    child = Device(name, version).connected(2)
    assert child.subscribe(child.topic("messages/#")) == 1
    queue(name, "direct")
    assert arrive(child, 1) == {name: ["direct"]}
    eventually("it is settled", lambda: not waiting(name))
    assert hub.messages.empty(), "the message came to both"
    child.close()
    queue(name, "again")
    assert arrive(hub, 1) == {name: ["again"]}
    eventually("it is settled", lambda: not waiting(name))
    hub.close()


def orphaned(version):
    """The node that holds the gateway's connection is killed with messages on their way."""
    hub, children = family(version, 4, clean=False, expiry=600)
    hub.client.manual_ack_set(True)
    hub.close()
    hub.connected(3)
    for child in children:
        assert hub.subscribe(topic(child, "messages/#")) == 1
    ids = ["m-%d" % n for n in range(6)]
    for message_id in ids[:3]:
        for child in children:
            queue(child, message_id)
    held = [hub.messages.get(timeout=60) for _ in range(12)]
    # One of each child is acknowledged and settled, the others are not.
    for message in held:
        if message.topic.endswith("/m-0"):
            hub.client.ack(message.mid, 1)
    for child in children:
        eventually("the first is settled", lambda: waiting(child) == ids[1:3])
    ask("kill 3")
    for message_id in ids[3:]:
        for child in children:
            queue(child, message_id)
    hub.client.loop_stop()
    hub = Device(hub.name, version, clean=False, expiry=600).connected(1)
    assert hub.flags.session_present
    came = arrive(hub, len(children) * 5)
    assert came == {child: ids[1:] for child in children}, came
    for child in children:
        eventually("all are settled", lambda: not waiting(child))
        counts = [1, 2, 2, 1, 1, 1]
        assert outcomes(child) == [(i, "completed", n) for i, n in zip(ids, counts)], outcomes(child)
    hub.close()
    ask("start 3")


def killed(version):
    """The leaders of the children's shards die while the gateway publishes for twenty of them."""
    hub, children = family(version, 20)
    total = 1500
    acked, done = set(), threading.Event()

    def on_publish(_client, _user, mid, reason, _props):
        assert reason == "Success", reason
        acked.add(mid)
        if len(acked) == total:
            done.set()

    hub.client.on_publish = on_publish
    shard = http("GET", "/api/v1/devices/" + children[0])[1]["shard"]
    leader = next(s["leader"] for s in http("GET", "/api/v1/cluster")[1]["shards"] if s["id"] == shard)
    victim = leader if leader != 1 else 2
    for number in range(total):
        child = children[number % len(children)]
        hub.client.publish(topic(child), json.dumps({"n": number}), qos=1)
        if number == total // 3:
            eventually("some are acknowledged", lambda: len(acked) > 20)
            ask("kill %d" % victim)
    assert done.wait(timeout=60), "%d of %d" % (len(acked), total)
    ask("start %d" % victim)
    for at, child in enumerate(children):
        rows = telemetry(child)
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), (child, rows)
        assert [row["body"]["n"] for row in rows] == list(range(at, total, len(children))), child
    hub.close()


if __name__ == "__main__":
    name, _, version = sys.argv[1].partition(":")
    globals()[name](mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311)
