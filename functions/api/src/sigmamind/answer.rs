//! How SigmaMind's clients are answered: ids with prefixes, pages, faults, and the fields of a request.

use ringback_shared::{clock::iso, models::Object};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Asked;
use crate::http::{ApiError, Query, Request, Response};

pub(super) type Answer = Result<Response, ApiError>;

/// What ids begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Org,
    Agent,
    Case,
    Batch,
    Job,
    Chat,
    Call,
    Webhook,
}

/// The digits of ids.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// How many of them make a UUID.
const LENGTH: usize = 22;

impl Prefix {
    const fn text(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Agent => "agent",
            Self::Case => "tc",
            Self::Batch => "batch",
            Self::Job => "job",
            Self::Chat => "chat",
            Self::Call => "call",
            Self::Webhook => "wh",
        }
    }

    /// What clients call it.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Org => "Workspace",
            Self::Agent => "Agent",
            Self::Case => "Test case",
            Self::Batch => "Batch run",
            Self::Job => "Test run",
            Self::Chat => "Chat",
            Self::Call => "Call",
            Self::Webhook => "Webhook",
        }
    }

    /// An id as clients see it: the prefix and 22 letters and digits, which are the UUID.
    pub(super) fn id(self, id: Uuid) -> String {
        let mut rest = id.as_u128();
        let mut digits = [b'0'; LENGTH];
        for digit in digits.iter_mut().rev() {
            *digit = usize::try_from(rest % 62)
                .ok()
                .and_then(|at| DIGITS.get(at).copied())
                .unwrap_or(b'0');
            rest /= 62;
        }
        format!("{}_{}", self.text(), String::from_utf8_lossy(&digits))
    }

    /// The UUID that an id stands for: one of these, with a hyphen for the underscore or without the prefix, or the UUID itself.
    pub(super) fn read(self, text: &str) -> Option<Uuid> {
        let rest = text.strip_prefix(self.text());
        let rest = rest
            .and_then(|rest| rest.strip_prefix(['_', '-']))
            .unwrap_or(text);
        if let Ok(id) = Uuid::try_parse(rest) {
            return Some(id);
        }
        if rest.len() != LENGTH {
            return None;
        }
        let mut number: u128 = 0;
        for byte in rest.bytes() {
            let digit = DIGITS.iter().position(|known| *known == byte)?;
            number = number.checked_mul(62)?.checked_add(digit as u128)?;
        }
        Some(Uuid::from_u128(number))
    }

    /// The same for an id that must be there.
    pub(super) fn found(self, text: &str) -> Result<Uuid, ApiError> {
        self.read(text).ok_or_else(|| self.missing(text))
    }

    /// There is no such thing.
    pub(super) fn missing(self, id: &str) -> ApiError {
        ApiError::not_found(self.title(), id)
    }
}

/// A fault in the shape that clients of SigmaMind parse.
pub(super) fn fault(error: ApiError, path: &str, now: i64) -> Response {
    let status = error.status();
    let phrase = http::StatusCode::from_u16(u16::try_from(status).unwrap_or(500))
        .ok()
        .and_then(|status| status.canonical_reason());
    let body = json!({
        "error": phrase.unwrap_or("Error"), "message": error.text(), "path": path, "status": status, "timestamp": iso(now),
    });
    Response::of(status, &body).with_header_of(error)
}

/// What a request says, in its body or in its query; what is wrong with it is told all at once.
pub(super) struct Fields {
    fields: Object,
    faults: Vec<String>,
}

impl Fields {
    /// The fields of a request's body.
    pub(super) fn of(request: &Request) -> Result<Self, ApiError> {
        match request.json()? {
            Value::Object(fields) => Ok(Self {
                fields,
                faults: Vec::new(),
            }),
            _ => Err(ApiError::bad_request("the body must be a JSON object")),
        }
    }

    pub(super) fn wrong(&mut self, name: &str, wrong: &str) {
        self.faults.push(format!("{name}: {wrong}"));
    }

