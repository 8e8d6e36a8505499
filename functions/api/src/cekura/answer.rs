//! How Cekura's clients are answered: faults by field, pages, and the fields of a request.

use std::ops::RangeInclusive;

use ringback_shared::models::Object;
use serde_json::{Map, Value, json};

use crate::http::{ApiError, Query, Request, Response};

/// A refusal in the shape of Cekura.
#[derive(Debug)]
pub(super) struct Refusal {
    status: i64,
    body: Value,
    /// The error it was made of, which has its own headers.
    from: Option<Box<ApiError>>,
}

impl Refusal {
    /// What is wrong with a field.
    pub(super) fn field(name: &str, wrong: impl Into<String>) -> Self {
        Self::bad(json!({ name: [wrong.into()] }))
    }

    /// What is wrong, where it is not one field.
    pub(super) fn list(wrong: impl Into<String>) -> Self {
        Self::bad(json!([wrong.into()]))
    }

    fn bad(body: Value) -> Self {
        Self {
            status: 400,
            body,
            from: None,
        }
    }

    fn detail(status: i64, detail: &str) -> Self {
        Self {
            status,
            body: json!({ "detail": detail }),
            from: None,
        }
    }

    /// There is no such thing.
    pub(super) fn not_found() -> Self {
        Self::detail(404, "Not found.")
    }

    /// The key is missing or wrong.
    pub(super) fn unauthorized() -> Self {
        Self {
            from: Some(Box::new(ApiError::unauthorized(""))),
            ..Self::detail(
                401,
                "The API key is missing or wrong; send it as the header X-CEKURA-API-KEY.",
            )
        }
    }

    /// There is such a path, but not with this method.
    pub(super) fn method_not_allowed(request: &Request, allowed: &[&str]) -> Self {
        Self {
            from: Some(Box::new(ApiError::method_not_allowed(request, allowed))),
            ..Self::detail(405, &format!("Method \"{}\" not allowed.", request.method))
        }
    }

    /// The same as an error of the other shape.
    pub(super) fn into_error(self) -> ApiError {
        match self.from {
            Some(error) => *error,
            None => ApiError::new(self.status, self.body.to_string()),
        }
    }

    pub(super) fn response(self) -> Response {
        let answer = Response::of(self.status, &self.body);
        match self.from {
            Some(error) => answer.with_header_of(*error),
            None => answer,
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let text = error.text();
        let status = error.status();
        let body = match status {
            400 => json!([text]),
            _ => json!({ "detail": text }),
        };
        Self {
            status,
            body,
            from: Some(Box::new(error)),
        }
    }
}

impl From<ringback_shared::store::StoreError> for Refusal {
    fn from(error: ringback_shared::store::StoreError) -> Self {
        ApiError::from(error).into()
    }
}

pub(super) type Answer = Result<Response, Refusal>;

/// No content.
pub(super) fn nothing() -> Answer {
    Ok(Response::of(204, &Value::Null))
}

/// The fields of a request's body, read one by one; what is wrong with them is told all at once.
#[derive(Debug)]
pub(super) struct Fields {
    fields: Object,
    faults: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(fields: Object) -> Self {
        Self {
            fields,
            faults: Map::new(),
        }
    }

    /// The fields of a request's body; none where it has no body.
    pub(super) fn of(request: &Request) -> Result<Self, Refusal> {
        match request.optional_json()? {
            Value::Object(fields) => Ok(Self::new(fields)),
            _ => Err(Refusal::field("non_field_errors", "Send a JSON object.")),
        }
    }

    /// Notes what is wrong with a field.
    pub(super) fn wrong(&mut self, name: &str, wrong: impl Into<String>) {
        let faults = self.faults.entry(name).or_insert_with(|| json!([]));
        if let Some(faults) = faults.as_array_mut() {
            faults.push(json!(wrong.into()));
        }
    }

    /// A field as it came; none where it is absent or null.
    pub(super) fn raw(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Puts a field in the place of what came.
    pub(super) fn put(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    /// The names of those fields that are there and fit.
    pub(super) fn names(&self, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let there = self.fields.iter().filter(|(_, value)| !value.is_null());
        there
            .filter(|(name, _)| fits(name))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The first of these fields that is there.
    pub(super) fn first<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| self.raw(name).is_some())
    }

    pub(super) fn text(&mut self, name: &str, length: RangeInclusive<usize>) -> Option<String> {
        let text = match self.raw(name)? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => {
                self.wrong(name, "Not a valid string.");
                return None;
            }
        };
        let characters = text.chars().count();
        if characters == 0 && *length.start() > 0 {
            self.wrong(name, "This field may not be blank.");
        } else if characters < *length.start() {
            let least = length.start();
            self.wrong(
                name,
                format!("Ensure this field has at least {least} characters."),
            );
        } else if characters > *length.end() {
            let most = length.end();
            self.wrong(
                name,
                format!("Ensure this field has no more than {most} characters."),
            );
        }
        Some(text)
    }

