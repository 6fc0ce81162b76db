//! The journal of a led shard: batches what its devices decided into proposals, and answers in
//! the order of submission.
//!
//! No timer: while proposals are in flight the next batch grows by itself. One per term of
//! leadership; the first failure ends it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actors::device::{Answer, Refusal};
use actors::id::{DeviceKey, NodeId};
use actors::ports::{CallError, Downlink, Journal, Reply, ReplyTo, Submission, Ticket};
use actors::wire::receipt::Receipt;
use bytes::Bytes;
use tokio::sync::{mpsc, Notify};

use super::batch::Builder;
use super::pace::{Pace, Seat, Turn};
use super::reads;
use crate::raft::group::{Group, ProposeError, Proposed};

/// Proposals of one shard that may be in flight at once.
const IN_FLIGHT_MAX: usize = 1;
/// Items and bytes of one proposal.
const BATCH_ITEMS_MAX: usize = 4096;
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A leader that has not heard from a quorum takes nothing new: its proposals are made again after
/// this pause, for this long. They were not appended, and nothing has to be read again.
const NOT_NOW_PAUSE: Duration = Duration::from_millis(10);
const NOT_NOW_PATIENCE: Duration = Duration::from_secs(2);

/// Barriers that may wait for one proposal.
const BARRIERS_MAX: usize = 1024;

/// Runs once what it was given has been read behind everything submitted before.
pub type Barrier = Box<dyn FnOnce(Result<(), CallError>) + Send>;

struct Pending {
    key: DeviceKey,
    /// Position in the proposal; `None` for an item without events.
    position: Option<u32>,
    outcome: Result<Answer, Refusal>,
    reply: ReplyTo,
    downlinks: Vec<Downlink>,
}

#[derive(Default)]
struct Batch {
    builder: Builder,
    pending: Vec<Pending>,
    barriers: Vec<Barrier>,
    /// Ticket of the last item.
    last: Ticket,
}

impl Batch {
    fn with_room(bytes: usize) -> Self {
        Self {
            builder: Builder::with_room(bytes),
            ..Self::default()
        }
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= BATCH_ITEMS_MAX || self.builder.len_bytes() >= BATCH_BYTES_MAX
    }
}

struct InFlight {
    id: u64,
    batch: Batch,
    proposed: tokio::time::Instant,
    /// `None` for reads.
    payload: Option<Bytes>,
    result: Option<Proposed>,
    /// In the round this left with.
    _seat: Seat,
}

/// What the flush task and the device actors share.
pub struct ShardJournal {
    group: Group,
    downlink: Rc<dyn Fn(Downlink)>,
    waiting: RefCell<VecDeque<Batch>>,
    in_flight: RefCell<VecDeque<InFlight>>,
    tickets: Cell<u64>,
    settled: Cell<Ticket>,
    /// What the last proposal came to; a guess at the next.
    batch_bytes: Cell<usize>,
    next_id: Cell<u64>,
    /// Nothing new is proposed while leadership is being handed over.
    held: Cell<bool>,
    failed: Cell<bool>,
    work: Arc<Notify>,
    pace: Arc<Pace>,
    turn: Arc<Turn>,
    replicate_seconds: metrics::Histogram,
    batch_items: metrics::Histogram,
}

