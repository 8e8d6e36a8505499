//! Lists: paging, order and time filters, the same for every kind of thing.

use std::ops::RangeInclusive;

use ringback_shared::{
    clock::parse_iso,
    ids,
    models::page::{Page, PaginationMeta, SortOrder},
    store::{ListQuery, Listed},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::http::{ApiError, Query, Response};

const DEFAULT_LIMIT: usize = 100;
/// The most entries of a page.
pub(crate) const MAX_LIMIT: usize = 1000;
/// The greatest number of a page.
pub(crate) const MAX_PAGE: usize = 1_000_000;

/// What part of a list a request asks for.
#[derive(Debug)]
pub(crate) struct ListRequest {
    /// Whether the answer is an object with `results` and `metadata`, or the bare list.
    enveloped: bool,
    pub(crate) page: usize,
    pub(crate) limit: usize,
    pub(crate) newest_first: bool,
    pub(crate) cursor: Option<Uuid>,
    /// The ids of what was created within the time filters.
    pub(crate) ids: RangeInclusive<Uuid>,
}

fn whole(query: &Query, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, ApiError> {
    let Some(text) = query.get(name) else {
        return Ok(default);
    };
    match text.parse::<f64>() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked against the range"
        )]
        Ok(n) if n.fract() == 0.0 && (*range.start() as f64..=*range.end() as f64).contains(&n) => {
            Ok(n as usize)
        }
        _ => Err(ApiError::bad_request(format!(
            "{name} must be a whole number from {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

impl ListRequest {
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        let time = |name: &str| match query.get(name) {
            None => Ok(None),
            Some(text) => parse_iso(text)
                .map(Some)
                .ok_or_else(|| ApiError::bad_request(format!("{name} must be an ISO 8601 date-time"))),
        };
        let from = time("createdAtGe")?
            .into_iter()
            .chain(time("createdAtGt")?.map(|ms| ms + 1))
            .max();
        let until = time("createdAtLt")?
            .into_iter()
            .chain(time("createdAtLe")?.map(|ms| ms + 1))
            .min();
        let first = from.map_or(Uuid::nil(), ids::floor_id);
        let last = until.map_or(Uuid::max(), |ms| {
            Uuid::from_u128(ids::floor_id(ms).as_u128().saturating_sub(1))
        });
        if let Some(by) = query.get("sortBy").filter(|by| *by != "createdAt") {
            return Err(ApiError::bad_request(format!(
                "sortBy={by} is not supported; use createdAt"
            )));
        }
        let newest_first = match query.get("sortOrder") {
            None | Some("DESC") => true,
            Some("ASC") => false,
            Some(_) => return Err(ApiError::bad_request("sortOrder must be ASC or DESC")),
        };
        let cursor = query
            .get("cursor")
            .map(|cursor| {
                Uuid::try_parse(cursor).map_err(|_| ApiError::bad_request("cursor is not one of this API's"))
            })
            .transpose()?;
        Ok(Self {
            enveloped: ["page", "limit", "cursor"]
                .iter()
                .any(|name| query.get(name).is_some()),
            page: whole(query, "page", 1, 1..=MAX_PAGE)?,
            limit: whole(query, "limit", DEFAULT_LIMIT, 0..=MAX_LIMIT)?,
            newest_first,
            cursor,
            ids: first..=last,
        })
    }

    /// How many entries of the list come before the page. A cursor says where the page begins by itself.
    pub(crate) fn skipped(&self) -> usize {
        if self.cursor.is_some() {
            0
        } else {
            (self.page - 1).saturating_mul(self.limit)
        }
    }

    /// What to ask the store for.
    pub(crate) fn store_query(&self) -> ListQuery {
        ListQuery {
            ids: self.ids.clone(),
            newest_first: self.newest_first,
            after: self.cursor,
            limit: self.skipped().saturating_add(self.limit),
        }
    }

    /// The page out of what the store gave for [`ListRequest::store_query`].
    pub(crate) fn cut<T>(&self, mut listed: Listed<T>) -> Listed<T> {
        listed.entries.drain(..self.skipped().min(listed.entries.len()));
        listed
    }

    /// Whether a page is asked for, not the bare list.
    pub(crate) fn is_paged(&self) -> bool {
        self.enveloped
    }

    /// All of a list, the newest first.
    pub(crate) fn everything() -> Self {
        Self {
            enveloped: false,
            page: 1,
            limit: MAX_LIMIT,
            newest_first: true,
            cursor: None,
            ids: Uuid::nil()..=Uuid::max(),
        }
    }

    /// The page out of all entries, which are in the list's order, and how many they are.
    pub(crate) fn page_of<T>(&self, all: Vec<T>, id: impl Fn(&T) -> Uuid) -> (Listed<T>, u64) {
        let total = all.len() as u64;
        let from = match self.cursor {
            // It is in the list, unless the filters have left it out since.
            Some(cursor) => match all.iter().position(|entry| id(entry) == cursor) {
                Some(place) => place + 1,
                None => all.partition_point(|entry| match self.newest_first {
                    true => id(entry) >= cursor,
                    false => id(entry) <= cursor,
                }),
            },
            None => self.skipped(),
        };
        let more = from.saturating_add(self.limit) < all.len();
        let entries = all.into_iter().skip(from).take(self.limit).collect();
        (Listed { entries, more }, total)
    }

    /// The answer. `last` is the id of the page's last entry.
    pub(crate) fn answer(
        &self,
        results: Vec<Value>,
        total: u64,
        more: bool,
        last: Option<Uuid>,
    ) -> Result<Response, ApiError> {
        if !self.enveloped {
            return Response::ok(results);
        }
        let total = i64::try_from(total).unwrap_or(i64::MAX);
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let metadata = PaginationMeta {
            items_per_page: limit,
            total_items: total,
            current_page: i64::try_from(self.page).unwrap_or(i64::MAX),
            total_pages: Some(if limit == 0 {
                0
            } else {
                (total + limit - 1) / limit
            }),
            has_next_page: Some(more),
            next_cursor: last.filter(|_| more).map(|id| id.to_string()),
            sort_order: Some(if self.newest_first {
                SortOrder::Descending
            } else {
                SortOrder::Ascending
            }),
            items_beyond_retention: None,
            created_at_le: None,
            created_at_ge: None,
            extra: Map::new(),
        };
        Response::ok(Page { results, metadata })
    }
}
