//! Tokens that let one new node after another in, for a while. Only their hashes are kept.

use actors::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Tokens that are valid at once.
pub const TOKENS_MAX: usize = 64;
/// What every token begins with, so that one is recognised in a log or a paste.
pub const PREFIX: &str = "hfj";
/// Bytes of chance in a token.
pub const SECRET_BYTES: usize = 24;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the secret part. It has 192 bits of chance, so no slow hash is needed.
    pub hash: [u8; 32],
    pub created: Timestamp,
    pub expires: Timestamp,
}

/// `hfj-ID-SECRET`, id and secret in hexadecimal.
pub fn compose(id: &str, secret: &str) -> String {
    format!("{PREFIX}-{id}-{secret}")
}

pub fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Id and secret; `None` for text that is no token.
pub fn parse(text: &str) -> Option<(&str, &str)> {
    let (prefix, rest) = text.split_once('-')?;
    let (id, secret) = rest.split_once('-')?;
    let fine = prefix == PREFIX && !id.is_empty() && id.len() <= 32 && secret.len() == 2 * SECRET_BYTES;
    fine.then_some((id, secret))
}

impl JoinToken {
    pub fn admits(&self, secret: &str, now: Timestamp) -> bool {
        // Both are hashes: comparing them byte by byte tells nobody anything.
        self.hash == hash(secret) && now < self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_admits_until_it_expires_and_no_other_text_does() {
        let text = compose("a1", &hex(&[7; SECRET_BYTES]));
        let (id, secret) = parse(&text).unwrap();
        assert_eq!(id, "a1");
        let token = JoinToken {
            hash: hash(secret),
            created: Timestamp(0),
            expires: Timestamp(10),
        };
        assert!(token.admits(secret, Timestamp(9)));
        assert!(!token.admits(secret, Timestamp(10)), "expired");
        assert!(!token.admits(&secret.replace('0', "1"), Timestamp(9)));
        for bad in ["", "hfj", "hfj-a1", "hfj-a1-short", "xxx-a1-0707", &text[1..]] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
