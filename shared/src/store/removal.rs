//! The removal of an organization with everything that is kept of it, for the operator's command line.
//!
//! Where its rows are, and what leads to them. What is listed is taken away before the row that lists it, so whoever dies in between
//! leaves that row and finds the rest by it; the organization's own row is the last one.
//!
//! | rows | found by |
//! | --- | --- |
//! | `KEY#{sha256}` | a look through the whole table: nothing lists the keys of an organization |
//! | `ORG#{org}#{kind}`: the definitions | the organization's id |
//! | `SCHEDULE#{schedule}`: head, firings, hooks | the schedule's definition; of one whose deletion is under way, its head in the look |
//! | `ENDPOINT#{endpoint}` and what it ignored | the endpoint's definition; without one, its row in the look |
//! | `CALL#{endpoint}#{call}`: links, and events without an item | the endpoint's id in the key, in the look |
//! | `ORG#{org}#call#{call}` | the organization's id in the key, in the look |
//! | `ORG#{org}#run`, `ORG#{org}#evalrun`: heads of runs | the organization's id |
//! | `RUN#{run}`: what was asked, snapshots, names, report, hook | the run's head |
//! | `RUN#{run}#{partition}`: heads of items, tallies | the run's head |
//! | `RUN#{run}#slots` | the run's head |
//! | `ITEM#{item}`: replies, events, extractions, results, outputs, improvements, hooks | the run's head: an item's id follows from it |
//! | `ORG#{org}#idempotency`, `ORG#{org}#number`, `ORG#{org}#slots`, `ORG#{org}#spent`, `ORG#{org}#waiting` | the organization's id |
//! | `SECRET#endpoint/{endpoint}`, `SECRET#org/{org}` | the endpoint's and the organization's id |
//! | `QUARANTINE#{day}` | a look through those days that there are: messages that name the organization, or a run, an endpoint or a schedule of it |
//! | `ORG#{org}` | the organization's id |
//!
//! What stays: `SECRET#endpoint/{endpoint}` of an endpoint that was deleted before and that no run names. It is a number and a time.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Condition, ItemKey, Kind, Range, Row, RunHead, RunKind, RunState, Store, StoreError, Write, assemble,
    calls::{CALL, ENDPOINT, call_slots_pk, run_slots_pk, shown_calls, waiting_pk},
    definitions::partition,
    idempotency::keys_pk,
    key,
    numbers::numbers_pk,
    orgs::{API_KEY, ORG, Org, api_key_row, org_pk, revision_pk},
    quarantine::QUARANTINE,
    read,
    runs::{DELETE_AFTER_MS, runs_pk},
    schedules::{HEAD, SCHEDULE, schedule_pk},
    service_error,
    spending::spent_pk,
    string, text,
};
use crate::{
    lifecycle::Owed,
    secrets::{EndpointSecrets, OrgHooks, SecretSet},
};

/// How many requests to the table are under way at a time for what is independent of each other.
const AT_ONCE: usize = 8;
/// How many runs are taken away at a time.
const RUNS_AT_ONCE: usize = 4;

/// How much there is of an organization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    /// API keys.
    pub api_keys: u64,
    /// Definitions but for schedules and endpoints.
    pub definitions: u64,
    /// Schedules.
    pub schedules: u64,
    /// Endpoints; also those that were deleted before, where runs name them.
    pub endpoints: u64,
    /// Runs of simulations.
    pub runs: u64,
    /// Runs of evals.
    pub eval_runs: u64,
    /// Items of the runs.
    pub items: u64,
    /// Rows of calls: whose they are, and events that came without saying it.
    pub calls: u64,
    /// Messages in the quarantine that name it or something of it.
    pub quarantined: u64,
    /// Rows of its idempotency keys, numbers, slots, spending and runs that wait.
    pub others: u64,
}

