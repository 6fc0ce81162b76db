//! The policy in force, which an operator may change while devices run.
//!
//! A change is seen by the next decision. `apply` never reads it, so replicas cannot differ by it.

use std::sync::{Arc, RwLock};

use crate::device::Policy;

/// Clones share one policy.
#[derive(Clone, Debug, Default)]
pub struct LivePolicy(Arc<RwLock<Policy>>);

impl LivePolicy {
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(RwLock::new(policy)))
    }

    pub fn get(&self) -> Policy {
        *self.0.read().expect("no holder of this lock panics")
    }

    pub fn set(&self, policy: Policy) {
        *self.0.write().expect("no holder of this lock panics") = policy;
    }
}
