//! Small things that answers and questions of several handlers share.

use actix_web::HttpResponseBuilder;
use actors::wire::receipt::Receipt;

use super::problem::{Kind, Problem};

pub const RECEIPT_HEADER: &str = "X-Holdfast-Receipt";
/// Most items of one page.
pub const LIMIT_MAX: u32 = 1000;

/// Puts the evidence of a write on its answer. A write that changed nothing has none.
pub fn receipt(response: &mut HttpResponseBuilder, receipt: Option<Receipt>) {
    if let Some(receipt) = receipt {
        response.insert_header((RECEIPT_HEADER, receipt.to_string()));
    }
}

/// # Errors
/// 400 when it is not a number of 1..=1000.
pub fn limit(text: Option<&str>, default: u32) -> Result<u32, Problem> {
    match text {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
            _ => Err(bad_param("limit", text, "a number in 1..=1000")),
        },
    }
}

/// # Errors
/// 400 when it is not a whole number.
pub fn number(name: &str, text: Option<&str>) -> Result<Option<u64>, Problem> {
    text.map(|text| text.parse().map_err(|_| bad_param(name, text, "a whole number")))
        .transpose()
}

pub fn bad_param(name: &str, given: &str, expected: &str) -> Problem {
    Problem::new(
        Kind::BadParameter,
        format!("{name}={given} is not allowed: give {expected}"),
    )
    .with("parameter", name)
}
