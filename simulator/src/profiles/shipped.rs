//! The profiles that ship, as files anybody can read and copy.

use std::collections::BTreeMap;

use super::Profile;

const FILES: [(&str, &str); 11] = [
    ("bad-citizen", include_str!("../../profiles/bad-citizen.toml")),
    ("constant", include_str!("../../profiles/constant.toml")),
    ("elevator", include_str!("../../profiles/elevator.toml")),
    ("firmware-updater", include_str!("../../profiles/firmware-updater.toml")),
    ("gateway", include_str!("../../profiles/gateway.toml")),
    ("idle", include_str!("../../profiles/idle.toml")),
    ("no-ids", include_str!("../../profiles/no-ids.toml")),
    ("smart-meter", include_str!("../../profiles/smart-meter.toml")),
    ("thermostat", include_str!("../../profiles/thermostat.toml")),
    ("vehicle", include_str!("../../profiles/vehicle.toml")),
    ("vibration-sensor", include_str!("../../profiles/vibration-sensor.toml")),
];

/// Their names, in order.
pub const NAMES: [&str; FILES.len()] = {
    let mut names = [""; FILES.len()];
    let mut at = 0;
    while at < FILES.len() {
        names[at] = FILES[at].0;
        at += 1;
    }
    names
};

/// The text of a shipped profile.
pub fn source(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// All of them, by name.
pub fn shipped() -> BTreeMap<String, Profile> {
    let read = |(name, text): &(&str, &str)| {
        let profile = toml::from_str(text).expect("a test reads every shipped profile");
        ((*name).to_owned(), profile)
    };
    FILES.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_is_sound() {
        for (name, profile) in shipped() {
            let problems = crate::scenario::check::profile_problems(&profile);
            assert_eq!(problems, [], "{name}");
            assert!(!profile.title.is_empty() && profile.title.len() < 80, "{name}");
            assert!(
                source(&name).unwrap().starts_with('#'),
                "{name} does not say what it is for"
            );
        }
    }
}