    /// A text that must be there.
    pub(super) fn required_text(&mut self, name: &str, length: RangeInclusive<usize>) -> String {
        if self.raw(name).is_none() {
            self.wrong(name, "This field is required.");
        }
        self.text(name, length).unwrap_or_default()
    }

    pub(super) fn choice(&mut self, name: &str, choices: &[&str]) -> Option<String> {
        let chosen = self.text(name, 0..=usize::MAX)?;
        if !choices.contains(&chosen.as_str()) {
            self.wrong(
                name,
                format!(
                    "\"{chosen}\" is not a valid choice; choose one of {}.",
                    choices.join(", ")
                ),
            );
        }
        Some(chosen)
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.raw(name)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => {
                self.wrong(name, "Must be a valid boolean.");
                None
            }
        }
    }

    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let number = match self.raw(name)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            None => self.wrong(name, "A valid integer is required."),
            Some(number) if number < *range.start() => {
                let least = range.start();
                self.wrong(
                    name,
                    format!("Ensure this value is greater than or equal to {least}."),
                );
            }
            Some(number) if number > *range.end() => {
                let most = range.end();
                self.wrong(
                    name,
                    format!("Ensure this value is less than or equal to {most}."),
                );
            }
            Some(_) => {}
        }
        number
    }

    pub(super) fn object(&mut self, name: &str) -> Option<Object> {
        match self.raw(name)? {
            Value::Object(object) => Some(object.clone()),
            _ => {
                self.wrong(name, "Expected a dictionary of items.");
                None
            }
        }
    }

    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let list = match self.raw(name)? {
            Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        if list.is_none() {
            self.wrong(name, "Expected a list of strings.");
        }
        list
    }

    /// One id, or a list of them.
    pub(super) fn ids(&mut self, name: &str) -> Option<Vec<u64>> {
        let id = |value: &Value| match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let ids = match self.raw(name)? {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        if ids.is_none() {
            self.wrong(name, "Expected ids, which are integers.");
        }
        ids
    }

    /// The id of one thing.
    pub(super) fn id(&mut self, name: &str) -> Option<u64> {
        let ids = self.ids(name)?;
        match ids.as_slice() {
            [id] => Some(*id),
            _ => {
                self.wrong(name, "Expected one id, which is an integer.");
                None
            }
        }
    }

    /// What is left of the fields, if nothing was wrong.
    pub(super) fn checked(self) -> Result<Object, Refusal> {
        match self.faults.is_empty() {
            true => Ok(self.fields),
            false => Err(Refusal::bad(Value::Object(self.faults))),
        }
    }

    /// Refuses what is wrong so far.
    pub(super) fn check(&mut self) -> Result<(), Refusal> {
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(Refusal::bad(Value::Object(std::mem::take(&mut self.faults)))),
        }
    }
}

/// The most entries of a page.
const MAX_PAGE_SIZE: usize = 200;
/// How many entries a page has unless the request says so.
const PAGE_SIZE: usize = 20;

/// Which page of a list is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    page: usize,
    size: usize,
}

impl Paging {
    pub(super) fn of(query: &Query) -> Result<Self, Refusal> {
        let whole = |name: &str, default: usize| match query.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse::<usize>()
                .ok()
                .filter(|n| (1..=1_000_000).contains(n))
                .ok_or_else(|| match name {
                    "page" => Refusal::detail(404, "Invalid page."),
                    _ => Refusal::field(name, "A valid integer is required."),
                }),
        };
        Ok(Self {
            page: whole("page", 1)?,
            size: whole("page_size", PAGE_SIZE)?.min(MAX_PAGE_SIZE),
        })
    }

    /// The places of the page's entries in a list of `count`. There is no page after the last.
    pub(super) fn places(self, count: usize) -> Result<std::ops::Range<usize>, Refusal> {
        let from = (self.page - 1) * self.size;
        if from >= count && self.page > 1 {
            return Err(Refusal::detail(404, "Invalid page."));
        }
        Ok(from.min(count)..(from + self.size).min(count))
    }

    /// The page with these entries, of a list of `count`.
    pub(super) fn answer(
        self,
        public_url: &str,
        request: &Request,
        count: usize,
        entries: Vec<Value>,
    ) -> Answer {
        let link = |page: usize| {
            let others = request.raw_query.split('&');
            let others = others.filter(|pair| !pair.is_empty() && !pair.starts_with("page="));
            let mut query: Vec<String> = others.map(str::to_owned).collect();
            query.push(format!("page={page}"));
            format!("{public_url}{}?{}", request.path, query.join("&"))
        };
        let more = self.page * self.size < count;
        Ok(Response::ok(json!({
            "count": count,
            "next": more.then(|| link(self.page + 1)),
            "previous": (self.page > 1).then(|| link(self.page - 1)),
            "results": entries,
        }))?)
    }
}
