//! Metrics: what is scored of a conversation beside the scenario's evaluations, what was found, and the rubric that decides.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, Validate, check, kinds};
use crate::measure::{Measure, Percentiles};

/// The longest name of a metric, in characters.
pub const NAME: usize = 255;
/// The longest text that a model judges by, in characters.
pub const PROMPT: usize = 20_000;
/// The most values that an enum metric may have.
pub const VALUES: usize = 100;
/// The most metrics that a scenario may have.
pub const METRICS: usize = 100;
/// The most rules of a rubric, and the most conditions of one rule.
pub const RULES: usize = 100;
/// The greatest score of a rating.
pub const BEST: f64 = 5.0;
/// How a rubric names the expected outcome.
pub const EXPECTED_OUTCOME: &str = "expectedOutcome";

kinds::names! {
    /// What kind of value a metric has.
    EvalType {
        /// It holds or does not.
        Binary = "binary",
        /// A rating from 0 to 5.
        Rating = "continuous_qualitative",
        /// A number.
        Numeric = "numeric",
        /// One of some texts.
        Enum = "enum",
    }
}

/// Something to score of a conversation: by a model that reads its `prompt`, or computed as its `measure` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Display name.
    pub name: String,
    /// What kind of value it has.
    pub eval_type: EvalType,
    /// What a model judges by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What is computed instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// The values of an enum.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enum_values: Vec<String>,
    /// Whether a conversation fails with it where no rubric says otherwise; only of binary ones.
    #[serde(default = "kinds::yes", deserialize_with = "kinds::on")]
    pub decides: bool,
    /// Whether it is scored at all.
    #[serde(default = "kinds::yes", deserialize_with = "kinds::on")]
    pub enabled: bool,
    /// When it applies, for the model; always unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// From which length on a silence is named, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence_seconds: Option<f64>,
    /// The model that judges, as an assistant's `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Object>,
    /// Unknown fields.
    #[serde(flatten)]
    pub extra: Object,
}

impl Validate for Metric {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "name", &self.name, 1, NAME, faults);
        kinds::text(path, "prompt", self.prompt.as_ref(), PROMPT, faults);
        kinds::text(path, "trigger", self.trigger.as_ref(), PROMPT, faults);
        let said = self.prompt.as_deref().is_some_and(|text| !text.trim().is_empty());
        if !said && self.measure.is_none() {
            faults.push(format!("{} must be given", check::join(path, "prompt")));
        }
        if let Some(measure) = self.measure {
            let fits = match self.eval_type {
                EvalType::Numeric => true,
                EvalType::Rating => measure.is_rating(),
                EvalType::Binary | EvalType::Enum => false,
            };
            if !fits {
                faults.push(format!(
                    "{} must be numeric for {measure}",
                    check::join(path, "evalType")
                ));
            }
        }
        let at = check::join(path, "enumValues");
        if self.eval_type == EvalType::Enum && self.enum_values.len() < 2 {
            faults.push(format!("{at} must contain at least 2 elements"));
        }
        if self.enum_values.len() > VALUES {
            faults.push(format!("{at} must contain no more than {VALUES} elements"));
        }
        for (n, value) in self.enum_values.iter().enumerate() {
            check::length(&at, &n.to_string(), value, 1, NAME, faults);
        }
        kinds::range(path, "silenceSeconds", self.silence_seconds, 0.0, 3600.0, faults);
    }
}

kinds::names! {
    /// What became of a metric.
    Standing {
        /// It has a value.
        Scored = "scored",
        /// It has none, because it does not apply or cannot be known; it counts for nothing.
        Skipped = "skipped",
        /// It has none, because it could not be judged; whatever rests on it does not pass.
        Error = "error",
    }
}

/// What a metric came to for one conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricResult {
    /// The metric's id.
    pub metric_id: String,
    /// What it was called.
    pub name: String,
    /// What kind of value it has.
    pub eval_type: EvalType,
    /// Whether it has a value.
    pub status: Standing,
    /// Of a binary one, whether it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
    /// Of a rating (0 to 5) and a number, its value.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "kinds::optional_number"
    )]
    pub score: Option<f64>,
    /// Of an enum, its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why, in sentences that name the turns; of one without a value, why it has none.
    #[serde(default)]
    pub explanation: Vec<String>,
    /// The turns that it rests on, counted from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<usize>,
    /// How what was measured is distributed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentiles: Option<Percentiles>,
    /// What was computed, if no model was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// Whether it decides where no rubric says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub decides: bool,
}

/// One part of what was expected, and whether it came so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alignment {
    /// What was expected.
    pub expected: String,
    /// What happened.
    pub happened: String,
    /// Whether that is what was expected.
    pub met: bool,
    /// The turns that show it, counted from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<usize>,
}

/// What the expected outcome came to for one conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedOutcome {
    /// Whether it has a score.
    pub status: Standing,
    /// The share of what was expected that came so, from 0 to 100; 100 only where all of it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<u32>,
    /// One sentence for each part, or why there is no score.
    pub explanation: Vec<String>,
    /// The parts.
    pub alignments: Vec<Alignment>,
}

kinds::names! {
    /// Whether all or one of several must hold.
    Logic {
        /// All.
        And = "and",
        /// One.
        Or = "or",
    }
}

