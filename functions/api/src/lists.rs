//! Lists: paging, order and time filters, the same for every kind of thing.
//!
//! Every list is in the order of a [`Key`]: what it is sorted by, and the id, so that no two entries have the same place. A
//! cursor is the key of the last entry that was shown. The next page begins after that key, whether or not its entry is still
//! there, still fits the filters or still has that place: what does not change comes exactly once.

use std::ops::RangeInclusive;

use ringback_shared::{
    clock::around_iso,
    ids,
    models::page::{Page, PaginationMeta, SortOrder},
    store::{Kind, ListQuery},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::http::{ApiError, Query, Response};

const DEFAULT_LIMIT: usize = 100;
/// The most entries of a page.
pub(crate) const MAX_LIMIT: usize = 1000;
/// The greatest number of a page.
pub(crate) const MAX_PAGE: usize = 1_000_000;

/// What a list is sorted by. Entries that are equal in it are in the order of their ids, which is that of their creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SortBy {
    CreatedAt,
    Duration,
    Cost,
}

impl SortBy {
    const ALL: [Self; 3] = [Self::CreatedAt, Self::Duration, Self::Cost];

    fn name(self) -> &'static str {
        match self {
            Self::CreatedAt => "createdAt",
            Self::Duration => "duration",
            Self::Cost => "cost",
        }
    }
}

/// The place of an entry: what it is sorted by, and then its id. What is not known is smaller than everything that is. In a list
/// by creation nothing is known of any entry, and the id decides.
pub(crate) type Key<I> = (Option<i64>, I);

/// When the answer is an object with `results` and `metadata`, and not the bare list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// When `page`, `limit` or `cursor` is given.
    Asked,
    /// When `page` or `cursor` is given: clients give `limit` and read a bare list.
    Paged,
    /// Always.
    Always,
}

impl Shape {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::StructuredOutput | Kind::Eval => Self::Always,
            Kind::Assistant | Kind::Squad => Self::Paged,
            _ => Self::Asked,
        }
    }

    fn is_enveloped(self, query: &Query) -> bool {
        let given = |name: &&str| query.get(name).is_some();
        match self {
            Self::Asked => ["page", "limit", "cursor"].iter().any(given),
            Self::Paged => ["page", "cursor"].iter().any(given),
            Self::Always => true,
        }
    }
}

/// What part of a list a request asks for.
#[derive(Debug)]
pub(crate) struct ListRequest {
    enveloped: bool,
    page: usize,
    limit: usize,
    pub(crate) newest_first: bool,
    pub(crate) sort: SortBy,
    pub(crate) cursor: Option<Key<Uuid>>,
    /// When an entry was created, in milliseconds since the Unix epoch.
    created: RangeInclusive<i64>,
}

