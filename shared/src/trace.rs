//! Trace context: what lets a run be seen as a part of whatever asked for it. It is read from a request, kept with the run and its items,
//! and passed on with messages and with requests to the agent under test. Pure: no I/O, and ids of spans are handed in.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The header of [W3C Trace Context](https://www.w3.org/TR/trace-context/).
pub const TRACEPARENT: &str = "traceparent";

/// The header of X-Ray, which API Gateway and load balancers set.
pub const AMAZON: &str = "x-amzn-trace-id";

/// The longest header that is looked at, in bytes.
const LONGEST: usize = 512;

/// The trace that a request belongs to, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace's id, not 0.
    id: u128,
    /// The span that asked, not 0.
    parent: u64,
    /// Whether whoever began the trace keeps it.
    sampled: bool,
}

/// As many lowercase hexadecimal digits as `text` must have.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (text.len() == digits && text.bytes().all(lower))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

impl Trace {
    fn new(id: u128, parent: u128, sampled: bool) -> Option<Self> {
        let parent = u64::try_from(parent).ok()?;
        (id != 0 && parent != 0).then_some(Self { id, parent, sampled })
    }

    /// Reads a `traceparent`: of version 00 exactly, of a later version what version 00 says of it. What is malformed is `None`: a
    /// trace is a help, and nothing fails for lack of it.
    #[must_use]
    pub fn from_traceparent(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let (id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?);
        // Version ff is none, and what comes after the flags is for later versions.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        Self::new(hex(id, 32)?, hex(parent, 16)?, hex(flags, 2)? & 1 == 1)
    }

    /// Reads X-Ray's header, such as `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`, if the trace is
    /// sampled: each request through API Gateway has one, and most belong to no trace that is kept. Without a parent, as API
    /// Gateway sends it, the end of the trace's id stands for one.
    #[must_use]
    pub fn from_amazon(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let field = |name: &str| {
            let mut fields = text.split(';').filter_map(|field| field.trim().split_once('='));
            fields.find(|(named, _)| *named == name).map(|(_, value)| value)
        };
        if field("Sampled") != Some("1") {
            return None;
        }
        let mut root = field("Root")?.split('-');
        let (version, time, rest) = (root.next()?, root.next()?, root.next()?);
        if version != "1" || root.next().is_some() {
            return None;
        }
        let id = hex(time, 8)? << 96 | hex(rest, 24)?;
        let parent = match field("Parent") {
            Some(parent) => hex(parent, 16)?,
            None => id & u128::from(u64::MAX),
        };
        Self::new(id, parent, true)
    }

    /// The trace of a request with these headers: W3C's counts, then X-Ray's.
    #[must_use]
    pub fn of(traceparent: Option<&str>, amazon: Option<&str>) -> Option<Self> {
        traceparent
            .and_then(Self::from_traceparent)
            .or_else(|| amazon.and_then(Self::from_amazon))
    }

    /// The trace's id as logs show it: 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// The same trace, one span further: `span` is the new span's id; 0, which is none, leaves it as it is.
    #[must_use]
    pub fn child(self, span: u64) -> Self {
        match span {
            0 => self,
            parent => Self { parent, ..self },
        }
    }

    /// It as X-Ray's header, which is also the attribute `AWSTraceHeader` of a message.
    #[must_use]
    pub fn to_amazon(&self) -> String {
        format!(
            "Root=1-{:08x}-{:024x};Parent={:016x};Sampled={}",
            self.id >> 96,
            self.id & ((1 << 96) - 1),
            self.parent,
            u8::from(self.sampled)
        )
    }
}

/// It as a `traceparent`.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.id,
            self.parent,
            u8::from(self.sampled)
        )
    }
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(self)
    }
}