kinds::names! {
    /// What of a metric is compared.
    Field {
        /// Its score, or whether it holds.
        Score = "score",
        /// The text of an enum.
        Enum = "enum",
    }
}

kinds::names! {
    /// How it is compared.
    Op {
        /// Greater.
        Gt = "gt",
        /// Greater or equal.
        Gte = "gte",
        /// Less.
        Lt = "lt",
        /// Less or equal.
        Lte = "lte",
        /// Equal.
        Eq = "eq",
        /// Not equal.
        Neq = "neq",
        /// Among some texts.
        In = "in",
    }
}

/// One comparison of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleCondition {
    /// What is compared.
    pub field: Field,
    /// How.
    pub op: Op,
    /// With what.
    pub value: Value,
}

/// The comparisons of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleConditions {
    /// Whether all of them must hold.
    #[serde(default = "and", deserialize_with = "logic")]
    pub operator: Logic,
    /// The comparisons.
    pub conditions: Vec<RuleCondition>,
}

/// A rule of a rubric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The metric's id, or `expectedOutcome`.
    pub metric_id: String,
    /// What must hold of it.
    pub conditions: RuleConditions,
}

/// What decides whether a conversation is a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rubric {
    /// Whether all rules must hold or one of them.
    #[serde(default = "and", deserialize_with = "logic")]
    pub evaluation_logic: Logic,
    /// The rules.
    pub rules: Vec<Rule>,
}

const fn and() -> Logic {
    Logic::And
}

fn logic<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Logic, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(Logic::And))
}

impl Validate for Rubric {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let at = check::join(path, "rules");
        if self.rules.len() > RULES {
            faults.push(format!("{at} must contain no more than {RULES} elements"));
            return;
        }
        for (n, rule) in self.rules.iter().enumerate() {
            let at = check::join(&check::join(&at, &n.to_string()), "conditions.conditions");
            let conditions = &rule.conditions.conditions;
            if conditions.is_empty() || conditions.len() > RULES {
                faults.push(format!("{at} must contain 1 to {RULES} elements"));
            }
            for (n, condition) in conditions.iter().enumerate() {
                if let Err(wrong) = condition.check() {
                    faults.push(format!("{}: {wrong}", check::join(&at, &n.to_string())));
                }
            }
        }
    }
}

impl RuleCondition {
    /// Whether it can hold at all: an order is for numbers, and texts are compared as a whole.
    fn check(&self) -> Result<(), &'static str> {
        let text = |value: &Value| value.is_string();
        let fits = match (self.field, self.op) {
            (Field::Score, Op::Eq | Op::Neq) => self.value.is_boolean() || self.value.is_number(),
            (Field::Score, Op::In) => false,
            (Field::Score, _) => self.value.is_number(),
            (Field::Enum, Op::Eq | Op::Neq) => text(&self.value),
            (Field::Enum, Op::In) => self.value.as_array().is_some_and(|list| list.iter().all(text)),
            (Field::Enum, _) => false,
        };
        match (fits, self.field) {
            (true, _) => Ok(()),
            (false, Field::Score) => Err(
                "score is compared with gt, gte, lt, lte, eq or neq and a number, or with eq or neq and true or false",
            ),
            (false, Field::Enum) => {
                Err("enum is compared with eq or neq and a text, or with in and a list of texts")
            }
        }
    }
}

/// What became of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleResult {
    /// The metric's id, or `expectedOutcome`.
    pub metric_id: String,
    /// What the metric is called.
    pub metric_name: String,
    /// The metric's value.
    #[serde(default)]
    pub value: Value,
    /// What must hold of it, in words.
    pub conditions: String,
    /// Whether it holds; none where the metric has no value, so that the rule counts for nothing.
    #[serde(default)]
    pub passed: Option<bool>,
    /// The metric's explanation.
    #[serde(default)]
    pub explanation: Vec<String>,
}

/// What a rubric came to for one conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RubricResult {
    /// Whether it is a success.
    pub passed: bool,
    /// Whether all rules must hold or one of them.
    pub evaluation_logic: Logic,
    /// The rules in order.
    pub rules: Vec<RuleResult>,
}

/// What was scored of one conversation. In an item's results it stands beside the evaluations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scores {
    /// The metrics in the scenario's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricResult>,
    /// The expected outcome, if the scenario has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_outcome: Option<ExpectedOutcome>,
    /// What decided, if anything was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rubric: Option<RubricResult>,
}

/// What a scenario says of its scoring, as far as it says anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// The ids of its metrics.
    pub metrics: Vec<String>,
    /// What the conversation should come to, in words.
    pub expected_outcome: Option<String>,
    /// What decides.
    pub rubric: Option<Rubric>,
}

impl Scored {
    /// What a scenario says; fields of another type than these have say nothing.
    #[must_use]
    pub fn of(scenario: &Value) -> Self {
        let field = |name: &str| scenario.get(name).cloned().unwrap_or_default();
        let outcome = field("expectedOutcome");
        Self {
            metrics: serde_json::from_value(field("metrics")).unwrap_or_default(),
            expected_outcome: outcome
                .as_str()
                .filter(|text| !text.trim().is_empty())
                .map(str::to_owned),
            rubric: serde_json::from_value(field("rubric")).ok(),
        }
    }

    /// Whether there is nothing to score.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty() && self.expected_outcome.is_none()
    }
}
