//! Which trace something belongs to, as it travels between programs: the `traceparent` of W3C
//! Trace Context (level 1). What is recorded in a trace is decided in
//! [`observability`](crate::observability).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One span of one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace: u128,
    /// The span in it; never 0.
    pub span: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a traceparent, such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
pub struct NoTraceParent;

impl TraceParent {
    /// The first span of a new trace.
    pub fn new(sampled: bool) -> Self {
        Self { trace: not_zero(rand::random), span: not_zero(rand::random), sampled }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: not_zero(rand::random), ..self }
    }

    /// The trace in 32 hexadecimal digits, as logs and tracing systems show it.
    pub fn trace_id(self) -> impl fmt::Display {
        fmt::from_fn(move |f| write!(f, "{:032x}", self.trace))
    }
}

fn not_zero<T: Default + PartialEq>(random: impl Fn() -> T) -> T {
    loop {
        let id = random();
        if id != T::default() {
            return id;
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for TraceParent {
    type Err = NoTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let mut parts = text.split('-');
        let mut next = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NoTraceParent)?;
            let is_hex = |c| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            if !part.bytes().all(is_hex) {
                return Err(NoTraceParent);
            }
            u128::from_str_radix(part, 16).map_err(|_| NoTraceParent)
        };
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let span = u64::try_from(span).map_err(|_| NoTraceParent)?;
        // Later versions may have more fields after the known ones.
        let complete = version != 0xff && (version != 0 || parts.next().is_none());
        if !complete || trace == 0 || span == 0 {
            return Err(NoTraceParent);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn it_is_written_as_it_is_read() {
        let parent: TraceParent = TEXT.parse().expect("the example of the specification");
        assert_eq!(parent.to_string(), TEXT);
        assert!(parent.sampled);
        assert_eq!(parent.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let child = parent.child();
        assert_eq!((child.trace, child.sampled), (parent.trace, true));
        assert_ne!(child.span, parent.span);
    }

    #[test]
    fn later_versions_are_understood_and_nonsense_is_not() {
        let later = TEXT.replacen("00", "01", 1) + "-more";
        assert_eq!(later.parse::<TraceParent>(), TEXT.parse());
        for wrong in [
            "",
            "00",
            &TEXT.to_uppercase(),
            &TEXT.replacen("00", "ff", 1),
            &(TEXT.to_owned() + "-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(NoTraceParent), "{wrong}");
        }
    }
}