/// Reads the trace of a row. What is none is passed over: a row is never unreadable for it.
pub(crate) fn lenient<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Trace>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    Ok(text.as_deref().and_then(Trace::from_traceparent))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        for (text, read) in [
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                Some(true),
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                Some(false),
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe",
                Some(false),
            ),
            // A later version may say more, and has other flags.
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-what-else",
                Some(true),
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what",
                None,
            ),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1", None),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", None),
            ("", None),
            ("-", None),
        ] {
            let trace = Trace::from_traceparent(text);
            assert_eq!(trace.map(|trace| trace.sampled), read, "{text}");
            if let Some(trace) = trace {
                assert_eq!((trace.id().as_str(), trace.parent), (ID, 0x00f0_67aa_0ba9_02b7));
            }
        }
        let long = format!("01-{ID}-00f067aa0ba902b7-01-{}", "x".repeat(LONGEST));
        assert_eq!(Trace::from_traceparent(&long), None);
    }

    #[test]
    fn x_rays_header_is_read_if_it_is_sampled() {
        let root = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736";
        for (text, parent) in [
            (
                format!("{root};Parent=53995c3f42cd8ad8;Sampled=1"),
                Some(0x5399_5c3f_42cd_8ad8),
            ),
            (
                format!("Sampled=1; Self=1-67891234-12456789abcdef012345678a; {root}"),
                Some(0xa3ce_929d_0e0e_4736),
            ),
            (
                format!("{root};Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a87bd80c:1"),
                Some(0x5399_5c3f_42cd_8ad8),
            ),
            (format!("{root};Parent=53995c3f42cd8ad8;Sampled=0"), None),
            (format!("{root};Parent=53995c3f42cd8ad8;Sampled=?"), None),
            (format!("{root};Parent=53995c3f42cd8ad8"), None),
            (format!("{root};Parent=53995c3f42cd8ad;Sampled=1"), None),
            (format!("{root};Parent=0000000000000000;Sampled=1"), None),
            ("Parent=53995c3f42cd8ad8;Sampled=1".to_owned(), None),
            (
                "Root=2-4bf92f35-77b34da6a3ce929d0e0e4736;Sampled=1".to_owned(),
                None,
            ),
            (
                "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736-x;Sampled=1".to_owned(),
                None,
            ),
            ("Root=1-4bf92f35;Sampled=1".to_owned(), None),
            (String::new(), None),
        ] {
            let trace = Trace::from_amazon(&text);
            assert_eq!(trace.map(|trace| trace.parent), parent, "{text}");
            if let Some(trace) = trace {
                assert_eq!((trace.id().as_str(), trace.sampled), (ID, true));
            }
        }
    }

    #[test]
    fn w3cs_header_counts_before_x_rays() {
        let w3c = format!("00-{ID}-00f067aa0ba902b7-00");
        let amazon = "Root=1-00000001-000000000000000000000002;Sampled=1";
        let id = |w3c, amazon| Trace::of(w3c, amazon).map(|trace| trace.id());
        assert_eq!(id(Some(&w3c), Some(amazon)).as_deref(), Some(ID));
        let other = id(None, Some(amazon));
        assert_eq!(other.as_deref(), Some("00000001000000000000000000000002"));
        assert_eq!(id(Some("x"), Some(amazon)), other);
        assert_eq!(id(None, None), None);
    }

    #[test]
    fn a_trace_goes_on_with_another_span() {
        let trace = Trace::from_traceparent(&format!("00-{ID}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(
            trace.to_amazon(),
            "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1"
        );
        assert_eq!(trace.child(7).to_string(), format!("00-{ID}-0000000000000007-01"));
        assert_eq!(trace.child(0), trace);
    }

    fn any_trace() -> impl Strategy<Value = Trace> {
        (1_u128.., 1_u64.., any::<bool>()).prop_map(|(id, parent, sampled)| Trace { id, parent, sampled })
    }

    proptest! {
        #[test]
        fn a_trace_survives_its_headers(trace in any_trace()) {
            prop_assert_eq!(Trace::from_traceparent(&trace.to_string()), Some(trace));
            prop_assert_eq!(Trace::from_amazon(&trace.to_amazon()), trace.sampled.then_some(trace));
            let json = serde_json::to_string(&trace).unwrap();
            prop_assert_eq!(lenient(&mut serde_json::Deserializer::from_str(&json)).unwrap(), Some(trace));
        }

        #[test]
        fn nothing_from_outside_panics(text in ".*", near in "[0-9a-fA-F]{0,2}-[0-9a-f+]{30,34}-[0-9a-f]{15,17}-[0-9a-f]{1,3}",
            amazon in "(Root=[01]-[0-9a-f]{7,9}-[0-9a-f]{23,25}|Parent=[0-9a-f]{15,17}|Sampled=[01]|;){0,6}") {
            for text in [text, near, amazon] {
                if let Some(trace) = Trace::of(Some(&text), Some(&text)) {
                    prop_assert!(trace.id != 0 && trace.parent != 0);
                }
            }
        }
    }
}
