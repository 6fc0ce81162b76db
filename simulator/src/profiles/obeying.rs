//! What a device does with its desired properties: it takes over what it obeys, and reports it.

use serde_json::{Map, Value};

use super::Twin;

/// The part of the twin that a device lives by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Obeyed {
    /// The highest version of desired properties seen; 0 before the first.
    pub version: u64,
    numbers: Vec<(String, f64)>,
    changed: Vec<String>,
}

/// What a patch or a whole section told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Of the desired section; 0 when the message names none.
    pub version: u64,
    /// The simulator's own mark `sim.k`, if this run's operator wrote it.
    pub mark: Option<u64>,
    pub firmware: Option<String>,
}

impl Obeyed {
    /// A desired number that the device was told.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value)
    }

    /// Takes over a desired patch, or the whole section. What is older than what is known changes
    /// nothing: a patch may come after the section that already held it.
    pub fn take(&mut self, twin: &Twin, desired: &Map<String, Value>, version: u64, run: u32) -> Told {
        let told = told(desired, version, run);
        if version != 0 && version <= self.version {
            return told;
        }
        self.version = self.version.max(version);
        for name in &twin.obey {
            let Some(value) = desired.get(name).and_then(Value::as_f64) else {
                continue;
            };
            if self.number(name) == Some(value) {
                continue;
            }
            self.numbers.retain(|(known, _)| known != name);
            self.numbers.push((name.clone(), value));
            self.changed.push(name.clone());
        }
        told
    }

    /// What has to be reported back since the last time, as members of a patch.
    pub fn reports(&mut self) -> Map<String, Value> {
        let changed = std::mem::take(&mut self.changed);
        let number = |name: &String| Some((name.clone(), Value::from(self.number(name)?)));
        changed.iter().filter_map(number).collect()
    }

    pub fn has_reports(&self) -> bool {
        !self.changed.is_empty()
    }
}

fn told(desired: &Map<String, Value>, version: u64, run: u32) -> Told {
    let mark = desired.get("sim").and_then(Value::as_object).and_then(|sim| {
        let ours = sim.get("run").and_then(Value::as_u64) == Some(u64::from(run));
        sim.get("k").and_then(Value::as_u64).filter(|_| ours)
    });
    let firmware = desired.get("firmware").and_then(Value::as_str);
    Told {
        version,
        mark,
        firmware: firmware.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_obeyed_is_taken_over_once_and_reported() {
        let twin = Twin {
            report_interval: None,
            obey: vec!["setpoint".into()],
        };
        let mut obeyed = Obeyed::default();
        let patch = object(r#"{"setpoint":19.5,"colour":1,"sim":{"run":7,"k":3},"firmware":"2.0"}"#);
        let told = obeyed.take(&twin, &patch, 4, 7);
        assert_eq!(
            (told.version, told.mark, told.firmware.as_deref()),
            (4, Some(3), Some("2.0"))
        );
        assert_eq!(obeyed.number("setpoint"), Some(19.5));
        assert_eq!(obeyed.reports(), object(r#"{"setpoint":19.5}"#));
        assert_eq!(obeyed.reports(), Map::new());
        // An older version and another run's mark change nothing.
        let old = obeyed.take(&twin, &object(r#"{"setpoint":5,"sim":{"run":6,"k":9}}"#), 3, 7);
        assert_eq!(
            (old.mark, obeyed.number("setpoint"), obeyed.version),
            (None, Some(19.5), 4)
        );
    }
}