impl Journal for ShardJournal {
    fn submit(&self, item: Submission) -> Ticket {
        let ticket = Ticket(self.tickets.get() + 1);
        self.tickets.set(ticket.0);
        if self.failed.get() {
            item.reply.send(Err(self.not_leader(None)));
            return ticket;
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.back().is_none_or(Batch::is_full) {
            waiting.push_back(Batch::with_room(self.batch_bytes.get()));
        }
        let batch = waiting.back_mut().expect("one was pushed if there was none");
        let position =
            (!item.events.is_empty()).then(|| batch.builder.push(&item.key, item.prev_version, item.at, &item.events));
        batch.pending.push(Pending {
            key: item.key,
            position,
            outcome: item.outcome,
            reply: item.reply,
            downlinks: item.downlinks,
        });
        batch.last = ticket;
        self.work.notify_one();
        ticket
    }

    fn settled(&self) -> Ticket {
        self.settled.get()
    }
}

impl ShardJournal {
    pub fn new(group: Group, pace: Arc<Pace>, downlink: Rc<dyn Fn(Downlink)>) -> Rc<Self> {
        let work = Arc::new(Notify::new());
        Rc::new(Self {
            group,
            downlink,
            waiting: RefCell::default(),
            in_flight: RefCell::default(),
            tickets: Cell::new(0),
            settled: Cell::default(),
            batch_bytes: Cell::default(),
            next_id: Cell::new(0),
            held: Cell::new(false),
            failed: Cell::new(false),
            turn: Turn::new(work.clone()),
            work,
            pace,
            replicate_seconds: metrics::histogram!("holdfast_stage_seconds", "stage" => "replicate"),
            batch_items: metrics::histogram!("holdfast_batch_items"),
        })
    }

    /// Runs `done` once everything submitted so far has been answered and this node is known to
    /// lead still.
    pub fn barrier(&self, done: Barrier) {
        if self.failed.get() {
            return done(Err(self.not_leader(None)));
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            waiting.push_back(Batch::default());
        }
        let batch = waiting.back_mut().expect("one was pushed if there was none");
        if batch.barriers.len() >= BARRIERS_MAX {
            return done(Err(CallError::Overloaded {
                what: "reads of this shard".into(),
            }));
        }
        batch.last = batch.last.max(Ticket(self.tickets.get()));
        batch.barriers.push(done);
        self.work.notify_one();
    }

    /// Stops proposing (or goes on). What is submitted meanwhile waits.
    pub fn hold(&self, held: bool) {
        self.held.set(held);
        self.work.notify_one();
    }

    /// Leadership is lost: what waits was not committed, what is in flight ends as its proposal does.
    pub fn give_up(&self) {
        self.fail(None);
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.borrow().is_empty()
    }

    /// Items waiting or in flight.
    pub fn depth(&self) -> usize {
        let waiting: usize = self.waiting.borrow().iter().map(|b| b.pending.len()).sum();
        let in_flight: usize = self.in_flight.borrow().iter().map(|f| f.batch.pending.len()).sum();
        waiting + in_flight
    }

    /// Proposes and settles until the journal has failed or is dropped by everyone else; runs on
    /// the shard's arbiter. Returns when nothing more will be answered here.
    pub async fn run(self: Rc<Self>, mut stop: tokio::sync::watch::Receiver<bool>) {
        let (tx, mut results) = mpsc::unbounded_channel::<(u64, Proposed)>();
        loop {
            self.propose_what_fits(&tx).await;
            if self.failed.get() && self.is_idle() {
                return;
            }
            tokio::select! {
                biased;
                Some((id, result)) = results.recv() => {
                    self.note(id, result, &tx);
                    while let Ok((id, result)) = results.try_recv() {
                        self.note(id, result, &tx);
                    }
                    self.settle();
                }
                () = self.work.notified() => {}
                _ = stop.wait_for(|stopped| *stopped) => {
                    self.fail(None);
                    return self.abandon();
                }
            }
        }
    }

    async fn propose_what_fits(&self, tx: &mpsc::UnboundedSender<(u64, Proposed)>) {
        while self.in_flight.borrow().len() < IN_FLIGHT_MAX {
            let seat = self.turn.take();
            if self.held.get() || self.failed.get() || self.waiting.borrow().is_empty() {
                return;
            }
            let Some(seat) = seat else {
                return self.pace.ask(&self.turn);
            };
            let Some(batch) = self.waiting.borrow_mut().pop_front() else {
                return;
            };
            self.propose(batch, seat, tx.clone()).await;
        }
    }