impl Holding {
    /// The greater number of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            api_keys: self.api_keys.max(other.api_keys),
            definitions: self.definitions.max(other.definitions),
            schedules: self.schedules.max(other.schedules),
            endpoints: self.endpoints.max(other.endpoints),
            runs: self.runs.max(other.runs),
            eval_runs: self.eval_runs.max(other.eval_runs),
            items: self.items.max(other.items),
            calls: self.calls.max(other.calls),
            quarantined: self.quarantined.max(other.quarantined),
            others: self.others.max(other.others),
        }
    }
}

/// What is kept of an organization, as far as it has to be known to take it away.
#[derive(Debug)]
pub struct Holdings {
    /// The organization.
    pub org: Uuid,
    /// What it is called, if it has its row.
    pub name: Option<String>,
    /// How much there is.
    pub holding: Holding,
    /// Its endpoints.
    pub endpoints: BTreeSet<Uuid>,
    /// Runs that have not ended, or whose items still owe something.
    pub going_on: u64,
    /// Runs that were written so lately that somebody may still be about to write a row of theirs.
    pub settling: u64,
    keys: Vec<(String, String)>,
    runs: Vec<RunHead>,
    schedules: BTreeSet<Uuid>,
    /// Which of the endpoints and schedules have a definition.
    defined: BTreeSet<Uuid>,
    calls: Vec<(String, String)>,
    quarantined: Vec<(String, String)>,
}

impl Holdings {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.holding == Holding::default()
    }
}

/// What is read of an item to learn whether it is over.
#[derive(Deserialize)]
struct Standing {
    owed: Owed,
}

/// What a look through the table finds that no partition of the organization lists.
#[derive(Default)]
struct Found {
    keys: Vec<(String, String)>,
    schedules: BTreeSet<Uuid>,
    endpoints: BTreeSet<Uuid>,
    /// The partitions and sort keys of calls of any organization's endpoint, by endpoint.
    calls: BTreeMap<Uuid, Vec<(String, String)>>,
    shown_calls: Vec<(String, String)>,
    /// The partitions of the quarantine.
    days: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, row: &Row, calls: &str) -> Result<(), StoreError> {
        let (pk, sk) = (string(row, "pk")?.to_owned(), string(row, "sk")?.to_owned());
        let id = |prefix: &str| pk.strip_prefix(prefix).and_then(|id| id.parse::<Uuid>().ok());
        if pk.starts_with(API_KEY) {
            self.keys.push((pk, sk));
        } else if pk.starts_with(QUARANTINE) {
            self.days.insert(pk);
        } else if pk.starts_with(calls) {
            self.shown_calls.push((pk, sk));
        } else if let Some(schedule) = id(SCHEDULE) {
            self.schedules.insert(schedule);
        } else if let Some(endpoint) = id(ENDPOINT) {
            self.endpoints.insert(endpoint);
        } else if let Some((endpoint, _)) = pk.strip_prefix(CALL).and_then(|rest| rest.split_once('#'))
            && let Ok(endpoint) = endpoint.parse()
        {
            self.calls.entry(endpoint).or_default().push((pk, sk));
        }
        Ok(())
    }
}

