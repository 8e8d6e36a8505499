//! The scripted tester: says the numbered lines of its instructions in order and then ends the call.
//!
//! ```text
//! 1. Hello, I would like to book an appointment.
//! 2. Thank you, goodbye.
//! If asked for "date of birth": 4 May 1990.
//! ```
//!
//! A line that begins with `If asked for "…":` is a reaction: it is said, instead of the next numbered line, when the
//! other side's last words contain the quoted ones.

use serde_json::json;

use super::{Reply, Request};

/// How often one reaction is used, so that two machines cannot talk in circles for ever.
const MOST_REACTIONS: usize = 3;

pub(super) fn reply(request: &Request) -> Reply {
    let script = Script::read(request);
    // For the tester its own words are the assistant's, the agent's are the user's.
    let said: Vec<String> = request
        .messages
        .iter()
        .filter(|m| m.role == "assistant")
        .map(super::Message::text)
        .collect();
    let heard = request
        .messages
        .iter()
        .rev()
        .find(|m| m.role == "user")
        .map(super::Message::text);
    let heard = heard.unwrap_or_default().to_lowercase();
    let used = |words: &str| said.iter().filter(|s| s.as_str() == words).count();
    let reaction = script
        .reactions
        .iter()
        .find(|(cue, words)| heard.contains(cue.as_str()) && used(words) < MOST_REACTIONS);
    if let Some((_, words)) = reaction {
        return Reply::Say(words.clone());
    }
    let mut next = script.lines.iter();
    for words in &said {
        // Lines are said in order; what is no line was a reaction.
        if next.as_slice().first() == Some(words) {
            next.next();
        }
    }
    match next.next() {
        Some(line) => Reply::Say(line.clone()),
        None => Reply::Call {
            tool: "endCall",
            arguments: json!({}),
        },
    }
}

#[derive(Debug, Default)]
struct Script {
    lines: Vec<String>,
    /// Cues in lower case, and the words for them.
    reactions: Vec<(String, String)>,
}

impl Script {
    fn read(request: &Request) -> Self {
        let mut script = Self::default();
        for message in request
            .messages
            .iter()
            .filter(|m| m.role == "system" || m.role == "developer")
        {
            for line in message.text().lines().map(str::trim) {
                if let Some(reaction) = reaction(line) {
                    script.reactions.push(reaction);
                } else if let Some(words) = numbered(line) {
                    script.lines.push(words.to_owned());
                }
            }
        }
        script
    }
}

fn numbered(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() == line.len() {
        return None;
    }
    let words = rest.strip_prefix(['.', ')'])?.trim();
    (!words.is_empty()).then_some(words)
}

fn reaction(line: &str) -> Option<(String, String)> {
    let (opening, rest) = line.split_once('"')?;
    if !opening.trim().eq_ignore_ascii_case("if asked for") {
        return None;
    }
    let (cue, rest) = rest.split_once('"')?;
    let words = rest.trim_start().strip_prefix(':')?.trim();
    (!cue.is_empty() && !words.is_empty()).then(|| (cue.to_lowercase(), words.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const SCRIPT: &str = "You are a caller.\n\n1. Hello, I'd like an appointment.\n2) Thank you.\n\
        If asked for \"Date of birth\": 4 May 1990.\n10. Bye.\n2026 was a year.";

    fn say(turns: &[(&str, &str)]) -> Reply {
        let mut messages = vec![json!({"role": "system", "content": SCRIPT})];
        messages.extend(
            turns
                .iter()
                .map(|(role, content)| json!({"role": role, "content": content})),
        );
        reply(&serde_json::from_value(json!({ "messages": messages })).unwrap())
    }

    #[test]
    fn says_the_lines_in_order_then_ends_the_call() {
        let first = "Hello, I'd like an appointment.";
        assert_eq!(say(&[]), Reply::Say(first.into()));
        assert_eq!(say(&[("user", "Clinic?")]), Reply::Say(first.into()));
        let so_far = [("user", "Clinic?"), ("assistant", first), ("user", "Done.")];
        assert_eq!(say(&so_far), Reply::Say("Thank you.".into()));
        let so_far = [
            ("assistant", first),
            ("assistant", "Thank you."),
            ("assistant", "Bye."),
            ("user", "Bye!"),
        ];
        assert_eq!(
            say(&so_far),
            Reply::Call {
                tool: "endCall",
                arguments: json!({})
            }
        );
    }

    #[test]
    fn reacts_to_a_cue_without_losing_its_place_and_not_for_ever() {
        let first = "Hello, I'd like an appointment.";
        let mut so_far = vec![("assistant", first), ("user", "What is your date of birth?")];
        for _ in 0..MOST_REACTIONS {
            assert_eq!(say(&so_far), Reply::Say("4 May 1990.".into()));
            so_far.extend([
                ("assistant", "4 May 1990."),
                ("user", "Your date of birth, please?"),
            ]);
        }
        assert_eq!(say(&so_far), Reply::Say("Thank you.".into()));
    }

    #[test]
    fn without_a_script_there_is_nothing_to_say() {
        let request: Request = serde_json::from_value(json!({"messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be nice."}]},
            {"role": "user", "content": Value::Null},
        ]}))
        .unwrap();
        assert!(matches!(reply(&request), Reply::Call { .. }));
    }
}
