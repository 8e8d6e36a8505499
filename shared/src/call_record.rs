//! What was said in a conversation: in a chat as it was held, in a call as its provider reported it.

use serde_json::Value;

use crate::{
    conversation::{self, Reply, Speaker},
    evaluation::TurnLatency,
    lifecycle::Item,
    provider::{CallReport, Event},
    store::{ItemDetail, StoreError},
};

/// An item's conversation so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallRecord {
    /// What was said and done.
    pub messages: Vec<Value>,
    /// What was said, in lines.
    pub transcript: String,
    /// For each answer of the target, where they were measured.
    pub latencies: Vec<TurnLatency>,
    /// How long each reply of the target took in a chat, in milliseconds.
    pub replied_in: Vec<i64>,
    /// Where its recording is.
    pub recording_url: Option<String>,
    /// Where the call can be listened to while it is up.
    pub listen_url: Option<String>,
    /// What else the provider says in its own words.
    pub detail: Option<Value>,
}

impl CallRecord {
    /// The conversation in what is kept of `item`.
    ///
    /// # Errors
    /// When what is kept cannot be read.
    pub fn of(item: &Item, detail: &ItemDetail) -> Result<Self, StoreError> {
        if item.call.is_some() {
            return Self::reported(detail);
        }
        let replies: Vec<Reply> = detail
            .turns
            .iter()
            .map(|turn| parsed(turn))
            .collect::<Result<_, _>>()?;
        // A fixed first message took no time and nobody made it.
        let made =
            |reply: &&Reply| reply.usage.is_some() || reply.model.is_some() || reply.ended_at > reply.at;
        let answers = replies
            .iter()
            .filter(|reply| reply.speaker == Speaker::Target)
            .filter(made);
        Ok(Self {
            replied_in: answers.map(|reply| reply.ended_at - reply.at).collect(),
            messages: conversation::messages(&replies),
            transcript: conversation::transcript(&replies),
            ..Self::default()
        })
    }

    /// The mean time that the target took to answer, in milliseconds: in a call the turns that were measured, in a chat the model's
    /// replies.
    #[must_use]
    pub fn mean_latency_ms(&self) -> Option<u32> {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of one conversation")]
        let chat = self.replied_in.iter().map(|&ms| ms as f64);
        let turns = self.latencies.iter().filter_map(|turn| turn.turn);
        let measured = turns.chain(chat).filter(|ms| ms.is_finite() && *ms >= 0.0);
        let (count, sum) = measured.fold((0.0, 0.0), |(count, sum), ms| (count + 1.0, sum + ms));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it saturates, and is not negative"
        )]
        (count > 0.0).then(|| (sum / count).round() as u32)
    }

    /// Of several reports of the end the one from the best source, and among equals the one that says most, and then the one with the
    /// greatest body, so that everybody picks the same. What that one leaves out, another may say.
    fn reported(detail: &ItemDetail) -> Result<Self, StoreError> {
        let mut ends = Vec::new();
        // These may come with any report, also after the first one of the end.
        let (mut listen_url, mut recording_url) = (None, None);
        for (head, body) in &detail.events {
            let report: CallReport = parsed(body)?;
            listen_url = listen_url.max(report.listen_url.clone());
            recording_url = recording_url.max(report.recording_url.clone());
            if head.event == Event::Ended {
                ends.push(((words(&report) > 0, head.source, words(&report), body), report));
            }
        }
        ends.sort_by(|(a, _), (b, _)| b.cmp(a));
        let mut record = Self {
            listen_url,
            recording_url,
            ..Self::default()
        };
        let mut transcript = None;
        for (_, report) in ends {
            if transcript.is_none() && record.messages.is_empty() {
                record.messages = report.messages.unwrap_or_default();
                transcript = report.transcript.filter(|text| !text.trim().is_empty());
            }
            // What was measured says more than what follows from the times of messages.
            if measured(&report.turn_latencies) > measured(&record.latencies) {
                record.latencies = report.turn_latencies;
            }
            match (&mut record.detail, report.detail) {
                (Some(Value::Object(known)), Some(Value::Object(more))) => {
                    for (name, value) in more {
                        known.entry(name).or_insert(value);
                    }
                }
                (Some(_), _) => {}
                (None, more) => record.detail = more,
            }
        }
        record.transcript = transcript.unwrap_or_else(|| lines(&record.messages));
        Ok(record)
    }
}

/// How many figures there are.
fn measured(latencies: &[TurnLatency]) -> usize {
    let figures = |turn: &TurnLatency| {
        let all = [
            turn.turn,
            turn.model,
            turn.voice,
            turn.transcriber,
            turn.endpointing,
        ];
        all.iter().flatten().count()
    };
    latencies.iter().map(figures).sum()
}

/// How much a report tells of what was said.
fn words(report: &CallReport) -> usize {
    let messages = report.messages.as_ref().map_or(0, Vec::len);
    let transcript = report.transcript.as_ref();
    messages + usize::from(transcript.is_some_and(|text| !text.trim().is_empty()))
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The text of a message, under either of its names.
fn text(message: &Value) -> Option<&str> {
    ["message", "content"]
        .iter()
        .find_map(|name| message.get(name).and_then(Value::as_str))
        .filter(|text| !text.is_empty())
}

/// A transcript made of messages: one line for each utterance.
fn lines(messages: &[Value]) -> String {
    let line = |message: &Value| {
        let speaker = match message.get("role").and_then(Value::as_str)? {
            "user" => "User",
            "bot" | "assistant" => "AI",
            _ => return None,
        };
        Some(format!("{speaker}: {}", text(message)?))
    };
    messages.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        lifecycle::{Facts, Source},
        store::EventHead,
    };

    fn event(event: Event, source: Source, body: &Value) -> (EventHead, String) {
        let head = EventHead {
            event,
            source,
            run: None,
            index: None,
            facts: Facts::default(),
        };
        (head, body.to_string())
    }

    #[test]
    fn the_best_report_of_the_end_counts() {
        let report = |what: &str| json!({"callId": "c", "messages": [{"role": "bot", "message": what}]});
        let mut detail = ItemDetail {
            events: vec![
                event(Event::Ended, Source::Report, &report("from the provider")),
                event(Event::Ended, Source::LookUp, &report("zzz, looked up")),
                event(Event::Started, Source::Report, &report("not the end")),
            ],
            ..ItemDetail::default()
        };
        for _ in 0..3 {
            assert_eq!(
                CallRecord::reported(&detail).unwrap().transcript,
                "AI: from the provider"
            );
            detail.events.rotate_left(1);
        }
        assert_eq!(
            CallRecord::reported(&ItemDetail::default()).unwrap(),
            CallRecord::default()
        );
    }

    #[test]
    fn a_transcript_is_made_of_what_was_said() {
        let messages = [
            json!({"role": "system", "message": "secret"}),
            json!({"role": "user", "message": "Hello"}),
            json!({"role": "tool_calls", "toolCalls": []}),
            json!({"role": "bot", "content": "Good morning"}),
            json!({"role": "user", "message": ""}),
        ];
        assert_eq!(lines(&messages), "User: Hello\nAI: Good morning");
    }
}
