//! Figures that are computed from a finished conversation, without a model.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{evaluation::TurnLatency, llm::text_of, models::kinds};

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who simulates.
    Tester,
    /// The agent under test.
    Agent,
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Utterance {
    /// Its number among what was said in the conversation, from 1: what explanations name.
    pub turn: usize,
    /// Who said it.
    pub side: Side,
    /// What was said.
    pub text: String,
    /// When it began, in seconds since the conversation's start.
    pub start: Option<f64>,
    /// When it ended, in seconds since the conversation's start.
    pub end: Option<f64>,
}

/// What was said, in order, from messages as in `metadata.call.messages`. Messages without words, and those of tools and of the
/// system, are none.
#[must_use]
pub fn utterances(messages: &[Value]) -> Vec<Utterance> {
    let number = |message: &Value, name: &str| {
        let number = message.get(name).and_then(Value::as_f64);
        number.filter(|number| number.is_finite() && *number >= 0.0)
    };
    let first = messages.iter().find_map(|message| number(message, "time"));
    let mut found = Vec::new();
    for message in messages {
        let side = match message.get("role").and_then(Value::as_str) {
            Some("user") => Side::Tester,
            Some("assistant" | "bot") => Side::Agent,
            _ => continue,
        };
        let said = ["content", "message"]
            .iter()
            .find_map(|field| text_of(message.get(field)?));
        let Some(text) = said.filter(|text| !text.trim().is_empty()) else {
            continue;
        };
        let (time, until) = (number(message, "time"), number(message, "endTime"));
        let start = number(message, "secondsFromStart").or_else(|| {
            let since = (time? - first?) / 1000.0;
            (since >= 0.0).then_some(since)
        });
        let length = time
            .zip(until)
            .map(|(time, until)| until - time)
            .or_else(|| number(message, "duration"))
            .filter(|ms| *ms >= 0.0);
        found.push(Utterance {
            turn: found.len() + 1,
            side,
            text,
            start,
            end: start.zip(length).map(|(start, ms)| start + ms / 1000.0),
        });
    }
    found
}

kinds::names! {
    /// What is computed.
    Measure {
        /// How long the agent takes to answer, in milliseconds.
        Latency = "latency",
        /// The agent's share of what is spoken, from 0 to 1.
        TalkRatio = "talk_ratio",
        /// How many words the agent speaks in a minute.
        WordsPerMinute = "words_per_minute",
        /// How often the agent began to speak while the tester spoke.
        Interruptions = "interruptions",
        /// How often the tester began to speak while the agent spoke.
        UserInterruptions = "user_interruptions",
        /// From 0 (the agent interrupts always) to 5 (never).
        InterruptionScore = "interruption_score",
        /// How long the agent goes on after the tester began to speak, in milliseconds.
        StopTime = "stop_time_after_interruption",
        /// The longest silence, in seconds.
        Silence = "silence",
        /// How often the agent says again what it said before.
        RepetitionCount = "repetition_count",
        /// From 0 (the agent only repeats itself) to 5 (it never does).
        RepetitionScore = "repetition_score",
        /// How much was said, in utterances.
        TurnCount = "turn_count",
        /// How long the conversation was, in seconds.
        Duration = "duration",
    }
}

impl Measure {
    /// Whether its value is a rating from 0 to 5.
    #[must_use]
    pub const fn is_rating(self) -> bool {
        matches!(self, Self::InterruptionScore | Self::RepetitionScore)
    }

    /// What it is, in words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Latency => {
                "How long the agent takes to answer, in milliseconds: the mean, and percentiles."
            }
            Self::TalkRatio => "The agent's share of what is spoken, from 0 to 1.",
            Self::WordsPerMinute => "How many words the agent speaks in a minute.",
            Self::Interruptions => "How often the agent began to speak while the caller spoke.",
            Self::UserInterruptions => "How often the caller began to speak while the agent spoke.",
            Self::InterruptionScore => "From 0 (the agent interrupts always) to 5 (never).",
            Self::StopTime => "How long the agent goes on after it was interrupted, in milliseconds.",
            Self::Silence => "The longest silence, in seconds.",
            Self::RepetitionCount => "How often the agent says again what it said before.",
            Self::RepetitionScore => "From 0 (the agent only repeats itself) to 5 (it never does).",
            Self::TurnCount => "How much was said, in utterances.",
            Self::Duration => "How long the conversation was, in seconds.",
        }
    }
}

