//! A firmware update from the device's side: download, verify, install, reboot, report.
//!
//! How an update will end is drawn when it begins, so that the ending does not depend on when
//! anybody looks.

use serde_json::{json, Map, Value};

use super::Firmware;
use crate::payloads::Chance;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Idle,
    Downloading,
    Verifying,
    Installing,
    Rebooting,
    /// It will never come back.
    Bricked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Good,
    Download,
    Verify,
    Install,
    Rollback,
    Brick,
}

#[derive(Clone, Debug)]
pub struct Updater {
    pub step: Step,
    pub version: String,
    target: String,
    /// When the present step is over. Scenario µs.
    until_us: u64,
    ending: Ending,
}

/// What the device does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Members of a reported patch.
    Report(Map<String, Value>),
    /// Away until then (scenario µs); `u64::MAX`: for ever.
    Away(u64),
}

impl Updater {
    pub fn new(plan: &Firmware) -> Self {
        Self {
            step: Step::Idle,
            version: plan.factory.clone(),
            target: String::new(),
            until_us: u64::MAX,
            ending: Ending::Good,
        }
    }

    /// When there is something to do again.
    pub fn due_us(&self) -> u64 {
        self.until_us
    }

    /// A version is desired. An update under way goes on; it is asked again afterwards.
    pub fn told(&mut self, version: &str, plan: &Firmware, now_us: u64, chance: &mut Chance) -> Option<Act> {
        if self.step != Step::Idle || version == self.version || version == self.target {
            return None;
        }
        self.target = version.to_owned();
        self.ending = ending(plan, chance);
        self.enter(Step::Downloading, now_us, plan.download_secs.draw(chance));
        Some(self.report("downloading", None))
    }

    /// The present step is over.
    pub fn due(&mut self, plan: &Firmware, now_us: u64, chance: &mut Chance) -> Vec<Act> {
        if now_us < self.until_us {
            return Vec::new();
        }
        match (self.step, self.ending) {
            (Step::Downloading, Ending::Download) => vec![self.fail("download")],
            (Step::Downloading, _) => {
                self.enter(Step::Verifying, now_us, 0.2);
                Vec::new()
            }
            (Step::Verifying, Ending::Verify) => vec![self.fail("verify")],
            (Step::Verifying, _) => {
                self.enter(Step::Installing, now_us, plan.install_secs.draw(chance));
                vec![self.report("installing", None)]
            }
            (Step::Installing, Ending::Install) => vec![self.fail("install")],
            (Step::Installing, Ending::Brick) => {
                self.step = Step::Bricked;
                self.until_us = u64::MAX;
                vec![Act::Away(u64::MAX)]
            }
            (Step::Installing, _) => {
                self.enter(Step::Rebooting, now_us, plan.reboot_secs.draw(chance));
                vec![Act::Away(self.until_us)]
            }
            (Step::Rebooting, Ending::Rollback) => vec![self.fail("rolled back")],
            (Step::Rebooting, _) => {
                self.version.clone_from(&self.target);
                self.step = Step::Idle;
                self.until_us = u64::MAX;
                vec![self.report("updated", None)]
            }
            (Step::Idle | Step::Bricked, _) => {
                self.until_us = u64::MAX;
                Vec::new()
            }
        }
    }

    fn enter(&mut self, step: Step, now_us: u64, secs: f64) {
        self.step = step;
        self.until_us = now_us + (secs.max(0.0) * 1e6) as u64;
    }

    fn fail(&mut self, why: &str) -> Act {
        self.step = Step::Idle;
        self.until_us = u64::MAX;
        self.report("failed", Some(why))
    }

    fn report(&self, state: &str, why: Option<&str>) -> Act {
        let update = json!({ "state": state, "target": self.target, "why": why, "version": self.version });
        Act::Report(Map::from_iter([("update".to_owned(), update)]))
    }
}

fn ending(plan: &Firmware, chance: &mut Chance) -> Ending {
    let bad = [
        (plan.fail_download, Ending::Download),
        (plan.fail_verify, Ending::Verify),
        (plan.fail_install, Ending::Install),
        (plan.fail_rollback, Ending::Rollback),
        (plan.fail_brick, Ending::Brick),
    ];
    let mut drawn = chance.unit();
    for (share, ending) in bad {
        drawn -= share;
        if drawn < 0.0 {
            return ending;
        }
    }
    Ending::Good
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payloads::Dist;

    fn plan(fail: usize) -> Firmware {
        let share = |at| if at == fail { 1.0 } else { 0.0 };
        Firmware {
            factory: "1.0".into(),
            download_secs: Dist::Fixed(10.0),
            install_secs: Dist::Fixed(5.0),
            reboot_secs: Dist::Fixed(3.0),
            fail_download: share(1),
            fail_verify: share(2),
            fail_install: share(3),
            fail_rollback: share(4),
            fail_brick: share(5),
        }
    }

    /// Runs an update to its end and tells what was reported and how long it was away.
    fn run(fail: usize) -> (Vec<String>, Vec<u64>, String) {
        let (plan, mut chance) = (plan(fail), Chance::new(1));
        let mut updater = Updater::new(&plan);
        let (mut states, mut away) = (Vec::new(), Vec::new());
        let mut note = |act: Act| match act {
            Act::Report(patch) => states.push(patch["update"]["state"].as_str().unwrap().to_owned()),
            Act::Away(until) => away.push(until),
        };
        note(updater.told("2.0", &plan, 0, &mut chance).unwrap());
        assert_eq!(updater.told("3.0", &plan, 0, &mut chance), None, "one update at a time");
        while updater.due_us() != u64::MAX {
            let now = updater.due_us();
            updater.due(&plan, now, &mut chance).into_iter().for_each(&mut note);
        }
        (states, away, updater.version)
    }

    #[test]
    fn updates_end_well_or_in_five_ways() {
        let away = vec![18_200_000];
        for (fail, states, away, version) in [
            (0, &["downloading", "installing", "updated"][..], away.clone(), "2.0"),
            (1, &["downloading", "failed"], vec![], "1.0"),
            (2, &["downloading", "failed"], vec![], "1.0"),
            (3, &["downloading", "installing", "failed"], vec![], "1.0"),
            (4, &["downloading", "installing", "failed"], away, "1.0"),
            (5, &["downloading", "installing"], vec![u64::MAX], "1.0"),
        ] {
            let found = run(fail);
            assert_eq!(
                (found.0.as_slice(), found.1, found.2.as_str()),
                (
                    &states.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..],
                    away,
                    version
                ),
                "{fail}"
            );
        }
    }
}
