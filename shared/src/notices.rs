//! What is told of a run that has ended, and of a schedule whose run could not be started: to a server as a webhook, and to Slack
//! as a message.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    clock::iso,
    costs,
    hooks::{self, Action, Form},
    lifecycle::{Delivery, Hook, HookEvent, Owed, Tally},
    listeners::{self, Outcome},
    models::simulation::{Server, SimulationHookInclude},
    results::{Listed, Report},
    store::{Receivers, RunHead},
};

/// How many names a message lists of each kind.
const NAMES: usize = 10;
/// The longest text of one part of a message, in characters.
const LONGEST: usize = 500;

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The body of the webhook.
    pub webhook: Value,
    /// The message to Slack.
    pub slack: Value,
}

/// Those who want to hear of an outcome, in an order that never changes. Those who listen are not among them.
#[must_use]
pub fn actions(receivers: &Receivers, success: bool) -> Vec<Action> {
    if !receivers.own().is_some_and(|on| on.wants(success)) {
        return Vec::new();
    }
    let asked = receivers.asked.as_ref();
    let server = asked.and_then(|notify| notify.server.clone());
    let own = asked.and_then(|notify| notify.slack_webhook_url.clone());
    let to_slack = |url: &String| Server {
        url: Some(url.clone()),
        ..Server::default()
    };
    // Each has a place of its own, so that one keeps its place when another is taken away.
    let mut places = vec![
        server.map(|server| (server, false)),
        own.as_ref().map(|url| (to_slack(url), true)),
    ];
    let others = receivers.suites.iter().filter(|&url| own.as_ref() != Some(url));
    places.extend(others.map(|url| Some((to_slack(url), true))));
    let told = (0..)
        .zip(places)
        .filter_map(|(action, place)| Some((action, place?)));
    told.map(|(action, (server, slack))| Action {
        hook: 0,
        action,
        server: Some(server),
        include: SimulationHookInclude::default(),
        form: if slack { Form::Slack } else { Form::Webhook },
    })
    .collect()
}

/// What is told of a run that has ended.
#[must_use]
pub fn of_run(hook: &Hook, head: &RunHead, report: &Report, public_url: &str) -> Notice {
    let url = head.url(public_url);
    let counts = head.counts.clone().unwrap_or_default();
    // Of those that failed, some say nothing about the agent.
    let errored = report.trials.errored;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("type", json!(HookEvent::RunEnded.title()));
    put("timestamp", json!(hook.at));
    put("orgId", json!(head.org));
    put("runId", json!(head.id));
    put("name", json!(report.title));
    put("url", json!(url));
    put("success", json!(head.is_success()));
    put("endedReason", json!(head.ended_reason()));
    if let Some(at) = head.started_at {
        put("startedAt", json!(iso(at)));
    }
    put("endedAt", json!(iso(head.ended_at.unwrap_or(hook.at))));
    if let Some(scheduled) = head.schedule {
        put(
            "schedule",
            json!({ "id": scheduled.schedule, "name": report.schedule, "scheduledFor": iso(scheduled.at) }),
        );
    }
    put(
        "itemCounts",
        json!({
            "total": counts.total, "passed": counts.passed, "failed": counts.failed, "canceled": counts.canceled,
            "errored": errored,
        }),
    );
    put("passRate", json!(report.trials.pass_rate()));
    put("cost", json!(costs::dollars(report.costs.cost)));
    put("costsUnknown", json!(report.costs.unknown));
    put("latency", json!(report.latency));
    put("baselineRunId", json!(report.baseline));
    for (name, list) in lists(report) {
        put(name, json!({ "count": list.count, "simulations": list.first }));
    }
    let (emoji, verdict) = match (head.is_success(), head.canceled_at) {
        (true, _) => ("white_check_mark", "passed"),
        (false, Some(_)) => ("no_entry_sign", "canceled"),
        (false, None) => ("x", "failed"),
    };
    let figures = figures(&counts, report);
    let mut elements = vec![
        heading(emoji, &report.title, verdict),
        section(vec![plain(&figures)]),
    ];
    let titles = ["Newly failing", "Still failing", "Fixed", "Flaky"];
    for (title, (_, list)) in titles.into_iter().zip(lists(report)) {
        elements.extend(listing(title, list));
    }
    elements.push(section(vec![link(&url, "The run")]));
    Notice {
        slack: message(&format!("{} {verdict}: {figures}", report.title), elements),
        webhook: Value::Object(body),
    }
}