/// Whether a text names one of these ids.
fn names(text: &str, ids: &HashSet<Uuid>) -> bool {
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == '-'))
        .filter_map(|word| word.trim_matches('-').parse::<Uuid>().ok())
        .any(|id| ids.contains(&id))
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Store {
    /// Makes an organization and its first API key, of which only the SHA-256 (lower-case hexadecimal) is stored: both or neither.
    ///
    /// # Errors
    /// When one of them is there, or the table cannot be written.
    pub async fn create_org(
        &self,
        org: Uuid,
        name: &str,
        key_name: &str,
        sha256: &str,
    ) -> Result<(), StoreError> {
        let mut row = key(&org_pk(org), ORG);
        row.insert("name".to_owned(), text(name));
        let writes = vec![
            Write::put(row, Condition::Absent),
            Write::put(api_key_row(org, key_name, sha256), Condition::Absent),
        ];
        Ok(self.transact(writes).await?)
    }

    /// Reads an organization's settings, if there is such an organization.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn find_org(&self, org: Uuid) -> Result<Option<Org>, StoreError> {
        self.get(&org_pk(org), ORG).await?.map(read).transpose()
    }

    /// All organizations by their ids, with their names. It looks through the whole table, because nothing lists them: only for
    /// the operator's command line.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn list_orgs(&self) -> Result<BTreeMap<Uuid, String>, StoreError> {
        let mut orgs = BTreeMap::new();
        let values = Row::from([(":org".to_owned(), text("ORG#")), (":row".to_owned(), text(ORG))]);
        let filter = "begins_with(pk, :org) AND sk = :row";
        self.look_through(filter, &values, |row| {
            let id = string(row, "pk")?.strip_prefix("ORG#");
            if let Some(org) = id.and_then(|id| id.parse().ok()) {
                orgs.insert(org, string(row, "name").unwrap_or_default().to_owned());
            }
            Ok(())
        })
        .await?;
        Ok(orgs)
    }

    /// Finds what is kept of an organization, at `now` (milliseconds since the Unix epoch). It looks through the whole table: only
    /// for the operator's command line.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn holdings(&self, org: Uuid, now: i64) -> Result<Holdings, StoreError> {
        let mut found = self.unlisted(org).await?;
        let mut held = Holdings {
            org,
            name: self.find_org(org).await?.map(|org| org.name),
            holding: Holding::default(),
            endpoints: std::mem::take(&mut found.endpoints),
            going_on: 0,
            settling: 0,
            keys: found.keys,
            runs: self.all_runs(org).await?,
            schedules: found.schedules,
            defined: BTreeSet::new(),
            calls: found.shown_calls,
            quarantined: Vec::new(),
        };
        for kind in Kind::ALL {
            let ids = self.sort_keys(&partition(org, kind.name())).await?;
            let listed = match kind {
                Kind::Schedule => &mut held.schedules,
                Kind::Endpoint => &mut held.endpoints,
                _ => {
                    held.holding.definitions += count(ids.len());
                    continue;
                }
            };
            let ids: Vec<Uuid> = ids.iter().filter_map(|id| id.parse().ok()).collect();
            listed.extend(&ids);
            held.defined.extend(ids);
        }
        held.endpoints
            .extend(held.runs.iter().filter_map(|head| head.endpoint));
        for endpoint in &held.endpoints {
            held.calls
                .extend(found.calls.remove(endpoint).into_iter().flatten());
        }
        let messages = self.quarantined_of(&held, &found.days).await?;
        held.quarantined = messages.1;
        for head in &held.runs {
            if head.state != RunState::Ended || self.owes(head).await? {
                held.going_on += 1;
            } else if now.saturating_sub(head.updated_at) < DELETE_AFTER_MS {
                held.settling += 1;
            }
        }
        for pk in others(org) {
            held.holding.others += count(self.sort_keys(&pk).await?.len());
        }
        let evals = held.runs.iter().filter(|head| head.kind == RunKind::Eval).count();
        held.holding = Holding {
            api_keys: count(held.keys.len()),
            schedules: count(held.schedules.len()),
            endpoints: count(held.endpoints.len()),
            runs: count(held.runs.len() - evals),
            eval_runs: count(evals),
            items: held.runs.iter().map(|head| u64::from(head.total)).sum(),
            calls: count(held.calls.len()),
            quarantined: messages.0,
            ..held.holding
        };
        Ok(held)
    }

    /// Takes away by what something new could come: API keys, the names of endpoints under which webhooks are taken, schedules.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn close_org(&self, held: &Holdings) -> Result<(), StoreError> {
        self.delete_rows(&held.keys).await?;
        for endpoint in held.endpoints.intersection(&held.defined) {
            self.delete_endpoint(*endpoint).await?;
        }
        for schedule in &held.schedules {
            let pk = schedule_pk(*schedule);
            if held.defined.contains(schedule) {
                // Nothing fires without it, and the definition leads to the rest.
                self.delete(&pk, HEAD).await?;
            }
            let rest = self.sort_keys(&pk).await?;
            let rest = rest
                .into_iter()
                .filter(|sk| sk != HEAD)
                .map(|sk| (pk.clone(), sk));
            self.delete_rows(&rest.collect::<Vec<_>>()).await?;
            self.delete(&pk, HEAD).await?;
            let definitions = partition(held.org, Kind::Schedule.name());
            self.delete(&definitions, &schedule.to_string()).await?;
        }
        Ok(())
    }

    /// Takes away what was done: runs with everything that is kept of them, calls, messages in the quarantine.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn remove_runs(&self, held: &Holdings) -> Result<(), StoreError> {
        // Before the runs, by which some of them are found.
        self.delete_rows(&held.calls).await?;
        self.delete_rows(&held.quarantined).await?;
        stream::iter(&held.runs)
            .map(|head| async move {
                self.delete_partition(&run_slots_pk(head.id)).await?;
                self.end_waiting(head.org, head.id).await?;
                self.delete_run(head).await
            })
            .buffer_unordered(RUNS_AT_ONCE)
            .try_collect::<()>()
            .await
    }

    /// Takes away what is left of an organization, its own row last. Its secrets are to be gone before, for the endpoints that they
    /// are of are listed here.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn remove_org(&self, held: &Holdings) -> Result<(), StoreError> {
        let org = held.org;
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Endpoint) {
            self.delete_partition(&partition(org, kind.name())).await?;
        }
        for pk in others(org) {
            self.delete_partition(&pk).await?;
        }
        for endpoint in &held.endpoints {
            self.delete_partition(&revision_pk(&EndpointSecrets::name(*endpoint)))
                .await?;
            self.delete_endpoint(*endpoint).await?;
            let definitions = partition(org, Kind::Endpoint.name());
            self.delete(&definitions, &endpoint.to_string()).await?;
        }
        self.delete_partition(&revision_pk(&OrgHooks::name(org))).await?;
        self.delete(&org_pk(org), ORG).await
    }

    async fn all_runs(&self, org: Uuid) -> Result<Vec<RunHead>, StoreError> {
        let mut runs = Vec::new();
        for kind in RunKind::ALL {
            let rows = self.query(&runs_pk(org, kind), Range::All, true, None).await?;
            for row in rows {
                runs.push(read(row)?);
            }
        }
        Ok(runs)
    }

    /// Whether something is owed to an item of a run, such as the end of a call that may still be up.
    async fn owes(&self, head: &RunHead) -> Result<bool, StoreError> {
        let owes = |partition| async move {
            let pk = ItemKey::partition(head.id, partition);
            let rows = self
                .query_only(&pk, Range::Prefix("ITEM#"), true, None, &["owed"])
                .await?;
            let items: Vec<Standing> = rows.into_iter().map(read).collect::<Result<_, _>>()?;
            Ok::<_, StoreError>(items.iter().any(|item| item.owed != Owed::Nothing))
        };
        stream::iter(0..head.partitions())
            .map(owes)
            .buffer_unordered(AT_ONCE)
            .try_any(std::future::ready)
            .await
    }

    async fn sort_keys(&self, pk: &str) -> Result<Vec<String>, StoreError> {
        let rows = self.query_only(pk, Range::All, true, None, &["sk"]).await?;
        let keys = rows.iter().map(|row| Ok(string(row, "sk")?.to_owned()));
        keys.collect()
    }

    async fn delete_rows(&self, keys: &[(String, String)]) -> Result<(), StoreError> {
        stream::iter(keys)
            .map(|(pk, sk)| self.delete(pk, sk))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
    }

    /// What no partition of `org` lists.
    async fn unlisted(&self, org: Uuid) -> Result<Found, StoreError> {
        let calls = shown_calls(org);
        let values = [
            (":id", org.to_string()),
            (":key", API_KEY.to_owned()),
            (":endpoint", ENDPOINT.to_owned()),
            (":schedule", SCHEDULE.to_owned()),
            (":shown", calls.clone()),
            (":call", CALL.to_owned()),
            (":quarantine", QUARANTINE.to_owned()),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), text(value)));
        let filter = "(org = :id AND (begins_with(pk, :key) OR begins_with(pk, :endpoint) OR begins_with(pk, :schedule))) \
                      OR begins_with(pk, :shown) OR begins_with(pk, :call) OR begins_with(pk, :quarantine)";
        let mut found = Found::default();
        self.look_through(filter, &Row::from(values), |row| found.add(row, &calls))
            .await?;
        Ok(found)
    }

    /// How many messages of these days of the quarantine name the organization or something of it, and the keys of their rows.
    async fn quarantined_of(
        &self,
        held: &Holdings,
        days: &BTreeSet<String>,
    ) -> Result<(u64, Vec<(String, String)>), StoreError> {
        let runs = held.runs.iter().map(|head| head.id);
        let ids: HashSet<Uuid> = std::iter::once(held.org)
            .chain(runs)
            .chain(held.endpoints.iter().copied())
            .chain(held.schedules.iter().copied())
            .collect();
        let (mut messages, mut keys) = (0, Vec::new());
        for day in days {
            let rows = self.query(day, Range::All, true, None).await?;
            let all: Vec<String> = rows
                .iter()
                .map(|row| Ok(string(row, "sk")?.to_owned()))
                .collect::<Result<_, StoreError>>()?;
            for (row, body) in assemble(rows)? {
                let (sk, reason) = (string(&row, "sk")?, string(&row, "reason").unwrap_or_default());
                if [sk, reason, &body].iter().any(|text| names(text, &ids)) {
                    messages += 1;
                    let rows = all.iter().filter(|&key| {
                        key.strip_prefix(sk)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
                    });
                    // The parts before the row that names them.
                    keys.extend(rows.rev().map(|sk| (day.clone(), sk.clone())));
                }
            }
        }
        Ok((messages, keys))
    }

    /// Looks through the whole table, a page after the other, for rows that `filter` lets pass; of each the keys and the name. It is
    /// for what nothing lists and only an operator asks for: the functions of the product may not do it.
    async fn look_through(
        &self,
        filter: &str,
        values: &Row,
        mut take: impl FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut start = None;
        loop {
            let answer = self
                .client
                .scan()
                .table_name(&*self.table)
                .consistent_read(true)
                .filter_expression(filter)
                .projection_expression("pk, sk, #name")
                .expression_attribute_names("#name", "name")
                .set_expression_attribute_values(Some(values.clone()))
                .set_exclusive_start_key(start)
                .send()
                .await
                .map_err(|error| service_error("Scan", &error))?;
            for row in answer.items() {
                take(row)?;
            }
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(());
            }
        }
    }
}

