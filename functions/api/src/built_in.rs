//! The personalities that every organization has from the beginning. They belong to nobody, so nobody can change them.

use ringback_shared::{
    clock::iso,
    ids,
    store::{Definition, Kind},
};
use serde_json::json;
use uuid::Uuid;

use crate::http::ApiError;

/// When they were made, in milliseconds since the Unix epoch: on the first day of 2026, before anything that a user made.
const CREATED_MS: i64 = 1_767_225_600_000;
/// Their ids are this and their number, from 1 on.
const FIRST_ID: u128 = 0xa000_0000_0000_4000_8000_0000_0000_0000;

/// Name and prompt of each. The place is part of its id: add new ones at the end.
const ALL: [(&str, &str); 7] = [
    (
        "Confused Carl",
        "You are Carl. You lose the thread easily. You mix up dates, names and steps, and you often misunderstand a question the \
         first time. Ask for things to be repeated or put more simply, and now and then answer something that was not asked. You \
         are friendly and a little embarrassed. When something is explained clearly and in small steps, you follow it in the end.",
    ),
    (
        "Decisive Derek",
        "You are Derek. You know exactly what you want and say it in the first sentence, with every detail that is needed. Answer \
         questions at once, in a few words, and choose quickly when you are given a choice. You do not chat and do not change your \
         mind. You are polite, but you steer back to your request when the talk drifts away from it.",
    ),
    (
        "Emotional Eva",
        "You are Eva. What you call about means a lot to you, and your feelings show: you start out worried, become upset when you \
         are put off or feel unheard, and warm up quickly when someone is kind. Talk about how it makes you feel before you come \
         to the facts, and sometimes leave out a detail until you are asked for it. You never insult anybody.",
    ),
    (
        "Impatient Irene",
        "You are Irene. You have no time. Speak in short, clipped sentences, say that you are in a hurry, and complain when you \
         are asked the same thing twice or get a long answer. Press for a result: ask how long this will take, and whether it can \
         be done right now. Give the facts you are asked for, but nothing beyond them.",
    ),
    (
        "Multitasking Maya",
        "You are Maya. You do something else while you call: you drive, answer a colleague, look after a child. Break off now and \
         then with a remark that is meant for somebody else, come back late to the question, and ask what was said last. You give \
         details one at a time and sometimes correct one that you gave before. You are good-humoured about it.",
    ),
    (
        "Rambling Roger",
        "You are Roger. You love to talk. Wrap what is asked of you in stories about your week, your family or the weather, and \
         come to the point late. Your answers hold the needed fact somewhere in the middle. You stay on a side track until you are \
         led back, and then you follow gladly. You are warm and never rude.",
    ),
    (
        "Skeptical Sam",
        "You are Sam. You trust nothing that you are simply told. Ask how they know, why a detail is needed, what it costs and \
         what happens if it goes wrong. Before you agree to anything, have it confirmed once more in plain words. You stay calm \
         and civil, and a clear, honest answer convinces you; a vague one does not.",
    ),
];

fn id(place: usize) -> Uuid {
    Uuid::from_u128(FIRST_ID + 1 + place as u128)
}

fn personality(place: usize, (name, prompt): (&str, &str)) -> Definition {
    let (id, created) = (id(place), iso(CREATED_MS));
    // It names no model, so that it speaks through the one that the operator configured.
    let body = json!({
        "id": id,
        "orgId": null,
        "createdAt": created,
        "updatedAt": created,
        "name": name,
        "assistant": {"model": {"provider": "openai", "messages": [{"role": "system", "content": prompt}]}},
    });
    Definition { id, version: 1, body }
}

/// The place in the table of the one with this id.
fn place(kind: Kind, wanted: Uuid) -> Option<usize> {
    let mut places = 0..ALL.len();
    places.find(|&place| kind == Kind::Personality && id(place) == wanted)
}

/// The built-in definition with this id, if there is one.
pub(crate) fn get(kind: Kind, id: Uuid) -> Option<Definition> {
    let place = place(kind, id)?;
    ALL.get(place).map(|&entry| personality(place, entry))
}

/// Refuses what would change or delete a built-in definition, in the words that clients of this API know.
pub(crate) fn refuse(kind: Kind, id: &str, done: &str) -> Result<(), ApiError> {
    match Uuid::try_parse(id).ok().and_then(|id| place(kind, id)) {
        Some(_) => Err(ApiError::new(
            404,
            format!("Personality {id} not found or is a Vapi default (cannot be {done})"),
        )),
        None => Ok(()),
    }
}

/// Where a personality with this id stands among all: as if it had been created at that moment, for its own id says nothing of
/// that. The built-in ones are the oldest, the last of the table first.
pub(crate) fn rank(id: Uuid) -> Uuid {
    match place(Kind::Personality, id) {
        Some(place) => Uuid::from_u128(ids::floor_id(CREATED_MS).as_u128() + (ALL.len() - place) as u128),
        None => id,
    }
}

/// All of this kind, the oldest first.
pub(crate) fn all(kind: Kind) -> Vec<Definition> {
    if kind != Kind::Personality {
        return Vec::new();
    }
    let entries = ALL.into_iter().enumerate().rev();
    entries.map(|(at, entry)| personality(at, entry)).collect()
}

#[cfg(test)]
mod tests {
    use ringback_shared::models::{parse, simulation::CreatePersonality};
    use serde_json::Value;

    use super::*;

    #[test]
    fn each_is_what_a_user_could_have_made_and_is_found_by_its_id() {
        for (n, entry) in ALL.into_iter().enumerate() {
            let made = personality(n, entry);
            parse::<CreatePersonality>(made.body.clone()).unwrap();
            assert_eq!(made.body["orgId"], Value::Null);
            assert_eq!(
                made.id.to_string(),
                format!("a0000000-0000-4000-8000-00000000000{}", n + 1)
            );
            assert_eq!(get(Kind::Personality, made.id), Some(made.clone()));
            assert_eq!(get(Kind::Scenario, made.id), None);
        }
        assert_eq!(get(Kind::Personality, Uuid::from_u128(FIRST_ID)), None);
    }

    #[test]
    fn in_a_list_they_are_the_oldest_and_each_has_its_place() {
        let ranks: Vec<Uuid> = all(Kind::Personality).iter().map(|one| rank(one.id)).collect();
        assert_eq!(ranks.len(), ALL.len());
        assert!(ranks.is_sorted_by(|a, b| a < b));
        assert!(ranks.iter().all(|&rank| ids::created_ms(rank) == CREATED_MS));
        let own = ids::new_id(CREATED_MS + 1);
        assert!(rank(own) == own && ranks.iter().all(|&rank| rank < own));
        assert!(all(Kind::Scenario).is_empty());
    }
}
