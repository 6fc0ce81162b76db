//! Ids are given once, holders are never forgotten too early, decisions on old epochs are refused.

use super::*;

fn record(uuid: u128, port: u16) -> NodeRecord {
    NodeRecord {
        uuid,
        boot: 1,
        zone: "a".into(),
        version: "1".into(),
        mqtt: format!("127.0.0.1:{port}"),
        http: format!("127.0.0.1:{}", port + 1),
        peer: format!("127.0.0.1:{}", port + 2),
        draining: false,
        stage: Stage::Member,
    }
}

/// Three founders, two shards.
fn placed() -> Catalog {
    let mut catalog = Catalog::default();
    let nodes = (1..=3)
        .map(|id| (id, record(u128::from(id), 100 * id as u16)))
        .collect();
    assert!(catalog.apply(CatalogCommand::Place {
        replication: 3,
        replication_wanted: 3,
        nodes,
        group: vec![1, 2, 3],
        shards: vec![vec![1, 2, 3]; 2],
    }));
    catalog
}

fn aim(catalog: &Catalog, shards: Vec<Vec<NodeId>>, leaving: Option<(NodeId, bool)>) -> CatalogCommand {
    CatalogCommand::Aim {
        epoch: catalog.epoch,
        at: Timestamp(1_000),
        replication: 3,
        replication_wanted: 3,
        shards,
        group: catalog.group.target.clone(),
        leaving,
    }
}

fn note(shard: u16, index: u64, voters: &[NodeId], members: &[NodeId]) -> CatalogCommand {
    CatalogCommand::Note {
        shard: ShardId(shard),
        at: Position { term: 1, index },
        voters: voters.iter().copied().collect(),
        members: members.iter().copied().collect(),
    }
}

fn admit(uuid: u128, port: u16, wanted: Option<NodeId>) -> CatalogCommand {
    admit_where(uuid, port, wanted, &[])
}

fn admit_where(uuid: u128, port: u16, wanted: Option<NodeId>, vacant: &[NodeId]) -> CatalogCommand {
    CatalogCommand::Admit {
        wanted,
        record: record(uuid, port),
        vacant: vacant.iter().copied().collect(),
    }
}

/// A damaged node's host may run its replacement before the cluster lets go of the old one.
#[test]
fn a_newcomer_may_listen_where_a_node_did_that_does_not_run() {
    let mut catalog = placed();
    assert!(!catalog.apply(admit_where(77, 200, None, &[1, 3])), "2 runs there");
    assert!(catalog.apply(admit_where(77, 200, None, &[2])));
    assert_eq!(
        (catalog.stage(2), catalog.stage(4)),
        (Some(Stage::Member), Some(Stage::Joining))
    );
}

#[test]
fn an_id_is_given_once_and_again_only_to_the_same_directory() {
    let mut catalog = placed();
    assert!(catalog.apply(admit(77, 400, None)));
    assert_eq!((catalog.stage(4), catalog.next_node), (Some(Stage::Joining), 5));
    let epoch = catalog.epoch;
    assert!(catalog.apply(admit(77, 400, None)), "it asks again");
    assert!(catalog.apply(admit(77, 400, Some(4))));
    assert_eq!(catalog.epoch, epoch, "which changes nothing");
    assert!(!catalog.apply(admit(77, 400, Some(9))), "it is node 4");
    assert!(!catalog.apply(admit(78, 500, Some(3))), "3 is somebody's");
    assert!(!catalog.apply(admit(79, 100, None)), "node 1 listens there");
    assert!(catalog.apply(admit(80, 400, None)), "node 4 never came");
    assert_eq!(
        (catalog.stage(4), catalog.stage(5)),
        (Some(Stage::Removed), Some(Stage::Joining))
    );
    assert!(!catalog.apply(admit(77, 600, None)), "4 is over for good");
}

#[test]
fn a_node_is_bound_to_the_directory_it_registered_with() {
    let mut catalog = placed();
    catalog.apply(admit(77, 400, None));
    let register = |uuid| CatalogCommand::Register {
        node: 4,
        record: record(uuid, 400),
    };
    assert!(!catalog.apply(register(78)));
    assert!(catalog.apply(register(77)));
    assert_eq!(catalog.stage(4), Some(Stage::Member));
    let stranger = CatalogCommand::Register {
        node: 9,
        record: record(9, 900),
    };
    assert!(!catalog.apply(stranger), "no id was given");
}

