//! What is told of a run that has ended, and of a schedule whose run could not be started: to a server as a webhook, and to Slack
//! as a message.

use serde_json::{Map, Value, json};

use crate::{
    clock::iso,
    costs,
    hooks::{self, Action},
    lifecycle::{Hook, HookEvent},
    models::simulation::Server,
    results::{Listed, Report},
    store::{Receivers, RunHead, RunKind},
};

/// How many names a message lists of each kind.
const NAMES: usize = 10;
/// The longest name and the longest reason in a message, in characters.
const NAME: usize = 80;
const REASON: usize = 500;

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The body of the webhook.
    pub webhook: Value,
    /// The message to Slack.
    pub slack: Value,
}

/// Those who want to hear of an outcome, in an order that never changes.
#[must_use]
pub fn actions(receivers: &Receivers, success: bool) -> Vec<Action> {
    if !receivers.on().is_some_and(|on| on.wants(success)) {
        return Vec::new();
    }
    let asked = receivers.asked.as_ref();
    let server = asked.and_then(|notify| notify.server.clone());
    let own = asked.and_then(|notify| notify.slack_webhook_url.clone());
    let mut slack: Vec<String> = Vec::new();
    for url in own.into_iter().chain(receivers.suites.iter().cloned()) {
        if !slack.contains(&url) {
            slack.push(url);
        }
    }
    let to_slack = slack.into_iter().map(|url| {
        let server = Server {
            url: Some(url),
            ..Server::default()
        };
        (server, true)
    });
    let all = server.map(|server| (server, false)).into_iter().chain(to_slack);
    (0..)
        .zip(all)
        .map(|(action, (server, slack))| Action {
            hook: 0,
            action,
            server: Some(server),
            include: Default::default(),
            slack,
        })
        .collect()
}

