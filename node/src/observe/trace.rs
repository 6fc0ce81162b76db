//! Which request a piece of work belongs to, as W3C trace context. Crosses nodes as text.
//!
//! Nothing here exports spans; the ids tie log lines of several nodes together.

use std::future::Future;

/// One trace, and the span within it that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: u128,
    pub span_id: u64,
    pub sampled: bool,
}

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Runs `work` as part of a trace: [`current`] answers with it inside.
pub async fn scope<F: Future>(context: TraceContext, work: F) -> F::Output {
    CURRENT.scope(context, work).await
}

/// The trace of the task that runs. `None` outside of [`scope`].
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

impl TraceContext {
    /// A new trace.
    pub fn start() -> Self {
        Self {
            trace_id: rand::random::<u128>().max(1),
            span_id: rand::random::<u64>().max(1),
            sampled: true,
        }
    }

    /// A new span within the trace a caller sent; a new trace if it sent none, or nonsense.
    pub fn from_headers(traceparent: Option<&str>) -> Self {
        traceparent
            .and_then(Self::parse)
            .map_or_else(Self::start, |caller| caller.child())
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span_id: rand::random::<u64>().max(1),
            ..self
        }
    }

    /// Reads `version-traceid-spanid-flags`; ids of zero and version ff are not allowed.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let later_version_has_more = version > 0;
        if version == 0xff || trace_id == 0 || span_id == 0 || (parts.next().is_some() && !later_version_has_more) {
            return None;
        }
        Some(Self {
            trace_id,
            span_id: u64::try_from(span_id).ok()?,
            sampled: flags & 1 == 1,
        })
    }

    /// As the header `traceparent` carries it.
    pub fn to_traceparent(self) -> String {
        format!(
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            u8::from(self.sampled)
        )
    }

    pub fn trace_id_text(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// Lower-case hexadecimal of exactly `digits` digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_trace_goes_on_under_a_span_of_ours() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let caller = TraceContext::parse(text).unwrap();
        assert_eq!(caller.to_traceparent(), text);
        let ours = TraceContext::from_headers(Some(text));
        assert_eq!(ours.trace_id, caller.trace_id);
        assert_ne!(ours.span_id, caller.span_id);
        assert!(TraceContext::parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
    }

    #[test]
    fn nonsense_starts_a_new_trace() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert_ne!(TraceContext::from_headers(Some("x")).trace_id, 0);
    }

    #[tokio::test]
    async fn work_inside_a_scope_knows_its_trace() {
        let context = TraceContext::start();
        assert_eq!(scope(context, async { current() }).await, Some(context));
        assert_eq!(current(), None);
    }
}