/// What there is to say of a run in one line.
fn figures(counts: &Tally, report: &Report) -> String {
    let mut figures = vec![format!("{} of {} passed", counts.passed, counts.total)];
    let failed = counts.failed.saturating_sub(report.trials.errored);
    for (count, what) in [
        (failed, "failed"),
        (report.trials.errored, "broke off by another's fault"),
        (counts.canceled, "canceled"),
    ] {
        if count > 0 {
            figures.push(format!("{count} {what}"));
        }
    }
    if let Some(rate) = report.trials.pass_rate() {
        figures.push(format!("pass rate {:.0} %", rate * 100.0));
    }
    if let Some(latency) = &report.latency {
        figures.push(format!("answers after {:.0} ms (median)", latency.p50_ms));
    }
    if report.costs.cost > 0 {
        figures.push(format!("${:.4}", costs::dollars(report.costs.cost)));
    }
    figures.join(", ")
}

/// How far it is told how a run came out, that it waits to begin, or that none was started, as its users see it: one entry for each of
/// those who want to hear of it. A Slack webhook's URL is a secret, so it is not shown.
#[must_use]
pub fn progress(hook: &Hook, receivers: &Receivers, success: bool, outcome: Outcome) -> Value {
    let mut all = match hook.event {
        HookEvent::RunHeld => Vec::new(),
        _ => actions(receivers, success),
    };
    all.extend(listeners::actions(&receivers.listeners, hook.event, outcome));
    // Whoever was named when it was over with has nothing to wait for.
    let heard = |action: &&Action| {
        let own = |known: &Delivery| (known.hook, known.action) == (action.hook, action.action);
        hook.owed != Owed::Nothing || hook.deliveries.iter().any(own)
    };
    let entries = all.iter().filter(heard).map(|action| {
        let mut entry = hooks::progress(hook, action);
        entry["type"] = json!(if action.form == Form::Slack {
            "slack"
        } else {
            "webhook"
        });
        if hook.event == HookEvent::RunHeld {
            entry["event"] = json!(hook.event.title());
        }
        entry
    });
    entries.collect()
}

/// What is told of a schedule, called `name`, for which no run could be started.
#[must_use]
pub fn of_firing(hook: &Hook, schedule: Uuid, fire_at: i64, name: &str, public_url: &str) -> Notice {
    let reason = hook.failure.as_deref().unwrap_or_default();
    let url = format!("{public_url}/schedule/{schedule}/firing");
    Notice {
        webhook: json!({
            "type": HookEvent::ScheduleFailed.title(),
            "timestamp": hook.at,
            "orgId": hook.org,
            "schedule": { "id": schedule, "name": name, "scheduledFor": iso(fire_at) },
            "reason": reason,
            "url": url,
        }),
        slack: message(
            &format!("{name} did not start: {reason}"),
            vec![
                heading("x", name, "did not start"),
                section(vec![plain(reason)]),
                section(vec![link(&url, "Its history")]),
            ],
        ),
    }
}