/// What figures are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// What was said.
    pub utterances: &'a [Utterance],
    /// For each answer of the agent in a call, where they were measured.
    pub latencies: &'a [TurnLatency],
    /// How long each reply of the agent took in a chat, in milliseconds.
    pub replied_in: &'a [i64],
    /// How long it was, in milliseconds.
    pub duration_ms: Option<i64>,
    /// Whether it was spoken.
    pub voice: bool,
}

/// How figures are distributed, by nearest rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// A quarter of them are not greater.
    pub p25: f64,
    /// Half of them are not greater.
    pub p50: f64,
    /// Three quarters of them are not greater.
    pub p75: f64,
    /// 90 % of them are not greater.
    pub p90: f64,
    /// 95 % of them are not greater.
    pub p95: f64,
    /// 99 % of them are not greater.
    pub p99: f64,
}

impl Percentiles {
    /// Those of these figures; none of no figures.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |per_cent: usize| {
            let rank = (sorted.len() * per_cent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied()
        };
        Some(Self {
            p25: at(25)?,
            p50: at(50)?,
            p75: at(75)?,
            p90: at(90)?,
            p95: at(95)?,
            p99: at(99)?,
        })
    }
}

/// What of a measure can be set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// From which length on a silence is named, in seconds.
    pub silence_seconds: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            silence_seconds: 10.0,
        }
    }
}

/// A figure, or why there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measurement {
    /// The figure.
    pub value: Option<f64>,
    /// How what it is the mean of is distributed.
    pub percentiles: Option<Percentiles>,
    /// Why, in sentences that name turns by their numbers.
    pub explanation: Vec<String>,
    /// The turns that stand out.
    pub turns: Vec<usize>,
    /// Why there is no figure.
    pub skipped: Option<String>,
}

impl Measurement {
    fn new(value: f64, explanation: String, turns: Vec<usize>) -> Self {
        // Whatever is not a number is not known.
        if !value.is_finite() {
            return Self::skipped("it cannot be computed");
        }
        Self {
            value: Some(value),
            explanation: vec![explanation],
            turns,
            ..Self::default()
        }
    }

    fn skipped(why: &str) -> Self {
        Self {
            skipped: Some(format!("There is no figure: {why}.")),
            ..Self::default()
        }
    }
}

const CHAT: &str = "a chat has no speaking times";
const UNTIMED: &str = "it is not known when what was said began and ended";
const SILENT: &str = "nothing was said";
/// How alike two utterances are that say the same, as the share of words that both have; and how many words there have to be.
const ALIKE: f64 = 0.9;
const WORDS: usize = 4;
/// The most turns that an explanation names.
const NAMED: usize = 20;

/// Computes a figure of a conversation.
#[must_use]
pub fn measure(measure: Measure, settings: &Settings, of: &Conversation<'_>) -> Measurement {
    match measure {
        Measure::Latency => latency(of),
        Measure::TalkRatio => talk_ratio(of),
        Measure::WordsPerMinute => words_per_minute(of),
        Measure::Interruptions => interruptions(of, Side::Agent),
        Measure::UserInterruptions => interruptions(of, Side::Tester),
        Measure::InterruptionScore => score(of, interruptions(of, Side::Agent)),
        Measure::StopTime => stop_time(of),
        Measure::Silence => silence(settings, of),
        Measure::RepetitionCount => repetitions(of),
        Measure::RepetitionScore => score(of, repetitions(of)),
        Measure::TurnCount => {
            let count = of.utterances.len();
            Measurement::new(float(count), format!("{count} turns were spoken."), Vec::new())
        }
        Measure::Duration => match of.duration_ms.filter(|ms| *ms >= 0) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a conversation is shorter than 2^53 ms"
            )]
            Some(ms) => {
                let seconds = ms as f64 / 1000.0;
                Measurement::new(seconds, format!("It took {seconds} s."), Vec::new())
            }
            None => Measurement::skipped("it is not known when the conversation began and ended"),
        },
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one conversation")]
fn float(count: usize) -> f64 {
    count as f64
}

/// Turns by their numbers, as the beginning of a sentence.
fn named(turns: &[usize]) -> String {
    let list: Vec<String> = turns.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if turns.len() > NAMED { " and others" } else { "" };
    match turns {
        [one] => format!("Turn {one}"),
        _ => format!("Turns {}{more}", list.join(", ")),
    }
}