/// What is told of a run that has ended. `title` is what it is called, and `schedule` the name of the schedule that started it.
#[must_use]
pub fn of_run(
    hook: &Hook,
    head: &RunHead,
    report: &Report,
    title: &str,
    schedule: Option<&str>,
    public_url: &str,
) -> Notice {
    let path = match head.kind {
        RunKind::Simulation => "eval/simulation/run",
        RunKind::Eval => "eval/run",
    };
    let url = format!("{public_url}/{path}/{}", head.id);
    let counts = head.counts.clone().unwrap_or_default();
    let errored = report.trials.errored;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("type", json!(HookEvent::RunEnded.title()));
    put("timestamp", json!(hook.at));
    put("orgId", json!(head.org));
    put("runId", json!(head.id));
    put("name", json!(title));
    put("url", json!(url));
    put("success", json!(head.is_success()));
    put(
        "endedReason",
        json!(if hook.canceled { "canceled" } else { "completed" }),
    );
    if let Some(at) = head.started_at {
        put("startedAt", json!(iso(at)));
    }
    put("endedAt", json!(iso(head.ended_at.unwrap_or(hook.at))));
    if let Some(scheduled) = head.schedule {
        put(
            "schedule",
            json!({ "id": scheduled.schedule, "name": schedule, "scheduledFor": iso(scheduled.at) }),
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
    put("cost", json!(costs::dollars(report.cost)));
    put("latency", json!(report.latency));
    put("baselineRunId", json!(report.baseline));
    for (name, list) in lists(report) {
        put(name, json!({ "count": list.count, "simulations": list.first }));
    }
    let verdict = if hook.canceled {
        ":no_entry_sign: canceled"
    } else if head.is_success() {
        ":white_check_mark: passed"
    } else {
        ":x: failed"
    };
    let title = escaped(title, NAME);
    let mut figures = vec![format!("{} of {} passed", counts.passed, counts.total)];
    let failed = counts.failed.saturating_sub(errored);
    for (count, what) in [
        (failed, "failed"),
        (errored, "broke off by somebody else's fault"),
        (counts.canceled, "canceled"),
    ] {
        if count > 0 {
            figures.push(format!("{count} {what}"));
        }
    }
    if let Some(latency) = &report.latency {
        figures.push(format!("answers after {:.0} ms (median)", latency.p50_ms));
    }
    if report.cost > 0 {
        figures.push(format!("${:.4}", costs::dollars(report.cost)));
    }
    let mut sections = vec![format!("{verdict}: *{title}*\n{}", figures.join(", "))];
    let titles = ["Newly failing", "Still failing", "Fixed", "Flaky"];
    for (title, (_, list)) in titles.into_iter().zip(lists(report)) {
        if let Some(text) = listing(title, list) {
            sections.push(text);
        }
    }
    sections.push(format!("<{url}|Open the run>"));
    Notice {
        slack: message(&format!("{title}: {}", figures.join(", ")), &sections),
        webhook: Value::Object(body),
    }
}

/// How far it is told how a run came out, as its users see it: one entry for each of those who want to hear of it. A Slack webhook's
/// URL is a secret, so it is not shown.
#[must_use]
pub fn progress(hook: &Hook, receivers: &Receivers, head: &RunHead) -> Value {
    let all = actions(receivers, head.is_success());
    let entries = all.iter().map(|action| {
        let mut entry = hooks::progress(hook, action);
        entry["type"] = json!(if action.slack { "slack" } else { "webhook" });
        entry
    });
    entries.collect()
}

/// What is told of a schedule, called `name`, for which no run could be started.
#[must_use]
pub fn of_firing(hook: &Hook, schedule: uuid::Uuid, fire_at: i64, name: &str, public_url: &str) -> Notice {
    let reason = hook.failure.as_deref().unwrap_or_default();
    let url = format!("{public_url}/schedule/{schedule}/firing");
    let title = escaped(name, NAME);
    let text = format!(":x: *{title}* did not start\n{}", escaped(reason, REASON));
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
            &format!("{title} did not start"),
            &[text, format!("<{url}|Its history>")],
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

fn listing(title: &str, list: &Listed) -> Option<String> {
    let names: Vec<String> = list
        .first
        .iter()
        .take(NAMES)
        .map(|one| format!("• {}", escaped(&one.name, NAME)))
        .collect();
    let more = (list.count as usize).saturating_sub(names.len());
    let tail = if more > 0 {
        format!("\n… and {more} more")
    } else {
        String::new()
    };
    (list.count > 0).then(|| format!("*{title}* ({})\n{}{tail}", list.count, names.join("\n")))
}

/// A message of Slack: its blocks, and what is shown where there is no room for them.
fn message(text: &str, sections: &[String]) -> Value {
    let blocks: Vec<Value> = sections
        .iter()
        .map(|section| json!({ "type": "section", "text": { "type": "mrkdwn", "text": section } }))
        .collect();
    json!({ "text": text, "blocks": blocks })
}

/// The beginning of a text that users wrote, with nothing in it that Slack takes for a link or a mention, in at most `most`
/// characters.
fn escaped(text: &str, most: usize) -> String {
    let mut short = String::new();
    for c in text.chars() {
        let plain = match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            c => c.to_string(),
        };
        if short.chars().count() + plain.chars().count() >= most {
            short.push('…');
            break;
        }
        short.push_str(&plain);
    }
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
        }
    }

    fn told(receivers: &Receivers, success: bool) -> Vec<(u32, String, bool)> {
        actions(receivers, success)
            .into_iter()
            .map(|one| (one.action, one.server.unwrap().url.unwrap(), one.slack))
            .collect()
    }

    #[test]
    fn each_outcome_is_told_to_those_who_want_it() {
        let one = |url: &str| vec![(0, url.to_owned(), true)];
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
    fn a_name_cannot_become_a_mention_and_a_message_stays_within_what_slack_takes() {
        assert_eq!(escaped("<!channel> & co", 80), "&lt;!channel&gt; &amp; co");
        assert_eq!(escaped(&"&".repeat(100), 11), "&amp;&amp;…");
        let list = Listed {
            count: 1000,
            first: vec![
                SimulationName {
                    id: "i".to_owned(),
                    name: "<".repeat(500)
                };
                100
            ],
        };
        let report = Report {
            trials: Trials {
                failed: 1000,
                ..Trials::default()
            },
            newly_failing: list.clone(),
            flaky: list,
            ..Report::default()
        };
        let text = listing("Newly failing", &report.newly_failing).unwrap();
        assert!(
            text.chars().count() < 3000 && text.ends_with("and 990 more"),
            "{text}"
        );
        assert_eq!(listing("Fixed", &report.fixed), None);
    }
}
