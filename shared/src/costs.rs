//! What conversations cost: prices of models, what each model call took, and the sums.
//!
//! Amounts are whole millionths of a US dollar, so that sums are exact whatever their order. A call's cost is fixed when it is
//! answered and kept beside its reply: prices that change later change nothing that was spent before.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    conversation::{Reply, Step},
    evaluation::{Extractions, Verdict},
    llm::{ChatReply, Purpose, Usage},
    store::{ItemDetail, StoreError},
};

/// The largest amount that is believed: a billion dollars.
const MOST: f64 = 1e15;
/// How many models without a known cost are named; a head stays small.
const MAX_NAMES: usize = 6;
/// The longest name of a model that is kept beside its cost, in characters.
const MAX_NAME: usize = 64;

/// What a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// US dollars for a million tokens read, which is millionths for one.
    pub prompt: f64,
    /// US dollars for a million tokens written.
    pub completion: f64,
}

impl Price {
    fn is_valid(&self) -> bool {
        [self.prompt, self.completion]
            .iter()
            .all(|price| price.is_finite() && *price >= 0.0)
    }

    /// What `usage` costs in millionths of a US dollar, rounded. Without a usage it is known only if the model is free.
    fn of(&self, usage: Option<Usage>) -> Option<i64> {
        if self.prompt == 0.0 && self.completion == 0.0 {
            return Some(0);
        }
        let usage = usage?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53 tokens")]
        let tokens = (usage.prompt_tokens as f64, usage.completion_tokens as f64);
        let cost = tokens.0 * self.prompt + tokens.1 * self.completion;
        #[expect(clippy::cast_possible_truncation, reason = "clamped before")]
        let micros = cost.round().clamp(0.0, MOST) as i64;
        Some(micros)
    }
}

/// What models cost, by their names. There are none but those that the operator sets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices(BTreeMap<String, Price>);

impl std::str::FromStr for Prices {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prices: BTreeMap<String, Price> = serde_json::from_str(text)?;
        if prices.values().all(Price::is_valid) {
            return Ok(Self(prices));
        }
        Err(serde::de::Error::custom("a price is below 0"))
    }
}

impl Prices {
    /// What `reply` cost that `requested` was asked for, in millionths of a US dollar, if it is known. The price of the model
    /// that the server says has answered goes before that of the one that was asked for.
    fn of(&self, requested: &str, reply: &ChatReply) -> Option<i64> {
        let answered = reply.model.as_deref().unwrap_or(requested);
        let price = self.0.get(answered).or_else(|| self.0.get(requested))?;
        price.of(reply.usage)
    }

    /// Writes into `reply`, which `requested` was asked for, what it cost, and which model it was where the server did not say.
    #[must_use]
    pub fn charge(&self, requested: &str, mut reply: ChatReply) -> ChatReply {
        reply.cost = self.of(requested, &reply);
        reply.model.get_or_insert_with(|| requested.to_owned());
        reply
    }
}

/// What one call of a model took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelUse {
    /// What the model was asked for.
    pub purpose: Purpose,
    /// The model that answered.
    pub model: String,
    /// The tokens, if the server told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What it cost in millionths of a US dollar, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<i64>,
}

impl ModelUse {
    /// What a reply took that was [charged](Prices::charge).
    #[must_use]
    pub fn of(purpose: Purpose, reply: &ChatReply) -> Self {
        Self {
            purpose,
            model: reply.model.clone().unwrap_or_default(),
            usage: reply.usage,
            cost: reply.cost,
        }
    }

    /// What a reply of a conversation took, unless it is a fixed message.
    #[must_use]
    pub fn of_reply(reply: &Reply) -> Option<Self> {
        if reply.model.is_none() && reply.usage.is_none() {
            return None;
        }
        Some(Self {
            purpose: reply.speaker.purpose(),
            model: reply.model.clone().unwrap_or_default(),
            usage: reply.usage,
            cost: reply.cost,
        })
    }
}

/// What a model extracted for some outputs and what that took, as it is kept until the verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Extracted {
    /// The values.
    pub extractions: Extractions,
    /// What asking for them took.
    pub used: ModelUse,
}

/// A verdict and what judging took, as they are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The calls of the judging models.
    #[serde(default)]
    pub model_uses: Vec<ModelUse>,
}

/// What came of an eval and what that took, as they are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlayedEval {
    /// The result as clients see it.
    pub result: Value,
    /// The calls of the target and of the judging models.
    #[serde(default)]
    pub model_uses: Vec<ModelUse>,
}

/// What the steps of a mock conversation took.
#[must_use]
pub fn of_steps(steps: &[Step]) -> Vec<ModelUse> {
    steps.iter().filter_map(|step| step.used.clone()).collect()
}

