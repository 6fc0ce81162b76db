//! The actors that keep devices: one actix actor per active device, its host, its supervision.
