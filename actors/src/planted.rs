//! Bugs put in on purpose, so that drills can show that they would find them.
//!
//! Compiled only with the feature `planted`, which nothing that ships has. One is chosen per
//! process, by name, before anything runs. Where they are is where somebody would make the mistake:
//! `grep -rn 'planted::is'`.

use std::sync::OnceLock;

macro_rules! planted {
    ($( $(#[$doc:meta])* $name:ident = $text:literal; )*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Planted {
            /// The product as it is.
            None,
            $( $(#[$doc])* $name, )*
        }

        impl Planted {
            pub const ALL: &'static [(Planted, &'static str)] =
                &[ (Planted::None, "none"), $( (Planted::$name, $text), )* ];
        }
    };
}

planted! {
    /// Appends count as written before they are synced.
    AckBeforeFsync = "ack-before-fsync";
    /// A write that has no majority after a moment is acknowledged all the same.
    AckBeforeQuorum = "ack-before-quorum";
    /// A vote is given before it is on the disk.
    VoteNotSynced = "vote-not-synced";
    /// The applied index is written by itself, before the rows it speaks of.
    AppliedIndexOutsideBatch = "applied-index-outside-batch";
    /// Now and then a message is applied twice.
    ApplyTwice = "apply-twice";
    /// The first message that is forwarded after a reconnect is acknowledged and dropped.
    DropOnReconnect = "drop-on-reconnect";
    /// A read does not ask whether this node still leads.
    StaleRead = "stale-read";
    /// A new session does not end the former one.
    TwoSessions = "two-sessions";
    /// A new leader gives the last seq of a device once more.
    ReuseSeq = "reuse-seq";
    /// A snapshot lacks its last rows.
    ShortSnapshot = "short-snapshot";
    /// The log is purged beyond what followers have.
    PurgeTooFar = "purge-too-far";
    /// A fault lease that ended acts on.
    LeaseNotHealed = "lease-not-healed";
}

static CHOSEN: OnceLock<Planted> = OnceLock::new();

/// The variable that names one.
pub const VARIABLE: &str = "HOLDFAST_PLANTED";

/// Chooses for the life of this process what stands in [`VARIABLE`], and returns its name.
///
/// # Errors
/// It names none of them; says which there are.
pub fn choose(named: Option<&str>) -> Result<&'static str, String> {
    let found = Planted::ALL.iter().find(|(_, text)| Some(*text) == named);
    let Some((planted, text)) = found else {
        let names: Vec<&str> = Planted::ALL.iter().map(|(_, text)| *text).collect();
        return Err(format!(
            "this program has bugs planted in it and runs only when {VARIABLE} names one, or \"none\"; there are {}",
            names.join(", ")
        ));
    };
    // The first choice stays: the process has begun to act by it.
    let chosen = *CHOSEN.get_or_init(|| *planted);
    if chosen == *planted {
        Ok(text)
    } else {
        Err(format!("{VARIABLE} was read already"))
    }
}

/// Whether this bug was chosen.
pub fn is(planted: Planted) -> bool {
    CHOSEN.get() == Some(&planted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_chosen_by_mistake_and_the_page_has_every_name() {
        assert!(!is(Planted::StaleRead));
        assert!(choose(None).is_err() && choose(Some("")).is_err() && choose(Some("fsync")).is_err());
        assert_eq!(choose(Some("stale-read")), Ok("stale-read"));
        assert!(is(Planted::StaleRead) && !is(Planted::ReuseSeq));
        assert!(choose(Some("none")).is_err(), "one choice per process");
        let page = include_str!("../../docs/reference/planted.md");
        for (_, text) in Planted::ALL {
            assert!(page.contains(&format!("`{text}`")), "{text}");
        }
    }
}