    /// A field as it came; none where it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A text of at most so many characters; none where it is blank.
    pub(super) fn text(&mut self, name: &str, most: usize) -> Option<String> {
        let text = match self.get(name)? {
            Value::String(text) => text.clone(),
            _ => {
                self.wrong(name, "must be a string");
                return None;
            }
        };
        if text.chars().count() > most {
            self.wrong(name, &format!("size must be between 1 and {most}"));
        }
        // As if it was not said: so is shown what there is nothing of.
        Some(text).filter(|text| !text.trim().is_empty())
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, name: &str, most: usize) -> String {
        let faults = self.faults.len();
        let text = self.text(name, most);
        if text.is_none() && self.faults.len() == faults {
            self.wrong(name, "must not be blank");
        }
        text.unwrap_or_default()
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Bool(flag) => Some(*flag),
            _ => {
                self.wrong(name, "must be true or false");
                None
            }
        }
    }

    pub(super) fn integer(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let number = self.get(name)?.as_i64();
        let fits = number.filter(|number| range.contains(number));
        if fits.is_none() {
            let (least, most) = (range.start(), range.end());
            self.wrong(name, &format!("must be a whole number from {least} to {most}"));
        }
        fits
    }

    /// A list of texts, of which there is at least one.
    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let list = match self.get(name) {
            Some(Value::Array(list)) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let list: Vec<String> = list.unwrap_or_default();
        if list.is_empty() {
            self.wrong(name, "must be a list of strings, and not empty");
        }
        list
    }

    /// Refuses what is wrong so far.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(ApiError::bad_request(self.faults.join("; "))),
        }
    }
}

/// Reads an id from the query, or from the body where there is one.
pub(super) fn named(asked: Asked<'_>, name: &str, prefix: Prefix) -> Result<Option<Uuid>, ApiError> {
    let body = match asked.request.body.is_empty() {
        true => Value::Null,
        false => asked.request.optional_json()?,
    };
    let text = asked.request.query.get(name);
    let text = text.or_else(|| body.get(name)?.as_str());
    text.map(|text| prefix.found(text)).transpose()
}

/// The same for one that must be there.
pub(super) fn required(asked: Asked<'_>, name: &str, prefix: Prefix) -> Result<Uuid, ApiError> {
    let missing = || ApiError::bad_request(format!("Required request parameter '{name}' is not present"));
    named(asked, name, prefix)?.ok_or_else(missing)
}

/// How many entries a page has unless the request says so, and at most.
const PAGE_SIZE: usize = 10;
const MAX_PAGE_SIZE: usize = 100;

/// Which page of a list is wanted, from 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    page: usize,
    size: usize,
}

impl Paging {
    pub(super) fn of(query: &Query) -> Result<Self, ApiError> {
        let whole = |name: &str, default: usize, range: std::ops::RangeInclusive<usize>| {
            let Some(text) = query.get(name) else {
                return Ok(default);
            };
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                ApiError::bad_request(format!("{name}: must be a whole number from {least} to {most}"))
            })
        };
        Ok(Self {
            page: whole("page", 0, 0..=1_000_000)?,
            size: whole("size", PAGE_SIZE, 1..=MAX_PAGE_SIZE)?,
        })
    }

    /// The places of the page's entries in a list of so many.
    pub(super) fn places(self, count: usize) -> std::ops::Range<usize> {
        let first = self.page.saturating_mul(self.size).min(count);
        first..first.saturating_add(self.size).min(count)
    }

    /// The page with these entries out of so many.
    pub(super) fn answer(self, count: usize, entries: Vec<Value>) -> Answer {
        let pages = count.div_ceil(self.size);
        Response::ok(json!({
            "data": entries, "page": self.page, "size": self.size, "totalCount": count, "totalPages": pages,
            "hasNext": self.page + 1 < pages, "hasPrevious": self.page > 0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_resolve_both_ways(number: u128) {
            let id = Uuid::from_u128(number);
            let shown = Prefix::Job.id(id);
            prop_assert!(shown.starts_with("job_") && shown.len() == 26);
            prop_assert_eq!(Prefix::Job.read(&shown), Some(id));
            prop_assert_eq!(Prefix::Job.read(&shown.replace('_', "-")), Some(id));
            prop_assert_eq!(Prefix::Job.read(&shown[4..]), Some(id));
            prop_assert_eq!(Prefix::Job.read(&id.to_string()), Some(id));
            prop_assert_eq!(Prefix::Batch.read(&shown), None, "another thing's");
        }

        #[test]
        fn nothing_from_outside_panics(text in ".*") {
            let _ = Prefix::Agent.read(&text);
        }

        #[test]
        fn pages_hold_each_entry_once(count in 0..300_usize, size in 1..=100_usize) {
            let mut seen = 0;
            for page in 0..=count.div_ceil(size) {
                let places = Paging { page, size }.places(count);
                prop_assert_eq!(places.start, seen.min(count));
                seen = places.end.max(seen);
            }
            prop_assert_eq!(seen, count);
        }
    }

    #[test]
    fn an_id_that_is_too_large_is_none() {
        assert_eq!(Prefix::Org.read(&format!("org_{}", "z".repeat(22))), None);
        assert_eq!(Prefix::Org.id(Uuid::nil()), format!("org_{}", "0".repeat(22)));
    }
}