    async fn propose(&self, mut batch: Batch, seat: Seat, tx: mpsc::UnboundedSender<(u64, Proposed)>) {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.batch_bytes.set(batch.builder.len_bytes());
        let payload = (!batch.builder.is_empty()).then(|| batch.builder.take());
        self.batch_items.record(batch.pending.len() as f64);
        seat.carries(batch.pending.len());
        let proposed = tokio::time::Instant::now();
        self.in_flight.borrow_mut().push_back(InFlight {
            id,
            batch,
            proposed,
            payload: payload.clone(),
            result: None,
            _seat: seat,
        });
        #[cfg(feature = "planted")]
        let planted_tx = tx.clone();
        let done = move |result| {
            // Nobody listens once the journal was abandoned; its callers know by then.
            let _ = tx.send((id, result));
        };
        #[cfg(feature = "planted")]
        if payload.is_some() && actors::planted::is(actors::planted::Planted::AckBeforeQuorum) {
            self.lose_patience(id, planted_tx);
        }
        match payload {
            Some(payload) => self.group.propose(payload, done).await,
            None => {
                // Only reads: no entry is needed, only the certainty that this node still leads.
                let group = self.group.clone();
                tokio::task::spawn_local(crate::raft::group::seeded(id, async move {
                    done(match group.read_index().await {
                        Ok(()) => Ok(crate::raft::group::Committed {
                            at: Default::default(),
                            misfits: Vec::new(),
                            torn: Vec::new(),
                        }),
                        Err(leader) => Err(ProposeError::Rejected { leader }),
                    });
                }));
            }
        }
    }

    /// Says of a proposal, after a moment, that it is committed.
    #[cfg(feature = "planted")]
    fn lose_patience(&self, id: u64, tx: mpsc::UnboundedSender<(u64, Proposed)>) {
        let group = self.group.clone();
        tokio::task::spawn_local(crate::raft::group::seeded(id, async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let at = crate::raft::machine::Position {
                term: group.role().term,
                index: group.applied_index() + 1,
            };
            let (misfits, torn) = (Vec::new(), Vec::new());
            let _ = tx.send((id, Ok(crate::raft::group::Committed { at, misfits, torn })));
        }));
    }

    fn note(self: &Rc<Self>, id: u64, result: Proposed, tx: &mpsc::UnboundedSender<(u64, Proposed)>) {
        let mut in_flight = self.in_flight.borrow_mut();
        let Some(flight) = in_flight.iter_mut().find(|f| f.id == id) else {
            return;
        };
        match &flight.payload {
            Some(payload)
                if result == Err(ProposeError::NotNow)
                    && !self.failed.get()
                    && flight.proposed.elapsed() < NOT_NOW_PATIENCE =>
            {
                self.propose_again(id, payload.clone(), tx.clone());
            }
            _ => flight.result = Some(result),
        }
    }

    /// Shortly, unless leadership has been lost by then: what was decided for one term must not be
    /// proposed in the next.
    fn propose_again(self: &Rc<Self>, id: u64, payload: Bytes, tx: mpsc::UnboundedSender<(u64, Proposed)>) {
        let journal = self.clone();
        tokio::task::spawn_local(crate::raft::group::seeded(id, async move {
            tokio::time::sleep(NOT_NOW_PAUSE).await;
            let done = move |result| {
                let _ = tx.send((id, result));
            };
            match journal.failed.get() {
                true => done(Err(ProposeError::Rejected { leader: None })),
                false => journal.group.propose(payload, done).await,
            }
        }));
    }

    /// Answers, from the front, every proposal whose result is known.
    fn settle(&self) {
        loop {
            let flight = {
                let mut in_flight = self.in_flight.borrow_mut();
                match in_flight.front() {
                    Some(front) if front.result.is_some() => in_flight.pop_front().expect("front was there"),
                    _ => return,
                }
            };
            self.replicate_seconds.record(flight.proposed.elapsed().as_secs_f64());
            let last = flight.batch.last;
            match flight.result.expect("checked above") {
                Ok(committed) => self.answer(flight.batch, &committed),
                Err(error) => self.answer_failed(flight.batch, &error),
            }
            self.settled.set(self.settled.get().max(last));
        }
    }

