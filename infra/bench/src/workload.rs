//! The conversations that are measured, and the requests that set them up.

use serde_json::{Value, json};

/// Exchanges in a conversation: what the tester says and what the target answers.
pub(crate) const EXCHANGES: u32 = 4;
/// Model replies that become turns of a conversation.
pub(crate) const REPLIES: u32 = 2 * EXCHANGES;
/// Model calls of a conversation: its replies and one judge.
pub(crate) const CALLS: u32 = REPLIES + 1;
/// How many conversations are held at once.
pub(crate) const WORKERS: usize = 16;
/// The most iterations that a run may ask for.
const MAX_ITERATIONS: u32 = 10;

/// The names by which the model server knows who asks.
pub(crate) const TESTER_MODEL: &str = "bench-tester";
pub(crate) const TARGET_MODEL: &str = "bench-target";
pub(crate) const JUDGE_MODEL: &str = "bench-judge";
/// The target that says goodbye at once.
pub(crate) const BRIEF_MODEL: &str = "bench-brief";

/// What the target says when the conversation is to end.
pub(crate) const FAREWELL: &str = "Goodbye for now";
/// What both sides say otherwise.
pub(crate) const SMALL_TALK: &str = "Thank you for telling me, that is good to know. Could you say a little more \
    about the appointment that you have in mind?";

pub(crate) const TESTER_PROMPT: &str = "You are a busy parent who calls a clinic between two meetings. You speak in \
    short sentences, you like clear answers, and you get impatient when you are asked for the same thing twice.";
pub(crate) const TARGET_PROMPT: &str = "You are the front desk of a small clinic. You book, move and cancel \
    appointments, you know the opening hours and the prices, and you never give medical advice. Ask for the name and \
    the date of birth before you book.";
const INSTRUCTIONS: &str = "Book a check-up for your daughter next week, in the afternoon if you can. Take the second \
    time that you are offered, ask what to bring along, and end the call politely.";

/// The body that creates the personality.
pub(crate) fn personality() -> Value {
    json!({
        "name": "Bench caller",
        "assistant": {
            "firstMessageMode": "assistant-speaks-first-with-model-generated-message",
            "model": {
                "provider": "openai",
                "model": TESTER_MODEL,
                "messages": [{"role": "system", "content": TESTER_PROMPT}],
            },
        },
    })
}

/// The body that creates the scenario, with one question for the judge.
pub(crate) fn scenario() -> Value {
    json!({
        "name": "Bench booking",
        "instructions": INSTRUCTIONS,
        "evaluations": [{
            "structuredOutput": {
                "name": "booked",
                "type": "ai",
                "description": "Was an appointment booked?",
                "schema": {"type": "boolean", "description": "Whether the caller got an appointment."},
                "model": {"provider": "openai", "model": JUDGE_MODEL},
            },
            "comparator": "=",
            "value": true,
        }],
    })
}

/// How a run comes to `conversations` items: its simulations and its iterations.
pub(crate) fn shape(conversations: u32) -> (u32, u32) {
    let iterations = (1..=MAX_ITERATIONS)
        .rev()
        .find(|n| conversations.is_multiple_of(*n))
        .unwrap_or(1);
    (conversations / iterations, iterations)
}

/// The body that creates the run.
pub(crate) fn run(conversations: u32, scenario: &str, personality: &str, model_server: &str) -> Value {
    let (simulations, iterations) = shape(conversations);
    let entry = json!({"type": "simulation", "scenarioId": scenario, "personalityId": personality});
    json!({
        "simulations": vec![entry; simulations as usize],
        "iterations": iterations,
        "transport": {"provider": "vapi.webchat"},
        "target": {
            "type": "assistant",
            "assistant": {
                "name": "Bench clinic",
                "endCallPhrases": [FAREWELL],
                "model": {
                    "provider": "custom-llm",
                    "url": model_server,
                    "model": TARGET_MODEL,
                    "messages": [{"role": "system", "content": TARGET_PROMPT}],
                },
            },
        },
    })
}

/// The body that creates the personality of the shortest conversations: its only turn is fixed.
pub(crate) fn brief_personality() -> Value {
    json!({"name": "Brief caller", "assistant": {"firstMessage": "Am I booked?"}})
}

/// The body that creates the scenario of the shortest conversations, which no model judges.
pub(crate) fn brief_scenario() -> Value {
    json!({
        "name": "Brief booking",
        "instructions": "Ask whether you are booked.",
        "evaluations": [{
            "structuredOutput": {
                "name": "booked",
                "type": "regex",
                "regex": "You are booked",
                "schema": {"type": "boolean"},
            },
            "comparator": "=",
            "value": true,
        }],
    })
}

/// The body that creates a run of the shortest conversations, `cap` at a time.
pub(crate) fn brief_run(
    items: u32,
    cap: Option<u32>,
    scenario: &str,
    personality: &str,
    model_server: &str,
) -> Value {
    let mut run = run(items, scenario, personality, model_server);
    run["target"]["assistant"]["model"]["model"] = json!(BRIEF_MODEL);
    if let Some(cap) = cap {
        run["concurrencyLimit"] = json!(cap);
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_conversations_has_a_shape() {
        assert_eq!(
            (shape(1000), shape(50), shape(7), shape(13)),
            ((100, 10), (5, 10), (1, 7), (13, 1))
        );
        for n in 1..200 {
            let (simulations, iterations) = shape(n);
            assert_eq!(simulations * iterations, n);
        }
    }
}
