//! The caller's organization: its settings, and what it may still spend.

use ringback_shared::{
    clock::{self, iso},
    context::Context,
    costs, ids,
    lifecycle::CALL_SLOTS,
    models::{
        Invalid, check, lenient,
        run::{PaymentReason, SimulationConcurrencyResponse},
    },
    store::Org,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::http::{ApiError, Response};

/// The most call slots that an organization may give itself: whoever gives them out reads all that are held.
pub(crate) const MAX_CONCURRENCY: i64 = 1_000;
/// The longest name, in characters.
pub(crate) const MAX_NAME: usize = 40;
/// What only Ringback sets: a client that sends back what it read changes nothing of it.
const OWN: [&str; 4] = ["id", "createdAt", "updatedAt", "spentThisMonth"];

/// Lists the caller's organizations, which is one.
pub(crate) async fn list(ctx: &Context, org: Uuid) -> Result<Response, ApiError> {
    Response::ok([view(ctx, org, &ctx.store.org(org).await?).await?])
}

/// Reads the caller's organization.
pub(crate) async fn read(ctx: &Context, org: Uuid, id: &str) -> Result<Response, ApiError> {
    own(org, id)?;
    Response::ok(view(ctx, org, &ctx.store.org(org).await?).await?)
}

/// Changes the settings of the caller's organization.
pub(crate) async fn update(ctx: &Context, org: Uuid, id: &str, body: Value) -> Result<Response, ApiError> {
    own(org, id)?;
    let change = Change::parse(body)?;
    let now = ctx.clock.now_ms();
    let settings = ctx
        .store
        .change_org(org, now, |settings| change.apply(settings, now))
        .await?;
    Response::ok(view(ctx, org, &settings).await?)
}

/// A key speaks for one organization; every other one is not there.
fn own(org: Uuid, id: &str) -> Result<(), ApiError> {
    match Uuid::try_parse(id) {
        Ok(named) if named == org => Ok(()),
        _ => Err(ApiError::not_found("Org", id)),
    }
}

async fn view(ctx: &Context, org: Uuid, settings: &Org) -> Result<Value, ApiError> {
    let spent = ctx.store.spent(org, ctx.clock.now_ms()).await?;
    let mut view = json!({
        "id": org,
        "name": settings.name,
        "concurrencyLimit": settings.concurrency.map(|own| own.limit),
        "billingLimit": settings.billing_limit.map(costs::dollars),
        "spentThisMonth": costs::dollars(spent),
    });
    // Ids that carry a time were made when their organization was; others do not say.
    let created = (org.get_version_num() == 7).then(|| ids::created_ms(org));
    for (name, at) in [
        ("createdAt", created),
        ("updatedAt", settings.updated_at.or(created)),
    ] {
        if let Some(at) = at {
            view[name] = json!(iso(at));
        }
    }
    Ok(view)
}

/// A change of an organization's settings: what is `None` stays, and `Some(None)` goes back to the default.
#[derive(Debug, Default, PartialEq)]
struct Change {
    name: Option<String>,
    concurrency: Option<Option<u32>>,
    billing: Option<Option<i64>>,
}

impl Change {
    /// Reads a change. What is not known is refused: a limit that was misspelled would not hold.
    fn parse(body: Value) -> Result<Self, ApiError> {
        let Value::Object(body) = body else {
            return Err(ApiError::bad_request("the body must be a JSON object"));
        };
        let mut change = Self::default();
        let mut faults = Vec::new();
        for (field, value) in &body {
            match field.as_str() {
                "name" => match value.as_str() {
                    Some(name) => {
                        check::length("", "name", name, 1, MAX_NAME, &mut faults);
                        change.name = Some(name.to_owned());
                    }
                    None => faults.push("name must be a string".to_owned()),
                },
                "concurrencyLimit" => match concurrency(value) {
                    Some(limit) => change.concurrency = Some(limit),
                    None => faults.push(format!(
                        "concurrencyLimit must be a whole number from {CALL_SLOTS} to {MAX_CONCURRENCY}, or null for the \
                         system's default"
                    )),
                },
                "billingLimit" => match billing(value) {
                    Some(limit) => change.billing = Some(limit),
                    None => faults.push(
                        "billingLimit must be a number of US dollars from 0 to 1000000000, or null for none"
                            .to_owned(),
                    ),
                },
                own if OWN.contains(&own) => {}
                other => faults.push(format!(
                    "property {other} should not exist; name, concurrencyLimit and billingLimit can be set"
                )),
            }
        }
        if faults.is_empty() {
            Ok(change)
        } else {
            Err(Invalid(faults).into())
        }
    }

    fn apply(&self, settings: &mut Org, now: i64) {
        if let Some(name) = &self.name {
            settings.name.clone_from(name);
        }
        if let Some(limit) = self.concurrency {
            settings.limit_concurrency(limit, now);
        }
        if let Some(limit) = self.billing {
            settings.billing_limit = limit;
        }
    }
}

/// Reads a number of call slots; `None` if it is none.
fn concurrency(value: &Value) -> Option<Option<u32>> {
    if value.is_null() {
        return Some(None);
    }
    let least = i64::try_from(CALL_SLOTS).unwrap_or(i64::MAX);
    let limit = lenient::integer(value)
        .ok()
        .filter(|limit| (least..=MAX_CONCURRENCY).contains(limit))?;
    Some(Some(u32::try_from(limit).ok()?))
}

/// Reads an amount of dollars as millionths; `None` if it is none.
fn billing(value: &Value) -> Option<Option<i64>> {
    if value.is_null() {
        return Some(None);
    }
    costs::micros(value.as_f64()?).map(Some)
}

/// How many call slots the organization has, and how many of them are held at this moment.
pub(crate) async fn concurrency_now(
    ctx: &Context,
    org: Uuid,
) -> Result<SimulationConcurrencyResponse, ApiError> {
    let settings = ctx.store.org(org).await?;
    let limit = settings.call_slots(ctx.config.call_slots);
    let held = ctx.store.held_call_slots(org).await?.len();
    // More are held than there are, where the limit was lowered.
    let free = (limit as usize).saturating_sub(held);
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    Ok(SimulationConcurrencyResponse {
        org_id: org.to_string(),
        concurrency_limit: limit.into(),
        active_simulations: number(held),
        available_to_start: number(free / CALL_SLOTS),
        created_at: settings.concurrency.map(|own| iso(own.created_at)),
        updated_at: settings.concurrency.map(|own| iso(own.updated_at)),
        is_default: settings.concurrency.is_none(),
        extra: Map::new(),
    })
}

/// Refuses with 402 when the organization has spent its billing limit of this month. For everything that starts conversations or
/// judgements.
///
/// What is under way is not stopped, so that more may be spent in the end.
pub(crate) async fn check_billing_limit(ctx: &Context, org: Uuid, now: i64) -> Result<(), ApiError> {
    let Some(limit) = ctx.store.org(org).await?.billing_limit else {
        return Ok(());
    };
    let spent = ctx.store.spent(org, now).await?;
    if spent < limit {
        return Ok(());
    }
    Err(ApiError::payment_required(
        PaymentReason::BillingLimit,
        format!(
            "this organization has spent ${} in {} (UTC), and its billing limit is ${} a month; raise it with PATCH \
             /org/{org} and {{\"billingLimit\": US dollars, or null for none}}, or wait for the next month. Calls of models \
             without a price in MODEL_PRICES are not counted",
            costs::dollars(spent),
            clock::month(now),
            costs::dollars(limit),
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_what_it_changes() {
        let parse = |body: Value| Change::parse(body).unwrap();
        assert_eq!(parse(json!({})), Change::default());
        assert_eq!(
            parse(json!({"name": "n", "concurrencyLimit": 6.0, "billingLimit": 12.5, "id": 1})),
            Change {
                name: Some("n".to_owned()),
                concurrency: Some(Some(6)),
                billing: Some(Some(12_500_000)),
            }
        );
        assert_eq!(
            parse(json!({"concurrencyLimit": null, "billingLimit": null})),
            Change {
                concurrency: Some(None),
                billing: Some(None),
                ..Change::default()
            }
        );
        for (field, value) in [
            ("name", json!("n".repeat(41))),
            ("name", json!("")),
            ("name", Value::Null),
            ("concurrencyLimit", json!(1)),
            ("concurrencyLimit", json!(1001)),
            ("concurrencyLimit", json!(2.5)),
            ("concurrencyLimit", json!("2")),
            ("billingLimit", json!(-0.01)),
            ("billingLimit", json!(1e10)),
            ("billingLimit", json!("5")),
            ("billinglimit", json!(5)),
        ] {
            assert!(
                Change::parse(json!({ field: value })).is_err(),
                "{field}: {value}"
            );
        }
        assert!(Change::parse(json!([])).is_err());
    }

    #[test]
    fn a_limit_keeps_since_when_it_is_there() {
        let mut org = Org::default();
        let times = |org: &Org| org.concurrency.map(|own| (own.created_at, own.updated_at));
        assert_eq!(org.call_slots(10), 10);
        org.limit_concurrency(Some(4), 1);
        assert_eq!((org.call_slots(10), times(&org)), (4, Some((1, 1))));
        org.limit_concurrency(Some(4), 2);
        assert_eq!(times(&org), Some((1, 1)), "nothing has changed");
        org.limit_concurrency(Some(20), 3);
        assert_eq!((org.call_slots(10), times(&org)), (20, Some((1, 3))));
        org.limit_concurrency(None, 4);
        assert_eq!((org.call_slots(10), times(&org)), (10, None));
    }
}
