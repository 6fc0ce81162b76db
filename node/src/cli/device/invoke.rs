//! `holdfast device invoke`: calls a method of a connected device.

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::{json, Value};

use super::{client, device_path, escape, shown, One, JSON};
use crate::cli::api::Request;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Output};

/// How much longer than the call's own time its answer may be on the way.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast device invoke lamp-1 blink --payload '{\"times\": 3}' --timeout 5s\n\nPrints what the device answered. Nothing is stored: a call that was sent and not answered may or may not\nhave been carried out (exit 69)."
)]
pub struct Invoke {
    #[command(flatten)]
    one: One,
    /// Method
    #[arg(value_name = "NAME")]
    name: String,
    /// What the method is given
    #[arg(long, value_name = "JSON", value_parser = any_json)]
    payload: Option<Value>,
    /// How long to wait for the answer, 1ms to 300s
    #[arg(long, default_value = "30s", value_parser = timeout)]
    timeout: Duration,
}

impl Invoke {
    /// # Errors
    /// What went wrong, with its exit code.
    pub async fn run(self, output: Output) -> Result<(), Failure> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let body = json!({ "payload": self.payload, "timeout_ms": timeout_ms });
        let path = device_path(&self.one.id, &format!("/methods/{}", escape(&self.name)));
        let client = client(&self.one.target)?.with_deadline(self.timeout + GRACE);
        let request = Request {
            path: &path,
            body: Some((JSON, body)),
            ..Request::default()
        };
        let answer = client.send(Method::POST, request).await?;
        match output {
            Output::Json => output::json(&answer.body),
            Output::Table => {
                let part = |name| answer.body.get(name).map(shown).unwrap_or_default();
                output::table(&["status", "payload"], vec![vec![part("status"), part("payload")]]);
            }
        }
        Ok(())
    }
}

fn any_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}; quote texts, such as '\"now\"'"))
}

fn timeout(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "use a number and a unit, such as 500ms or 30s".to_owned())?;
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        unit => return Err(format!("{unit:?} is no unit; use ms, s or m")),
    };
    let time = Duration::from_millis(number.saturating_mul(millis));
    match (Duration::from_millis(1)..=Duration::from_secs(300)).contains(&time) {
        true => Ok(time),
        false => Err("allowed is 1ms to 300s".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_with_their_unit() {
        for (text, millis) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("5m", 300_000),
            ("7", 7_000),
            ("1ms", 1),
        ] {
            assert_eq!(timeout(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "0s", "301s", "6m", "1h", "-1s", "1.5s"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
