//! How a device actor's future gets onto a thread.
//!
//! A port, so that a simulation can run the actors of all its nodes in one `LocalSet`, or order
//! them itself. Which thread that is, and whether there is an actix `System`, is not known here.

use std::rc::Rc;

use futures::future::LocalBoxFuture;

/// Takes a future that never leaves this thread and drives it until it ends. A panic in it must
/// end this future only.
pub type Spawn = Rc<dyn Fn(LocalBoxFuture<'static, ()>)>;

/// Spawns on the `LocalSet` that is current when the host is called: an actix arbiter, a
/// `tokio::task::LocalSet`, a turmoil host.
pub fn on_this_local_set() -> Spawn {
    // tokio catches the panic of a task at its edge; nobody waits for the handle.
    Rc::new(|future| drop(actix_rt::spawn(future)))
}
