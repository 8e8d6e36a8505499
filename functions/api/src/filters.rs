//! Filters of lists beyond the time of creation, which alone is part of the key: what they leave is found by reading all of
//! the list, consistently.

use std::{collections::HashSet, ops::RangeInclusive};

use ringback_shared::{
    clock::parse_iso,
    context::Context,
    lifecycle::Tally,
    store::{Definition, Kind, ListQuery, Listed, RunHead, RunState},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    built_in, definitions,
    http::{ApiError, Query},
    lists::ListRequest,
};

/// How many entries are read in one go.
const PAGE: usize = 500;

/// The times of the last change that are asked for, in milliseconds since the Unix epoch.
fn updated(query: &Query) -> Result<Option<RangeInclusive<i64>>, ApiError> {
    let time = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => parse_iso(text)
            .map(Some)
            .ok_or_else(|| ApiError::bad_request(format!("{name} must be an ISO 8601 date-time"))),
    };
    let (gt, ge) = (time("updatedAtGt")?.map(|ms| ms + 1), time("updatedAtGe")?);
    let (lt, le) = (time("updatedAtLt")?.map(|ms| ms - 1), time("updatedAtLe")?);
    let from = gt.into_iter().chain(ge).max();
    let until = lt.into_iter().chain(le).min();
    Ok((from.is_some() || until.is_some()).then(|| from.unwrap_or(i64::MIN)..=until.unwrap_or(i64::MAX)))
}

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
        let named = matches!(kind, Kind::Scenario | Kind::Suite);
        let picked = matches!(kind, Kind::Scenario | Kind::Simulation);
        let ids: Vec<&str> = query.all("idAny").filter(|_| picked).collect();
        let parsed = ids
            .iter()
            .map(|id| Uuid::try_parse(id))
            .collect::<Result<HashSet<_>, _>>()
            .map_err(|_| ApiError::bad_request("idAny must be ids, repeated or separated by commas"))?;
        let standalone = word(query, "standaloneOnly", &["true", "false"])?;
        Ok(Self {
            updated: updated(query)?,
            name: query.get("name").filter(|_| named).map(str::to_lowercase),
            ids: (!ids.is_empty()).then_some(parsed),
            standalone: kind == Kind::Simulation && standalone == Some("true"),
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

/// The page of a list of definitions that a request asks for, with all of its filters, and how many there are in all.
pub(crate) async fn definitions(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    list: &ListRequest,
    query: &Query,
) -> Result<(Listed<Definition>, u64), ApiError> {
    let wanted = Wanted::parse(kind, query)?;
    if wanted.is_all() {
        let query = list.store_query();
        let (listed, total) = if kind == Kind::Personality {
            built_in::list(ctx, org, &query).await?
        } else {
            (
                ctx.store.list_definitions(org, kind, &query).await?,
                ctx.store.count_definitions(org, kind, &list.ids).await?,
            )
        };
        return Ok((list.cut(listed), total));
    }
    let mut all = every(ctx, org, kind, list).await?;
    if wanted.standalone {
        let suites = every(ctx, org, Kind::Suite, &ListRequest::everything()).await?;
        let used: HashSet<Uuid> = suites
            .iter()
            .flat_map(|suite| definitions::texts(suite.body.get("simulationIds")))
            .filter_map(|id| Uuid::try_parse(id).ok())
            .collect();
        all.retain(|simulation| !used.contains(&simulation.id));
    }
    all.retain(|definition| wanted.fits(definition));
    Ok(list.page_of(all, |definition| definition.id))
}

/// All of an organization's definitions that were created when `list` asks for, in its order.
async fn every(
    ctx: &Context,
    org: Uuid,
    kind: Kind,
    list: &ListRequest,
) -> Result<Vec<Definition>, ApiError> {
    let mut all = Vec::new();
    let mut query = ListQuery {
        after: None,
        limit: PAGE,
        ..list.store_query()
    };
    loop {
        let listed = match kind {
            Kind::Personality => built_in::list(ctx, org, &query).await?.0,
            _ => ctx.store.list_definitions(org, kind, &query).await?,
        };
        all.extend(listed.entries);
        match all.last() {
            Some(last) if listed.more => query.after = Some(last.id),
            _ => return Ok(all),
        }
    }
}

/// What a list of runs is to hold.
#[derive(Debug)]
struct WantedRuns {
    updated: Option<RangeInclusive<i64>>,
    status: Option<String>,
    result: Option<String>,
    target_type: Option<String>,
    target_id: Option<Uuid>,
}

impl WantedRuns {
    fn parse(query: &Query) -> Result<Self, ApiError> {
        let text = |word: Option<&str>| word.map(str::to_owned);
        let target_id = query.get("targetId").map(Uuid::try_parse).transpose();
        Ok(Self {
            updated: updated(query)?,
            status: text(word(query, "status", &["queued", "running", "ended"])?),
            result: text(word(query, "filterStatus", &["passed", "failed", "running"])?),
            target_type: text(word(query, "targetType", &["assistant", "squad"])?),
            target_id: target_id.map_err(|_| ApiError::bad_request("targetId must be an id"))?,
        })
    }

    fn is_all(&self) -> bool {
        let words = [&self.status, &self.result, &self.target_type];
        self.updated.is_none() && self.target_id.is_none() && words.iter().all(|word| word.is_none())
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

/// The page of a list of runs that a request asks for, with all of its filters, and how many there are in all.
pub(crate) async fn runs(
    ctx: &Context,
    org: Uuid,
    list: &ListRequest,
    query: &Query,
) -> Result<(Listed<RunHead>, u64), ApiError> {
    let wanted = WantedRuns::parse(query)?;
    if wanted.is_all() {
        let listed = ctx.store.list_runs(org, &list.store_query()).await?;
        return Ok((list.cut(listed), ctx.store.count_runs(org, &list.ids).await?));
    }
    let mut all = Vec::new();
    let mut query = ListQuery {
        after: None,
        limit: PAGE,
        ..list.store_query()
    };
    loop {
        let listed = ctx.store.list_runs(org, &query).await?;
        query.after = listed.entries.last().map(|run| run.id);
        all.extend(listed.entries.into_iter().filter(|run| wanted.fits(run)));
        if !listed.more {
            return Ok(list.page_of(all, |run| run.id));
        }
    }
}
