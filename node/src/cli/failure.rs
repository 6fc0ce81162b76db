//! How a command ends: one exit code per kind of ending, and errors that say what happened, why,
//! and what to do.

use std::fmt;

/// The exit codes of `holdfast`; other people's scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    /// A verdict found a promise broken.
    Violation = 1,
    /// The command line makes no sense.
    Usage = 64,
    /// A file or a value given by the user is refused.
    BadInput = 65,
    /// Something that is needed does not answer, or a port is taken.
    Unavailable = 69,
    /// A bug in holdfast.
    Internal = 70,
    /// The disk: no permission, full, damaged, or somebody else's directory.
    Disk = 74,
    /// The test equipment failed; says nothing about the product.
    Harness = 75,
}

/// Why a command did not do what it was asked.
#[derive(Clone, Debug)]
pub struct Failure {
    pub exit: Exit,
    pub what: String,
    /// May be empty when `what` says it all.
    pub why: String,
    /// May be empty when nothing can be done.
    pub advice: String,
}

impl Failure {
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            why: String::new(),
            advice: String::new(),
        }
    }

    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }

    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// A failed operation on a file or directory of ours.
    pub fn disk(what: impl Into<String>, error: &std::io::Error) -> Self {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "give this user access, or choose another directory",
            std::io::ErrorKind::StorageFull => "free some space, then try again",
            std::io::ErrorKind::NotFound => "check the path; only the last directory of it is created",
            _ => "check the disk, then try again",
        };
        Self::new(Exit::Disk, what).because(error).advise(advice)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for (label, text) in [("why", &self.why), ("what to do", &self.advice)] {
            if !text.is_empty() {
                write!(f, "\n  {label}: {}", text.replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
