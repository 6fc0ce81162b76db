//! The drills that ship. They are part of the program, and files to copy and change.

/// Name and text, in the order in which one would try them.
pub const ALL: &[(&str, &str)] = &[
    ("leader-churn", include_str!("../../drills/leader-churn.toml")),
    ("rolling-restart", include_str!("../../drills/rolling-restart.toml")),
    ("zone-loss", include_str!("../../drills/zone-loss.toml")),
    ("majority-ring", include_str!("../../drills/majority-ring.toml")),
    ("bridge", include_str!("../../drills/bridge.toml")),
    ("flapping-link", include_str!("../../drills/flapping-link.toml")),
    ("slow-disk", include_str!("../../drills/slow-disk.toml")),
    ("full-disk", include_str!("../../drills/full-disk.toml")),
    ("power-cut", include_str!("../../drills/power-cut.toml")),
    ("bit-rot", include_str!("../../drills/bit-rot.toml")),
    ("clock-strobe", include_str!("../../drills/clock-strobe.toml")),
    ("reconnect-storm", include_str!("../../drills/reconnect-storm.toml")),
    (
        "membership-under-fire",
        include_str!("../../drills/membership-under-fire.toml"),
    ),
    ("rough-clients", include_str!("../../drills/rough-clients.toml")),
    ("kitchen-sink", include_str!("../../drills/kitchen-sink.toml")),
];

/// The text of a drill that ships.
pub fn source(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
