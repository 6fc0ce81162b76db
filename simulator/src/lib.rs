#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a fleet lives in real time
//! Fleets of devices seen from the outside, and a record of what they saw.
