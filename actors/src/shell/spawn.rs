//! How a device actor's future gets onto a thread.
//!
//! A port, so that a simulation can run the actors of all its nodes in one `LocalSet`, or order
//! them itself. Which thread that is, and whether there is an actix `System`, is not known here.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task;

use actix::dev::ContextFut;
use actix::Context;

use super::device_actor::DeviceActor;

/// The life of one device actor, as a future that never leaves its thread. Boxed, because tokio
/// rounds its tasks up to 128 bytes: measured, 50 bytes less per active device.
pub struct DeviceTask(pub(super) Box<ContextFut<DeviceActor, Context<DeviceActor>>>);

impl Future for DeviceTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<()> {
        Pin::new(&mut self.0).poll(context)
    }
}

/// Takes a device's task and drives it until it ends. A panic in it must end this task only.
pub type Spawn = Rc<dyn Fn(DeviceTask)>;

/// Spawns on the `LocalSet` that is current when the host is called: an actix arbiter, a
/// `tokio::task::LocalSet`, a turmoil host.
pub fn on_this_local_set() -> Spawn {
    // tokio catches the panic of a task at its edge; nobody waits for the handle.
    Rc::new(|task| drop(actix_rt::spawn(task)))
}
