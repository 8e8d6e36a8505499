//! What a checkpoint of a mock conversation asks of the target's answer, without a model: text and tool calls that are
//! [equal](exact) or [match patterns](patterns).
//!
//! Patterns are users': they may look ahead and back, and take bounded time and memory whatever they are.

use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::models::{
    Object,
    eval::{ChatEvalToolCall, JudgePlanMatch},
};

/// The most memory that one compiled pattern may take, in bytes.
const PATTERN_SIZE: usize = 1 << 20;
/// How much work all patterns of one checkpoint may be together, in steps back times bytes of the text: each step may look through
/// all of the text. Some tenths of a second.
const WORK: usize = 200_000_000;
/// The most steps back that a pattern may take, and the fewest that it always may.
const STEPS: std::ops::RangeInclusive<usize> = 50..=100_000;
/// The longest text that patterns are matched with, in bytes.
const LONGEST_TEXT: usize = 50_000;
/// How long the patterns of one checkpoint may take before no further one is matched. What takes no steps back takes linear time,
/// but the more the larger it is.
const LONGEST: Duration = Duration::from_secs(3);
/// The longest pattern, in characters.
const LONGEST_PATTERN: usize = 1_000;
/// The most patterns of one checkpoint.
const MOST_PATTERNS: usize = 200;
/// How much of a text a reason shows, in characters.
const SHOWN: usize = 1_000;

/// A tool call that the target made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Called {
    /// The tool's name.
    pub(super) name: String,
    /// The arguments; none where what the model wrote is no JSON object.
    pub(super) arguments: Option<Object>,
}

/// What the target answered at a checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    /// What it said.
    pub(super) content: String,
    /// The tools that it called, in order.
    pub(super) tool_calls: Vec<Called>,
}

/// Compares an answer with a plan: the content in any case, the tool calls one by one with all their arguments. A call without
/// arguments in the plan is compared by its name only, and so is a content of nothing beside tool calls, which clients have to
/// send.
///
/// # Errors
/// What was expected and what came, for the user.
pub(super) fn exact(plan: &JudgePlanMatch, answer: &Answer) -> Result<(), String> {
    if let Some(expected) = content_of(plan)
        && expected.to_lowercase() != answer.content.to_lowercase()
    {
        return Err(format!(
            "Expected exact match: '{}' but got: '{}'",
            shown(expected),
            shown(&answer.content)
        ));
    }
    each_call(plan, answer, |expected, actual| {
        for (name, value) in expected {
            match actual.get(name) {
                Some(came) if equal(value, came) => {}
                came => return Err(mismatch(name, value, came)),
            }
        }
        match actual.iter().find(|(name, _)| !expected.contains_key(*name)) {
            Some((name, value)) => Err(format!(
                "Tool call arguments mismatch. Expected no {name} but got: '{}'",
                written(value)
            )),
            None => Ok(()),
        }
    })
}

/// Matches an answer with a plan's patterns: each has to match some part of what it is for. Only the arguments that the plan
/// names are looked at.
///
/// # Errors
/// What was expected and what came, or why a pattern cannot be used, for the user.
pub(super) fn patterns(plan: &JudgePlanMatch, answer: &Answer) -> Result<(), String> {
    let budget = Budget {
        patterns: count(plan).max(1),
        began: Instant::now(),
    };
    if let Some(pattern) = content_of(plan)
        && !budget.matches(pattern, &answer.content)?
    {
        return Err(format!(
            "Expected match of pattern: '{}' but got: '{}'",
            shown(pattern),
            shown(&answer.content)
        ));
    }
    each_call(plan, answer, |expected, actual| {
        for (name, pattern) in expected {
            match actual.get(name) {
                Some(came) if budget.fits(pattern, came)? => {}
                came => return Err(mismatch(name, pattern, came)),
            }
        }
        Ok(())
    })
}

/// Whether every pattern of a plan can be used.
///
/// # Errors
/// The place of the first that cannot, below the plan, and why.
pub fn check(plan: &JudgePlanMatch) -> Result<(), (String, String)> {
    if count(plan) > MOST_PATTERNS {
        let why = format!("must contain no more than {MOST_PATTERNS} patterns");
        return Err(("toolCalls".to_owned(), why));
    }
    if let Some(pattern) = content_of(plan) {
        compile(pattern, *STEPS.end()).map_err(|why| ("content".to_owned(), why))?;
    }
    for (n, call) in plan.tool_calls.iter().flatten().enumerate() {
        let arguments = call
            .arguments
            .as_ref()
            .and_then(|arguments| arguments.to_object());
        for (name, value) in arguments.iter().flatten() {
            check_value(value).map_err(|why| (format!("toolCalls.{n}.arguments.{name}"), why))?;
        }
    }
    Ok(())
}