pub(crate) fn whole(
    query: &Query,
    name: &str,
    default: usize,
    range: RangeInclusive<usize>,
) -> Result<usize, ApiError> {
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

/// The times that the filters `{what}Gt`, `Ge`, `Lt` and `Le` leave, in milliseconds since the Unix epoch; nothing where there
/// are none.
pub(crate) fn times(query: &Query, what: &str) -> Result<Option<RangeInclusive<i64>>, ApiError> {
    let time = |end: &str| {
        let name = format!("{what}{end}");
        match query.get(&name) {
            None => Ok(None),
            Some(text) => around_iso(text)
                .map(Some)
                .ok_or_else(|| ApiError::bad_request(format!("{name} must be an ISO 8601 date-time"))),
        }
    };
    let (gt, ge) = (time("Gt")?, time("Ge")?);
    let (lt, le) = (time("Lt")?, time("Le")?);
    let from = gt
        .map(|(floor, _)| floor + 1)
        .into_iter()
        .chain(ge.map(|(_, ceil)| ceil))
        .max();
    let until = lt
        .map(|(_, ceil)| ceil - 1)
        .into_iter()
        .chain(le.map(|(floor, _)| floor))
        .min();
    Ok((from.is_some() || until.is_some()).then(|| from.unwrap_or(i64::MIN)..=until.unwrap_or(i64::MAX)))
}

/// The text of a cursor: the id alone in a list by creation, otherwise with what the list is sorted by and the entry's value.
fn cursor_text(sort: SortBy, (value, id): Key<Uuid>) -> String {
    let value = value.map(|value| value.to_string()).unwrap_or_default();
    match sort {
        SortBy::CreatedAt => id.to_string(),
        _ => format!("{}.{value}.{id}", sort.name()),
    }
}

fn parse_cursor(sort: SortBy, text: &str) -> Option<Key<Uuid>> {
    let (value, id) = match sort {
        SortBy::CreatedAt => (None, text),
        _ => {
            let (value, id) = text
                .strip_prefix(sort.name())?
                .strip_prefix('.')?
                .split_once('.')?;
            let known = (!value.is_empty()).then(|| value.parse());
            (known.transpose().ok()?, id)
        }
    };
    Some((value, Uuid::try_parse(id).ok()?))
}

impl ListRequest {
    /// What a request for a list of runs or items asks for.
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        Self::read(query, Shape::Asked, true)
    }

    /// The same of a list that is always a page.
    pub(crate) fn of_pages(query: &Query) -> Result<Self, ApiError> {
        Self::read(query, Shape::Always, true)
    }

    /// What a request for a list of definitions asks for. They have neither a duration nor a cost, so that they are always
    /// sorted by their creation.
    pub(crate) fn of_definitions(kind: Kind, query: &Query) -> Result<Self, ApiError> {
        Self::read(query, Shape::of(kind), false)
    }

    fn read(query: &Query, shape: Shape, measured: bool) -> Result<Self, ApiError> {
        let named = match query.get("sortBy") {
            None => SortBy::CreatedAt,
            Some(name) => SortBy::ALL
                .into_iter()
                .find(|by| by.name() == name)
                .ok_or_else(|| ApiError::bad_request("sortBy must be one of createdAt, duration, cost"))?,
        };
        let sort = if measured { named } else { SortBy::CreatedAt };
        let newest_first = match query.get("sortOrder") {
            None | Some("DESC") => true,
            Some("ASC") => false,
            Some(_) => return Err(ApiError::bad_request("sortOrder must be ASC or DESC")),
        };
        let unknown = || {
            ApiError::bad_request(
                "cursor is not one of this list's; pass back nextCursor as it came, with the same sortBy",
            )
        };
        let cursor = query
            .get("cursor")
            .map(|text| parse_cursor(sort, text).ok_or_else(unknown))
            .transpose()?;
        Ok(Self {
            enveloped: shape.is_enveloped(query),
            page: whole(query, "page", 1, 1..=MAX_PAGE)?,
            limit: whole(query, "limit", DEFAULT_LIMIT, 0..=MAX_LIMIT)?,
            newest_first,
            sort,
            cursor,
            created: times(query, "createdAt")?.unwrap_or(i64::MIN..=i64::MAX),
        })
    }

    /// How many entries of the list come before the page. A cursor says where the page begins by itself.
    fn skipped(&self) -> usize {
        if self.cursor.is_some() {
            0
        } else {
            (self.page - 1).saturating_mul(self.limit)
        }
    }

    /// How many entries of the list have to be seen, at most, to know the page and whether another one follows.
    pub(crate) fn reach(&self) -> usize {
        self.skipped().saturating_add(self.limit).saturating_add(1)
    }

    /// Whether something that was created then (in milliseconds since the Unix epoch) is asked for.
    pub(crate) fn is_in_time(&self, created: i64) -> bool {
        self.created.contains(&created)
    }

    /// The ids of what was created within the time filters.
    pub(crate) fn ids(&self) -> RangeInclusive<Uuid> {
        let last = match self.created.end().checked_add(1) {
            Some(next) => Uuid::from_u128(ids::floor_id(next).as_u128().saturating_sub(1)),
            None => Uuid::max(),
        };
        ids::floor_id(*self.created.start())..=last
    }

    /// What to ask the store for, at most `limit` entries at a time: all of the list, or what comes after the id `after`.
    pub(crate) fn store_query(&self, after: Option<Uuid>, limit: usize) -> ListQuery {
        ListQuery {
            ids: self.ids(),
            newest_first: self.newest_first,
            after,
            limit,
        }
    }

    /// Brings keys into the order of the list.
    pub(crate) fn sort<I: Ord>(&self, keys: &mut [Key<I>]) {
        keys.sort_unstable();
        if self.newest_first {
            keys.reverse();
        }
    }

    /// The page, still empty. `after` is the cursor in the terms of the list's keys.
    pub(crate) fn pick<I: Ord + Copy>(&self, after: Option<Key<I>>) -> Pick<I> {
        Pick {
            after,
            descending: self.newest_first,
            skip: self.skipped(),
            room: self.limit,
            total: 0,
            last: None,
            more: false,
        }
    }

    /// Whether a page is asked for, not the bare list.
    pub(crate) fn is_paged(&self) -> bool {
        self.enveloped
    }

    /// Where the page stands; `id` gives the id in a key.
    pub(crate) fn found<I: Ord + Copy>(&self, picked: &Pick<I>, id: impl Fn(I) -> Uuid) -> Found {
        let next = picked.last.filter(|_| picked.more);
        Found {
            total: picked.total,
            next: next.map(|(value, last)| cursor_text(self.sort, (value, id(last)))),
        }
    }

    /// The answer.
    pub(crate) fn answer(&self, results: Vec<Value>, found: Found) -> Result<Response, ApiError> {
        if !self.enveloped {
            return Response::ok(results);
        }
        let total = i64::try_from(found.total).unwrap_or(i64::MAX);
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
            has_next_page: Some(found.next.is_some()),
            next_cursor: found.next,
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

/// Picks a page out of a list that goes by, entry by entry and in its order.
#[derive(Debug)]
pub(crate) struct Pick<I> {
    after: Option<Key<I>>,
    descending: bool,
    skip: usize,
    room: usize,
    /// How many entries the list has.
    pub(crate) total: u64,
    last: Option<Key<I>>,
    more: bool,
}

impl<I: Ord + Copy> Pick<I> {
    /// Whether the next entry of the list is on the page.
    pub(crate) fn takes(&mut self, key: Key<I>) -> bool {
        self.total += 1;
        let before = match self.after {
            Some(after) if self.descending => key >= after,
            Some(after) => key <= after,
            None => self.skip > 0,
        };
        if before {
            self.skip = self.skip.saturating_sub(1);
            return false;
        }
        if self.room == 0 {
            self.more = true;
            return false;
        }
        self.room -= 1;
        self.last = Some(key);
        true
    }

    /// Whether nothing that follows is on the page.
    pub(crate) fn is_full(&self) -> bool {
        self.more
    }
}

/// Where a page stands in its list.
#[derive(Debug)]
pub(crate) struct Found {
    /// How many entries the list has.
    total: u64,
    /// The cursor of the next page, if there is one.
    next: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn request(query: &str) -> ListRequest {
        ListRequest::parse(&Query::parse(query)).unwrap()
    }

    fn refused(query: &str) -> bool {
        ListRequest::parse(&Query::parse(query)).is_err()
    }

    #[test]
    fn parameters_are_read_and_wrong_ones_refused() {
        let id = Uuid::from_u128(7);
        let wanted = request("sortBy=duration&sortOrder=ASC&limit=5.0&page=3");
        assert_eq!(
            (wanted.sort, wanted.newest_first, wanted.skipped(), wanted.reach()),
            (SortBy::Duration, false, 10, 16)
        );
        // What is empty counts as absent.
        let empty = request("sortBy=&sortOrder=&limit=&page=&cursor=&createdAtGe=");
        assert_eq!((empty.sort, empty.limit, empty.page), (SortBy::CreatedAt, 100, 1));
        assert!(!empty.is_paged() && empty.newest_first);
        // A cursor wins over a page.
        assert_eq!(request(&format!("page=3&cursor={id}")).skipped(), 0);
        for wrong in [
            "sortBy=mood".to_owned(),
            "sortOrder=desc".to_owned(),
            "cursor=x".to_owned(),
            format!("sortBy=cost&cursor={id}"),
            format!("sortBy=cost&cursor=duration.1.{id}"),
            format!("sortBy=cost&cursor=cost.x.{id}"),
            format!("cursor=cost.1.{id}"),
            "createdAtLt=soon".to_owned(),
            "limit=1.5".to_owned(),
        ] {
            assert!(refused(&wrong), "{wrong}");
        }
        // Definitions have nothing but their creation to be sorted by.
        let query = Query::parse(&format!("sortBy=cost&cursor={id}&limit=2"));
        let wanted = ListRequest::of_definitions(Kind::Scenario, &query).unwrap();
        assert_eq!(
            (wanted.sort, wanted.cursor),
            (SortBy::CreatedAt, Some((None, id)))
        );
    }

    #[test]
    fn the_answer_has_the_shape_that_the_kind_has() {
        let enveloped = |kind, query: &str| {
            ListRequest::of_definitions(kind, &Query::parse(query))
                .unwrap()
                .enveloped
        };
        for (query, scenario, assistant) in [
            ("name=x", false, false),
            ("limit=5", true, false),
            ("page=1", true, true),
            ("cursor=00000000-0000-0000-0000-000000000001", true, true),
        ] {
            assert_eq!(enveloped(Kind::Scenario, query), scenario, "{query}");
            assert_eq!(enveloped(Kind::Assistant, query), assistant, "{query}");
            assert_eq!(enveloped(Kind::Squad, query), assistant, "{query}");
            assert!(enveloped(Kind::StructuredOutput, query));
        }
    }

    #[test]
    fn time_filters_hold_to_the_nanosecond() {
        let range = |query: &str| times(&Query::parse(query), "updatedAt").unwrap();
        assert_eq!(range("createdAtGt=1970-01-01T00:00:01Z"), None);
        for (query, wanted) in [
            ("updatedAtGt=1970-01-01T00:00:01Z", 1001..=i64::MAX),
            ("updatedAtGe=1970-01-01T00:00:01Z", 1000..=i64::MAX),
            ("updatedAtLt=1970-01-01T00:00:01Z", i64::MIN..=999),
            ("updatedAtLe=1970-01-01T00:00:01Z", i64::MIN..=1000),
            ("updatedAtGt=1970-01-01T00:00:00.9995Z", 1000..=i64::MAX),
            ("updatedAtGe=1970-01-01T00:00:00.9995Z", 1000..=i64::MAX),
            ("updatedAtLt=1970-01-01T00:00:00.9995Z", i64::MIN..=999),
            ("updatedAtLe=1970-01-01T00:00:00.9995Z", i64::MIN..=999),
            (
                "updatedAtGt=1970-01-01T00:00:01Z&updatedAtGe=1970-01-01T00:00:03Z&updatedAtLe=1970-01-01T00:00:09Z",
                3000..=9000,
            ),
        ] {
            assert_eq!(range(query), Some(wanted), "{query}");
        }
        let created = request("createdAtGe=1970-01-01T00:00:01Z&createdAtLt=1970-01-01T00:00:02Z");
        let ids = created.ids();
        for (ms, inside) in [(999, false), (1000, true), (1999, true), (2000, false)] {
            assert_eq!(ids.contains(&ids::new_id(ms)), inside, "{ms}");
            assert_eq!(created.is_in_time(ms), inside, "{ms}");
        }
        assert!(
            request("createdAtGe=2030-01-01T00:00:00Z&createdAtLe=2020-01-01T00:00:00Z")
                .ids()
                .is_empty()
        );
    }

    /// The page of `list` (id to value) that `query` asks for, and the cursor of the next one.
    fn page(list: &BTreeMap<u128, Option<i64>>, query: &str) -> (Vec<u128>, Option<String>, u64) {
        let wanted = request(query);
        let mut keys: Vec<Key<Uuid>> = list
            .iter()
            .map(|(&id, &value)| {
                (
                    value.filter(|_| wanted.sort != SortBy::CreatedAt),
                    Uuid::from_u128(id),
                )
            })
            .collect();
        wanted.sort(&mut keys);
        let mut pick = wanted.pick(wanted.cursor);
        keys.retain(|&key| pick.takes(key));
        let found = wanted.found(&pick, |id| id);
        let shown = keys.iter().map(|(_, id)| id.as_u128()).collect();
        (shown, found.next, found.total)
    }

    /// What happens between two pages.
    #[derive(Debug, Clone)]
    enum Event {
        Created(Option<i64>),
        Changed(usize, Option<i64>),
        Deleted(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        let value = || proptest::option::of(-3_i64..4);
        prop_oneof![
            3 => value().prop_map(Event::Created),
            3 => (any::<usize>(), value()).prop_map(|(at, value)| Event::Changed(at, value)),
            1 => any::<usize>().prop_map(Event::Deleted),
        ]
    }

    proptest! {
        #[test]
        fn cursors_neither_repeat_nor_skip_what_stays_as_it_is(
            first in proptest::collection::vec(proptest::option::of(-3_i64..4), 0..30),
            between in proptest::collection::vec(proptest::collection::vec(event(), 0..6), 40),
            limit in 1_usize..7,
            sort in 0_usize..3,
            ascending: bool,
        ) {
            let mut list: BTreeMap<u128, Option<i64>> = (1..).zip(first).collect();
            let mut next_id = list.len() as u128 + 1;
            let by = SortBy::ALL[sort];
            let order = if ascending { "ASC" } else { "DESC" };
            // What was there all the time with the same place in the list.
            let mut lasting: BTreeSet<u128> = list.keys().copied().collect();
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            let mut between = between.into_iter();
            loop {
                let query = format!("sortBy={}&sortOrder={order}&limit={limit}{cursor}", by.name());
                let (shown, next, total) = page(&list, &query);
                prop_assert_eq!(total, list.len() as u64);
                prop_assert!(shown.len() == limit || next.is_none());
                seen.extend(shown);
                let Some(next) = next else { break };
                cursor = format!("&cursor={next}");
                for event in between.next().unwrap_or_default() {
                    let pick = |at: usize| list.keys().nth(at % list.len().max(1)).copied();
                    match event {
                        Event::Created(value) => {
                            list.insert(next_id, value);
                            next_id += 1;
                        }
                        Event::Changed(at, value) => if let Some(id) = pick(at) {
                            let before = list.insert(id, value);
                            // By creation, a change moves nothing.
                            if by != SortBy::CreatedAt && before != Some(value) {
                                lasting.remove(&id);
                            }
                        },
                        Event::Deleted(at) => if let Some(id) = pick(at) {
                            list.remove(&id);
                            lasting.remove(&id);
                        },
                    }
                }
            }
            let times = |id: u128| seen.iter().filter(|&&other| other == id).count();
            for &id in &lasting {
                prop_assert_eq!(times(id), 1, "entry {} of {:?}", id, &seen);
            }
            if by == SortBy::CreatedAt {
                let once: BTreeSet<u128> = seen.iter().copied().collect();
                prop_assert_eq!(once.len(), seen.len(), "an entry came twice: {:?}", &seen);
            }
        }

        #[test]
        fn pages_by_number_are_the_list_in_pieces_whatever_changes_in_its_entries(
            values in proptest::collection::vec(proptest::option::of(-3_i64..4), 0..40),
            changes in proptest::collection::vec((any::<usize>(), proptest::option::of(-3_i64..4)), 60),
            limit in 1_usize..9,
            ascending: bool,
        ) {
            let mut list: BTreeMap<u128, Option<i64>> = (1..).zip(values).collect();
            let order = if ascending { "ASC" } else { "DESC" };
            let mut seen = Vec::new();
            let mut changes = changes.into_iter();
            for number in 1..=list.len().div_ceil(limit) + 1 {
                let (shown, next, _) = page(&list, &format!("page={number}&limit={limit}&sortOrder={order}"));
                prop_assert_eq!(next.is_some(), number * limit < list.len());
                seen.extend(shown);
                if let (Some((at, value)), false) = (changes.next(), list.is_empty()) {
                    let at = at % list.len();
                    if let Some(entry) = list.values_mut().nth(at) {
                        *entry = value;
                    }
                }
            }
            let mut whole: Vec<u128> = list.keys().copied().collect();
            if !ascending {
                whole.reverse();
            }
            prop_assert_eq!(seen, whole);
        }
    }

    #[test]
    fn a_page_without_room_has_no_next_one() {
        let list = BTreeMap::from([(1, None), (2, Some(5))]);
        assert_eq!(page(&list, "limit=0"), (Vec::new(), None, 2));
        assert_eq!(page(&list, "limit=2"), (vec![2, 1], None, 2));
        let (shown, next, _) = page(&list, "limit=1&sortBy=cost");
        assert_eq!((shown, next.unwrap().starts_with("cost.5.")), (vec![2], true));
        assert_eq!(page(&list, "limit=2&sortBy=cost&sortOrder=ASC").0, [1, 2]);
    }
}
