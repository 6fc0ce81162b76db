#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // faults happen in real time
//! Faults, checkers, verdicts.
