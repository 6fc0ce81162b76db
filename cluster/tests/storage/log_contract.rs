//! The promises of `LogStore`, run against RocksDB and memory alike.

use std::io;
use std::sync::mpsc;

use actors::id::ShardId;
use bytes::Bytes;
use cluster::storage::{LogOp, LogRecord, LogStore};

pub const A: ShardId = ShardId(0);
pub const B: ShardId = ShardId(1);

pub fn append(shard: ShardId, first_index: u64, texts: &[&str]) -> LogOp {
    LogOp::Append {
        shard,
        first_index,
        entries: texts
            .iter()
            .map(|text| Bytes::copy_from_slice(text.as_bytes()))
            .collect(),
    }
}

pub fn truncate(shard: ShardId, last_kept: Option<u64>) -> LogOp {
    LogOp::Truncate { shard, last_kept }
}

pub fn purge(shard: ShardId, up_to: u64) -> LogOp {
    LogOp::Purge {
        shard,
        up_to,
        record: Bytes::from(format!("purged {up_to}")),
    }
}

pub fn put(shard: ShardId, record: LogRecord, value: &str) -> LogOp {
    LogOp::Put {
        shard,
        record,
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

pub fn forget(shard: ShardId) -> LogOp {
    LogOp::Forget {
        shard,
        record: Bytes::from_static(b"ended"),
    }
}

/// Submits and waits for the outcome.
pub fn write(log: &dyn LogStore, op: LogOp) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    log.submit(op, Box::new(move |outcome| tx.send(outcome).unwrap()));
    rx.recv().expect("a completion is called exactly once")
}

/// `1=a 2=b`
pub fn read(log: &dyn LogStore, shard: ShardId) -> String {
    show(log.entries(shard, 0..u64::MAX, usize::MAX).unwrap())
}

fn show(entries: Vec<(u64, Bytes)>) -> String {
    let texts: Vec<String> = entries
        .iter()
        .map(|(index, entry)| format!("{index}={}", String::from_utf8_lossy(entry)))
        .collect();
    texts.join(" ")
}

/// Every row: operations on shard A, then what the whole log reads, its last index, and what has
/// been recorded as purged. Read once while the operations are queued and once when they are durable.
pub fn entries_follow_the_operations(open: &dyn Fn() -> Box<dyn LogStore>) {
    type Row = (Vec<LogOp>, &'static str, Option<u64>, Option<&'static str>);
    let rows: Vec<Row> = vec![
        (vec![], "", None, None),
        (vec![append(A, 1, &[])], "", None, None),
        (
            vec![append(A, 1, &["a", "b"]), append(A, 3, &["c"])],
            "1=a 2=b 3=c",
            Some(3),
            None,
        ),
        (vec![append(A, 0, &["a"])], "0=a", Some(0), None),
        (vec![append(A, 5, &["a", "b"]), purge(A, 5), forget(A)], "", None, None),
        (
            vec![append(A, 5, &["a", "b"]), forget(A), append(A, 0, &["c"])],
            "0=c",
            Some(0),
            None,
        ),
        (
            vec![append(A, 1, &["a", "b", "c"]), truncate(A, Some(1))],
            "1=a",
            Some(1),
            None,
        ),
        (
            vec![
                append(A, 1, &["a", "b", "c"]),
                truncate(A, Some(1)),
                append(A, 2, &["x"]),
            ],
            "1=a 2=x",
            Some(2),
            None,
        ),
        (
            vec![append(A, 1, &["a"]), truncate(A, None), append(A, 1, &["x"])],
            "1=x",
            Some(1),
            None,
        ),
        (vec![append(A, 1, &["a"]), truncate(A, Some(9))], "1=a", Some(1), None),
        (
            vec![append(A, 1, &["a", "b", "c"]), purge(A, 2)],
            "3=c",
            Some(3),
            Some("purged 2"),
        ),
        (
            vec![append(A, 1, &["a", "b", "c"]), purge(A, 1), purge(A, 2)],
            "3=c",
            Some(3),
            Some("purged 2"),
        ),
        (vec![append(A, 1, &["a"]), purge(A, 7)], "", None, Some("purged 7")),
        (
            vec![append(A, 1, &["a"]), purge(A, 7), append(A, 8, &["h"])],
            "8=h",
            Some(8),
            Some("purged 7"),
        ),
        (
            vec![purge(A, 7), append(A, 8, &["h", "i"]), truncate(A, Some(8))],
            "8=h",
            Some(8),
            Some("purged 7"),
        ),
        (
            vec![
                append(A, 1, &["a", "b"]),
                purge(A, 1),
                truncate(A, None),
                append(A, 2, &["x"]),
            ],
            "2=x",
            Some(2),
            Some("purged 1"),
        ),
        (
            vec![append(B, 1, &["z"]), append(A, 1, &["a"]), truncate(B, None)],
            "1=a",
            Some(1),
            None,
        ),
    ];
    for (ops, expected, last, purged) in rows {
        let log = open();
        let (tx, rx) = mpsc::channel();
        let submitted = ops.len();
        for op in ops.clone() {
            let tx = tx.clone();
            log.submit(op, Box::new(move |outcome| tx.send(outcome).unwrap()));
        }
        assert_eq!(read(&*log, A), expected, "queued {ops:?}");
        for _ in 0..submitted {
            rx.recv().unwrap().unwrap();
        }
        assert_eq!(read(&*log, A), expected, "durable {ops:?}");
        assert_eq!(log.last_index(A).unwrap(), last, "{ops:?}");
        let record = log.record(A, LogRecord::Purged).unwrap();
        assert_eq!(record.as_deref(), purged.map(str::as_bytes), "{ops:?}");
    }
}

pub fn records_keep_their_newest_value(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log = open();
    for value in ["1", "2", "3"] {
        log.submit(put(A, LogRecord::Vote, value), Box::new(|outcome| outcome.unwrap()));
    }
    assert_eq!(log.record(A, LogRecord::Vote).unwrap().unwrap(), "3");
    write(&*log, put(A, LogRecord::Committed, "c")).unwrap();
    assert_eq!(log.record(A, LogRecord::Vote).unwrap().unwrap(), "3");
    assert_eq!(log.record(A, LogRecord::Committed).unwrap().unwrap(), "c");
    assert_eq!(log.record(B, LogRecord::Vote).unwrap(), None);
}

pub fn reads_stay_within_the_range_and_the_bytes(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log = open();
    write(&*log, append(A, 1, &["aaaa", "bbbb", "cccc"])).unwrap();
    log.submit(append(A, 4, &["dddd", "eeee"]), Box::new(|outcome| outcome.unwrap()));
    let read = |range, bytes_max| show(log.entries(A, range, bytes_max).unwrap());
    assert_eq!(read(2..5, usize::MAX), "2=bbbb 3=cccc 4=dddd");
    assert_eq!(read(2..2, usize::MAX), "");
    assert_eq!(read(1..9, 0), "1=aaaa");
    assert_eq!(read(1..9, 5), "1=aaaa 2=bbbb");
    assert_eq!(read(3..9, 8), "3=cccc 4=dddd");
    assert_eq!(read(9..12, usize::MAX), "");
    write(&*log, purge(A, 2)).unwrap();
    assert_eq!(read(1..4, usize::MAX), "3=cccc");
}

/// A hole would lose entries, an overwrite would change the past: both end the store.
pub fn an_append_out_of_place_is_refused_for_good(open: &dyn Fn() -> Box<dyn LogStore>) {
    for out_of_place in [append(A, 2, &["x"]), append(A, 4, &["x"]), append(A, 1, &["x"])] {
        let log = open();
        write(&*log, append(A, 1, &["a", "b"])).unwrap();
        write(&*log, out_of_place).unwrap_err();
        write(&*log, append(A, 3, &["c"])).unwrap_err();
        write(&*log, append(B, 1, &["c"])).unwrap_err();
    }
}

pub fn completions_run_in_order_of_submission(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log = open();
    let (tx, rx) = mpsc::channel();
    for index in 1..=1000 {
        let tx = tx.clone();
        log.submit(append(A, index, &["x"]), Box::new(move |_| tx.send(index).unwrap()));
    }
    let order: Vec<u64> = rx.iter().take(1000).collect();
    assert_eq!(order, (1..=1000).collect::<Vec<u64>>());
}

pub fn close_completes_what_is_queued_and_refuses_the_rest(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log = open();
    let (tx, rx) = mpsc::channel();
    for index in 1..=100 {
        let tx = tx.clone();
        log.submit(
            append(A, index, &["x"]),
            Box::new(move |outcome| tx.send(outcome).unwrap()),
        );
    }
    log.close();
    log.close();
    drop(tx);
    assert_eq!(rx.iter().filter(Result::is_ok).count(), 100);
    write(&*log, append(A, 101, &["x"])).unwrap_err();
}

/// Neither may wait for the thread that runs completions.
pub fn a_completion_may_read_and_submit(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log: std::sync::Arc<dyn LogStore> = open().into();
    let (tx, rx) = mpsc::channel();
    let inner = log.clone();
    log.submit(
        append(A, 1, &["a"]),
        Box::new(move |outcome| {
            outcome.unwrap();
            let submitted = tx.clone();
            inner.submit(
                append(A, 2, &["b"]),
                Box::new(move |outcome| submitted.send(format!("{outcome:?}")).unwrap()),
            );
            tx.send(read(&*inner, A)).unwrap();
        }),
    );
    assert_eq!(rx.recv().unwrap(), "1=a 2=b");
    assert_eq!(rx.recv().unwrap(), "Ok(())");
}

/// What was voted outlives everything else that a replica gives back.
pub fn forgetting_keeps_the_vote_and_says_where_the_log_ended(open: &dyn Fn() -> Box<dyn LogStore>) {
    let log = open();
    let records = |log: &dyn LogStore| {
        [
            LogRecord::Vote,
            LogRecord::Committed,
            LogRecord::Purged,
            LogRecord::Retired,
        ]
        .map(|record| log.record(A, record).unwrap())
    };
    log.submit(put(A, LogRecord::Vote, "for 2"), Box::new(|_| {}));
    log.submit(put(A, LogRecord::Committed, "6"), Box::new(|_| {}));
    log.submit(append(A, 1, &["a", "b"]), Box::new(|_| {}));
    log.submit(append(B, 1, &["x"]), Box::new(|_| {}));
    log.submit(purge(A, 1), Box::new(|_| {}));
    log.submit(forget(A), Box::new(|_| {}));
    let expected = [
        Some(Bytes::from_static(b"for 2")),
        None,
        None,
        Some(Bytes::from_static(b"ended")),
    ];
    assert_eq!(records(&*log), expected, "while it is on its way");
    write(&*log, put(B, LogRecord::Vote, "for 1")).unwrap();
    assert_eq!(records(&*log), expected, "on disk");
    assert_eq!(read(&*log, A), "");
    assert_eq!(read(&*log, B), "1=x", "another shard's log");
}
