//! The cluster as one of its nodes sees it: what is read of `GET /api/v1/cluster`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub nodes: Vec<NodeView>,
    pub shards: Vec<ShardView>,
    #[serde(default)]
    pub catalog: Option<ShardView>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub id: u64,
    pub zone: String,
    pub state: String,
    #[serde(default)]
    pub version: String,
    pub http: String,
    pub mqtt: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardView {
    pub id: u16,
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: Vec<u64>,
    #[serde(default)]
    pub applied: u64,
    #[serde(default)]
    pub fault: Option<String>,
}

impl View {
    /// A cluster that does not exist yet: what `cluster up` makes.
    pub fn imagined(nodes: u16, shards: u16) -> Self {
        let ids: Vec<u64> = (1..=u64::from(nodes)).collect();
        let replicas = if nodes >= 3 { 3 } else { 1 };
        let node = |id: &u64| NodeView {
            id: *id,
            zone: format!("zone-{id}"),
            state: "up".into(),
            ..Default::default()
        };
        let shard = |id: u16| {
            let first = usize::from(id) % ids.len().max(1);
            let voters: Vec<u64> = (0..replicas).map(|step| ids[(first + step) % ids.len()]).collect();
            ShardView {
                id,
                leader: voters.first().copied(),
                term: 1,
                voters,
                ..Default::default()
            }
        };
        Self {
            nodes: ids.iter().map(node).collect(),
            shards: (0..shards).map(shard).collect(),
            catalog: Some(shard(0)),
        }
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Shards a node leads.
    pub fn leads(&self, node: u64) -> usize {
        self.shards.iter().filter(|shard| shard.leader == Some(node)).count()
    }
}
