//! Filters of lists beyond the time of creation, which alone is part of the key: what they leave is found by reading all of
//! the list, consistently.

use std::{collections::HashSet, ops::RangeInclusive};

use futures_util::{StreamExt, TryStreamExt, stream};
use ringback_shared::{
    clock::parse_iso,
    context::Context,
    lifecycle::{Item, Tally},
    store::{Definition, Kind, ListQuery, RunHead, RunKey, RunKind, RunState},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    built_in, definitions,
    http::{ApiError, Query},
    lists::{Found, ListRequest, SortBy, times},
};

/// How many entries are read in one go, at most.
const PIECE: usize = 500;
/// How many runs are read at once by their ids.
const READS: usize = 16;

/// One of these words, or nothing where none is asked for.
fn word<'a>(query: &'a Query, name: &str, words: &[&str]) -> Result<Option<&'a str>, ApiError> {
    match query.get(name) {
        Some(word) if !words.contains(&word) => Err(ApiError::bad_request(format!(
            "{name} must be one of {}",
            words.join(", ")
        ))),
        word => Ok(word),
    }
}

/// What a list of definitions is to hold.
#[derive(Debug, Default)]
struct Wanted {
    updated: Option<RangeInclusive<i64>>,
    /// In lower case; a part of the name.
    name: Option<String>,
    ids: Option<HashSet<Uuid>>,
    standalone: bool,
}

impl Wanted {
    fn parse(kind: Kind, query: &Query) -> Result<Self, ApiError> {
        let named = matches!(
            kind,
            Kind::Scenario | Kind::Suite | Kind::StructuredOutput | Kind::Schedule
        );
        let (parameter, ids): (_, Vec<&str>) = match kind {
            Kind::Scenario | Kind::Simulation | Kind::Squad => ("idAny", query.all("idAny").collect()),
            Kind::StructuredOutput | Kind::Eval => ("id", query.get("id").into_iter().collect()),
            _ => ("", Vec::new()),
        };
        let parsed = ids
            .iter()
            .map(|id| Uuid::try_parse(id))
            .collect::<Result<HashSet<_>, _>>()
            .map_err(|_| match parameter {
                "idAny" => ApiError::bad_request("idAny must be ids, repeated or separated by commas"),
                _ => ApiError::bad_request("id must be an id"),
            })?;
        let standalone = word(query, "standaloneOnly", &["true", "false", "True", "False"])?;
        Ok(Self {
            updated: times(query, "updatedAt")?,
            name: query.get("name").filter(|_| named).map(str::to_lowercase),
            ids: (!ids.is_empty()).then_some(parsed),
            standalone: kind == Kind::Simulation
                && standalone.is_some_and(|word| word.eq_ignore_ascii_case("true")),
        })
    }

    fn is_all(&self) -> bool {
        self.updated.is_none() && self.name.is_none() && self.ids.is_none() && !self.standalone
    }

    fn fits(&self, definition: &Definition) -> bool {
        let field = |name: &str| definition.body.get(name).and_then(Value::as_str);
        let in_time = |times: &RangeInclusive<i64>| {
            let at = field("updatedAt").and_then(parse_iso);
            at.is_some_and(|at| times.contains(&at))
        };
        self.updated.as_ref().is_none_or(in_time)
            && self
                .name
                .as_ref()
                .is_none_or(|part| field("name").is_some_and(|name| name.to_lowercase().contains(part)))
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&definition.id))
    }
}

/// An organization's definitions of one kind, piece by piece and by the time of their creation.
#[derive(Debug)]
pub(crate) struct Definitions<'a> {
    ctx: &'a Context,
    org: Uuid,
    kind: Kind,
    query: ListQuery,
    /// Those that are stored nowhere, the next one last.
    built_in: Vec<Definition>,
    over: bool,
}

