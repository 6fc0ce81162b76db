//! What keys say about each other: contradictions, and what development mode does not allow.

use super::reader::Reader;
use super::NodeConfig;

pub fn contradictions(reader: &mut Reader<'_>, config: &NodeConfig, allow_unsafe: bool) {
    members(reader, config);
    listen(reader, config);
    raft(reader, config);
    fsync(reader, config, allow_unsafe);
    if config.limits.packet_ids_max < usize::from(config.limits.receive_maximum) {
        let reason = format!(
            "{} is less than limits.receive_maximum ({}): a resent packet could be stored twice",
            config.limits.packet_ids_max, config.limits.receive_maximum
        );
        reader.refuse("limits", "packet_ids_max", reason);
    }
}

fn members(reader: &mut Reader<'_>, config: &NodeConfig) {
    let members = &config.cluster.members;
    if !config.cluster.join.is_empty() {
        return joins(reader, config);
    }
    if config.node.id.is_none() {
        reader.missing("node", "id");
    }
    if members.is_empty() {
        return; // reported where it was read
    }
    if usize::from(config.cluster.replication) > members.len() {
        let reason = format!(
            "{} replicas need as many members, there are {}",
            config.cluster.replication,
            members.len()
        );
        reader.refuse("cluster", "replication", reason);
    }
    let Some(id) = config.node.id else { return };
    let Some(me) = members.iter().find(|member| member.id == id) else {
        let reason = format!("{id} is not among cluster.members");
        return reader.refuse("node", "id", reason);
    };
    if me.zone != config.node.zone {
        let reason = format!(
            "{:?} contradicts {:?}, which cluster.members says for this node",
            config.node.zone, me.zone
        );
        reader.refuse("node", "zone", reason);
    }
    let pairs = [
        ("peer", me.peer, config.listen.peer),
        ("mqtt", me.mqtt, config.listen.mqtt),
        ("http", me.http, config.listen.http),
    ];
    for (name, announced, listened) in pairs {
        let same = announced == listened || (listened.ip().is_unspecified() && announced.port() == listened.port());
        if !same {
            let reason = format!("{listened} contradicts {announced}, which cluster.members says for this node");
            reader.refuse("listen", name, reason);
        }
    }
}

/// What a node that joins tells of itself is what it listens on.
fn joins(reader: &mut Reader<'_>, config: &NodeConfig) {
    let listen = [
        ("mqtt", config.listen.mqtt),
        ("http", config.listen.http),
        ("peer", config.listen.peer),
    ];
    for (name, address) in listen.iter().filter(|(_, address)| address.ip().is_unspecified()) {
        let reason = format!("{address} cannot be announced to others; a node that joins listens on one address");
        reader.refuse("listen", name, reason);
    }
    if config.cluster.join.len() > super::members::MEMBERS_MAX {
        reader.refuse("cluster", "join", "names too many nodes; a few are enough");
    }
}

fn listen(reader: &mut Reader<'_>, config: &NodeConfig) {
    let mut listen = vec![
        ("mqtt", config.listen.mqtt),
        ("http", config.listen.http),
        ("peer", config.listen.peer),
    ];
    listen.extend(config.listen.ws.map(|address| ("ws", address)));
    for (at, (name, address)) in listen.iter().enumerate() {
        if !address.ip().is_loopback() {
            let reason = format!(
                "{address} can be reached from other machines, and security.mode \"development\" lets devices \
                 connect without credentials; listen on 127.0.0.1"
            );
            reader.refuse("listen", name, reason);
        }
        if address.port() == 0 {
            reader.refuse(
                "listen",
                name,
                "port 0 cannot be announced to others; give a port from 1 to 65535",
            );
        } else if let Some((other, _)) = listen[..at].iter().find(|(_, earlier)| earlier == address) {
            reader.refuse("listen", name, format!("{address} is used by listen.{other} already"));
        }
    }
}

fn raft(reader: &mut Reader<'_>, config: &NodeConfig) {
    let raft = &config.raft;
    if raft.election_min < raft.heartbeat * 2 {
        let reason = "must be at least twice raft.heartbeat_ms, or one late heartbeat starts an election";
        reader.refuse("raft", "election_min_ms", reason);
    }
    if raft.election_max <= raft.election_min {
        let reason = "must be greater than raft.election_min_ms, or candidates tie";
        reader.refuse("raft", "election_max_ms", reason);
    }
}

fn fsync(reader: &mut Reader<'_>, config: &NodeConfig, allow_unsafe: bool) {
    let keys = [
        ("unsafe_skip_log_fsync", config.storage.unsafe_skip_log_fsync),
        ("unsafe_skip_vote_fsync", config.storage.unsafe_skip_vote_fsync),
    ];
    for (name, set) in keys {
        if set && !allow_unsafe {
            let reason =
                "loses acknowledged data at a power cut; it exists for one test and needs HOLDFAST_ALLOW_UNSAFE=1";
            reader.refuse("storage", name, reason);
        }
    }
}
