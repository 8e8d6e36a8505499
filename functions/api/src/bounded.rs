//! Answers that are never larger than what may be answered.
//!
//! Lambda answers with 6 MB at most. A list's page always has all of its entries; when it would grow too large, some of them come
//! without their bulky parts and name what is missing, and can be read singly.

use std::io;

use serde_json::{Value, json};

use crate::http::ApiError;

/// What an answer with parts that can be left out may weigh, see [`weight`]. That is some 4.5 MB of JSON.
const MAX: usize = 5_500_000;
/// What any answer may weigh: beside it, there are headers in the 6 MB.
const MOST: usize = 6_200_000;
/// How many entries that did not fit are read before nothing more is tried.
const TRIES: usize = 8;

/// Leaves parts of an entry out and names them in it.
type Cut = fn(&mut Value);

/// The size of a piece of JSON as part of a text in another JSON, in bytes.
fn grown(json: &[u8]) -> usize {
    let doubled = json.iter().filter(|byte| matches!(byte, b'"' | b'\\'));
    json.len() + doubled.count()
}

/// The size of `value` in what Lambda sends, in bytes: its JSON is a text in another JSON, where each quote and each backslash
/// takes two.
pub(crate) fn weight(value: &Value) -> usize {
    struct Scale(usize);
    impl io::Write for Scale {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += grown(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut scale = Scale(0);
    match serde_json::to_writer(&mut scale, value) {
        Ok(()) => scale.0,
        // A value has no keys but texts, so that it can always be written.
        Err(_) => usize::MAX,
    }
}

#[derive(Debug)]
struct Entry {
    value: Value,
    weight: usize,
    /// How many of the cuts were made.
    cut: usize,
}

impl Entry {
    fn cut(&mut self, cuts: &[Cut]) {
        if let Some(cut) = cuts.get(self.cut) {
            cut(&mut self.value);
            self.cut += 1;
            self.weight = weight(&self.value) + 1;
        }
    }
}

/// The entries of an answer, in order. None is ever left out.
#[derive(Debug)]
pub(crate) struct Entries {
    entries: Vec<Entry>,
    weight: usize,
    max: usize,
    cuts: &'static [Cut],
    tries: usize,
}

impl Entries {
    fn new(cuts: &'static [Cut]) -> Self {
        Self {
            entries: Vec::new(),
            weight: 0,
            max: MAX,
            cuts,
            tries: TRIES,
        }
    }

    /// Definitions: what is left of one that does not fit is what identifies it.
    pub(crate) fn of_definitions() -> Self {
        Self::new(&[without_content])
    }

    /// Runs: without what they were asked for, then without their summary.
    pub(crate) fn of_runs() -> Self {
        Self::new(&[without_request, without_summary])
    }

    /// Runs of evals: without what they were asked for, then without what was said.
    pub(crate) fn of_eval_runs() -> Self {
        Self::new(&[without_evals, without_conversations])
    }

    /// Items: without what was said and their snapshots; then, where even that is too much, without their results.
    pub(crate) fn of_items() -> Self {
        Self::new(&[without_bulk, without_results])
    }

    /// Whether the next entry may come whole. Where it may not, there is no use in reading its bulky parts.
    pub(crate) fn is_open(&self) -> bool {
        self.tries > 0
    }

    /// Adds an entry, whole or not; it and those before it give up what does not fit.
    pub(crate) fn push(&mut self, value: Value) {
        let mut entry = Entry {
            weight: weight(&value) + 1,
            value,
            cut: 0,
        };
        let fits = self.weight.saturating_add(entry.weight) <= self.max;
        if !fits || !self.is_open() {
            self.tries = self.tries.saturating_sub(1);
            entry.cut(self.cuts);
        }
        self.weight += entry.weight;
        self.entries.push(entry);
        while self.weight > self.max && self.cut_another() {
            self.tries = 0;
        }
    }

    /// The last one of those that still have the most gives up a part. `false` when none has any left.
    fn cut_another(&mut self) -> bool {
        let least = self
            .entries
            .iter()
            .map(|entry| entry.cut)
            .min()
            .unwrap_or_default();
        let left = least < self.cuts.len();
        if let Some(entry) = self.entries.iter_mut().rfind(|entry| left && entry.cut == least) {
            self.weight -= entry.weight;
            entry.cut(self.cuts);
            self.weight += entry.weight;
        }
        left
    }

    /// The entries.
    pub(crate) fn into_values(self) -> Vec<Value> {
        self.entries.into_iter().map(|entry| entry.value).collect()
    }
}

/// An answer of one thing, without as many of its parts as make it too large.
fn single(mut value: Value, cuts: &[Cut], max: usize) -> Value {
    for cut in cuts {
        if weight(&value) <= max {
            break;
        }
        cut(&mut value);
    }
    value
}

/// The answer of one run.
pub(crate) fn run(run: Value) -> Value {
    single(run, &[without_simulations, without_target], MAX)
}

/// The answer of one run of evals.
pub(crate) fn eval_run(run: Value) -> Value {
    single(run, &[without_evals, without_conversations], MAX)
}

/// The answer of one item.
pub(crate) fn item(item: Value) -> Value {
    let cuts: [Cut; 4] = [
        without_messages,
        without_snapshots,
        without_transcript,
        without_results,
    ];
    single(item, &cuts, MAX)
}

/// What is answered instead of `body` (a JSON text), if that is too large to be sent.
pub(crate) fn refused(body: &str) -> Option<ApiError> {
    const MESSAGE: &str = "the answer would have more than the 6 MB that can be sent; ask for less, for example with a smaller limit";
    (grown(body.as_bytes()) > MOST).then(|| ApiError::new(413, MESSAGE))
}

/// Notes what was left out of `object`.
fn note(object: &mut Value, parts: impl IntoIterator<Item = String>) {
    let mut noted: Vec<Value> = match object.get_mut("omitted").map(Value::take) {
        Some(Value::Array(noted)) => noted,
        _ => Vec::new(),
    };
    for part in parts {
        if !noted.iter().any(|noted| *noted == part) {
            noted.push(json!(part));
        }
    }
    if let Some(object) = object.as_object_mut() {
        object.insert("omitted".to_owned(), Value::Array(noted));
    }
}

/// Takes the part at `path`, which is separated by dots, out of `object`. `false` when there is none.
fn take(object: &mut Value, path: &str) -> bool {
    let (parent, name) = match path.rsplit_once('.') {
        Some((parent, name)) => (
            object.pointer_mut(&format!("/{}", parent.replace('.', "/"))),
            name,
        ),
        None => (Some(object), path),
    };
    let parent = parent.and_then(Value::as_object_mut);
    parent.is_some_and(|parent| parent.remove(name).is_some())
}

fn leave_out(object: &mut Value, parts: &[&str]) {
    let taken: Vec<String> = parts
        .iter()
        .filter(|part| take(object, part))
        .map(|&part| part.to_owned())
        .collect();
    if !taken.is_empty() {
        note(object, taken);
    }
}

/// What is left of a definition: small, and enough to know it and to read it singly.
const IDENTITY: [&str; 8] = [
    "id",
    "orgId",
    "createdAt",
    "updatedAt",
    "name",
    "path",
    "scenarioId",
    "personalityId",
];
/// What one of these, and the names of all that was left out, may weigh.
const SMALL: usize = 500;

fn without_content(definition: &mut Value) {
    let Some(object) = definition.as_object_mut() else {
        return;
    };
    let mut gone = Vec::new();
    object.retain(|name, value| {
        let stays = IDENTITY.contains(&name.as_str()) && weight(value) <= SMALL;
        if !stays {
            gone.push(name.clone());
        }
        stays
    });
    gone.sort_unstable();
    if weight(&json!(gone)) > SMALL {
        gone = vec!["*".to_owned()];
    }
    note(definition, gone);
}

fn without_simulations(run: &mut Value) {
    leave_out(run, &["simulations"]);
}

fn without_target(run: &mut Value) {
    leave_out(run, &["target"]);
}

fn without_evals(run: &mut Value) {
    leave_out(run, &["eval", "evals", "target.assistant", "target.squad"]);
}

fn without_conversations(run: &mut Value) {
    let results = run.get_mut("results").and_then(Value::as_array_mut);
    for result in results.into_iter().flatten() {
        if let Some(messages) = result
            .get_mut("messages")
            .filter(|messages| **messages != json!([]))
        {
            *messages = json!([]);
            note(result, ["messages".to_owned()]);
        }
    }
}

fn without_request(run: &mut Value) {
    leave_out(run, &["simulations", "target", "summary.source.simulationIds"]);
}

fn without_summary(run: &mut Value) {
    leave_out(run, &["summary"]);
}

/// What an item was held from. Placeholders for these are enough where it is known that they will be left out.
pub(crate) const SNAPSHOTS: [&str; 5] = ["assistant", "squad", "scenario", "personality", "simulation"];

fn metadata(item: &mut Value, change: impl FnOnce(&mut Value)) {
    if let Some(metadata) = item.get_mut("metadata") {
        change(metadata);
    }
}

fn without_messages(item: &mut Value) {
    metadata(item, |metadata| leave_out(metadata, &["call.messages"]));
}

fn without_transcript(item: &mut Value) {
    metadata(item, |metadata| leave_out(metadata, &["call.transcript"]));
}

fn without_snapshots(item: &mut Value) {
    let hooks = take(item, "hooks");
    metadata(item, |metadata| {
        leave_out(metadata, &SNAPSHOTS);
        leave_out(metadata, &["hooks"]);
        if hooks {
            note(metadata, ["hooks".to_owned()]);
        }
    });
}

/// Everything that has to be read beside an item's head, but for its results.
fn without_bulk(item: &mut Value) {
    without_snapshots(item);
    metadata(item, |metadata| {
        // Whether a call has them is not known where they were not read.
        for part in [
            "call.messages",
            "call.transcript",
            "call.recordingUrl",
            "call.monitor",
            "call.structuredOutputs",
        ] {
            take(metadata, part);
            if metadata.get("call").is_some() {
                note(metadata, [part.to_owned()]);
            }
        }
    });
    for part in ["costs", "improvementSuggestions"] {
        without(item, part);
    }
}

fn without_results(item: &mut Value) {
    without(item, "results");
}

/// Takes a part out of an item that stands beside its metadata.
fn without(item: &mut Value, part: &str) {
    if take(item, part) {
        metadata(item, |metadata| note(metadata, [part.to_owned()]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(n: usize, said: usize, results: usize) -> Value {
        json!({"id": n, "status": "passed", "hooks": [{"on": "x"}], "results": {"evaluations": "r".repeat(results)},
            "metadata": {"scenario": {"name": "s"}, "hooks": [], "call": {"transcript": "t".repeat(said), "messages": [],
            "endedReason": "done"}}})
    }

    #[test]
    fn a_weight_is_the_size_of_the_text_within_a_text() {
        for value in [
            json!({"a": "quo\"te", "b": [1, null, "back\\slash\n", "ü€"]}),
            json!([]),
            json!(""),
        ] {
            let text = json!(value.to_string()).to_string();
            assert_eq!(weight(&value), text.len() - 2, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        assert!(refused(&"x".repeat(MOST)).is_none());
        assert!(refused(&"x".repeat(MOST + 1)).is_some());
        assert!(refused(&"\"".repeat(MOST / 2 + 1)).is_some());
    }

    #[test]
    fn what_is_left_out_is_named() {
        let mut brief = item(1, 10, 10);
        without_bulk(&mut brief);
        let omitted = json!([
            "scenario",
            "hooks",
            "call.messages",
            "call.transcript",
            "call.recordingUrl",
            "call.monitor",
            "call.structuredOutputs"
        ]);
        let wanted = json!({"id": 1, "status": "passed", "results": {"evaluations": "r".repeat(10)},
            "metadata": {"call": {"endedReason": "done"}, "omitted": omitted}});
        assert_eq!(brief, wanted);
        without_bulk(&mut brief);
        assert_eq!(brief, wanted, "once and for all");
        without_results(&mut brief);
        assert_eq!(brief["metadata"]["omitted"][7], "results");
        assert!(brief.get("results").is_none());

        // One that never started has no call that something could be missing from.
        let mut waits = json!({"id": 2, "metadata": {"scenario": {}}});
        without_bulk(&mut waits);
        assert_eq!(waits, json!({"id": 2, "metadata": {"omitted": ["scenario"]}}));

        let mut scenario =
            json!({"id": "i", "name": "n", "path": null, "instructions": "x".repeat(900), "evaluations": []});
        without_content(&mut scenario);
        assert_eq!(
            scenario,
            json!({"id": "i", "name": "n", "path": null, "omitted": ["evaluations", "instructions"]})
        );
        let mut odd = json!({"id": "i", "name": "n".repeat(900), "x".repeat(900): 1});
        without_content(&mut odd);
        assert_eq!(odd, json!({"id": "i", "omitted": ["*"]}));

        let mut run = json!({"id": "r", "target": {}, "simulations": [], "summary": {"source": {"simulationIds": [], "id": 1}}});
        without_request(&mut run);
        assert_eq!(
            run,
            json!({"id": "r", "summary": {"source": {"id": 1}},
                "omitted": ["simulations", "target", "summary.source.simulationIds"]})
        );
    }

    #[test]
    fn one_thing_gives_up_only_as_much_as_it_has_to() {
        let whole = item(1, 900, 900);
        assert_eq!(
            single(whole.clone(), &[without_transcript, without_results], 3000),
            whole
        );
        let cut = single(whole.clone(), &[without_transcript, without_results], 1500);
        assert_eq!(cut["metadata"]["omitted"], json!(["call.transcript"]));
        assert_eq!(cut["results"], whole["results"]);
        let cut = single(whole, &[without_transcript, without_results], 500);
        assert_eq!(cut["metadata"]["omitted"], json!(["call.transcript", "results"]));
    }

    #[test]
    fn one_large_entry_does_not_close_a_page_but_many_do() {
        let mut page = Entries {
            max: 20_000,
            ..Entries::of_items()
        };
        page.push(item(0, 30_000, 1));
        page.push(item(1, 1000, 1));
        assert!(page.is_open());
        for n in 2..2 + TRIES {
            page.push(item(n, 30_000, 1));
        }
        assert!(!page.is_open());
        page.push(item(99, 10, 1));
        let shown = page.into_values();
        let whole: Vec<_> = shown
            .iter()
            .filter(|item| item["metadata"].get("omitted").is_none())
            .map(|item| item["id"].clone())
            .collect();
        assert_eq!((shown.len(), whole), (TRIES + 3, vec![json!(1)]));
    }

    proptest! {
        #[test]
        fn a_page_has_all_its_entries_and_its_limit(sizes in proptest::collection::vec((0_usize..4000, 0_usize..900), 0..60)) {
            const LIMIT: usize = 30_000;
            let mut page = Entries { max: LIMIT, ..Entries::of_items() };
            for (n, &(said, results)) in sizes.iter().enumerate() {
                page.push(item(n, said, results));
            }
            prop_assert_eq!(page.weight, page.entries.iter().map(|entry| weight(&entry.value) + 1).sum::<usize>());
            let shown = page.into_values();
            prop_assert!(weight(&json!(shown)) <= LIMIT + 1);
            let ids: Vec<_> = shown.iter().map(|item| item["id"].as_u64().unwrap_or_default()).collect();
            prop_assert_eq!(ids, (0..sizes.len() as u64).collect::<Vec<_>>());
            let all: usize = sizes.iter().enumerate().map(|(n, &(said, results))| weight(&item(n, said, results)) + 1).sum();
            let cut = |item: &&Value| item["metadata"].get("omitted").is_some();
            prop_assert_eq!(all <= LIMIT, shown.iter().filter(cut).count() == 0, "nothing is left out without need");
            // Results go only when nothing else is left to go.
            if shown.iter().any(|item| item.get("results").is_none()) {
                prop_assert!(shown.iter().all(|item| cut(&item)));
            }
            for (item, &(_, results)) in shown.iter().zip(&sizes) {
                prop_assert_eq!(&item["status"], "passed");
                if let Some(kept) = item.get("results") {
                    prop_assert_eq!(kept["evaluations"].as_str().map(str::len), Some(results));
                }
            }
        }
    }
}
