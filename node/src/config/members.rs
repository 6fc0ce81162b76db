//! The array `cluster.members`: who belongs to the cluster and where each one listens.

use std::net::SocketAddr;

use cluster::config::Member;

use super::reader::{nearest, Reader, Row};

/// Most members a cluster file may name.
pub const MEMBERS_MAX: usize = 256;

const FIELDS: [&str; 5] = ["id", "peer", "mqtt", "http", "zone"];

/// The members that are well-formed; problems of the others are recorded.
pub fn read(reader: &mut Reader<'_>) -> Vec<Member> {
    let rows = reader.rows("cluster", "members");
    if rows.len() > MEMBERS_MAX {
        let reason = format!("has {} members, at most {MEMBERS_MAX} are allowed", rows.len());
        reader.refuse("cluster", "members", reason);
    }
    let mut members: Vec<Member> = Vec::new();
    for row in &rows {
        let Some(member) = member(reader, row) else { continue };
        if let Some(clash) = clash(&members, &member) {
            reader.refuse_line(row.line, "cluster.members", clash);
        }
        members.push(member);
    }
    members
}

/// For a node that joins: members are not its business.
pub fn none(reader: &mut Reader<'_>) -> Vec<Member> {
    if !reader.is_absent("cluster", "members") {
        reader.refuse(
            "cluster",
            "members",
            "contradicts join: founders are listed, others join",
        );
    }
    Vec::new()
}

fn member(reader: &mut Reader<'_>, row: &Row) -> Option<Member> {
    for (name, (_, line)) in &row.values {
        if !FIELDS.contains(&name.as_str()) {
            let reason = nearest(name, FIELDS.into_iter(), "key");
            reader.refuse_line(*line, &format!("cluster.members.{name}"), reason);
        }
    }
    let id = match row.values.get("id").map(|(value, line)| (value.as_integer(), *line)) {
        Some((Some(id), _)) if (1..=i64::from(u32::MAX)).contains(&id) => u64::try_from(id).ok(),
        Some((_, line)) => {
            reader.refuse_line(line, "cluster.members.id", "must be a whole number from 1");
            None
        }
        None => {
            reader.refuse_line(row.line, "cluster.members.id", "is missing and has no default");
            None
        }
    };
    let peer = address(reader, row, "peer");
    let mqtt = address(reader, row, "mqtt");
    let http = address(reader, row, "http");
    let zone = match row.values.get("zone").map(|(value, line)| (value.as_str(), *line)) {
        None => Some("zone-1".to_owned()),
        Some((Some(zone), _)) if !zone.is_empty() && zone.len() <= 64 => Some(zone.to_owned()),
        Some((_, line)) => {
            reader.refuse_line(line, "cluster.members.zone", "must be a text of 1 to 64 characters");
            None
        }
    };
    Some(Member {
        id: id?,
        peer: peer?,
        mqtt: mqtt?,
        http: http?,
        zone: zone?,
    })
}

fn address(reader: &mut Reader<'_>, row: &Row, name: &str) -> Option<SocketAddr> {
    let key = format!("cluster.members.{name}");
    let Some((value, line)) = row.values.get(name) else {
        reader.refuse_line(row.line, &key, "is missing and has no default");
        return None;
    };
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    if parsed.is_none() {
        reader.refuse_line(*line, &key, "must be IP:PORT in quotes, such as \"127.0.0.1:7400\"");
    }
    parsed
}

fn clash(members: &[Member], new: &Member) -> Option<String> {
    for old in members {
        if old.id == new.id {
            return Some(format!("id {} is there twice; ids are never reused", new.id));
        }
        let mine = [new.peer, new.mqtt, new.http];
        if let Some(shared) = [old.peer, old.mqtt, old.http]
            .into_iter()
            .find(|address| mine.contains(address))
        {
            return Some(format!("members {} and {} both use {shared}", old.id, new.id));
        }
    }
    None
}
