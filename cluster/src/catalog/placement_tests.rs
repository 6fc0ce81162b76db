//! Shares are even, zones apart, moves few; whatever comes and goes.

use proptest::prelude::*;

use super::*;

fn members(zones: &[&str]) -> Vec<Member> {
    let addr = "127.0.0.1:1".parse().expect("an address");
    let member = |(i, zone): (usize, &&str)| Member {
        id: i as NodeId + 1,
        peer: addr,
        mqtt: addr,
        http: addr,
        zone: (*zone).to_owned(),
    };
    zones.iter().enumerate().map(member).collect()
}

fn spread(counts: impl IntoIterator<Item = usize>) -> usize {
    let counts: Vec<usize> = counts.into_iter().collect();
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

fn loads(sites: &[Site<'_>], placed: &[Vec<NodeId>]) -> BTreeMap<NodeId, usize> {
    let mut loads: BTreeMap<NodeId, usize> = sites.iter().map(|(id, _)| (*id, 0)).collect();
    for id in placed.iter().flatten() {
        *loads.get_mut(id).expect("placed on a node that is there") += 1;
    }
    loads
}

fn leads(sites: &[Site<'_>], placed: &[Vec<NodeId>]) -> BTreeMap<NodeId, usize> {
    let first: Vec<Vec<NodeId>> = placed.iter().map(|voters| vec![voters[0]]).collect();
    loads(sites, &first)
}

fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
    let new = |(before, after): (&Vec<NodeId>, &Vec<NodeId>)| after.iter().filter(|id| !before.contains(id)).count();
    before.iter().zip(after).map(new).sum()
}

/// Node *i* in zone *i* mod `zones`.
fn sites(ids: impl IntoIterator<Item = NodeId>, zones: u64) -> Vec<(NodeId, String)> {
    ids.into_iter().map(|id| (id, format!("zone-{}", id % zones))).collect()
}

fn borrowed(sites: &[(NodeId, String)]) -> Vec<Site<'_>> {
    sites.iter().map(|(id, zone)| (*id, zone.as_str())).collect()
}

#[test]
fn leaders_are_even_and_replicas_distinct_from_the_start() {
    let placed = initial(&members(&["a", "b", "c"]), 16, 3);
    let sites = [(1, "a"), (2, "b"), (3, "c")];
    for voters in &placed {
        assert_eq!(voters.iter().collect::<BTreeSet<_>>().len(), 3);
    }
    assert_eq!(spread(leads(&sites, &placed).into_values()), 1);
    assert_eq!(targets(&sites, &placed, 3), placed, "what is good stays");
}

#[test]
fn a_dead_nodes_shards_spread_over_the_others() {
    let placed = initial(&members(&["a", "b", "c"]), 16, 3);
    let next: Vec<NodeId> = placed.iter().filter(|p| p[0] == 1).map(|p| p[1]).collect();
    assert!(next.contains(&2) && next.contains(&3), "{next:?}");
}

#[test]
fn losing_a_zone_leaves_a_quorum_from_the_start() {
    let nodes = members(&["a", "a", "b", "b", "c", "c"]);
    for voters in initial(&nodes, 64, 3) {
        for zone in ["a", "b", "c"] {
            let left = voters.iter().filter(|id| nodes[**id as usize - 1].zone != zone);
            assert!(left.count() >= 2, "{voters:?} loses its quorum with zone {zone}");
        }
    }
}

#[test]
fn replicas_grow_with_the_nodes_and_stay_odd() {
    let grown: Vec<u8> = (1..=6).map(|nodes| replication(3, nodes)).collect();
    assert_eq!(grown, [1, 1, 3, 3, 3, 3]);
    assert_eq!(replication(5, 4), 3);
    assert_eq!(replication(2, 2), 2, "somebody wants it so");
    assert_eq!((wanted(1, 1), wanted(1, 3), wanted(5, 7)), (3, 1, 5));
}

#[test]
fn from_three_to_five_and_back() {
    let three = [(1, "a"), (2, "b"), (3, "c")];
    let five = [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")];
    let before = initial(&members(&["a", "b", "c"]), 16, 3);
    let grown = targets(&five, &before, 3);
    assert!(spread(loads(&five, &grown).into_values()) <= 1);
    assert!(spread(leads(&five, &grown).into_values()) <= 1);
    assert_eq!(
        moved(&before, &grown),
        18,
        "48 replicas over five nodes: the new ones get 9 each"
    );
    let back = targets(&three, &grown, 3);
    assert_eq!(moved(&grown, &back), 18);
    assert!(back.iter().all(|voters| voters.len() == 3));
}

#[test]
fn one_replica_becomes_three() {
    let before = vec![vec![1]; 4];
    let two = targets(&[(1, "a"), (2, "b")], &before, 1);
    assert_eq!(moved(&before, &two), 2);
    let three = targets(&[(1, "a"), (2, "b"), (3, "c")], &two, 3);
    assert!(three.iter().all(|voters| voters.len() == 3));
    assert_eq!(moved(&two, &three), 8, "nothing is taken away");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Nodes come and go one by one, in zones of equal size where that is possible.
    #[test]
    fn shares_stay_even_zones_apart_and_moves_few(
        shards in 1usize..80, wanted in prop::sample::select(vec![1u8, 3, 5]), zones in 1u64..6,
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..8),
    ) {
        let mut ids: Vec<NodeId> = (0..zones.max(3)).collect();
        let mut next = ids.len() as NodeId;
        let all = sites(ids.clone(), zones);
        let mut placed = targets(&borrowed(&all), &vec![Vec::new(); shards], replication(wanted, ids.len()));
        for (grow, which) in steps {
            if grow || ids.len() <= 3 {
                ids.push(next);
                next += 1;
            } else {
                ids.remove(which.index(ids.len()));
            }
            let replicas = replication(wanted, ids.len());
            let all = sites(ids.clone(), zones);
            let all = borrowed(&all);
            let after = targets(&all, &placed, replicas);
            for voters in &after {
                prop_assert_eq!(voters.iter().collect::<BTreeSet<_>>().len(), usize::from(replicas));
            }
            let of_zone = |zone: &str| all.iter().filter(|(_, z)| *z == zone).count();
            let names: BTreeSet<&str> = all.iter().map(|(_, zone)| *zone).collect();
            let even_zones = spread(names.iter().map(|zone| of_zone(zone))) == 0;
            if even_zones || names.len() == 1 {
                prop_assert!(spread(loads(&all, &after).into_values()) <= 1, "{:?}", loads(&all, &after));
                prop_assert!(spread(leads(&all, &after).into_values()) <= 2, "{:?}", leads(&all, &after));
            }
            let room = names.iter().all(|zone| of_zone(zone) >= usize::from(replicas).div_ceil(names.len()));
            if names.len() >= 3 && replicas >= 3 && room {
                for voters in &after {
                    for name in &names {
                        let left = voters.iter().filter(|id| all.iter().any(|(site, zone)| site == *id && zone != name));
                        prop_assert!(left.count() > usize::from(replicas) / 2, "{voters:?} and zone {name}");
                    }
                }
            }
            prop_assert_eq!(targets(&all, &after, replicas), after.clone(), "a second look moves nothing");
            if even_zones {
                // What must move: replicas of nodes that left, and what the idle nodes lack.
                let kept: Vec<Vec<NodeId>> = placed.iter()
                    .map(|voters| voters.iter().copied().filter(|id| ids.contains(id)).collect()).collect();
                let share = (shards * usize::from(replicas)).div_ceil(ids.len());
                let lack: usize = loads(&all, &kept).into_values().map(|load| share.saturating_sub(load)).sum();
                let gone = placed.iter().flatten().filter(|id| !ids.contains(id)).count();
                prop_assert!(moved(&placed, &after) <= lack + gone, "{} moves", moved(&placed, &after));
            }
            placed = after;
        }
    }
}
