//! Phases, fleets and seed as devices and intended times. Nothing here looks at a clock, and the
//! same scenario gives the same plan for ever.

pub mod cursor;
pub mod curve;
pub mod names;
pub mod roster;
pub mod stream;

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::payloads::chance::{salt, Chance};
use crate::scenario::Loaded;
use cursor::{Cursor, Sender, Setting};
use curve::Curve;
use roster::{DevicePlan, Roster};
use stream::StreamPlan;

/// A scenario, ready to be driven.
#[derive(Clone)]
pub struct Plan {
    pub loaded: Arc<Loaded>,
    pub curve: Arc<Curve>,
    pub roster: Roster,
    streams: Vec<Arc<[StreamPlan]>>,
}

impl Plan {
    pub fn new(loaded: Arc<Loaded>) -> Self {
        let fleets = loaded.scenario.fleet.iter().enumerate();
        let streams = fleets.map(|(at, fleet)| stream::prepare(fleet, loaded.profile(at), loaded.traces.get(&at)));
        Self {
            curve: Arc::new(Curve::new(&loaded.scenario.phase)),
            roster: Roster::new(&loaded),
            streams: streams.collect(),
            loaded,
        }
    }

    pub fn streams(&self, fleet: usize) -> &Arc<[StreamPlan]> {
        &self.streams[fleet]
    }

    pub fn device(&self, device: u32) -> DevicePlan {
        self.roster.device(&self.loaded, &self.curve, device)
    }

    /// The streams of one subject of a device: `child` 0 is the device itself. A gateway with
    /// children sends nothing of its own.
    pub fn cursors(&self, device: &DevicePlan, child: u32, sender: Sender<'_>) -> Vec<Cursor> {
        if device.children > 0 && child == 0 {
            return Vec::new();
        }
        let fleet = salt(&self.loaded.scenario.fleet[device.fleet].name);
        let begin = |(at, plan): (usize, &StreamPlan)| {
            let parts = [fleet, u64::from(device.at), u64::from(child), at as u64];
            let chance = Chance::fork(self.loaded.scenario.seed, &parts);
            let setting = Setting {
                plan,
                curve: &self.curve,
                sender,
                told: &|_| None,
            };
            Cursor::begin(at as u8, &setting, device.connect_us, chance)
        };
        self.streams[device.fleet].iter().enumerate().map(begin).collect()
    }

    /// As [`Plan::cursors`], at the first messages that are due from `from_us` on: what was due
    /// before is stepped over, so that what follows is what the plan says. Each step is taken from
    /// `budget`; a subject for which it does not suffice begins all its streams anew at `from_us`.
    pub fn cursors_from(
        &self,
        device: &DevicePlan,
        child: u32,
        sender: Sender<'_>,
        from_us: u64,
        budget: &mut u64,
    ) -> Vec<Cursor> {
        let mut cursors = self.cursors(device, child, sender);
        for (at, cursor) in cursors.iter_mut().enumerate() {
            let setting = Setting {
                plan: &self.streams[device.fleet][at],
                curve: &self.curve,
                sender,
                told: &|_| None,
            };
            while cursor.at_us < from_us && *budget > 0 {
                cursor.advance(&setting);
                *budget -= 1;
            }
        }
        if cursors.iter().all(|cursor| cursor.at_us >= from_us) {
            return cursors;
        }
        let mut late = device.clone();
        late.connect_us = from_us;
        self.cursors(&late, child, sender)
    }

    /// Everything that distinguishes one plan from another, over the first `messages` of every
    /// stream of up to `devices` devices.
    pub fn digest(&self, devices: u32, messages: u64) -> String {
        let mut hash = Xxh3::new();
        let mut payload = Vec::new();
        let all = self.roster.devices();
        let step = (all / devices.max(1)).max(1);
        for number in (0..all).step_by(step as usize) {
            let device = self.device(number);
            hash.update(format!("{device:?}").as_bytes());
            let storms = self.roster.storms(&self.loaded, &self.curve, number);
            storms.iter().for_each(|at| hash.update(&at.to_le_bytes()));
            let children = device.children.min(4);
            for child in 0..=children {
                self.digest_subject(&device, child, messages, &mut payload, &mut hash);
            }
        }
        format!("{:032x}", hash.digest128())
    }

