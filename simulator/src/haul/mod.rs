//! Runs of hours to weeks: samples of every node, and whether anything grows.

pub mod scrape;
pub mod slope;
mod verdict;

pub use scrape::{NodeSample, Scraper};
pub use slope::{fit, Slope, Trend};
pub use verdict::{findings, Growth};
