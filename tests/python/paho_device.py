"""What a device written with paho-mqtt sees of a Holdfast cluster.

Usage: paho_device.py SCENARIO CLUSTER_JSON. Asks for faults by writing "kill N" or "start N" to
standard output and waiting for "ok". Ends with 0 when every assertion held.
"""

import json
import queue
import sys
import threading
import time
import urllib.error
import urllib.request

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE = 60
with open(sys.argv[2], encoding="utf-8") as file:
    CLUSTER = json.load(file)


def ask(line):
    """Has a fault injected, and returns when it is."""
    print(line, flush=True)
    assert sys.stdin.readline() == "ok\n"


def http(method, path, body=None, node=1, headers=None):
    """Status and JSON of one request to the API."""
    request = urllib.request.Request(
        "http://%s%s" % (CLUSTER["nodes"][node - 1]["http"], path),
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + CLUSTER["token"], "Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def telemetry(device, node=1):
    """All rows of a device."""
    items, after = [], 0
    while after is not None:
        status, page = http("GET", "/api/v1/devices/%s/telemetry?limit=1000&after_seq=%d" % (device, after), node=node)
        assert status == 200, page
        items += page["items"]
        after = page["next"]
    return items


def eventually(what, probe):
    """Waits until probe() gives something."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("not within %d s: %s" % (PATIENCE, what))


class Device:
    """A paho client whose callbacks end in queues. Runs paho's own loop in a thread."""

    packet_bytes_max = None

    def __init__(self, name, version, clean=True, expiry=0, will=None, transport="tcp"):
        self.name, self.version, self.clean, self.expiry = name, version, clean, expiry
        self.port = "ws" if transport == "websockets" else "mqtt"
        options = {"clean_session": clean} if version == mqtt.MQTTv311 else {}
        options["transport"] = transport
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version, **options)
        self.connacks, self.pubacks, self.subacks = queue.Queue(), queue.Queue(), queue.Queue()
        self.messages, self.ends = queue.Queue(), queue.Queue()
        self.client.on_connect = lambda c, u, flags, reason, props: self.connacks.put((flags, reason, props))
        self.client.on_publish = lambda c, u, mid, reason, props: self.pubacks.put((mid, reason, props))
        self.client.on_subscribe = lambda c, u, mid, reasons, props: self.subacks.put(reasons)
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_disconnect = lambda c, u, flags, reason, props: self.ends.put(reason)
        self.client.reconnect_delay_set(1, 1)
        if will:
            self.client.will_set(self.topic(), will, qos=1)

    def topic(self, rest="telemetry"):
        return "devices/%s/%s" % (self.name, rest)

    def connect(self, node=1):
        """Connects and returns the reason of the CONNACK."""
        host, port = CLUSTER["nodes"][node - 1][self.port].split(":")
        more = {}
        if self.version == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = self.expiry
            properties.RequestResponseInformation = 1
            if self.packet_bytes_max:
                properties.MaximumPacketSize = self.packet_bytes_max
            more = {"clean_start": self.clean, "properties": properties}
        self.client.connect(host, int(port), keepalive=30, **more)
        self.client.loop_start()
        self.flags, reason, self.granted = self.connacks.get(timeout=PATIENCE)
        return reason

    def connected(self, node=1):
        reason = self.connect(node)
        assert reason == "Success", reason
        return self

    def publish(self, payload, topic=None, properties=None):
        """Publishes with QoS 1 and returns reason and user properties of its PUBACK."""
        more = {}
        if properties:
            more["properties"] = Properties(PacketTypes.PUBLISH)
            more["properties"].UserProperty = properties
        info = self.client.publish(topic or self.topic(), payload, qos=1, **more)
        mid, reason, props = self.pubacks.get(timeout=PATIENCE)
        assert mid == info.mid, "PUBACKs leave in the order of the PUBLISHes"
        return reason, dict(getattr(props, "UserProperty", []))

    def subscribe(self, topic, qos=1):
        self.client.subscribe(topic, qos)
        (reason,) = self.subacks.get(timeout=PATIENCE)
        return reason

    def message(self, topic):
        while True:
            message = self.messages.get(timeout=PATIENCE)
            if message.topic == topic:
                return json.loads(message.payload)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        """Closes the socket without a word."""
        self.client.loop_stop()
        self.client.socket().close()


VERSIONS = {"3": mqtt.MQTTv311, "5": mqtt.MQTTv5}