    fn answer(&self, batch: Batch, committed: &crate::raft::group::Committed) {
        if !committed.misfits.is_empty() || !committed.torn.is_empty() {
            self.fail(Some(self.group.node));
        }
        // After a failure, what was only read may rest on events that never happened.
        let torn = self.failed.get();
        for pending in batch.pending {
            match pending.position {
                None if torn => pending.reply.send(Err(self.not_leader(None))),
                Some(position) if committed.torn.contains(&position) => pending.reply.send(Err(CallError::Unknown)),
                // A no-op for good: it will not be committed later either.
                Some(position) if committed.misfits.contains(&position) => {
                    pending.reply.send(Err(self.not_leader(None)));
                }
                position => self.answer_one(pending, position.map(|_| committed.at)),
            }
        }
        for barrier in batch.barriers {
            barrier(if torn { Err(self.not_leader(None)) } else { Ok(()) });
        }
    }

    fn answer_one(&self, pending: Pending, at: Option<crate::raft::machine::Position>) {
        let Pending {
            key,
            outcome,
            reply,
            downlinks,
            ..
        } = pending;
        for note in downlinks {
            (self.downlink)(note);
        }
        reply.send(match outcome {
            Ok(answer) => {
                let receipt = self.receipt(&key, &answer, at);
                Ok(Reply { answer, receipt })
            }
            Err(refusal) => Err(CallError::Refused(refusal)),
        });
    }

    fn receipt(&self, key: &DeviceKey, answer: &Answer, at: Option<crate::raft::machine::Position>) -> Option<Receipt> {
        let shard = self.group.shard;
        match (answer, at) {
            // Acknowledged again: the evidence is of the first time.
            (Answer::Telemetry { seq, repeated: true }, _) if *seq > 0 => {
                reads::receipt_of(&self.group.shared, key, *seq).unwrap_or_else(|error| {
                    // It is acknowledged all the same: it was committed.
                    tracing::error!(device = %key, %error, "no evidence can be read");
                    None
                })
            }
            (Answer::Telemetry { repeated: true, .. }, _) | (_, None) => None,
            (Answer::Telemetry { seq, .. }, Some(at)) => Some(Receipt {
                shard,
                term: at.term,
                index: at.index,
                seq: *seq,
            }),
            (_, Some(at)) => Some(Receipt {
                shard,
                term: at.term,
                index: at.index,
                seq: 0,
            }),
        }
    }

    fn answer_failed(&self, batch: Batch, error: &ProposeError) {
        let leader = match error {
            ProposeError::Rejected { leader } => *leader,
            ProposeError::NotNow | ProposeError::Unknown => None,
        };
        // A read that could not be confirmed says nothing about what was written.
        if batch.pending.iter().any(|pending| pending.position.is_some()) {
            self.fail(leader);
        }
        let unknown = *error == ProposeError::Unknown;
        for pending in batch.pending {
            let maybe = unknown && pending.position.is_some();
            pending.reply.send(Err(if maybe {
                CallError::Unknown
            } else {
                self.not_leader(leader)
            }));
        }
        for barrier in batch.barriers {
            barrier(Err(self.not_leader(leader)));
        }
    }

    /// Nothing more is proposed; what was not proposed yet is certain not to have happened.
    fn fail(&self, leader: Option<NodeId>) {
        self.failed.set(true);
        for batch in std::mem::take(&mut *self.waiting.borrow_mut()) {
            for pending in batch.pending {
                pending.reply.send(Err(self.not_leader(leader)));
            }
            for barrier in batch.barriers {
                barrier(Err(self.not_leader(leader)));
            }
        }
        self.work.notify_one();
    }

    /// Leaves what is in flight to its callers as unknown.
    fn abandon(&self) {
        for flight in std::mem::take(&mut *self.in_flight.borrow_mut()) {
            let error = match flight.result {
                Some(Err(error)) => error,
                _ => ProposeError::Unknown,
            };
            self.answer_failed(flight.batch, &error);
        }
        self.settled.set(Ticket(self.tickets.get()));
    }

    fn not_leader(&self, leader: Option<NodeId>) -> CallError {
        let leader = leader.or_else(|| self.group.role().leader);
        CallError::NotLeader {
            shard: self.group.shard,
            leader,
        }
    }
}
