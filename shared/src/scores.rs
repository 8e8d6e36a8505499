//! From a finished conversation to its scores, without doing anything: what a model is asked for each metric, how its answers are
//! read, and the rubric that decides.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    evaluation::Extraction,
    measure::{self, Conversation, Measurement, Settings},
    models::{
        Object,
        evaluation::{CreateStructuredOutput, JsonSchema, SchemaType},
        metric::{
            Alignment, BEST, EXPECTED_OUTCOME, EvalType, ExpectedOutcome, Field, Logic, Metric, MetricResult,
            Op, Rubric, RubricResult, Rule, RuleCondition, RuleConditions, RuleResult, Scored, Scores,
            Standing,
        },
    },
};

/// The name of the expected outcome among the metrics.
const OUTCOME_NAME: &str = "Expected Outcome";
/// The most sentences and turns that are kept of one explanation, and the longest sentence in characters.
const MOST: usize = 50;
const LONGEST: usize = 2000;

/// What is scored of the conversations of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Scoring {
    metrics: Vec<(String, Metric)>,
    /// Metrics that were named and are not there.
    gone: Vec<String>,
    outcome: Option<String>,
    rubric: Option<Rubric>,
}

impl Scoring {
    /// What `scenario` wants to be scored by these stored `metrics` (by id), as both were when the run was created.
    #[must_use]
    pub fn of(scenario: &Value, metrics: &Map<String, Value>) -> Self {
        let scored = Scored::of(scenario);
        let mut scoring = Self {
            outcome: scored.expected_outcome,
            rubric: scored.rubric,
            ..Self::default()
        };
        for id in scored.metrics {
            let known = scoring.metrics.iter().any(|(known, _)| *known == id);
            let metric = metrics
                .get(&id)
                .and_then(|metric| serde_json::from_value(metric.clone()).ok());
            match metric {
                Some(_) if known => {}
                Some(metric) => scoring.metrics.push((id, metric)),
                None => scoring.gone.push(id),
            }
        }
        scoring
    }