def receipts():
    """Every PUBACK of MQTT 5 carries a receipt that any node confirms."""
    device = Device("receipts", mqtt.MQTTv5).connected(1)
    for round_ in range(20):
        reason, properties = device.publish(json.dumps({"round": round_}))
        assert reason == "Success", reason
        receipt = properties["holdfast-receipt"]
        for node in (1, 2, 3):
            status, told = http("GET", "/api/v1/receipts/" + receipt, node=node)
            assert (status, told["state"]) == (200, "committed"), told
    rows = telemetry("receipts", 2)
    assert [row["seq"] for row in rows] == list(range(1, 21))
    assert rows[-1]["receipt"] == receipt, (rows[-1], receipt)
    device.close()


def window(version):
    """Two thousand publishes in paho's in-flight window: acknowledged and stored in order, once."""
    name = "window-" + version
    device = Device(name, VERSIONS[version])
    device.client.max_inflight_messages_set(20)
    device.connected(2)
    sent = [device.client.publish(device.topic(), str(n), qos=1).mid for n in range(2000)]
    acknowledged = [device.pubacks.get(timeout=PATIENCE)[0] for _ in sent]
    assert acknowledged == sent, "PUBACKs leave in the order of the PUBLISHes"
    assert [row["body"] for row in telemetry(name)] == list(range(2000))
    device.close()


def failover(version):
    """The node a device talks to is killed under load; the device goes on at another one."""
    name = "failover-" + version
    device = Device(name, VERSIONS[version], clean=False, expiry=600).connected(3)
    acknowledged = set()
    done = threading.Event()

    def collect():
        while not done.is_set():
            try:
                mid, reason, _ = device.pubacks.get(timeout=0.1)
            except queue.Empty:
                continue
            assert reason == "Success", reason
            acknowledged.add(mid)

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    sent = {}
    for n in range(300):
        # After a reconnect paho sends all it holds at once, whatever the receive maximum is.
        eventually("there is room", lambda: len(sent) - len(acknowledged) < 20)
        sent[device.client.publish(device.topic(), json.dumps(n), qos=1).mid] = n
        if n == 100:
            eventually("some are acknowledged", lambda: len(acknowledged) > 50)
            ask("kill 3")
            # paho reconnects to the address it knows: another node from now on.
            device.client._host, device.client._port = (
                CLUSTER["nodes"][0]["mqtt"].split(":")[0],
                int(CLUSTER["nodes"][0]["mqtt"].split(":")[1]),
            )
    eventually("all are acknowledged", lambda: len(acknowledged) == 300)
    done.set()
    collector.join()
    rows = telemetry(name, 2)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), "seq has gaps"
    assert [row["body"] for row in rows] == list(range(300)), "lost, duplicated or out of order"
    status, shown = http("GET", "/api/v1/devices/" + name)
    assert (status, shown["connection"]["node"]) == (200, 1), shown
    device.close()
    ask("start 3")


def twin(version):
    """Get, report, and be told of desired changes; two nodes, one document."""
    name = "twin-" + version
    device = Device(name, VERSIONS[version]).connected(1)
    assert not device.subscribe(device.topic("twin/#")).is_failure
    device.publish("", device.topic("twin/get/a"))
    got = device.message(device.topic("twin/res/a"))
    assert (got["status"], got["desired"], got["reported"]) == (200, {}, {}), got
    device.publish('{"lit":false,"old":1}', device.topic("twin/reported/b"))
    done = device.message(device.topic("twin/res/b"))
    assert done["status"] == 204, done
    device.publish('{"lit":true,"old":null}', device.topic("twin/reported/c"))
    again = device.message(device.topic("twin/res/c"))
    assert (again["status"], again["version"]) == (204, done["version"] + 1), again
    status, answer = http("PATCH", "/api/v1/devices/%s/twin" % name, {"desired": {"lit": True}}, node=3)
    assert status == 200, answer
    desired = device.message(device.topic("twin/desired"))
    assert "lit" in json.dumps(desired) and "version" in json.dumps(desired), desired
    device.publish("", device.topic("twin/get/d"))
    got = device.message(device.topic("twin/res/d"))
    assert (got["desired"], got["reported"]) == ({"lit": True}, {"lit": True}), got
    status, shown = http("GET", "/api/v1/devices/%s/twin" % name, node=2)
    assert (status, shown["reported"]) == (200, {"lit": True}), shown
    assert shown["versions"]["reported"] == got["versions"]["reported"], (shown, got)
    for patch in ("not json", "[1]", '{"a":' * 12 + "1" + "}" * 12):
        device.client.publish(device.topic("twin/reported/bad"), patch, qos=0)
        refused = device.message(device.topic("twin/res/bad"))
        assert refused["status"] == 400, (patch, refused)
    device.client.publish(device.topic("twin/reported/big"), json.dumps({"x": "y" * 40000}), qos=0)
    assert device.message(device.topic("twin/res/big"))["status"] == 413
    device.close()