/// The times of an utterance, if it has both.
fn times(utterance: &Utterance) -> Option<(f64, f64)> {
    utterance
        .start
        .zip(utterance.end)
        .filter(|(start, end)| end >= start)
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn latency(of: &Conversation<'_>) -> Measurement {
    let agent = || of.utterances.iter().filter(|one| one.side == Side::Agent);
    let valid = |ms: &f64| ms.is_finite() && *ms >= 0.0;
    let told: Vec<f64> = of
        .latencies
        .iter()
        .filter_map(|one| one.turn)
        .filter(valid)
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of one conversation")]
    let replied: Vec<f64> = of.replied_in.iter().map(|&ms| ms as f64).filter(valid).collect();
    let (figures, turns) = match of.voice {
        true if !told.is_empty() => {
            // Which answer each of them is of is known where there is one for each.
            let turns: Vec<usize> = agent().map(|one| one.turn).collect();
            let turns = if turns.len() == told.len() {
                turns
            } else {
                Vec::new()
            };
            (told, turns)
        }
        true => {
            let pairs = of.utterances.windows(2).filter_map(|pair| match pair {
                [before, after] if before.side == Side::Tester && after.side == Side::Agent => {
                    let gap = (after.start? - before.end?) * 1000.0;
                    valid(&gap).then_some((gap, after.turn))
                }
                _ => None,
            });
            pairs.unzip()
        }
        false => {
            let mut turns: Vec<usize> = agent().map(|one| one.turn).collect();
            // A fixed first message takes no time and is not among the replies.
            if turns.len() == replied.len() + 1 {
                turns.remove(0);
            }
            let turns = if turns.len() == replied.len() {
                turns
            } else {
                Vec::new()
            };
            (replied, turns)
        }
    };
    let Some(percentiles) = Percentiles::of(&figures) else {
        return Measurement::skipped("no answer's time was measured");
    };
    let mean = figures.iter().sum::<f64>() / float(figures.len());
    let slowest = figures.iter().zip(&turns).max_by(|(a, _), (b, _)| a.total_cmp(b));
    let slowest = slowest.map(|(ms, turn)| (*ms, *turn));
    let mut explanation = format!(
        "The agent answered {} times, after {mean:.0} ms in the mean and {:.0} ms in the median.",
        figures.len(),
        percentiles.p50
    );
    if let Some((ms, turn)) = slowest {
        explanation.push_str(&format!(" Turn {turn} took longest: {ms:.0} ms."));
    }
    Measurement {
        percentiles: Some(percentiles),
        ..Measurement::new(
            mean,
            explanation,
            slowest.map(|(_, turn)| turn).into_iter().collect(),
        )
    }
}

fn talk_ratio(of: &Conversation<'_>) -> Measurement {
    let timed: Option<Vec<(Side, f64)>> = of
        .utterances
        .iter()
        .map(|one| times(one).map(|(start, end)| (one.side, end - start)))
        .collect();
    let by_time = timed.filter(|all| of.voice && all.iter().any(|(_, seconds)| *seconds > 0.0));
    let (shares, what) = match by_time {
        Some(timed) => (timed, "time"),
        None => {
            let words = of
                .utterances
                .iter()
                .map(|one| (one.side, float(words(&one.text))));
            (words.collect(), "words")
        }
    };
    let sum = |side: Side| -> f64 {
        let own = shares.iter().filter(|(of, _)| *of == side);
        own.map(|(_, share)| share).sum()
    };
    let (agent, all) = (sum(Side::Agent), sum(Side::Agent) + sum(Side::Tester));
    if all <= 0.0 {
        return Measurement::skipped(SILENT);
    }
    let ratio = (agent / all).clamp(0.0, 1.0);
    Measurement::new(
        ratio,
        format!("The agent had {:.0} % of the {what} spoken.", ratio * 100.0),
        Vec::new(),
    )
}

fn words_per_minute(of: &Conversation<'_>) -> Measurement {
    if !of.voice {
        return Measurement::skipped(CHAT);
    }
    let timed = of
        .utterances
        .iter()
        .filter(|one| one.side == Side::Agent)
        .filter_map(|one| times(one).map(|(start, end)| (words(&one.text), end - start)));
    let (count, seconds) = timed
        .filter(|(_, seconds)| *seconds > 0.0)
        .fold((0, 0.0), |(count, sum), (words, seconds)| {
            (count + words, sum + seconds)
        });
    if seconds <= 0.0 {
        return Measurement::skipped(UNTIMED);
    }
    Measurement::new(
        float(count) / seconds * 60.0,
        format!("The agent spoke {count} words in {seconds:.1} s."),
        Vec::new(),
    )
}

/// Where one side began to speak while the other one spoke: the turn, and for how long both did, in seconds.
fn overlaps(of: &Conversation<'_>, by: Side) -> Option<Vec<(usize, f64)>> {
    // Of a side without any times nobody knows when it spoke.
    let is_timed = |side: Side| {
        let mut own = of.utterances.iter().filter(|one| one.side == side).peekable();
        own.peek().is_none() || own.any(|one| times(one).is_some())
    };
    if of.utterances.is_empty() || !is_timed(Side::Tester) || !is_timed(Side::Agent) {
        return None;
    }
    let mut found = Vec::new();
    for one in of.utterances.iter().filter(|one| one.side == by) {
        let Some((start, _)) = times(one) else { continue };
        let others = of.utterances.iter().filter(|other| other.side != by);
        let overlap = others
            .filter_map(times)
            .find(|(from, to)| *from < start && start < *to);
        if let Some((_, to)) = overlap {
            found.push((one.turn, to - start));
        }
    }
    Some(found)
}

fn interruptions(of: &Conversation<'_>, by: Side) -> Measurement {
    if !of.voice {
        return Measurement::skipped(CHAT);
    }
    let Some(found) = overlaps(of, by) else {
        return Measurement::skipped(UNTIMED);
    };
    let (who, whom) = match by {
        Side::Agent => ("the agent", "the caller"),
        Side::Tester => ("the caller", "the agent"),
    };
    let turns: Vec<usize> = found.iter().map(|(turn, _)| *turn).collect();
    let explanation = match turns.is_empty() {
        true => format!("Nowhere {who} began to speak before {whom} had finished."),
        false => format!(
            "{}: {who} began to speak before {whom} had finished.",
            named(&turns)
        ),
    };
    Measurement::new(float(turns.len()), explanation, turns)
}

fn stop_time(of: &Conversation<'_>) -> Measurement {
    if !of.voice {
        return Measurement::skipped(CHAT);
    }
    let Some(found) = overlaps(of, Side::Tester) else {
        return Measurement::skipped(UNTIMED);
    };
    if found.is_empty() {
        return Measurement::skipped("the agent was not interrupted");
    }
    let figures: Vec<f64> = found.iter().map(|(_, seconds)| seconds * 1000.0).collect();
    let turns: Vec<usize> = found.iter().map(|(turn, _)| *turn).collect();
    let mean = figures.iter().sum::<f64>() / float(figures.len());
    Measurement {
        percentiles: Percentiles::of(&figures),
        ..Measurement::new(
            mean,
            format!(
                "{}: the agent went on for {mean:.0} ms in the mean.",
                named(&turns)
            ),
            turns,
        )
    }
}

/// A rating of how seldom something happens among all turns.
fn score(of: &Conversation<'_>, counted: Measurement) -> Measurement {
    let Some(count) = counted.value else {
        return counted;
    };
    let turns = of.utterances.len();
    if turns == 0 {
        return Measurement::skipped(SILENT);
    }
    Measurement {
        value: Some((5.0 * (1.0 - count / float(turns))).clamp(0.0, 5.0)),
        ..counted
    }
}

fn silence(settings: &Settings, of: &Conversation<'_>) -> Measurement {
    if !of.voice {
        return Measurement::skipped(CHAT);
    }
    let mut timed: Vec<(f64, f64, usize)> = of
        .utterances
        .iter()
        .filter_map(|one| times(one).map(|(start, end)| (start, end, one.turn)))
        .collect();
    if timed.len() < 2 {
        return Measurement::skipped(UNTIMED);
    }
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut until, mut longest, mut turns) = (f64::NEG_INFINITY, 0.0_f64, Vec::new());
    for (start, end, turn) in timed {
        if until.is_finite() {
            let gap = start - until;
            longest = longest.max(gap);
            if gap >= settings.silence_seconds {
                turns.push(turn);
            }
        }
        until = until.max(end);
    }
    let explanation = match turns.is_empty() {
        true => format!("Nobody spoke for {longest:.1} s at the longest."),
        false => format!(
            "{}: before, nobody spoke for {} s or more; the longest silence was {longest:.1} s.",
            named(&turns),
            settings.silence_seconds
        ),
    };
    Measurement::new(longest, explanation, turns)
}