fn check_value(value: &Value) -> Result<(), String> {
    match value {
        Value::String(pattern) => compile(pattern, *STEPS.end()).map(drop),
        Value::Array(values) => values.iter().try_for_each(check_value),
        Value::Object(values) => values.values().try_for_each(check_value),
        _ => Ok(()),
    }
}

/// The content that a plan asks for, if it asks for one.
fn content_of(plan: &JudgePlanMatch) -> Option<&str> {
    let calls = plan.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
    plan.content
        .as_deref()
        .filter(|content| !calls || !content.is_empty())
}

/// Compares the calls of a plan and of an answer one by one, their arguments by `compare`.
fn each_call(
    plan: &JudgePlanMatch,
    answer: &Answer,
    compare: impl Fn(&Object, &Object) -> Result<(), String>,
) -> Result<(), String> {
    let Some(expected) = plan.tool_calls.as_ref().filter(|calls| !calls.is_empty()) else {
        return Ok(());
    };
    let names = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
    let differ = || {
        format!(
            "Expected tool calls: '{}' but got: '{}'",
            names(&mut expected.iter().map(|call| call.name.as_str())),
            names(&mut answer.tool_calls.iter().map(|call| call.name.as_str()))
        )
    };
    if expected.len() != answer.tool_calls.len() {
        return Err(differ());
    }
    for (expected, actual) in expected.iter().zip(&answer.tool_calls) {
        if expected.name != actual.name {
            return Err(differ());
        }
        let Some(arguments) = arguments(expected) else {
            continue;
        };
        let Some(came) = &actual.arguments else {
            return Err(format!(
                "Tool call arguments mismatch. The arguments of {} are no JSON object",
                actual.name
            ));
        };
        compare(&arguments, came)?;
    }
    Ok(())
}

/// The arguments that a plan asks for, if it asks for any.
fn arguments(call: &ChatEvalToolCall) -> Option<Object> {
    let arguments = call.arguments.as_ref()?.to_object()?;
    (!arguments.is_empty()).then_some(arguments)
}

/// Whether two values are the same, and of the same type. A number is the same with and without a fraction of zero.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(name, value)| other.get(name).is_some_and(|other| equal(value, other)))
        }
        _ => one == other,
    }
}

/// What the patterns of one checkpoint may take together.
struct Budget {
    patterns: usize,
    began: Instant,
}