def reasons():
    """The protocol's own reason codes, in both versions."""
    for name, code in (("a b", 0x85), ("x" * 129, 0x85), ("sl/ash", 0x85)):
        reason = Device(name, mqtt.MQTTv5).connect()
        assert reason.value == code, (name, reason)
        assert Device(name, mqtt.MQTTv311).connect().value == 0x85, name  # paho's translation of 2
    # MQTT 3.1 is not spoken: return code 1, which paho shows in its MQTT 5 clothes.
    assert Device("old", mqtt.MQTTv31).connect().value == 0x84
    status, answer = http("PUT", "/api/v1/devices/banned", {"status": "disabled"})
    assert status in (200, 201), answer
    assert Device("banned", mqtt.MQTTv5).connect().value == 0x87
    assert Device("banned", mqtt.MQTTv311).connect().value == 0x87  # paho's translation of 5
    assert telemetry("banned") == []
    device = Device("reasons", mqtt.MQTTv5).connected()
    assert device.granted.MaximumQoS == 1 and device.granted.RetainAvailable == 0
    for topic, code in (
        ("devices/other/telemetry", 0x87),
        ("devices/reasons/nowhere", 0x90),
        ("elsewhere", 0x90),
        ("devices/reasons/telemetry", 0),
    ):
        reason, _ = device.publish("1", topic)
        assert reason.value == code, (topic, reason)
    reason, _ = device.publish("not json", device.topic("twin/reported/1"))
    assert reason.value == 0x99, reason
    for topic, code in (("devices/other/#", 0x87), ("#", 0x87), ("$share/g/devices/reasons/#", 0x9E)):
        assert device.subscribe(topic).value == code, topic
    assert device.subscribe(device.topic("#")).value == 1
    # Disabled while connected: the session ends, and the device cannot come back.
    status, answer = http("PATCH", "/api/v1/devices/reasons", {"status": "disabled"}, node=2)
    assert status == 200, answer
    device.client.publish(device.topic(), "2", qos=1)
    # paho overlooks the reason of a DISCONNECT without properties; the raw tests look at it.
    device.ends.get(timeout=PATIENCE)
    device.client.loop_stop()
    assert Device("reasons", mqtt.MQTTv5).connect().value == 0x87
    assert len(telemetry("reasons")) == 1


def wills(version):
    """A will is stored after an abrupt end, and only then."""
    name = "will-" + version
    device = Device(name, VERSIONS[version], will='"gone"').connected(2)
    device.publish("1")
    device.close()
    eventually("it is offline", lambda: http("GET", "/api/v1/devices/" + name)[1]["connection"]["state"] == "disconnected")
    assert len(telemetry(name)) == 1, "a proper end leaves no will"
    device = Device(name, VERSIONS[version], will='"gone"').connected(2)
    device.vanish()
    rows = eventually("the will is stored", lambda: len(telemetry(name)) > 1 and telemetry(name))
    assert [(row["seq"], row["body"], row.get("will", False)) for row in rows] == [(1, 1, False), (2, "gone", True)]


def ids(version):
    """A message id is stored once, through whichever node it comes again."""
    name = "ids-" + version
    for node in (1, 2, 3, 1):
        device = Device(name, VERSIONS[version]).connected(node)
        if version == "5":
            reason, _ = device.publish('"five"', properties=[("message-id", "m-1")])
            assert reason == "Success", reason
        azure = device.topic("messages/events/%24.mid=m-2&colour=red")
        reason, _ = device.publish('"azure"', azure)
        assert reason == "Success", reason
        device.close()
    bodies = [row["body"] for row in telemetry(name, 2)]
    assert sorted(bodies) == (["azure", "five"] if version == "5" else ["azure"]), bodies
    azure = [row for row in telemetry(name) if row["body"] == "azure"]
    assert azure[0]["properties"]["colour"] == "red" and azure[0]["message_id"] == "m-2", azure