/// The partitions of an organization that list nothing else.
fn others(org: Uuid) -> [String; 5] {
    [
        keys_pk(org),
        numbers_pk(org),
        call_slots_pk(org),
        spent_pk(org),
        waiting_pk(org),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_ids_wherever_they_stand() {
        let (ours, other) = (Uuid::from_u128(0xa7), Uuid::from_u128(0xb8));
        let ids = HashSet::from([ours]);
        for text in [
            format!("{ours}/digest"),
            format!(r#"{{\"item\":{{\"run\":\"{ours}\"}}}}"#),
            format!("run {ours}-"),
        ] {
            assert!(names(&text, &ids), "{text}");
        }
        for text in [
            String::new(),
            other.to_string(),
            format!("a{ours}"),
            "--".to_owned(),
        ] {
            assert!(!names(&text, &ids), "{text}");
        }
    }

    #[test]
    fn every_kind_of_definition_is_known() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        // Whoever adds a kind has to add it to the list as well.
        for kind in Kind::ALL {
            assert_eq!(Kind::of_name(kind.name()), Some(kind));
            match kind {
                Kind::Personality
                | Kind::Scenario
                | Kind::Simulation
                | Kind::Suite
                | Kind::Assistant
                | Kind::Squad
                | Kind::StructuredOutput
                | Kind::Endpoint
                | Kind::Eval
                | Kind::Schedule
                | Kind::Metric
                | Kind::TestProfile
                | Kind::Project
                | Kind::Webhook => {}
            }
        }
    }
}