    fn digest_subject(&self, device: &DevicePlan, child: u32, messages: u64, payload: &mut Vec<u8>, hash: &mut Xxh3) {
        let id = match child {
            0 => device.id.clone(),
            child => names::child(&device.id, child),
        };
        let sender = Sender {
            device: &id,
            fleet: &self.loaded.scenario.fleet[device.fleet].name,
            at: device.at,
            clock_skew_ms: device.habits.clock_skew_ms,
        };
        for mut cursor in self.cursors(device, child, sender) {
            let setting = Setting {
                plan: &self.streams[device.fleet][usize::from(cursor.stream)],
                curve: &self.curve,
                sender,
                told: &|_| None,
            };
            for _ in 0..messages {
                if cursor.at_us == u64::MAX {
                    break;
                }
                payload.clear();
                cursor.write(&setting, payload);
                hash.update(&cursor.at_us.to_le_bytes());
                hash.update(payload);
                cursor.advance(&setting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn plan(text: &str) -> Plan {
        let loaded = crate::scenario::parse(Path::new("x.toml"), text.to_owned()).unwrap();
        Plan::new(Arc::new(loaded))
    }

    fn every_profile(seed: u64) -> String {
        let mut text = format!("name = \"t\"\nseed = {seed}\n[target]\nmqtt = [\"127.0.0.1:1\"]\n");
        for name in crate::profiles::NAMES {
            text += &format!("[[fleet]]\nname = \"{name}\"\nprofile = \"{name}\"\ncount = 7\n");
        }
        text + "[[phase]]\nkind = \"ramp\"\nduration = \"1m\"\n[[phase]]\nkind = \"reconnect-storm\"\nshare = 0.5\nduration = \"2h\"\n"
    }

    /// Same seed, same plan; another seed, another one.
    #[test]
    fn a_plan_is_its_seed() {
        let digest = |seed| plan(&every_profile(seed)).digest(1_000, 50);
        assert_eq!(digest(7), digest(7));
        assert_ne!(digest(7), digest(8));
    }

    /// All intended times of one device within the run.
    fn times(plan: &Plan, device: u32) -> Vec<u64> {
        let device = plan.device(device);
        let sender = Sender {
            device: &device.id,
            fleet: "f",
            at: device.at,
            clock_skew_ms: 0,
        };
        let child = u32::from(device.children > 0);
        let mut found = Vec::new();
        for mut cursor in plan.cursors(&device, child, sender) {
            let setting = Setting {
                plan: &plan.streams(device.fleet)[usize::from(cursor.stream)],
                curve: &plan.curve,
                sender,
                told: &|_| None,
            };
            while cursor.at_us != u64::MAX {
                found.push(cursor.at_us);
                cursor.advance(&setting);
            }
        }
        found.sort_unstable();
        found
    }

    /// A fleet's rate is what the scenario says, whatever the spread of its intervals.
    #[test]
    fn rates_are_met_in_every_phase() {
        for (profile, tolerance) in [
            ("constant", 0.01),
            ("bad-citizen", 0.05),
            ("no-ids", 0.02),
            ("gateway", 0.05),
        ] {
            let text = format!(
                "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\n[[fleet]]\nname = \"a\"\nprofile = \"{profile}\"\ncount = 50\nrate = 100\n[[phase]]\nkind = \"steady\"\nduration = \"100s\"\n[[phase]]\nkind = \"steady\"\nfactor = 3\nduration = \"100s\"\n[[phase]]\nkind = \"drain\"\nduration = \"10s\"\n[run]\nconnect_rate = 1000000\n"
            );
            let plan = plan(&text);
            let children = plan.device(0).children.max(1) as usize;
            let all: Vec<u64> = (0..50).flat_map(|device| times(&plan, device)).collect();
            let count = |from: u64, to: u64| {
                let inside = all
                    .iter()
                    .filter(|at| (from * 1_000_000..to * 1_000_000).contains(*at))
                    .count();
                (inside * children) as f64
            };
            let (first, second, third) = (count(0, 100), count(100, 200), count(200, 300));
            assert!((first / 10_000.0 - 1.0).abs() < tolerance, "{profile} {first}");
            assert!((second / 30_000.0 - 1.0).abs() < tolerance, "{profile} {second}");
            assert_eq!(third, 0.0, "{profile}");
        }
    }

    /// Meters send at the quarter of the hour, all within their scatter, and not in a drain.
    #[test]
    fn meters_are_aligned() {
        let text = "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\n[[fleet]]\nname = \"m\"\nprofile = \"smart-meter\"\ncount = 20\n[[phase]]\nkind = \"ramp\"\nduration = \"10m\"\n[[phase]]\nkind = \"steady\"\nduration = \"110m\"\n";
        let plan = plan(text);
        for device in 0..20 {
            let times = times(&plan, device);
            assert_eq!(times.len(), 7, "{times:?}");
            assert!(times.iter().all(|at| at % 900_000_000 < 18_000_000), "{times:?}");
        }
    }

    /// A run that is gone on with sends what the plan says from there on, and not something else.
    #[test]
    fn a_plan_goes_on_in_the_middle() {
        let plan = plan(&every_profile(7));
        let from_us = 1_800_000_000;
        for number in 0..plan.roster.devices() {
            let device = plan.device(number);
            let sender = Sender {
                device: &device.id,
                fleet: "f",
                at: device.at,
                clock_skew_ms: 0,
            };
            let child = u32::from(device.children > 0);
            let rest = |mut cursors: Vec<Cursor>| {
                let mut found = Vec::new();
                for cursor in &mut cursors {
                    let setting = Setting {
                        plan: &plan.streams(device.fleet)[usize::from(cursor.stream)],
                        curve: &plan.curve,
                        sender,
                        told: &|_| None,
                    };
                    for _ in 0..30_000 {
                        if (from_us..u64::MAX).contains(&cursor.at_us) && found.len() < 50 {
                            let mut payload = Vec::new();
                            cursor.write(&setting, &mut payload);
                            found.push((cursor.at_us, payload));
                        }
                        cursor.advance(&setting);
                    }
                }
                found
            };
            let whole = rest(plan.cursors(&device, child, sender));
            let gone_on = rest(plan.cursors_from(&device, child, sender, from_us, &mut 1_000_000));
            assert_eq!(gone_on, whole, "{}", device.id);
            // Where that would take too long, a stream begins anew, and not before.
            let anew = plan.cursors_from(&device, child, sender, from_us, &mut 0);
            assert!(anew.iter().all(|cursor| cursor.at_us >= from_us), "{}", device.id);
        }
    }

    /// Reordered messages change places and nothing is lost or invented.
    #[test]
    fn reordering_swaps_neighbours() {
        let text = "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\n[profile.p]\ntitle = \"x\"\n[[profile.p.stream]]\ninterval = \"1s\"\nreorder_every = 3\nduplicate_every = 4\npayload = \"${n}\"\n[[fleet]]\nname = \"m\"\nprofile = \"p\"\ncount = 1\n[[phase]]\nkind = \"steady\"\nduration = \"10s\"\n[run]\nconnect_rate = 1000000\n";
        let plan = plan(text);
        let device = plan.device(0);
        let sender = Sender {
            device: "d",
            fleet: "f",
            at: 0,
            clock_skew_ms: 0,
        };
        let setting = Setting {
            plan: &plan.streams(0)[0],
            curve: &plan.curve,
            sender,
            told: &|_| None,
        };
        let mut cursor = plan.cursors(&device, 0, sender).remove(0);
        let (mut numbers, mut doubled) = (Vec::new(), Vec::new());
        for _ in 0..8 {
            let mut out = Vec::new();
            cursor.write(&setting, &mut out);
            numbers.push(String::from_utf8(out).unwrap().parse::<u64>().unwrap());
            doubled.push(cursor.is_doubled(setting.plan));
            cursor.advance(&setting);
        }
        assert_eq!(numbers, [1, 2, 4, 3, 5, 7, 6, 8]);
        assert_eq!(doubled.iter().positions(|d| *d), [3, 7]);
    }

    trait Positions {
        fn positions(self, hit: impl Fn(&bool) -> bool) -> Vec<usize>;
    }

    impl<'a, I: Iterator<Item = &'a bool>> Positions for I {
        fn positions(self, hit: impl Fn(&bool) -> bool) -> Vec<usize> {
            self.enumerate().filter(|(_, d)| hit(d)).map(|(at, _)| at).collect()
        }
    }

    /// Storms hit their share, protocols have theirs.
    #[test]
    fn shares_are_met() {
        let text = "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\nws = [\"h:2\"]\n[[fleet]]\nname = \"m\"\nprofile = \"idle\"\ncount = 1000\nprotocols = { mqtt5 = 3, mqtt311 = 1 }\n[[phase]]\nkind = \"reconnect-storm\"\nshare = 0.3\nover = \"1s\"\nduration = \"10s\"\n";
        let plan = plan(text);
        let hit = (0..1_000).filter(|device| !plan.roster.storms(&plan.loaded, &plan.curve, *device).is_empty());
        assert!((250..350).contains(&hit.count()));
        let old = (0..1_000)
            .filter(|device| !plan.device(*device).protocol.is_v5())
            .count();
        assert!((240..260).contains(&old), "{old}");
    }

    #[test]
    fn a_replayed_trace_keeps_its_times_and_repeats() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("t.csv"),
            "device,time,payload\na,0,x1\nb,1,y1\na,4,x2\n",
        )
        .unwrap();
        let text = "name = \"t\"\n[target]\nmqtt = [\"h:1\"]\n[[fleet]]\nname = \"m\"\nprofile = \"idle\"\ncount = 3\nreplay = { file = \"t.csv\", speed = 2, repeat = true }\n[[phase]]\nkind = \"steady\"\nduration = \"5s\"\n";
        let loaded = crate::scenario::parse(&dir.path().join("s.toml"), text.to_owned()).unwrap();
        let plan = Plan::new(Arc::new(loaded));
        assert_eq!(times(&plan, 0), [0, 2_000_000, 2_000_000, 4_000_000, 4_000_000]);
        assert_eq!(times(&plan, 1), [500_000, 2_500_000, 4_500_000]);
        assert_eq!(times(&plan, 2), times(&plan, 0));
    }
}