impl<'a> Definitions<'a> {
    /// Those that `query` asks for, with as many in a piece as its limit at most.
    pub(crate) fn new(ctx: &'a Context, org: Uuid, kind: Kind, query: ListQuery) -> Self {
        let mut built_in = built_in::all(kind);
        built_in.retain(|one| query.ids.contains(&built_in::rank(one.id)));
        if !query.newest_first {
            built_in.reverse();
        }
        Self {
            ctx,
            org,
            kind,
            query,
            built_in,
            over: false,
        }
    }

    /// All of them.
    pub(crate) fn all(ctx: &'a Context, org: Uuid, kind: Kind) -> Self {
        let query = ListQuery {
            ids: Uuid::nil()..=Uuid::max(),
            newest_first: true,
            after: None,
            limit: PIECE,
        };
        Self::new(ctx, org, kind, query)
    }

    /// The next piece; nothing at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Definition>>, ApiError> {
        if self.over {
            return Ok(None);
        }
        let listed = self
            .ctx
            .store
            .list_definitions(self.org, self.kind, &self.query)
            .await?;
        let last = listed.entries.last().map(|last| last.id).filter(|_| listed.more);
        self.over = last.is_none();
        self.query.after = last;
        let mut entries = Vec::with_capacity(listed.entries.len());
        for entry in listed.entries {
            self.insert_before(Some(entry.id), &mut entries);
            entries.push(entry);
        }
        if self.over {
            self.insert_before(None, &mut entries);
        }
        Ok(Some(entries))
    }

    /// Moves the built-in ones that come before `id` to `entries`.
    fn insert_before(&mut self, id: Option<Uuid>, entries: &mut Vec<Definition>) {
        let newest_first = self.query.newest_first;
        let comes = |one: &mut Definition| {
            let rank = built_in::rank(one.id);
            id.is_none_or(|id| if newest_first { rank > id } else { rank < id })
        };
        while let Some(one) = self.built_in.pop_if(comes) {
            entries.push(one);
        }
    }
}

/// Finds the page of a list of definitions that a request asks for, with all of its filters, and hands its entries to `show`, one
/// by one and in order, so that they need not be held all at once.
pub(crate) async fn definitions(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    list: &ListRequest,
    query: &Query,
    mut show: impl FnMut(Definition) + Send,
) -> Result<Found, ApiError> {
    let wanted = Wanted::parse(kind, query)?;
    let used = if wanted.standalone {
        in_suites(ctx, org).await?
    } else {
        HashSet::new()
    };
    let mut pick = list.pick(list.cursor);
    // Without filters the number of entries is known without reading them, and so is where the page begins.
    let counted = wanted.is_all();
    let (after, piece) = if counted {
        (list.cursor.map(|(_, id)| id), list.reach().min(PIECE))
    } else {
        (None, PIECE)
    };
    let mut read = Definitions::new(ctx, org, kind, list.store_query(after, piece));
    'list: while let Some(entries) = read.next().await? {
        for entry in entries {
            if counted && pick.is_full() {
                break 'list;
            }
            if wanted.fits(&entry)
                && !used.contains(&entry.id)
                && pick.takes((None, built_in::rank(entry.id)))
            {
                show(entry);
            }
        }
    }
    if counted {
        let ids = list.ids();
        let built_in = built_in::all(kind);
        let built_in = built_in
            .iter()
            .filter(|one| ids.contains(&built_in::rank(one.id)));
        pick.total = ctx.store.count_definitions(org, kind, &ids).await? + built_in.count() as u64;
    }
    Ok(list.found(&pick, |id| id))
}

/// The simulations that any of an organization's suites names.
async fn in_suites(ctx: &Context, org: Uuid) -> Result<HashSet<Uuid>, ApiError> {
    let mut used = HashSet::new();
    let mut suites = Definitions::all(ctx, org, Kind::Suite);
    while let Some(entries) = suites.next().await? {
        for suite in entries {
            let ids = definitions::texts(suite.body.get("simulationIds"));
            used.extend(ids.filter_map(|id| Uuid::try_parse(id).ok()));
        }
    }
    Ok(used)
}

