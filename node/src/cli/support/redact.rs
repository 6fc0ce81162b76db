//! Keeps secrets out of the archive: every byte that goes in passes here.
//!
//! The sources hide secrets themselves (a node never shows one); this is the second lock. Known
//! secrets are replaced wherever they stand, and so is whatever follows `Bearer `.

use std::path::Path;

use crate::config::settings::is_secret;

const HIDDEN: &[u8] = b"[redacted]";
/// Shorter texts are no secrets of ours, and would hide half of every log.
const SECRET_BYTES_MIN: usize = 8;

#[derive(Default)]
pub struct Redactor {
    /// The longest first, so that no part of one stays behind another.
    secrets: Vec<Vec<u8>>,
}

impl Redactor {
    /// Knows the values of variables whose names say that they are secret.
    pub fn of_environment() -> Self {
        let mut redactor = Self::default();
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.to_string_lossy().to_lowercase(), value.to_string_lossy());
            if name.starts_with("holdfast_") && is_secret(&name) {
                redactor.hide(&value);
            }
        }
        redactor
    }

    pub fn hide(&mut self, secret: &str) {
        let secret = secret.trim().as_bytes();
        if secret.len() >= SECRET_BYTES_MIN && !self.secrets.iter().any(|known| known == secret) {
            self.secrets.push(secret.to_vec());
            self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// Hides what lies in a directory under a name that says so: `token`, `secret`, `join-token`.
    pub fn hide_secrets_of(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if is_secret(&entry.file_name().to_string_lossy()) {
                self.hide_file(&entry.path());
            }
        }
    }

    /// Hides what a file holds, if it can be read.
    fn hide_file(&mut self, file: &Path) {
        if let Ok(text) = std::fs::read_to_string(file) {
            self.hide(&text);
        }
    }

    /// Hides the secrets that stand in a configuration file or in files that it names.
    pub fn hide_configured(&mut self, file: &Path) {
        let Ok(text) = std::fs::read_to_string(file) else {
            return;
        };
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let name = name.trim().trim_start_matches(['#', ' ']);
            let value = value.trim().trim_matches(['"', '\'']);
            if is_secret(name) {
                self.hide(value);
            } else if name.ends_with("_file") && is_secret(name.trim_end_matches("_file")) {
                self.hide_file(&file.parent().unwrap_or(Path::new("")).join(value));
            }
        }
    }

    /// The bytes without secrets.
    pub fn clean(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for secret in &self.secrets {
            bytes = replace(&bytes, secret);
        }
        without_bearers(&bytes)
    }
}

fn replace(bytes: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = find(rest, secret) {
        clean.extend_from_slice(&rest[..at]);
        clean.extend_from_slice(HIDDEN);
        rest = &rest[at + secret.len()..];
    }
    clean.extend_from_slice(rest);
    clean
}

fn without_bearers(bytes: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"Bearer ";
    let mut clean = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = find(rest, MARK) {
        let (before, after) = rest.split_at(at + MARK.len());
        clean.extend_from_slice(before);
        let end = after
            .iter()
            .position(|byte| !byte.is_ascii_graphic() || *byte == b'"')
            .unwrap_or(after.len());
        if end > 0 {
            clean.extend_from_slice(HIDDEN);
        }
        rest = &after[end..];
    }
    clean.extend_from_slice(rest);
    clean
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    // Jumps from one first byte to the next: logs have megabytes.
    let first = *wanted.first()?;
    let mut from = 0;
    while let Some(step) = bytes.get(from..)?.iter().position(|byte| *byte == first) {
        let at = from + step;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_wherever_they_stand() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::write(dir.path().join("token"), "token-in-a-file\n").expect("written");
        let file = dir.path().join("node.toml");
        let text = "[cluster]\nsecret = \"inline-secret\"\n# operator_token = \"old-token-value\"\n\
                    operator_token_file = \"token\"\nid = \"harmless-name\"\n";
        std::fs::write(&file, text).expect("written");
        let mut redactor = Redactor::default();
        redactor.hide_configured(&file);
        std::fs::write(dir.path().join("join-token"), "token-to-join").expect("written");
        redactor.hide_secrets_of(dir.path());
        redactor.hide("short");
        let cleaned = redactor.clean(
            b"a inline-secretinline-secret b\xff old-token-value token-in-a-file token-to-join harmless-name short\n\
              {\"authorization\":\"Bearer abc.def\"} Bearer",
        );
        let cleaned = String::from_utf8_lossy(&cleaned);
        assert_eq!(
            cleaned,
            "a [redacted][redacted] b\u{fffd} [redacted] [redacted] [redacted] harmless-name short\n\
             {\"authorization\":\"Bearer [redacted]\"} Bearer"
        );
    }
}