impl Budget {
    /// Whether a value fits a plan's: texts are patterns for texts and for what others are written as, all else is compared.
    fn fits(&self, plan: &Value, value: &Value) -> Result<bool, String> {
        match (plan, value) {
            (Value::String(pattern), _) => self.matches(pattern, &text(value)),
            (Value::Array(plans), Value::Array(values)) if plans.len() == values.len() => {
                for (plan, value) in plans.iter().zip(values) {
                    if !self.fits(plan, value)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Object(plans), Value::Object(values)) => {
                for (name, plan) in plans {
                    let Some(value) = values.get(name) else {
                        return Ok(false);
                    };
                    if !self.fits(plan, value)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(equal(plan, value)),
        }
    }

    fn matches(&self, pattern: &str, text: &str) -> Result<bool, String> {
        if text.len() > LONGEST_TEXT {
            return Err(format!(
                "The answer is longer than the {LONGEST_TEXT} bytes that patterns are matched with"
            ));
        }
        if self.began.elapsed() > LONGEST {
            return Err(format!("The patterns took longer than {} s", LONGEST.as_secs()));
        }
        let steps = WORK / text.len().max(1) / self.patterns;
        let regex = compile(pattern, steps.clamp(*STEPS.start(), *STEPS.end()))?;
        regex.is_match(text).map_err(|error| {
            format!(
                "The pattern '{}' could not be matched within its limits: {}",
                shown(pattern),
                last_line(&error)
            )
        })
    }
}

/// How many patterns a plan has.
fn count(plan: &JudgePlanMatch) -> usize {
    fn within(value: &Value) -> usize {
        match value {
            Value::String(_) => 1,
            Value::Array(values) => values.iter().map(within).sum(),
            Value::Object(values) => values.values().map(within).sum(),
            _ => 0,
        }
    }
    let calls = plan.tool_calls.iter().flatten();
    let arguments = calls
        .filter_map(arguments)
        .map(|arguments| arguments.values().map(within).sum::<usize>());
    1 + arguments.sum::<usize>()
}

/// Compiles `pattern`, bare or as `/…/flags`.
fn compile(pattern: &str, steps: usize) -> Result<Regex, String> {
    if pattern.chars().count() > LONGEST_PATTERN {
        return Err(format!(
            "a pattern must be no longer than {LONGEST_PATTERN} characters"
        ));
    }
    let literal = pattern.strip_prefix('/').and_then(|rest| rest.rsplit_once('/'));
    // The other flags of the literal form change how matches are iterated, not what matches.
    let (body, flags) = match literal {
        Some((body, flags)) if !body.is_empty() && flags.chars().all(|flag| "dgimsuvy".contains(flag)) => {
            (body, flags)
        }
        _ => (pattern, ""),
    };
    RegexBuilder::new(body)
        .case_insensitive(flags.contains('i'))
        .multi_line(flags.contains('m'))
        .dot_matches_new_line(flags.contains('s'))
        .backtrack_limit(steps)
        .delegate_size_limit(PATTERN_SIZE)
        .delegate_dfa_size_limit(PATTERN_SIZE)
        .build()
        .map_err(|error| {
            format!(
                "the pattern '{}' cannot be used: {}",
                shown(pattern),
                last_line(&error)
            )
        })
}

fn last_line(error: &impl ToString) -> String {
    let error = error.to_string();
    let reason = error.lines().last().unwrap_or_default().trim();
    reason.trim_start_matches("error: ").to_owned()
}

fn mismatch(name: &str, expected: &Value, came: Option<&Value>) -> String {
    let (wanted, got) = (
        written(expected),
        came.map_or_else(|| "undefined".to_owned(), written),
    );
    let kinds = match came {
        // They are of different types then, which their texts do not show.
        Some(came) if wanted == got => format!(" (a {} but got a {})", kind(expected), kind(came)),
        _ => String::new(),
    };
    format!("Tool call arguments mismatch. Expected {name}: '{wanted}' but got: '{got}'{kinds}")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// A value as text: a text is itself.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn written(value: &Value) -> String {
    shown(&text(value))
}

/// As much of a text as a reason shows.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn plan(plan: Value) -> JudgePlanMatch {
        serde_json::from_value(plan).unwrap()
    }

    fn answer(content: &str, calls: &[(&str, Value)]) -> Answer {
        Answer {
            content: content.to_owned(),
            tool_calls: calls
                .iter()
                .map(|(name, arguments)| Called {
                    name: (*name).to_owned(),
                    arguments: arguments.as_object().cloned(),
                })
                .collect(),
        }
    }

    #[test]
    fn content_and_calls_are_compared_exactly() {
        let called = answer(
            "Äh, moment",
            &[("book", json!({"time": "14:00", "guests": {"n": [1, 2]}}))],
        );
        let call = |arguments: Value| json!({"toolCalls": [{"name": "book", "arguments": arguments}]});
        for (expected, reason) in [
            (json!({"content": "äh, MOMENT"}), None),
            (
                json!({"content": "äh, moment "}),
                Some("Expected exact match: 'äh, moment ' but got: 'Äh, moment'"),
            ),
            // What clients have to send beside tool calls.
            (json!({"content": "", "toolCalls": [{"name": "book"}]}), None),
            (
                json!({"content": ""}),
                Some("Expected exact match: '' but got: 'Äh, moment'"),
            ),
            (
                json!({"content": "no", "toolCalls": [{"name": "book"}]}),
                Some("Expected exact match: 'no' but got: 'Äh, moment'"),
            ),
            (call(json!({"time": "14:00", "guests": {"n": [1.0, 2]}})), None),
            (call(json!({})), None),
            (call(json!("")), None),
            (
                call(json!({"time": "14:00"})),
                Some("Tool call arguments mismatch. Expected no guests but got: '{\"n\":[1,2]}'"),
            ),
            (
                call(json!({"time": "14:00", "guests": {"n": [2, 1]}})),
                Some(
                    "Tool call arguments mismatch. Expected guests: '{\"n\":[2,1]}' but got: '{\"n\":[1,2]}'",
                ),
            ),
            (
                call(json!({"time": "14:00", "guests": {"n": [1, 2]}, "place": true})),
                Some("Tool call arguments mismatch. Expected place: 'true' but got: 'undefined'"),
            ),
            (
                json!({"toolCalls": [{"name": "cancel"}]}),
                Some("Expected tool calls: 'cancel' but got: 'book'"),
            ),
        ] {
            assert_eq!(
                exact(&plan(expected.clone()), &called).err().as_deref(),
                reason,
                "{expected}"
            );
        }
        let unreadable = answer("", &[("book", Value::Null)]);
        let reason = exact(&plan(call(json!({"time": "x"}))), &unreadable).unwrap_err();
        assert!(reason.contains("no JSON object"), "{reason}");
        assert_eq!(
            exact(&plan(json!({"toolCalls": [{"name": "book"}]})), &unreadable),
            Ok(())
        );
        let nothing = exact(
            &plan(json!({"toolCalls": [{"name": "book"}]})),
            &answer("Hi", &[]),
        )
        .unwrap_err();
        assert_eq!(nothing, "Expected tool calls: 'book' but got: ''");
    }

    #[test]
    fn patterns_match_any_part_and_only_what_they_name() {
        let called = answer(
            "It is sunny\nin Bern",
            &[(
                "book",
                json!({"time": "2:00 PM", "n": 14, "who": {"name": "Ann"}, "days": ["Mon", "Tue"]}),
            )],
        );
        let call = |arguments: Value| json!({"toolCalls": [{"name": "book", "arguments": arguments}]});
        for (expected, passes) in [
            (json!({"content": "sun"}), true),
            (json!({"content": "Sun"}), false),
            (json!({"content": "/SUNNY/i"}), true),
            (json!({"content": "/^in/m"}), true),
            (json!({"content": "^in"}), false),
            (json!({"content": "/sunny.in/s"}), true),
            (json!({"content": "(?i)BERN$"}), true),
            (json!({"content": "^(?![\\s\\S]*[₹\\d])[\\s\\S]+$"}), true),
            (json!({"content": "(?<=in )Bern"}), true),
            (json!({"content": "/a/b"}), false),
            (call(json!({"time": "^2:\\d+"})), true),
            (call(json!({"time": "^3"})), false),
            (call(json!({"n": "^14$"})), true),
            (call(json!({"n": 14.0})), true),
            (call(json!({"n": 15})), false),
            (call(json!({"who": {"name": "^A"}})), true),
            (call(json!({"who": {"age": ".*"}})), false),
            (call(json!({"days": ["^M", "^T"]})), true),
            (call(json!({"days": ["^M"]})), false),
            (call(json!({"place": ".*"})), false),
            (call(json!({})), true),
        ] {
            let found = patterns(&plan(expected.clone()), &called);
            assert_eq!(found.is_ok(), passes, "{expected}: {found:?}");
            assert_eq!(check(&plan(expected)), Ok(()));
        }
    }

    #[test]
    fn what_cannot_be_used_as_a_pattern_says_where_and_why() {
        let long = "a".repeat(1_001);
        let many: Vec<Value> = (0..201)
            .map(|_| json!({"name": "t", "arguments": {"a": "x"}}))
            .collect();
        for (expected, place, why) in [
            (json!({"content": "("}), "content", "cannot be used"),
            (json!({"content": long}), "content", "1000"),
            (json!({"content": "(a{1000}){1000}"}), "content", "cannot be used"),
            (
                json!({"toolCalls": [{"name": "t"}, {"name": "t", "arguments": {"day": ["ok", "["]}}]}),
                "toolCalls.1.arguments.day",
                "cannot be used",
            ),
            (json!({"toolCalls": many}), "toolCalls", "200"),
        ] {
            let (at, reason) = check(&plan(expected)).unwrap_err();
            assert_eq!(at, place);
            assert!(reason.contains(why), "{reason}");
        }
    }

    /// Patterns that take exponential time where every way is tried.
    #[test]
    fn no_pattern_takes_more_steps_than_a_checkpoint_has() {
        let text = format!("{}!", "a".repeat(20_000));
        let arguments = json!({"x": text});
        let called = answer(&text, &[("t", arguments)]);
        for pattern in [
            "(?:(?=[\\s\\S]*z)a|a)+z",
            "^(a+)+$",
            "^(?=(a+)+$)",
            "((a*)*)*\\1b",
            "(?<!b)(a|aa)+$",
            "(.*)*(.*)*\\1c",
            "^(a?){50}a{50}(?=b)",
            "(a+)+\\1c",
        ] {
            let by_content = json!({"content": pattern});
            let by_argument = json!({"toolCalls": [{"name": "t", "arguments": {"x": pattern}}]});
            for expected in [by_content, by_argument] {
                assert!(patterns(&plan(expected), &called).is_err(), "{pattern}");
            }
        }
        let too_long = answer(&"a".repeat(LONGEST_TEXT + 1), &[]);
        let reason = patterns(&plan(json!({"content": "a"})), &too_long).unwrap_err();
        assert!(reason.contains("50000 bytes"), "{reason}");
    }

    proptest! {
        #[test]
        fn what_is_the_same_matches_exactly(content in ".{0,40}", name in "[a-z]{1,8}", key in "[a-z]{1,4}", n in any::<i32>()) {
            let expected = plan(json!({"content": content, "toolCalls": [{"name": name, "arguments": {&key: n}}]}));
            let same = answer(&content, &[(&name, json!({&key: n}))]);
            prop_assert_eq!(exact(&expected, &same), Ok(()));
            let other = answer(&content, &[(&name, json!({&key: n.to_string()}))]);
            prop_assert!(exact(&expected, &other).is_err());
        }

        #[test]
        fn no_pattern_and_no_text_panics(pattern in ".{0,60}", text in ".{0,200}") {
            let expected = plan(json!({"content": pattern}));
            let found = patterns(&expected, &answer(&text, &[]));
            prop_assert!(check(&expected).is_ok() || found.is_err());
        }
    }
}