#[test]
fn a_target_that_was_decided_on_an_older_epoch_is_refused() {
    let mut catalog = placed();
    let stale = aim(&catalog, vec![vec![1, 2, 3]; 2], None);
    catalog.apply(CatalogCommand::SetDraining {
        node: 1,
        draining: true,
    });
    assert!(!catalog.apply(stale));
}

/// Whoever may have a replica is a holder until the group's own membership says otherwise.
#[test]
fn a_holder_stays_one_until_the_membership_lets_go_of_it() {
    let mut catalog = placed();
    let change = aim(&catalog, vec![vec![1, 2, 4], vec![1, 2, 3]], None);
    assert!(catalog.apply(change));
    assert_eq!(catalog.shards[0].holders, BTreeSet::from([1, 2, 3, 4]));
    assert_eq!(catalog.moving.map(|moving| moving.replicas), Some(1));
    catalog.apply(note(0, 5, &[1, 2, 4], &[1, 2, 4]));
    assert_eq!(catalog.shards[0].voters, [1, 2, 4]);
    assert_eq!(catalog.shards[0].holders, BTreeSet::from([1, 2, 4]));
    assert_eq!(catalog.moving, None, "all is where it shall be");
    // Aimed elsewhere in the middle: who votes now is kept.
    let change = aim(&catalog, vec![vec![5, 6, 7], vec![1, 2, 3]], None);
    catalog.apply(change);
    catalog.apply(note(0, 6, &[1, 4, 5], &[1, 4, 5, 6]));
    let change = aim(&catalog, vec![vec![1, 2, 3], vec![1, 2, 3]], None);
    catalog.apply(change);
    assert!(catalog.shards[0]
        .holders
        .is_superset(&BTreeSet::from([1, 2, 3, 4, 5, 6])));
    assert!(!catalog.apply(note(0, 5, &[1, 2, 4], &[1, 2, 4])), "older news");
}

#[test]
fn a_node_has_left_when_nothing_names_it() {
    let mut catalog = placed();
    catalog.apply(admit(77, 400, None));
    catalog.apply(CatalogCommand::Register {
        node: 4,
        record: record(77, 400),
    });
    assert!(
        !catalog.apply(CatalogCommand::Gone { node: 3 }),
        "it is not even leaving"
    );
    let change = aim(&catalog, vec![vec![1, 2, 4]; 2], Some((3, false)));
    catalog.apply(change);
    assert_eq!((catalog.stage(3), catalog.is_draining(3)), (Some(Stage::Leaving), true));
    catalog.apply(note(0, 5, &[1, 2, 4], &[1, 2, 4]));
    assert!(!catalog.apply(CatalogCommand::Gone { node: 3 }), "it has shard 1");
    catalog.apply(note(1, 5, &[1, 2, 4], &[1, 2, 4]));
    assert!(
        !catalog.apply(CatalogCommand::Gone { node: 3 }),
        "it votes for the catalog"
    );
    catalog.group.target = vec![1, 2, 4];
    catalog.apply(note(u16::MAX, 5, &[1, 2, 4], &[1, 2, 3, 4]));
    assert!(catalog.apply(CatalogCommand::Gone { node: 3 }));
    assert_eq!(catalog.stage(3), Some(Stage::Removed));
    let register = CatalogCommand::Register {
        node: 3,
        record: record(3, 300),
    };
    assert!(!catalog.apply(register), "it does not come back");
}

#[test]
fn tokens_are_bounded_and_forgotten_when_they_expire() {
    let mut catalog = placed();
    let add = |n: u64, created: u64| CatalogCommand::AddToken {
        id: n.to_string(),
        token: JoinToken {
            hash: [0; 32],
            created: Timestamp(created),
            expires: Timestamp(created + 10),
        },
    };
    for n in 0..super::super::token::TOKENS_MAX as u64 {
        assert!(catalog.apply(add(n, 0)));
    }
    assert!(!catalog.apply(add(999, 9)));
    assert!(catalog.apply(add(999, 10)), "the others have expired");
    assert_eq!(catalog.tokens.len(), 1);
    assert!(catalog.apply(CatalogCommand::RevokeToken { id: "999".into() }));
    assert!(!catalog.apply(CatalogCommand::RevokeToken { id: "999".into() }));
}