fn lists(report: &Report) -> [(&'static str, &Listed); 4] {
    [
        ("newlyFailing", &report.newly_failing),
        ("stillFailing", &report.still_failing),
        ("fixed", &report.fixed),
        ("flaky", &report.flaky),
    ]
}

// A message of Slack is put together of its rich text, in which a text is nothing but a text: whatever users call their simulations,
// it is no link, no mention and no formatting.

/// A list of simulations under a title; nothing where there are none.
fn listing(title: &str, list: &Listed) -> Vec<Value> {
    if list.count == 0 {
        return Vec::new();
    }
    let mut names: Vec<Value> = list
        .first
        .iter()
        .take(NAMES)
        .map(|one| section(vec![plain(&one.name)]))
        .collect();
    let more = (list.count as usize).saturating_sub(names.len());
    if more > 0 {
        names.push(section(vec![plain(&format!("and {more} more"))]));
    }
    vec![
        section(vec![bold(title), plain(&format!(" ({})", list.count))]),
        json!({ "type": "rich_text_list", "style": "bullet", "elements": names }),
    ]
}

fn heading(emoji: &str, title: &str, verdict: &str) -> Value {
    section(vec![
        json!({ "type": "emoji", "name": emoji }),
        plain(" "),
        bold(title),
        plain(&format!(" {verdict}")),
    ])
}

fn section(elements: Vec<Value>) -> Value {
    json!({ "type": "rich_text_section", "elements": elements })
}

fn plain(text: &str) -> Value {
    json!({ "type": "text", "text": short(text) })
}

fn bold(text: &str) -> Value {
    json!({ "type": "text", "text": short(text), "style": { "bold": true } })
}

fn link(url: &str, text: &str) -> Value {
    json!({ "type": "link", "url": url, "text": text })
}

/// A message with these parts, and what is shown of it where there is no room for them.
fn message(text: &str, elements: Vec<Value>) -> Value {
    // This one has no other form; these are all that Slack reads in it.
    let text = short(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    json!({ "text": text, "blocks": [{ "type": "rich_text", "elements": elements }] })
}

/// The beginning of a text; one without anything in it is refused by Slack.
fn short(text: &str) -> String {
    if text.is_empty() {
        return "(unnamed)".to_owned();
    }
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(LONGEST - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        models::{
            schedule::{Notify, NotifyOn},
            trials::SimulationName,
        },
        trials::Trials,
    };

    fn receivers(on: NotifyOn, slack: Option<&str>, server: Option<&str>, suites: &[&str]) -> Receivers {
        Receivers {
            asked: Some(Notify {
                on,
                slack_webhook_url: slack.map(str::to_owned),
                server: server.map(|url| Server {
                    url: Some(url.to_owned()),
                    ..Server::default()
                }),
                ..Notify::default()
            }),
            suites: suites.iter().map(|&url| url.to_owned()).collect(),
            ..Receivers::default()
        }
    }

    fn told(receivers: &Receivers, success: bool) -> Vec<(u32, String, bool)> {
        actions(receivers, success)
            .into_iter()
            .map(|one| {
                (
                    one.action,
                    one.server.unwrap().url.unwrap(),
                    one.form == Form::Slack,
                )
            })
            .collect()
    }

    #[test]
    fn each_outcome_is_told_to_those_who_want_it() {
        let one = |url: &str| vec![(1, url.to_owned(), true)];
        for (on, success, failure) in [
            (NotifyOn::Never, false, false),
            (NotifyOn::Success, true, false),
            (NotifyOn::Failure, false, true),
            (NotifyOn::Both, true, true),
        ] {
            let wanted = receivers(on, Some("https://s"), None, &[]);
            for (outcome, heard) in [(true, success), (false, failure)] {
                let expected = if heard { one("https://s") } else { Vec::new() };
                assert_eq!(told(&wanted, outcome), expected, "{on} {outcome}");
            }
        }
        let all = receivers(
            NotifyOn::Both,
            Some("https://s"),
            Some("https://h"),
            &["https://t", "https://s"],
        );
        let expected = [("https://h", false), ("https://s", true), ("https://t", true)];
        let expected: Vec<_> = (0..)
            .zip(expected)
            .map(|(n, (url, slack))| (n, url.to_owned(), slack))
            .collect();
        assert_eq!(told(&all, true), expected);
        // A suite's own webhook hears of its runs without being asked for; unless the request says that nobody is told.
        let suite = Receivers {
            asked: None,
            suites: vec!["https://t".to_owned()],
            ..Receivers::default()
        };
        assert_eq!(suite.on(), Some(NotifyOn::Both));
        assert_eq!(
            told(&receivers(NotifyOn::Never, None, None, &["https://t"]), false),
            []
        );
        assert_eq!(Receivers::default().on(), None);
        assert_eq!(
            receivers(NotifyOn::Both, None, None, &[]).on(),
            None,
            "there is nobody"
        );
    }

    #[test]
    fn a_name_is_nothing_but_a_text_and_lists_end() {
        let name = "<!channel> *all* https://evil.example";
        let list = Listed {
            count: 1000,
            first: vec![
                SimulationName {
                    id: "i".to_owned(),
                    name: name.to_owned()
                };
                100
            ],
        };
        let parts = listing("Newly failing", &list);
        let names = parts[1]["elements"].as_array().unwrap();
        assert_eq!(names.len(), NAMES + 1);
        assert_eq!(names[0]["elements"], json!([{"type": "text", "text": name}]));
        assert_eq!(names[NAMES]["elements"][0]["text"], "and 990 more");
        assert!(listing("Fixed", &Listed::default()).is_empty());
        assert_eq!(plain("")["text"], "(unnamed)");
        let message = message(&format!("{name} {}", "x".repeat(1000)), parts);
        let text = message["text"].as_str().unwrap();
        assert!(
            text.starts_with("&lt;!channel&gt; *all*") && text.ends_with('…'),
            "{text}"
        );
    }

    #[test]
    fn what_failed_by_anothers_fault_is_told_apart() {
        let counts = Tally {
            total: 10,
            passed: 3,
            failed: 6,
            canceled: 1,
            ..Tally::default()
        };
        let report = Report {
            trials: Trials {
                passed: 3,
                failed: 1,
                errored: 5,
                canceled: 1,
                ..Trials::default()
            },
            ..Report::default()
        };
        assert_eq!(
            figures(&counts, &report),
            "3 of 10 passed, 1 failed, 5 broke off by another's fault, 1 canceled, pass rate 75 %"
        );
    }
}