/// The part of [`Judged`] that costs are read from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JudgeUses {
    #[serde(default)]
    model_uses: Vec<ModelUse>,
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// What the replies of an item's conversation took.
///
/// # Errors
/// When what is kept cannot be read.
pub fn replies(detail: &ItemDetail) -> Result<Vec<ModelUse>, StoreError> {
    let mut uses = Vec::with_capacity(detail.turns.len());
    for turn in &detail.turns {
        uses.extend(ModelUse::of_reply(&parsed(turn)?));
    }
    Ok(uses)
}

/// What all model calls of an item took that are kept.
///
/// # Errors
/// When what is kept cannot be read.
pub fn kept(detail: &ItemDetail) -> Result<Vec<ModelUse>, StoreError> {
    let mut uses = replies(detail)?;
    match &detail.result {
        // It has those of the extractions as well.
        Some(result) => uses.extend(parsed::<JudgeUses>(result)?.model_uses),
        None => {
            for extract in &detail.extracts {
                uses.push(parsed::<Extracted>(extract)?.used);
            }
        }
    }
    Ok(uses)
}

/// What the model calls of an item cost so far: a join-semilattice. Of two sums the larger one is kept, because who knows of
/// more calls has the larger sum; so it may be written late and more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelCosts {
    /// The known costs, in millionths of a US dollar.
    pub cost: i64,
    /// The models of calls whose cost is not known, at most six.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown: BTreeSet<String>,
}

impl ModelCosts {
    /// The sum over `uses`.
    #[must_use]
    pub fn of<'a>(uses: impl IntoIterator<Item = &'a ModelUse>) -> Self {
        let mut costs = Self::default();
        for used in uses {
            match used.cost {
                Some(cost) => costs.cost = costs.cost.saturating_add(cost),
                None => costs.name(used.model.chars().take(MAX_NAME).collect()),
            }
        }
        costs
    }

    /// Of more names than there is place for the first ones in their order are kept, so that every order of joining gives the
    /// same.
    fn name(&mut self, model: String) {
        self.unknown.insert(model);
        while self.unknown.len() > MAX_NAMES {
            self.unknown.pop_last();
        }
    }

    /// What is known of either.
    #[must_use]
    pub fn join(mut self, other: &Self) -> Self {
        self.cost = self.cost.max(other.cost);
        for model in &other.unknown {
            self.name(model.clone());
        }
        self
    }

    /// The sum of the costs of different items.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.cost = self.cost.saturating_add(other.cost);
        for model in &other.unknown {
            self.name(model.clone());
        }
        self
    }

    /// Whether nothing was spent and nothing is unknown.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cost == 0 && self.unknown.is_empty()
    }
}

/// An amount in millionths of a US dollar as a number of dollars.
#[must_use]
pub fn dollars(micros: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let dollars = micros as f64 / 1e6;
    dollars
}

/// An amount in US dollars as millionths, rounded; `None` below 0, above a billion, and for what is not a number.
#[must_use]
pub fn micros(dollars: f64) -> Option<i64> {
    let micros = (dollars * 1e6).round();
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
    let whole = (0.0..=MOST).contains(&micros).then_some(micros as i64);
    whole
}