/// The different words of a text, without case and punctuation.
fn word_set(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn repetitions(of: &Conversation<'_>) -> Measurement {
    let agent: Vec<(usize, BTreeSet<String>)> = of
        .utterances
        .iter()
        .filter(|one| one.side == Side::Agent)
        .map(|one| (one.turn, word_set(&one.text)))
        .collect();
    if agent.is_empty() {
        return Measurement::skipped("the agent said nothing");
    }
    let mut turns = Vec::new();
    for (place, (turn, words)) in agent.iter().enumerate() {
        let again = agent.iter().take(place).any(|(_, before)| {
            let common = words.intersection(before).count();
            let all = words.union(before).count();
            words.len() >= WORDS && float(common) >= ALIKE * float(all)
        });
        if again {
            turns.push(*turn);
        }
    }
    let explanation = match turns.is_empty() {
        true => "The agent never said again what it had said before.".to_owned(),
        false => format!("{}: the agent says again what it said before.", named(&turns)),
    };
    Measurement::new(float(turns.len()), explanation, turns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spoken(parts: &[(&str, &str, f64, f64)]) -> Vec<Utterance> {
        let messages: Vec<Value> = parts
            .iter()
            .map(|(role, text, from, to)| {
                json!({"role": role, "message": text, "secondsFromStart": from, "duration": (to - from) * 1000.0})
            })
            .collect();
        utterances(&messages)
    }

    fn call(utterances: &[Utterance]) -> Conversation<'_> {
        Conversation {
            utterances,
            latencies: &[],
            replied_in: &[],
            duration_ms: Some(60_000),
            voice: true,
        }
    }

    fn figure(what: Measure, of: &Conversation<'_>) -> (Option<f64>, Vec<usize>) {
        let found = measure(what, &Settings::default(), of);
        (
            found.value.map(|value| (value * 1000.0).round() / 1000.0),
            found.turns,
        )
    }

    #[test]
    fn utterances_are_what_has_words() {
        let messages = [
            json!({"role": "system", "content": "You are"}),
            json!({"role": "bot", "message": "Hello.", "time": 1000, "endTime": 2500}),
            json!({"role": "tool_calls", "content": "", "toolCalls": []}),
            json!({"role": "user", "content": "  "}),
            json!({"role": "user", "content": "Hi.", "time": 4000}),
            json!({"role": "assistant", "content": "Yes?", "secondsFromStart": 5.5, "duration": 500}),
            json!({"role": "assistant", "content": null}),
        ];
        let found = utterances(&messages);
        let brief: Vec<_> = found
            .iter()
            .map(|one| (one.turn, one.side, one.text.as_str(), one.start, one.end))
            .collect();
        assert_eq!(
            brief,
            [
                (1, Side::Agent, "Hello.", Some(0.0), Some(1.5)),
                (2, Side::Tester, "Hi.", Some(3.0), None),
                (3, Side::Agent, "Yes?", Some(5.5), Some(6.0)),
            ]
        );
    }

    #[test]
    fn figures_of_a_call() {
        let said = spoken(&[
            ("user", "I would like a table for two please", 0.0, 3.0),
            ("assistant", "For which day would you like it", 2.5, 4.5),
            ("user", "Tomorrow", 4.0, 5.0),
            ("assistant", "For which day, would you like it?", 17.0, 20.0),
            ("user", "Tomorrow I said", 21.0, 22.0),
            ("assistant", "Done", 22.4, 23.0),
        ]);
        let of = call(&said);
        for (what, value, turns) in [
            (Measure::Latency, Some(6200.0), vec![4]),
            (Measure::Interruptions, Some(1.0), vec![2]),
            (Measure::UserInterruptions, Some(1.0), vec![3]),
            (Measure::InterruptionScore, Some(4.167), vec![2]),
            (Measure::StopTime, Some(500.0), vec![3]),
            (Measure::Silence, Some(12.0), vec![4]),
            (Measure::RepetitionCount, Some(1.0), vec![4]),
            (Measure::RepetitionScore, Some(4.167), vec![4]),
            (Measure::TurnCount, Some(6.0), vec![]),
            (Measure::Duration, Some(60.0), vec![]),
            (Measure::TalkRatio, Some(0.528), vec![]),
            (Measure::WordsPerMinute, Some(160.714), vec![]),
        ] {
            assert_eq!(figure(what, &of), (value, turns), "{what}");
        }
        let why = measure(Measure::Silence, &Settings::default(), &of).explanation;
        assert_eq!(
            why,
            ["Turn 4: before, nobody spoke for 10 s or more; the longest silence was 12.0 s."]
        );
    }

    #[test]
    fn a_chat_has_no_speaking_times() {
        let said = spoken(&[("assistant", "Hello there", 0.0, 0.0), ("user", "Hi", 0.0, 2.0)]);
        let of = Conversation {
            voice: false,
            replied_in: &[100, 300],
            duration_ms: None,
            ..call(&said)
        };
        for what in [
            Measure::WordsPerMinute,
            Measure::Interruptions,
            Measure::UserInterruptions,
            Measure::InterruptionScore,
            Measure::StopTime,
            Measure::Silence,
            Measure::Duration,
        ] {
            let found = measure(what, &Settings::default(), &of);
            assert!(found.value.is_none() && found.skipped.is_some(), "{what}");
        }
        assert_eq!(figure(Measure::Latency, &of).0, Some(200.0));
        assert_eq!(figure(Measure::TalkRatio, &of).0, Some(0.667));
    }

    #[test]
    fn what_the_provider_measured_goes_before_times() {
        let said = spoken(&[("user", "a", 0.0, 1.0), ("assistant", "b", 3.0, 4.0)]);
        let measured = [500.0, 700.0].map(|ms| TurnLatency {
            turn: Some(ms),
            ..TurnLatency::default()
        });
        let of = Conversation {
            latencies: &measured,
            ..call(&said)
        };
        assert_eq!(figure(Measure::Latency, &of), (Some(600.0), vec![]));
        assert_eq!(figure(Measure::Latency, &call(&said)), (Some(2000.0), vec![2]));
        let silent = call(&[]);
        for what in [Measure::Latency, Measure::TalkRatio, Measure::RepetitionCount] {
            assert!(
                measure(what, &Settings::default(), &silent).skipped.is_some(),
                "{what}"
            );
        }
    }

    #[test]
    fn a_side_without_times_leaves_interruptions_unknown() {
        let messages = [
            json!({"role": "user", "message": "a", "secondsFromStart": 0.0, "duration": 1000}),
            json!({"role": "bot", "message": "b"}),
        ];
        let said = utterances(&messages);
        for what in [
            Measure::Interruptions,
            Measure::UserInterruptions,
            Measure::StopTime,
        ] {
            assert_eq!(figure(what, &call(&said)), (None, vec![]), "{what}");
        }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let figures: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let of = Percentiles::of(&figures).unwrap();
        assert_eq!((of.p25, of.p50, of.p75), (25.0, 50.0, 75.0));
        assert_eq!((of.p90, of.p95, of.p99), (90.0, 95.0, 99.0));
        assert_eq!(
            Percentiles::of(&[7.0]).map(|of| (of.p25, of.p99)),
            Some((7.0, 7.0))
        );
        assert_eq!(Percentiles::of(&[]), None);
    }

    fn message() -> impl Strategy<Value = Value> {
        let number = prop_oneof![
            Just(Value::Null),
            any::<f64>().prop_map(|number| json!(number)),
            (-10_000_i64..100_000).prop_map(|number| json!(number)),
        ];
        let role = prop_oneof![
            Just("user"),
            Just("assistant"),
            Just("bot"),
            Just("system"),
            Just("tool")
        ];
        (role, "[a-d ]{0,20}", number.clone(), number.clone(), number.clone(), number).prop_map(
            |(role, text, time, end, seconds, duration)| {
                json!({
                    "role": role, "content": text, "time": time, "endTime": end, "secondsFromStart": seconds, "duration": duration,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn figures_stay_within_their_bounds(
            messages in prop::collection::vec(message(), 0..30), voice in any::<bool>(),
            replied in prop::collection::vec(any::<i32>(), 0..10),
        ) {
            let said = utterances(&messages);
            let replied: Vec<i64> = replied.into_iter().map(i64::from).collect();
            let of = Conversation { replied_in: &replied, voice, ..call(&said) };
            for &what in Measure::ALL {
                let found = measure(what, &Settings::default(), &of);
                prop_assert_eq!(found.value.is_none(), found.skipped.is_some());
                prop_assert!(found.turns.iter().all(|turn| (1..=said.len()).contains(turn)));
                if let Some(value) = found.value {
                    prop_assert!(value.is_finite() && value >= 0.0, "{what} {value}");
                    prop_assert!(!found.explanation.is_empty());
                    prop_assert!(!what.is_rating() || value <= 5.0);
                    prop_assert!(what != Measure::TalkRatio || value <= 1.0);
                }
                if let Some(of) = found.percentiles {
                    prop_assert!(of.p25 <= of.p50 && of.p50 <= of.p75 && of.p75 <= of.p90);
                    prop_assert!(of.p90 <= of.p95 && of.p95 <= of.p99);
                }
            }
        }
    }
}
