//! The promises of `StateStore`, run against RocksDB and memory alike.

use cluster::storage::{StateBatch, StateOp, StateStore, StateView};

type Open<'a> = &'a dyn Fn() -> Box<dyn StateStore>;

pub fn put(key: &str, value: &str) -> StateOp {
    StateOp::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn delete(key: &str) -> StateOp {
    StateOp::Delete { key: key.into() }
}

fn delete_range(from: &str, to: &str) -> StateOp {
    StateOp::DeleteRange {
        from: from.into(),
        to: to.into(),
    }
}

pub fn write(state: &dyn StateStore, ops: Vec<StateOp>) {
    state.write(StateBatch { ops }).unwrap();
}

/// `a=1 b=2`
pub fn read(view: &dyn StateView) -> String {
    scan(view, "", "\u{7f}", usize::MAX)
}

fn scan(view: &dyn StateView, from: &str, to: &str, rows_max: usize) -> String {
    let mut rows = Vec::new();
    view.scan(from.as_bytes(), to.as_bytes(), &mut |key, value| {
        rows.push(format!(
            "{}={}",
            String::from_utf8_lossy(key),
            String::from_utf8_lossy(value)
        ));
        rows.len() < rows_max
    })
    .unwrap();
    rows.join(" ")
}

pub fn a_write_is_visible_at_once(open: Open<'_>) {
    let state = open();
    assert_eq!(state.get(b"a").unwrap(), None);
    write(&*state, vec![put("a", "1"), put("b", "")]);
    assert_eq!(state.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(state.get(b"b").unwrap().unwrap(), b"");
    assert_eq!(state.view().get(b"a").unwrap().unwrap(), b"1");
    assert!(state.unflushed_bytes() > 0);
}

pub fn operations_of_a_batch_act_in_order(open: Open<'_>) {
    let rows = [
        (vec![put("a", "1"), put("a", "2")], "a=2"),
        (vec![put("a", "1"), delete("a")], ""),
        (vec![delete("a"), put("a", "1")], "a=1"),
        (
            vec![put("a", "1"), put("b", "1"), put("c", "1"), delete_range("a", "c")],
            "c=1",
        ),
        (vec![put("a", "1"), delete_range("a", "c"), put("b", "2")], "b=2"),
        (
            vec![
                put("a", "1"),
                put("b", "1"),
                delete_range("b", "b"),
                delete_range("c", "a"),
            ],
            "a=1 b=1",
        ),
    ];
    for (ops, expected) in rows {
        let state = open();
        write(&*state, ops.clone());
        assert_eq!(read(&*state.view()), expected, "{ops:?}");
        let state = open();
        ops.iter().for_each(|op| write(&*state, vec![op.clone()]));
        assert_eq!(read(&*state.view()), expected, "one by one: {ops:?}");
    }
}

pub fn a_scan_holds_its_range_in_key_order(open: Open<'_>) {
    let state = open();
    write(
        &*state,
        ["d", "b", "a", "c", "bb"].iter().map(|key| put(key, "1")).collect(),
    );
    let view = state.view();
    assert_eq!(scan(&*view, "b", "d", usize::MAX), "b=1 bb=1 c=1");
    assert_eq!(scan(&*view, "b", "d", 2), "b=1 bb=1");
    assert_eq!(scan(&*view, "b", "b", usize::MAX), "");
    assert_eq!(scan(&*view, "d", "b", usize::MAX), "");
}

pub fn a_view_stays_as_it_was_taken(open: Open<'_>) {
    let state = open();
    write(&*state, vec![put("a", "1"), put("b", "1")]);
    let view = state.view();
    write(&*state, vec![put("a", "2"), put("c", "2"), delete_range("b", "c")]);
    state.flush().unwrap();
    assert_eq!(read(&*state.view()), "a=2 c=2");
    drop(state);
    assert_eq!(read(&*view), "a=1 b=1");
    assert_eq!(view.get(b"a").unwrap().unwrap(), b"1");
}

pub fn flushing_changes_nothing_that_is_read(open: Open<'_>) {
    let state = open();
    for round in 0..3 {
        write(
            &*state,
            vec![put("a", &round.to_string()), put(&format!("k{round}"), "1")],
        );
        let before = read(&*state.view());
        state.flush().unwrap();
        state.flush().unwrap();
        assert_eq!(read(&*state.view()), before);
    }
    assert_eq!(state.get(b"a").unwrap().unwrap(), b"2");
}