/// One line of an item's bill per purpose and model: calls whose cost is not known have a line of their own.
#[must_use]
pub fn lines(uses: &[ModelUse], call: Option<i64>) -> Vec<Value> {
    let mut lines: BTreeMap<(Purpose, &str, bool), (Option<Usage>, i64)> = BTreeMap::new();
    for used in uses {
        let key = (used.purpose, used.model.as_str(), used.cost.is_none());
        let (tokens, cost) = lines.entry(key).or_default();
        if let Some(usage) = used.usage {
            let sum = tokens.get_or_insert_default();
            sum.prompt_tokens = sum.prompt_tokens.saturating_add(usage.prompt_tokens);
            sum.completion_tokens = sum.completion_tokens.saturating_add(usage.completion_tokens);
        }
        *cost = cost.saturating_add(used.cost.unwrap_or_default());
    }
    let model =
        |((purpose, model, unknown), (tokens, cost)): ((Purpose, &str, bool), (Option<Usage>, i64))| {
            json!({
                "type": "model",
                "purpose": purpose,
                "model": model,
                "promptTokens": tokens.map(|tokens| tokens.prompt_tokens),
                "completionTokens": tokens.map(|tokens| tokens.completion_tokens),
                "cost": (!unknown).then(|| dollars(cost)),
            })
        };
    let call = call.map(|cost| json!({ "type": "call", "cost": dollars(cost) }));
    lines.into_iter().map(model).chain(call).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prices() -> Prices {
        r#"{"small": {"prompt": 0.1, "completion": 0.4}, "large": {"prompt": 2, "completion": 8.0},
            "free": {"prompt": 0, "completion": 0}}"#
            .parse()
            .unwrap()
    }

    fn reply(model: Option<&str>, usage: Option<(u64, u64)>) -> ChatReply {
        ChatReply {
            model: model.map(str::to_owned),
            usage: usage.map(|(prompt_tokens, completion_tokens)| Usage {
                prompt_tokens,
                completion_tokens,
            }),
            ..ChatReply::default()
        }
    }

    #[test]
    fn a_call_costs_what_its_tokens_do() {
        for (requested, answered, usage, cost) in [
            ("large", None, Some((1000, 100)), Some(2800)),
            ("large", Some("large-2026-01-01"), Some((1000, 100)), Some(2800)),
            ("large", Some("small"), Some((1000, 100)), Some(140)),
            ("small", None, Some((4, 0)), Some(0)),
            ("small", None, Some((5, 0)), Some(1)),
            ("large", None, None, None),
            ("free", None, None, Some(0)),
            ("other", Some("another"), Some((1, 1)), None),
            (
                "large",
                None,
                Some((u64::MAX, u64::MAX)),
                Some(1_000_000_000_000_000),
            ),
        ] {
            let charged = prices().charge(requested, reply(answered, usage));
            assert_eq!(charged.cost, cost, "{requested} {answered:?} {usage:?}");
            assert_eq!(charged.model.as_deref(), Some(answered.unwrap_or(requested)));
        }
        assert_eq!(
            Prices::default().charge("large", reply(None, Some((1, 1)))).cost,
            None
        );
    }

    #[test]
    fn prices_that_cannot_be_meant_are_refused() {
        assert_eq!("{}".parse::<Prices>().unwrap(), Prices::default());
        for wrong in [
            "",
            "[]",
            r#"{"m": 1}"#,
            r#"{"m": {"prompt": 1}}"#,
            r#"{"m": {"prompt": -1, "completion": 1}}"#,
            r#"{"m": {"prompt": 1, "completion": 1, "cached": 1}}"#,
            r#"{"m": {"prompt": "1", "completion": 1}}"#,
        ] {
            assert!(wrong.parse::<Prices>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn dollars_and_millionths_lead_to_each_other() {
        for micros in [0, 1, 42_000, 1_000_001, 999_999_999_999] {
            assert_eq!(super::micros(dollars(micros)), Some(micros));
        }
        for none in [-0.01, f64::NAN, f64::INFINITY, 1e12] {
            assert_eq!(super::micros(none), None, "{none}");
        }
    }

    #[test]
    fn a_bill_names_what_is_unknown_and_adds_up() {
        let used = |purpose, model: &str, tokens, cost| ModelUse {
            purpose,
            model: model.to_owned(),
            usage: tokens,
            cost,
        };
        let tokens = |prompt_tokens, completion_tokens| {
            Some(Usage {
                prompt_tokens,
                completion_tokens,
            })
        };
        let uses = [
            used(Purpose::Judge, "a", tokens(1, 1), Some(7)),
            used(Purpose::Tester, "b", tokens(3, 2), None),
            used(Purpose::Tester, "a", tokens(5, 1), Some(2)),
            used(Purpose::Tester, "a", tokens(6, 1), Some(3)),
            used(Purpose::Tester, "a", None, None),
        ];
        let lines = lines(&uses, Some(42_000));
        let line = |purpose: &str, model: &str, tokens: Option<(u64, u64)>, cost: Option<f64>| {
            json!({"type": "model", "purpose": purpose, "model": model, "promptTokens": tokens.map(|t| t.0),
                "completionTokens": tokens.map(|t| t.1), "cost": cost})
        };
        assert_eq!(
            lines,
            [
                line("tester", "a", Some((11, 2)), Some(0.000_005)),
                line("tester", "a", None, None),
                line("tester", "b", Some((3, 2)), None),
                line("judge", "a", Some((1, 1)), Some(0.000_007)),
                json!({"type": "call", "cost": 0.042}),
            ]
        );
        let costs = ModelCosts::of(&uses);
        assert_eq!(costs.cost, 12);
        assert_eq!(costs.unknown, ["a", "b"].map(str::to_owned).into());
    }

    fn costs() -> impl Strategy<Value = ModelCosts> {
        let names = prop::collection::btree_set("[a-l]", 0..=MAX_NAMES);
        (0..100_i64, names).prop_map(|(cost, unknown)| ModelCosts { cost, unknown })
    }

    proptest! {
        #[test]
        fn costs_join_in_any_order(a in costs(), b in costs(), c in costs()) {
            prop_assert_eq!(a.clone().join(&b), b.clone().join(&a));
            prop_assert_eq!(a.clone().join(&b).join(&c), a.clone().join(&b.clone().join(&c)));
            prop_assert_eq!(a.clone().join(&a), a.clone());
            prop_assert_eq!(a.clone().plus(&b).plus(&c), a.clone().plus(&b.plus(&c)));
        }
    }
}