/// What a list of runs is to hold.
#[derive(Debug)]
struct WantedRuns {
    updated: Option<RangeInclusive<i64>>,
    status: Option<String>,
    result: Option<String>,
    target_type: Option<String>,
    target_id: Option<Uuid>,
    evals: Option<WantedEvals>,
}

/// What a list of runs of evals is to hold besides.
#[derive(Debug)]
struct WantedEvals {
    run: Option<Uuid>,
    eval: Option<Uuid>,
    /// In lower case; a part of an id or of an eval's name.
    search: Option<String>,
}

impl WantedEvals {
    fn parse(query: &Query) -> Result<Self, ApiError> {
        let id = |name: &str| {
            let id = query.get(name).map(Uuid::try_parse).transpose();
            id.map_err(|_| ApiError::bad_request(format!("{name} must be an id")))
        };
        Ok(Self {
            run: id("id")?,
            eval: id("evalId")?,
            search: query.get("search").map(str::to_lowercase),
        })
    }

    fn fits(&self, run: &RunHead) -> bool {
        let found = |part: &String| {
            let ids = std::iter::once(&run.id).chain(&run.evals).chain(&run.target_id);
            ids.map(Uuid::to_string).any(|id| id.contains(part))
                || run
                    .eval_names
                    .iter()
                    .any(|name| name.to_lowercase().contains(part))
        };
        run.deleted_at.is_none()
            && self.run.is_none_or(|wanted| wanted == run.id)
            && self.eval.is_none_or(|wanted| run.evals.contains(&wanted))
            && self.search.as_ref().is_none_or(found)
    }
}

impl WantedRuns {
    fn parse(kind: RunKind, query: &Query) -> Result<Self, ApiError> {
        let text = |word: Option<&str>| word.map(str::to_owned);
        let target_id = query.get("targetId").map(Uuid::try_parse).transpose();
        Ok(Self {
            updated: times(query, "updatedAt")?,
            status: text(word(query, "status", &["queued", "running", "ended"])?),
            result: text(word(query, "filterStatus", &["passed", "failed", "running"])?),
            target_type: text(word(query, "targetType", &["assistant", "squad"])?),
            target_id: target_id.map_err(|_| ApiError::bad_request("targetId must be an id"))?,
            evals: match kind {
                RunKind::Simulation => None,
                RunKind::Eval => Some(WantedEvals::parse(query)?),
            },
        })
    }

    fn is_all(&self) -> bool {
        let words = [&self.status, &self.result, &self.target_type];
        // Of the others some may have been deleted, though their heads are still there.
        self.evals.is_none()
            && self.updated.is_none()
            && self.target_id.is_none()
            && words.iter().all(|word| word.is_none())
    }

    fn fits(&self, run: &RunHead) -> bool {
        let status = match run.state {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Ended => "ended",
        };
        self.updated
            .as_ref()
            .is_none_or(|times| times.contains(&run.updated_at))
            && self.status.as_deref().is_none_or(|wanted| wanted == status)
            && self.result.as_deref().is_none_or(|wanted| wanted == result(run))
            && self
                .target_type
                .as_deref()
                .is_none_or(|wanted| wanted == run.target_type)
            && self.target_id.is_none_or(|wanted| run.target_id == Some(wanted))
            && self.evals.as_ref().is_none_or(|evals| evals.fits(run))
    }
}

/// What a run came to as a whole.
fn result(run: &RunHead) -> &'static str {
    match &run.counts {
        Some(Tally { passed, total, .. })
            if run.state == RunState::Ended && *total > 0 && passed == total =>
        {
            "passed"
        }
        _ if run.state == RunState::Ended => "failed",
        _ => "running",
    }
}

