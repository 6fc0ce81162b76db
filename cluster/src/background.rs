//! The one thread that does what may block for long: flushing the state store, hashing a shard,
//! reading a snapshot. Driven by messages only.

use std::io;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::Mutex;
use std::thread::JoinHandle;

/// Jobs that may wait; a further one is refused (its caller retries later).
const JOBS_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

pub struct Background {
    tx: Mutex<Option<SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    /// # Errors
    /// The process may not start another thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let (tx, rx) = sync_channel::<Job>(JOBS_MAX);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(job) = rx.recv() {
                // One failed job must not end the others; its caller sees a dropped reply.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a background job panicked");
                }
            }
        })?;
        Ok(Self {
            tx: Mutex::new(Some(tx)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a job and says whether it was taken: a full or stopped queue drops it.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let tx = self.tx.lock().expect("no holder of this lock panics").clone();
        let taken = tx.is_some_and(|tx| tx.try_send(Box::new(job)).is_ok());
        if !taken {
            tracing::warn!("background job refused: queue full or stopped");
        }
        taken
    }

    /// Runs a job and waits for its result.
    ///
    /// # Errors
    /// The job was refused or panicked.
    pub async fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.run(move || {
            let _ = tx.send(job());
        });
        rx.await
            .map_err(|_| io::Error::other("the background job did not run to its end"))
    }

    /// Finishes what is queued and ends the thread.
    pub fn stop(&self) {
        self.tx.lock().expect("no holder of this lock panics").take();
        if let Some(thread) = self.thread.lock().expect("no holder of this lock panics").take() {
            if thread.join().is_err() {
                tracing::error!("the background thread panicked");
            }
        }
    }
}
