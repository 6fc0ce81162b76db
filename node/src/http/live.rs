//! Of the server's configuration, what may change while it runs: the token and two bounds.

use std::sync::RwLock;
use std::time::Duration;

use subtle::ConstantTimeEq as _;

use super::config::{HttpConfig, Token};

pub struct Live(RwLock<Values>);

struct Values {
    token: Token,
    body_bytes_max: usize,
    deadline: Duration,
}

impl Values {
    fn of(config: &HttpConfig) -> Self {
        Self {
            token: config.token.clone(),
            body_bytes_max: config.body_bytes_max,
            deadline: config.deadline,
        }
    }
}

impl Live {
    pub fn new(config: &HttpConfig) -> Self {
        Self(RwLock::new(Values::of(config)))
    }

    /// In force for every request that is looked at from now on.
    pub fn set(&self, config: &HttpConfig) {
        *self.0.write().expect("no holder of this lock panics") = Values::of(config);
    }

    /// Takes as long for a near miss as for a wild guess (of the same length).
    pub fn is_token(&self, given: &[u8]) -> bool {
        given.ct_eq(self.values().token.as_bytes()).into()
    }

    pub fn body_bytes_max(&self) -> usize {
        self.values().body_bytes_max
    }

    pub fn deadline(&self) -> Duration {
        self.values().deadline
    }

    fn values(&self) -> std::sync::RwLockReadGuard<'_, Values> {
        self.0.read().expect("no holder of this lock panics")
    }
}