/// What runs are sorted by. A run that has not ended has no duration yet, so that its place changes once and not all the time.
fn measure(sort: SortBy, run: &RunHead) -> Option<i64> {
    match sort {
        SortBy::CreatedAt => None,
        SortBy::Duration => Some(run.ended_at? - run.started_at?),
        SortBy::Cost => cost(run),
    }
}

/// What a run cost, in millionths of a US dollar, as far as it is known. Its head says so once it has ended.
fn cost(run: &RunHead) -> Option<i64> {
    run.counts.as_ref().map(|counts| counts.costs.cost)
}

/// The page of a list of runs that a request asks for, with all of its filters. Of those that are not on it no more than a key
/// is held.
pub(crate) async fn runs(
    ctx: &Context,
    org: Uuid,
    kind: RunKind,
    list: &ListRequest,
    query: &Query,
) -> Result<(Vec<RunHead>, Found), ApiError> {
    let wanted = WantedRuns::parse(kind, query)?;
    let by_creation = list.sort == SortBy::CreatedAt;
    let mut pick = list.pick(list.cursor);
    let counted = by_creation && wanted.is_all();
    let (after, piece) = if counted {
        (list.cursor.map(|(_, id)| id), list.reach().min(PIECE))
    } else {
        (None, PIECE)
    };
    let mut query = list.store_query(after, piece);
    let (mut page, mut keys) = (Vec::new(), Vec::new());
    loop {
        let listed = ctx.store.list_runs(org, kind, &query).await?;
        query.after = listed.entries.last().map(|run| run.id);
        for run in listed.entries.into_iter().filter(|run| wanted.fits(run)) {
            let key = (measure(list.sort, &run), run.id);
            if !by_creation {
                keys.push(key);
            } else if pick.takes(key) {
                page.push(run);
            }
        }
        if !listed.more || query.after.is_none() || (counted && pick.is_full()) {
            break;
        }
    }
    if counted {
        pick.total = ctx.store.count_runs(org, kind, &list.ids()).await?;
    }
    if !by_creation {
        list.sort(&mut keys);
        keys.retain(|&key| pick.takes(key));
        let read = stream::iter(keys)
            .map(|(_, id)| ctx.store.run(RunKey { org, kind, run: id }))
            .buffered(READS);
        page = read.try_filter_map(async |run| Ok(run)).try_collect().await?;
    }
    Ok((page, list.found(&pick, |id| id)))
}

/// What a list of items is to hold.
#[derive(Debug)]
pub(crate) struct WantedItems {
    simulation: Option<Uuid>,
    run: Option<Uuid>,
    status: Option<String>,
    updated: Option<RangeInclusive<i64>>,
}

impl WantedItems {
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        const STATES: [&str; 6] = ["queued", "running", "evaluating", "passed", "failed", "canceled"];
        let id = |name: &str| {
            let id = query.get(name).map(Uuid::try_parse).transpose();
            id.map_err(|_| ApiError::bad_request(format!("{name} must be an id")))
        };
        Ok(Self {
            simulation: id("simulationId")?,
            run: id("runId")?,
            status: word(query, "status", &STATES)?.map(str::to_owned),
            updated: times(query, "updatedAt")?,
        })
    }

    /// Whether the items of this run's simulation can be in the list.
    pub(crate) fn takes(&self, run: Uuid, simulation: Uuid) -> bool {
        self.run.is_none_or(|wanted| wanted == run)
            && self.simulation.is_none_or(|wanted| wanted == simulation)
    }

    /// Whether items have to be read to know which of them are in the list.
    pub(crate) fn reads(&self) -> bool {
        self.status.is_some() || self.updated.is_some()
    }

    pub(crate) fn fits(&self, item: &Item) -> bool {
        self.status
            .as_deref()
            .is_none_or(|status| status == item.state.shown().as_str())
            && self
                .updated
                .as_ref()
                .is_none_or(|times| times.contains(&item.updated_at))
    }
}