def websocket(version):
    """All of it over WebSocket, with packets larger than a frame of the server."""
    name = "socket-" + version
    device = Device(name, VERSIONS[version], transport="websockets")
    for path in ("/mqtt", "/", "/$iothub/websocket?iothub-no-client-cert=true"):
        device.client.ws_set_options(path=path)
        device.connected()
        device.close()
    device.client.ws_set_options(path="/mqtt")
    device.connected(node=2)
    assert device.subscribe(device.topic("#")) == 1
    large = {"text": "x" * 100_000}
    assert device.publish(json.dumps(large))[0] == "Success"
    assert device.publish("{}")[0] == "Success"
    for n in range(3):
        patch = {"desired": {"text%d" % n: "y" * 10_000}}
        assert http("PATCH", "/api/v1/devices/%s/twin" % name, patch)[0] == 200
    device.message(device.topic("twin/desired"))
    device.client.publish(device.topic("twin/get/1"), "", qos=1)
    twin = device.message(device.topic("twin/res/1"))
    assert sorted(twin["desired"]) == ["text0", "text1", "text2"], twin
    assert telemetry(name)[0]["body"] == large
    elsewhere = Device(name, VERSIONS[version]).connected()
    device.ends.get(timeout=PATIENCE)
    device.client.loop_stop()
    elsewhere.close()


def mqtt5():
    """Topic aliases, subscription options and identifiers, response topics, the packet size."""
    device = Device("five", mqtt.MQTTv5).connected()
    granted = device.granted
    assert granted.TopicAliasMaximum == 16 and granted.ResponseInformation == "devices/five/", granted
    properties = Properties(PacketTypes.PUBLISH)
    properties.TopicAlias = 16
    for topic in (device.topic(), ""):
        # paho refuses an empty topic unless there is an alias.
        device.client.publish(topic, "{}", qos=1, properties=properties)
        assert device.pubacks.get(timeout=PATIENCE)[1] == "Success"
    assert len(telemetry("five")) == 2

    options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=2)
    for identifier, topic in ((7, device.topic("#")), (268_435_455, device.topic("answers/+"))):
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.SubscriptionIdentifier = identifier
        device.client.subscribe(topic, options=options, properties=properties)
        assert device.subacks.get(timeout=PATIENCE)[0] == 1

    def request(what, payload, to, data=b"17"):
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = to, data
        device.client.publish(device.topic(what), payload, qos=1, properties=properties)
        return device.pubacks.get(timeout=PATIENCE)[1]

    for what in ("twin/reported", "twin/get", "twin/get/9"):
        assert request(what, '{"a":1}' if what == "twin/reported" else "", "devices/five/answers/1") == "Success"
        answer = device.messages.get(timeout=PATIENCE)
        assert answer.topic == "devices/five/answers/1" and answer.properties.CorrelationData == b"17", answer.topic
        assert sorted(answer.properties.SubscriptionIdentifier) == [7, 268_435_455]
        assert json.loads(answer.payload)["status"] in (200, 204)
    assert request("twin/get", "", "devices/other/answers").value == 0x87
    assert request("twin/get", "", "elsewhere").value == 0x90
    assert request("twin/get", "", "devices/five/answers", b"x" * 5000).value == 0x97
    assert device.publish("", device.topic("twin/get"))[0].value == 0x90, "no response topic"
    device.client.subscribe("$share/group/devices/five/#", 1)
    assert device.subacks.get(timeout=PATIENCE)[0].value == 0x9E
    device.close()

    small = Device("small", mqtt.MQTTv5)
    small.packet_bytes_max = 500
    small.connected()
    assert small.subscribe(small.topic("#")) == 1
    assert http("PATCH", "/api/v1/devices/small/twin", {"desired": {"text": "y" * 600}})[0] == 200
    assert http("PATCH", "/api/v1/devices/small/twin", {"desired": {"text": "short"}})[0] == 200
    assert small.message(small.topic("twin/desired"))["text"] == "short", "what is too large is not sent"
    small.close()


def main():
    name, _, version = sys.argv[1].partition(":")
    scenario = {f.__name__: f for f in (receipts, window, failover, twin, reasons, wills, ids, websocket, mqtt5)}[name]
    scenario(*([version] if version else []))


if __name__ == "__main__":
    main()