    /// Whether there is nothing to score.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty() && self.gone.is_empty() && self.outcome.is_none()
    }

    /// Those of the metrics that a model judges.
    fn judged(&self) -> impl Iterator<Item = &Metric> {
        let metrics = self.metrics.iter().map(|(_, metric)| metric);
        metrics.filter(|metric| metric.enabled && metric.measure.is_none())
    }

    /// What a model is to extract: for each metric that it judges, in order, and then for the expected outcome if there is one.
    #[must_use]
    pub fn outputs(&self) -> Vec<CreateStructuredOutput> {
        let metrics = self.judged().map(asked_of_metric);
        metrics
            .chain(self.outcome.as_deref().map(asked_of_outcome))
            .collect()
    }

    /// The scores, from what was extracted for [`Scoring::outputs`] in their order.
    #[must_use]
    pub fn scores(&self, extractions: &[Extraction], conversation: &Conversation<'_>) -> Scores {
        let turns = conversation.utterances.len();
        let mut extractions = extractions.iter();
        let mut next = || match extractions.next() {
            Some(extraction) => extraction.clone(),
            None => Err("it was not judged".to_owned()),
        };
        let mut metrics: Vec<MetricResult> = Vec::with_capacity(self.metrics.len());
        for (id, metric) in &self.metrics {
            let empty = empty_result(id, metric);
            metrics.push(match metric.measure {
                _ if !metric.enabled => {
                    without(empty, Standing::Skipped, "The metric is switched off.".to_owned())
                }
                Some(kind) => {
                    let settings = Settings {
                        silence_seconds: metric
                            .silence_seconds
                            .unwrap_or(Settings::default().silence_seconds),
                    };
                    measured(empty, measure::measure(kind, &settings, conversation))
                }
                None => judged(empty, metric, next(), turns),
            });
        }
        metrics.extend(self.gone.iter().map(|id| MetricResult {
            metric_id: id.clone(),
            name: String::new(),
            eval_type: EvalType::Binary,
            status: Standing::Error,
            passed: None,
            score: None,
            value: None,
            explanation: vec!["The metric was deleted before the run was created.".to_owned()],
            turns: Vec::new(),
            percentiles: None,
            measure: None,
            decides: true,
        }));
        let expected_outcome = self.outcome.as_ref().map(|_| outcome(next(), turns));
        let rubric = decide(self.rubric.as_ref(), &metrics, expected_outcome.as_ref());
        Scores {
            metrics,
            expected_outcome,
            rubric,
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Asking a model

fn schema(kind: SchemaType, description: &str) -> JsonSchema {
    JsonSchema {
        r#type: kind,
        description: Some(description.to_owned()),
        ..JsonSchema::default()
    }
}

fn list_of(items: JsonSchema, description: &str) -> JsonSchema {
    JsonSchema {
        items: Some(Box::new(items)),
        ..schema(SchemaType::Array, description)
    }
}

/// All of `properties` are required. They are asked for in the order of their names, so reasons come before what they lead to.
fn object_of<const N: usize>(properties: [(&str, JsonSchema); N]) -> JsonSchema {
    JsonSchema {
        required: Some(properties.iter().map(|(name, _)| (*name).to_owned()).collect()),
        properties: Some(BTreeMap::from(
            properties.map(|(name, schema)| (name.to_owned(), schema)),
        )),
        ..schema(SchemaType::Object, "")
    }
}

fn turns_schema() -> JsonSchema {
    let number = JsonSchema {
        r#type: SchemaType::Integer,
        ..JsonSchema::default()
    };
    list_of(number, "The numbers of the turns that show it")
}

fn asked_of_metric(metric: &Metric) -> CreateStructuredOutput {
    let value = match metric.eval_type {
        EvalType::Binary => schema(SchemaType::Boolean, "Whether it holds"),
        EvalType::Rating => schema(SchemaType::Number, "From 0 (worst) to 5 (best)"),
        EvalType::Numeric => schema(SchemaType::Number, "The number"),
        EvalType::Enum => JsonSchema {
            r#enum: Some(metric.enum_values.iter().map(|value| json!(value)).collect()),
            ..schema(SchemaType::String, "One of these")
        },
    };
    let applies = match &metric.trigger {
        Some(trigger) => format!("Whether this is so: {trigger}"),
        None => "Whether the conversation gives any ground to judge this".to_owned(),
    };
    let reason = JsonSchema {
        r#type: SchemaType::String,
        ..JsonSchema::default()
    };
    CreateStructuredOutput {
        name: metric.name.clone(),
        description: Some(format!(
            "Judge the agent (AI) by this: {}\nFirst say whether it applies, then why in short sentences that name the turns by their \
             numbers, then the value. If it does not apply, the value counts for nothing.",
            metric.prompt.as_deref().unwrap_or_default()
        )),
        model: metric.model.clone(),
        schema: object_of([
            ("applies", schema(SchemaType::Boolean, &applies)),
            (
                "because",
                list_of(reason, "Why, in short sentences that name the turns"),
            ),
            ("turns", turns_schema()),
            ("value", value),
        ]),
        ..CreateStructuredOutput::default()
    }
}

fn asked_of_outcome(expected: &str) -> CreateStructuredOutput {
    let part = object_of([
        (
            "expected",
            schema(
                SchemaType::String,
                "One thing that is expected, in the words of the description",
            ),
        ),
        (
            "happened",
            schema(
                SchemaType::String,
                "What happened instead or accordingly, in one sentence that names the turns",
            ),
        ),
        (
            "met",
            schema(
                SchemaType::Boolean,
                "Whether the conversation shows that it came so",
            ),
        ),
        ("turns", turns_schema()),
    ]);
    CreateStructuredOutput {
        name: OUTCOME_NAME.to_owned(),
        description: Some(format!(
            "Compare the conversation with what was expected of it, thing by thing. What the conversation does not show was not \
             met. What was expected: {expected}"
        )),
        schema: object_of([(
            "parts",
            list_of(part, "Each thing that is expected, at least one"),
        )]),
        ..CreateStructuredOutput::default()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading its answers

fn empty_result(id: &str, metric: &Metric) -> MetricResult {
    MetricResult {
        metric_id: id.to_owned(),
        name: metric.name.clone(),
        eval_type: metric.eval_type,
        status: Standing::Scored,
        passed: None,
        score: None,
        value: None,
        explanation: Vec::new(),
        turns: Vec::new(),
        percentiles: None,
        measure: metric.measure,
        decides: metric.eval_type == EvalType::Binary && metric.decides,
    }
}

fn without(result: MetricResult, status: Standing, why: String) -> MetricResult {
    MetricResult {
        status,
        explanation: vec![why],
        ..result
    }
}

fn measured(result: MetricResult, found: Measurement) -> MetricResult {
    match (found.value, found.skipped) {
        (Some(value), _) => MetricResult {
            score: Some(value),
            explanation: found.explanation,
            turns: found.turns,
            percentiles: found.percentiles,
            ..result
        },
        (None, why) => without(
            result,
            Standing::Skipped,
            why.unwrap_or_else(|| "There is nothing to measure.".to_owned()),
        ),
    }
}

/// The first of a text's characters, as many as are kept.
fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

/// The sentences in a list, or in one text.
fn sentences(value: Option<&Value>) -> Vec<String> {
    let texts: Vec<&str> = match value {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(text)) => vec![text],
        _ => Vec::new(),
    };
    let texts = texts.into_iter().map(str::trim).filter(|text| !text.is_empty());
    texts.take(MOST).map(short).collect()
}

/// Those of the numbers in a list that are turns of a conversation of `most` turns, each once and in order.
fn turns_in(value: Option<&Value>, most: usize) -> Vec<usize> {
    let list = value.and_then(Value::as_array);
    let numbers = list.into_iter().flatten().filter_map(Value::as_u64);
    let turns = numbers.filter_map(|n| usize::try_from(n).ok());
    let mut turns: Vec<usize> = turns.filter(|turn| (1..=most).contains(turn)).collect();
    turns.sort_unstable();
    turns.dedup();
    turns.truncate(MOST);
    turns
}

/// The sentences, of which the last names those turns that a model gave and did not name.
fn with_turns(mut sentences: Vec<String>, turns: &[usize]) -> Vec<String> {
    let named = |turn: &usize| {
        let number = turn.to_string();
        sentences.iter().any(|text| {
            text.split(|c: char| !c.is_ascii_digit())
                .any(|word| word == number)
        })
    };
    if turns.is_empty() || turns.iter().all(named) {
        return sentences;
    }
    let list: Vec<String> = turns.iter().map(ToString::to_string).collect();
    let word = if turns.len() == 1 { "turn" } else { "turns" };
    let seen = format!("({word} {})", list.join(", "));
    match sentences.last_mut() {
        Some(last) => *last = format!("{last} {seen}"),
        None => sentences.push(seen),
    }
    sentences
}

fn judged(result: MetricResult, metric: &Metric, extraction: Extraction, most: usize) -> MetricResult {
    let answer = match extraction {
        Ok(Value::Object(answer)) => answer,
        Ok(_) => return without(result, Standing::Error, "The model gave no judgement.".to_owned()),
        Err(error) => {
            return without(
                result,
                Standing::Error,
                format!("The model's judgement cannot be read: {error}."),
            );
        }
    };
    let turns = turns_in(answer.get("turns"), most);
    let because = with_turns(sentences(answer.get("because")), &turns);
    if answer.get("applies") == Some(&Value::Bool(false)) {
        let why = if because.is_empty() {
            vec!["It does not apply to this conversation.".to_owned()]
        } else {
            because
        };
        return MetricResult {
            status: Standing::Skipped,
            explanation: why,
            turns,
            ..result
        };
    }
    let value = answer.get("value").unwrap_or(&Value::Null);
    let mut scored = MetricResult {
        explanation: because,
        turns,
        ..result.clone()
    };
    let wrong = match (metric.eval_type, value) {
        (EvalType::Binary, Value::Bool(holds)) => {
            scored.passed = Some(*holds);
            None
        }
        (EvalType::Rating, Value::Number(number)) => {
            scored.score = number.as_f64().filter(|score| (0.0..=BEST).contains(score));
            scored
                .score
                .is_none()
                .then(|| format!("{number} is no score from 0 to 5"))
        }
        (EvalType::Numeric, Value::Number(number)) => {
            scored.score = number.as_f64().filter(|number| number.is_finite());
            scored.score.is_none().then(|| format!("{number} is too large"))
        }
        (EvalType::Enum, Value::String(text)) => {
            scored.value = metric.enum_values.iter().find(|known| *known == text).cloned();
            scored
                .value
                .is_none()
                .then(|| "it is none of the metric's values".to_owned())
        }
        (_, Value::Null) => {
            return MetricResult {
                status: Standing::Skipped,
                ..scored
            };
        }
        _ => Some("its value is of another type".to_owned()),
    };
    match wrong {
        None => scored,
        Some(wrong) => without(
            result,
            Standing::Error,
            format!("The model's judgement cannot be read: {wrong}."),
        ),
    }
}

fn outcome(extraction: Extraction, most: usize) -> ExpectedOutcome {
    let unread = |why: String| ExpectedOutcome {
        status: Standing::Error,
        score: None,
        explanation: vec![format!("The model's judgement cannot be read: {why}.")],
        alignments: Vec::new(),
    };
    let answer = match extraction {
        Ok(answer) => answer,
        Err(error) => return unread(error),
    };
    let parts = answer.get("parts").and_then(Value::as_array);
    let mut alignments = Vec::new();
    for part in parts.into_iter().flatten() {
        let text = |name: &str| part.get(name).and_then(Value::as_str).map(short);
        let (Some(expected), Some(met)) = (text("expected"), part.get("met").and_then(Value::as_bool)) else {
            return unread("a part of it does not say what was expected and whether it was met".to_owned());
        };
        let turns = turns_in(part.get("turns"), most);
        let happened = sentences(part.get("happened"));
        alignments.push(Alignment {
            expected,
            happened: with_turns(happened, &turns).join(" "),
            met,
            turns,
        });
    }
    if alignments.is_empty() {
        return unread("it names nothing that was expected".to_owned());
    }
    let met = alignments.iter().filter(|part| part.met).count();
    // Rounded down: 100 means all of it.
    let score = u32::try_from(met * 100 / alignments.len()).unwrap_or_default();
    ExpectedOutcome {
        status: Standing::Scored,
        score: Some(score),
        explanation: alignments
            .iter()
            .map(|part| {
                let sign = if part.met { '✅' } else { '❌' };
                let said = if part.happened.is_empty() {
                    &part.expected
                } else {
                    &part.happened
                };
                format!("{sign} {said}")
            })
            .collect(),
        alignments,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The rubric

/// What a rule is about.
struct Subject<'a> {
    name: &'a str,
    status: Standing,
    holds: Option<bool>,
    number: Option<f64>,
    text: Option<&'a str>,
    explanation: &'a [String],
}

impl<'a> Subject<'a> {
    fn metric(result: &'a MetricResult) -> Self {
        Self {
            name: &result.name,
            status: result.status,
            holds: result.passed,
            number: result.score,
            text: result.value.as_deref(),
            explanation: &result.explanation,
        }
    }

    fn outcome(outcome: &'a ExpectedOutcome) -> Self {
        Self {
            name: OUTCOME_NAME,
            status: outcome.status,
            holds: None,
            number: outcome.score.map(f64::from),
            text: None,
            explanation: &outcome.explanation,
        }
    }

    fn value(&self) -> Value {
        match (self.holds, self.number, self.text) {
            (Some(holds), ..) => json!(holds),
            (None, Some(number), _) => json!(number),
            (None, None, text) => json!(text),
        }
    }

    /// Whether the comparison holds. One with a value of another type does not, whatever it is.
    fn meets(&self, condition: &RuleCondition) -> bool {
        let RuleCondition { field, op, value } = condition;
        let order = match field {
            Field::Enum => {
                return match (self.text, op, value) {
                    (Some(text), Op::Eq, Value::String(other)) => text == other,
                    (Some(text), Op::Neq, Value::String(other)) => text != other,
                    (Some(text), Op::In, Value::Array(list)) => {
                        list.iter().any(|other| other.as_str() == Some(text))
                    }
                    _ => false,
                };
            }
            Field::Score => match (self.holds, self.number, value) {
                (Some(holds), _, Value::Bool(other)) => holds.partial_cmp(other),
                // Older rubrics say 5 for what holds and 0 for what does not.
                (Some(holds), _, Value::Number(other)) => {
                    let as_number = if holds { BEST } else { 0.0 };
                    other.as_f64().and_then(|other| as_number.partial_cmp(&other))
                }
                (None, Some(number), Value::Number(other)) => {
                    other.as_f64().and_then(|other| number.partial_cmp(&other))
                }
                _ => None,
            },
        };
        order.is_some_and(|order| match op {
            Op::Gt => order.is_gt(),
            Op::Gte => order.is_ge(),
            Op::Lt => order.is_lt(),
            Op::Lte => order.is_le(),
            Op::Eq => order.is_eq(),
            Op::Neq => order.is_ne(),
            Op::In => false,
        })
    }
}

fn all_or_one(logic: Logic, mut outcomes: impl Iterator<Item = bool>) -> bool {
    match logic {
        Logic::And => outcomes.all(|holds| holds),
        Logic::Or => outcomes.any(|holds| holds),
    }
}

/// A rule's conditions in words.
fn words(conditions: &RuleConditions) -> String {
    let one = |condition: &RuleCondition| {
        let value = match &condition.value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{} {} {value}", condition.field, condition.op)
    };
    let all: Vec<String> = conditions.conditions.iter().map(one).collect();
    all.join(&format!(" {} ", conditions.operator))
}

fn is_so(metric_id: &str, value: Value) -> Rule {
    Rule {
        metric_id: metric_id.to_owned(),
        conditions: RuleConditions {
            operator: Logic::And,
            conditions: vec![RuleCondition {
                field: Field::Score,
                op: Op::Eq,
                value,
            }],
        },
    }
}

/// The rules where no rubric says any: the expected outcome is met, and every metric that decides holds.
fn usual(metrics: &[MetricResult], outcome: Option<&ExpectedOutcome>) -> Rubric {
    let outcome = outcome.map(|_| is_so(EXPECTED_OUTCOME, json!(100)));
    let metrics = metrics.iter().filter(|metric| metric.decides);
    Rubric {
        evaluation_logic: Logic::And,
        rules: outcome
            .into_iter()
            .chain(metrics.map(|metric| is_so(&metric.metric_id, json!(true))))
            .collect(),
    }
}

/// What the rubric, or the usual rules, come to for these scores; `None` where there is no rule.
///
/// A rule whose metric was skipped, or is not the scenario's, counts for nothing; where all do, it is a success. A rule whose metric
/// could not be judged does not hold: nobody knows whether it would.
#[must_use]
pub fn decide(
    rubric: Option<&Rubric>,
    metrics: &[MetricResult],
    outcome: Option<&ExpectedOutcome>,
) -> Option<RubricResult> {
    let usual = usual(metrics, outcome);
    let rubric = rubric.filter(|rubric| !rubric.rules.is_empty()).unwrap_or(&usual);
    if rubric.rules.is_empty() {
        return None;
    }
    let rules: Vec<RuleResult> = rubric
        .rules
        .iter()
        .map(|rule| {
            let subject = match rule.metric_id.as_str() {
                EXPECTED_OUTCOME => outcome.map(Subject::outcome),
                id => metrics
                    .iter()
                    .find(|metric| metric.metric_id == id)
                    .map(Subject::metric),
            };
            let conditions = words(&rule.conditions);
            let Some(subject) = subject else {
                return RuleResult {
                    metric_id: rule.metric_id.clone(),
                    metric_name: String::new(),
                    value: Value::Null,
                    conditions,
                    passed: None,
                    explanation: vec!["The scenario does not have this metric.".to_owned()],
                };
            };
            let passed = match subject.status {
                Standing::Skipped => None,
                Standing::Error => Some(false),
                Standing::Scored => Some(all_or_one(
                    rule.conditions.operator,
                    rule.conditions
                        .conditions
                        .iter()
                        .map(|condition| subject.meets(condition)),
                )),
            };
            RuleResult {
                metric_id: rule.metric_id.clone(),
                metric_name: subject.name.to_owned(),
                value: subject.value(),
                conditions,
                passed,
                explanation: subject.explanation.to_vec(),
            }
        })
        .collect();
    let known: Vec<bool> = rules.iter().filter_map(|rule| rule.passed).collect();
    Some(RubricResult {
        passed: known.is_empty() || all_or_one(rubric.evaluation_logic, known.into_iter()),
        evaluation_logic: rubric.evaluation_logic,
        rules,
    })
}

impl RubricResult {
    /// The names of the metrics whose rules do not hold.
    pub fn failed(&self) -> impl Iterator<Item = String> {
        let failed = self.rules.iter().filter(|rule| rule.passed == Some(false));
        failed.map(|rule| rule.metric_name.clone())
    }

    /// Whether no rule counts.
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        self.rules.iter().all(|rule| rule.passed.is_none())
    }
}

impl Scores {
    /// The scores as fields of an item's results.
    #[must_use]
    pub fn into_fields(self) -> Object {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Object::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measure::{Side, Utterance};

    const METRIC: &str = "0193e6a4-0000-7000-8000-000000000001";
    const OTHER: &str = "0193e6a4-0000-7000-8000-000000000002";

    fn said(count: usize) -> Vec<Utterance> {
        let one = |turn| Utterance {
            turn,
            side: if turn % 2 == 0 { Side::Agent } else { Side::Tester },
            text: "Hello".to_owned(),
            start: None,
            end: None,
        };
        (1..=count).map(one).collect()
    }

    fn scored(scenario: Value, metrics: Value, extractions: &[Extraction]) -> Scores {
        let scoring = Scoring::of(&scenario, metrics.as_object().unwrap());
        let utterances = said(4);
        scoring.scores(
            extractions,
            &Conversation {
                utterances: &utterances,
                latencies: &[],
                replied_in: &[10, 30],
                duration_ms: Some(1000),
                voice: false,
            },
        )
    }

    fn one(kind: &str, extraction: Extraction) -> (Standing, Value, Vec<String>, Vec<usize>) {
        let metric = json!({"name": "M", "evalType": kind, "prompt": "p", "enumValues": ["good", "bad"]});
        let mut scores = scored(
            json!({"metrics": [METRIC]}),
            json!({METRIC: metric}),
            &[extraction],
        );
        let result = scores.metrics.pop().unwrap();
        let value = Subject::metric(&result).value();
        (result.status, value, result.explanation, result.turns)
    }

    fn answer(value: Value) -> Extraction {
        Ok(json!({"applies": true, "because": ["It is so."], "turns": [3, 2, 3, 9, 0], "value": value}))
    }

    #[test]
    fn each_kind_of_metric_takes_its_own_values() {
        let why = vec!["It is so. (turns 2, 3)".to_owned()];
        for (kind, value, expected) in [
            ("binary", json!(true), Some(json!(true))),
            ("binary", json!("yes"), None),
            ("continuous_qualitative", json!(4.5), Some(json!(4.5))),
            ("continuous_qualitative", json!(5.1), None),
            ("continuous_qualitative", json!(-1), None),
            ("numeric", json!(17), Some(json!(17.0))),
            ("numeric", json!(true), None),
            ("enum", json!("bad"), Some(json!("bad"))),
            ("enum", json!("ugly"), None),
        ] {
            let found = one(kind, answer(value.clone()));
            match expected {
                Some(expected) => {
                    let expected = (Standing::Scored, expected, why.clone(), vec![2, 3]);
                    assert_eq!(found, expected, "{kind} {value}");
                }
                None => {
                    assert_eq!(
                        (found.0, found.1),
                        (Standing::Error, Value::Null),
                        "{kind} {value}"
                    );
                    assert!(
                        found.2[0].starts_with("The model's judgement cannot be read"),
                        "{:?}",
                        found.2
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_no_value_says_why() {
        let no_ground = Ok(json!({"applies": false, "because": [], "turns": [], "value": true}));
        for (extraction, status, why) in [
            (
                no_ground,
                Standing::Skipped,
                "It does not apply to this conversation.",
            ),
            (answer(Value::Null), Standing::Skipped, "It is so. (turns 2, 3)"),
            (Ok(json!(true)), Standing::Error, "The model gave no judgement."),
            (
                Err("it is no JSON".to_owned()),
                Standing::Error,
                "The model's judgement cannot be read: it is no JSON.",
            ),
        ] {
            let found = one("binary", extraction);
            assert_eq!(
                (found.0, found.1, found.2),
                (status, Value::Null, vec![why.to_owned()])
            );
        }
        let scores = scored(
            json!({"metrics": [METRIC, OTHER]}),
            json!({METRIC: {"name": "M", "evalType": "numeric", "measure": "silence"}}),
            &[],
        );
        let [silence, gone] = scores.metrics.as_slice() else {
            panic!("{scores:?}");
        };
        assert_eq!(silence.status, Standing::Skipped);
        assert_eq!(
            silence.explanation,
            ["There is no figure: a chat has no speaking times."]
        );
        assert_eq!((gone.status, gone.decides), (Standing::Error, true));
        assert!(
            !scores.rubric.unwrap().passed,
            "nobody knows whether what is gone would hold"
        );
    }

    #[test]
    fn an_expected_outcome_is_met_when_all_of_it_is() {
        let part = |met: bool| json!({"expected": "E", "happened": "H in turn 2.", "met": met, "turns": [2]});
        let scenario = json!({"expectedOutcome": "E"});
        for (parts, score) in [
            (vec![part(true)], Some(100)),
            (vec![part(true), part(true), part(false)], Some(66)),
            (vec![part(false)], Some(0)),
            (
                vec![part(true); 199].into_iter().chain([part(false)]).collect(),
                Some(99),
            ),
            (vec![], None),
            (vec![json!({"expected": "E"})], None),
        ] {
            let scores = scored(scenario.clone(), json!({}), &[Ok(json!({"parts": parts}))]);
            let outcome = scores.expected_outcome.unwrap();
            assert_eq!(outcome.score, score);
            assert_eq!(outcome.status == Standing::Scored, score.is_some());
            assert_eq!(scores.rubric.unwrap().passed, score == Some(100));
            if score == Some(66) {
                assert_eq!(
                    outcome.explanation,
                    ["✅ H in turn 2.", "✅ H in turn 2.", "❌ H in turn 2."]
                );
                assert_eq!(outcome.alignments[2].turns, [2]);
            }
        }
    }

    #[test]
    fn a_model_is_asked_once_for_all_that_it_judges() {
        let scenario = json!({"metrics": [METRIC, OTHER, METRIC], "expectedOutcome": "A table is booked"});
        let metrics = json!({
            METRIC: {"name": "Polite", "evalType": "binary", "prompt": "Was it polite?", "trigger": "there was a greeting"},
            OTHER: {"name": "Latency", "evalType": "numeric", "measure": "latency"},
        });
        let outputs = Scoring::of(&scenario, metrics.as_object().unwrap()).outputs();
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["Polite", OUTCOME_NAME]);
        let asked = json!(outputs).to_string();
        for words in ["Was it polite?", "there was a greeting", "A table is booked"] {
            assert!(asked.contains(words), "{words}");
        }
        let off = json!({METRIC: {"name": "Polite", "evalType": "binary", "prompt": "p", "enabled": false}});
        let off = scored(json!({"metrics": [METRIC]}), off, &[]);
        assert_eq!(off.metrics[0].status, Standing::Skipped);
        assert!(off.rubric.unwrap().says_nothing());
    }

    fn result(id: &str, kind: EvalType, standing: Standing) -> MetricResult {
        MetricResult {
            metric_id: id.to_owned(),
            name: id.to_owned(),
            eval_type: kind,
            status: standing,
            passed: None,
            score: None,
            value: None,
            explanation: Vec::new(),
            turns: Vec::new(),
            percentiles: None,
            measure: None,
            decides: false,
        }
    }

    fn rubric(logic: &str, rules: Value) -> Rubric {
        serde_json::from_value(json!({"evaluationLogic": logic, "rules": rules})).unwrap()
    }

    fn rule(id: &str, field: &str, op: &str, value: Value) -> Value {
        json!({"metricId": id, "conditions": {"operator": "and", "conditions": [{"field": field, "op": op, "value": value}]}})
    }

    #[test]
    fn every_comparison_of_a_rule() {
        let mut number = result("number", EvalType::Numeric, Standing::Scored);
        number.score = Some(3.0);
        let mut holds = result("holds", EvalType::Binary, Standing::Scored);
        holds.passed = Some(true);
        let mut word = result("word", EvalType::Enum, Standing::Scored);
        word.value = Some("good".to_owned());
        let skipped = result("skipped", EvalType::Numeric, Standing::Skipped);
        let broken = result("broken", EvalType::Numeric, Standing::Error);
        let metrics = [number, holds, word, skipped, broken];
        for (id, field, op, value, expected) in [
            ("number", "score", "gt", json!(2), Some(true)),
            ("number", "score", "gt", json!(3), Some(false)),
            ("number", "score", "gte", json!(3), Some(true)),
            ("number", "score", "lt", json!(3), Some(false)),
            ("number", "score", "lte", json!(3.0), Some(true)),
            ("number", "score", "eq", json!(3), Some(true)),
            ("number", "score", "neq", json!(3), Some(false)),
            ("number", "score", "eq", json!(true), Some(false)),
            ("holds", "score", "eq", json!(true), Some(true)),
            ("holds", "score", "neq", json!(true), Some(false)),
            ("holds", "score", "eq", json!(5), Some(true)),
            ("holds", "score", "eq", json!(0), Some(false)),
            ("word", "enum", "eq", json!("good"), Some(true)),
            ("word", "enum", "neq", json!("good"), Some(false)),
            ("word", "enum", "in", json!(["bad", "good"]), Some(true)),
            ("word", "enum", "in", json!([]), Some(false)),
            ("number", "enum", "eq", json!("3"), Some(false)),
            ("skipped", "score", "gt", json!(1), None),
            ("gone", "score", "gt", json!(1), None),
            ("broken", "score", "gt", json!(1), Some(false)),
        ] {
            let rubric = rubric("and", json!([rule(id, field, op, value.clone())]));
            let decided = decide(Some(&rubric), &metrics, None).unwrap();
            assert_eq!(decided.rules[0].passed, expected, "{id} {field} {op} {value}");
            assert_eq!(
                decided.passed,
                expected != Some(false),
                "{id} {field} {op} {value}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_rubric_is_what_its_rules_that_count_are(
            rules in prop::collection::vec(prop::option::of(any::<bool>()), 1..8), all in any::<bool>(),
        ) {
            let mut metrics = Vec::new();
            let mut written = Vec::new();
            for (n, holds) in rules.iter().enumerate() {
                let standing = if holds.is_some() { Standing::Scored } else { Standing::Skipped };
                let mut metric = result(&n.to_string(), EvalType::Binary, standing);
                metric.passed = *holds;
                metrics.push(metric);
                written.push(rule(&n.to_string(), "score", "eq", json!(true)));
            }
            let decided = decide(Some(&rubric(if all { "and" } else { "or" }, json!(written))), &metrics, None);
            let decided = decided.unwrap();
            let count: Vec<bool> = rules.iter().filter_map(|rule| *rule).collect();
            let expected = match (count.is_empty(), all) {
                (true, _) => true,
                (false, true) => count.iter().all(|holds| *holds),
                (false, false) => count.iter().any(|holds| *holds),
            };
            prop_assert_eq!(decided.passed, expected);
            prop_assert_eq!(decided.says_nothing(), count.is_empty());
        }
    }
}
