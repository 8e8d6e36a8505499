//! Vapi and Retell as they are: what they are asked for, what they say, and what becomes of the items, however they say it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use ringback_shared::webhook::{ID_HEADER, SIGNATURE_HEADER, Secret, TIMESTAMP_HEADER, sign};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    carrier::{Auth, Delivery, Placing},
    fixtures::{
        LONG, RUNS, assert_items_valid, assistant, by_voice, counts, ended, endpoint, evaluation, inline,
        inline_target, item_path, items, list, personality, regex, run, scenario, text,
    },
    provider::{ProviderStandIn, Tamper},
    retell::{RetellStandIn, signature},
    server::{Api, Server, local, local_with, until},
    stand_in::StandIn,
    vapi::{Credential, HmacPlan, VapiStandIn},
    voice::{local_with_slots, sweep},
};

/// The number of the target in these tests.
const NUMBER: &str = "+15550142";

/// Everything that carries calls here, in each of its ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Simulations,
    Phone,
    Retell,
}

const WAYS: [Way; 3] = [Way::Simulations, Way::Phone, Way::Retell];

/// One provider, and an endpoint that is it.
struct Carrying {
    way: Way,
    vapi: VapiStandIn,
    retell: RetellStandIn,
    endpoint: Value,
}

impl Carrying {
    async fn start(api: &Api, way: Way) -> Self {
        let vapi = VapiStandIn::start().await;
        let retell = RetellStandIn::start().await;
        let body = match way {
            Way::Simulations => json!({"provider": "vapi", "url": vapi.url(), "apiKey": vapi.key()}),
            Way::Phone => json!({
                "provider": "vapi", "url": vapi.url(), "apiKey": vapi.key(),
                "vapi": {"calls": "phone", "phoneNumberId": vapi.phone_number_id()},
            }),
            Way::Retell => json!({
                "provider": "retell", "url": retell.url(), "apiKey": retell.key(),
                "retell": {"agentId": retell.agent_id(), "fromNumber": retell.from_number()},
            }),
        };
        let endpoint = api.post("/endpoint", &body).await;
        Self {
            way,
            vapi,
            retell,
            endpoint,
        }
    }

    fn deliver(&self, delivery: Delivery) {
        self.vapi.delivery(delivery);
        self.retell.delivery(delivery);
    }

    fn auto(&self, talk_ms: u64) {
        self.vapi.auto(talk_ms);
        self.retell.auto(talk_ms);
    }

    fn manual(&self) {
        self.vapi.manual();
        self.retell.manual();
    }

    fn auth(&self, auth: Auth) {
        self.vapi.auth(auth);
        self.retell.auth(auth);
    }

    fn placing(&self, placing: Placing) {
        self.vapi.placing(placing);
        self.retell.placing(placing);
    }

    fn moved_to(&self, base: &str) {
        self.vapi.moved_to(base);
        self.retell.moved_to(base);
    }

    async fn release(&self) {
        self.vapi.release().await;
        self.retell.release().await;
    }

    /// The ids of the runs or calls that it was ever made to place.
    fn placed(&self) -> Vec<String> {
        match self.way {
            Way::Simulations => self.vapi.runs().into_iter().map(|run| run.id).collect(),
            Way::Phone => self.vapi.calls().into_iter().map(|call| call.id).collect(),
            Way::Retell => self.retell.calls().into_iter().map(|call| call.id).collect(),
        }
    }

    /// How many of them are over.
    fn over(&self) -> usize {
        match self.way {
            Way::Simulations => self.vapi.runs().iter().filter(|run| run.ended.is_some()).count(),
            Way::Phone => self
                .vapi
                .calls()
                .iter()
                .filter(|call| call.ended.is_some())
                .count(),
            Way::Retell => self
                .retell
                .calls()
                .iter()
                .filter(|call| call.ended.is_some())
                .count(),
        }
    }

    /// The answers to its webhooks, of all calls.
    fn answers(&self) -> Vec<u16> {
        let vapi = self.vapi.runs().into_iter().chain(self.vapi.calls());
        let vapi = vapi.flat_map(|record| record.sent);
        let retell = self.retell.calls().into_iter().flat_map(|record| record.sent);
        vapi.chain(retell).map(|sent| sent.status).collect()
    }

    async fn wait_for(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        until(what, LONG, async || enough(self).then_some(())).await;
    }

    async fn start_call(&self, id: &str) {
        match self.way {
            Way::Retell => self.retell.start_call(id).await,
            _ => self.vapi.start_call(id).await,
        }
    }

    #[track_caller]
    fn assert_faultless(&self) {
        assert_eq!(self.vapi.faults(), [""; 0], "{:?}", self.way);
        assert_eq!(self.retell.faults(), [""; 0], "{:?}", self.way);
    }

    /// A run of one simulation that passes if the conversation says what it should and takes the latencies of the target.
    fn batch(&self, stand_in: &StandIn, iterations: u32) -> Value {
        stand_in.judge("booked/booked", json!(true));
        let evaluations = json!([
            evaluation("booked", "boolean", "=", json!(true)),
            // Of the first caller's first turn, and by the target.
            regex("answered", "(?m)^AI: Answer (\\d+)", "number", "=", json!(1)),
        ]);
        let mut booked = scenario("booked", 3, evaluations);
        booked["latencyExpectations"] = json!([
            {"metric": "turn", "aggregation": "mean", "thresholdMs": 1000.0},
            {"metric": "turn", "aggregation": "max", "thresholdMs": 1199.0, "required": false},
        ]);
        let target = inline_target(&assistant(stand_in, "You run a clinic."));
        let body = run(json!([inline(&booked, &personality("Pat"))]), target, iterations);
        let mut body = by_voice(body, &self.endpoint);
        if self.way != Way::Simulations {
            body["transport"]["targetNumber"] = json!(NUMBER);
        }
        body
    }

    /// What an item comes to whose call went as it should.
    #[track_caller]
    fn check(&self, item: &Value) {
        self.check_cost(item, 0.042);
    }

    #[track_caller]
    fn check_cost(&self, item: &Value, cost: f64) {
        let way = self.way;
        assert_eq!(item["status"], "passed", "{way:?}: {item:#}");
        let call = &item["metadata"]["call"];
        let transcript = text(&call["transcript"]);
        assert!(
            transcript.contains("User: Hello, caller") && transcript.contains("AI: Answer 1"),
            "the tester is the user and the target the agent, {way:?}: {transcript}"
        );
        let roles: Vec<_> = list(&call["messages"])
            .iter()
            .map(|message| text(&message["role"]))
            .collect();
        assert!(
            roles.contains(&"user") && roles.contains(&"bot"),
            "{way:?}: {roles:?}"
        );
        for message in list(&call["messages"]) {
            assert!(
                message["time"].is_number() && message["secondsFromStart"].is_number(),
                "{message}"
            );
        }
        assert!(call["recordingUrl"].is_string(), "{way:?}: {call:#}");
        assert_eq!(
            call["endedReason"], "customer-ended-call",
            "{way:?}: the tester hung up"
        );
        assert_eq!(call["cost"], cost, "{way:?}: {item:#}");
        assert!(
            item["startedAt"].is_string() && item["callId"].is_string(),
            "{way:?}"
        );
        let latencies = &item["results"]["latencyEvaluations"];
        for latency in list(latencies) {
            assert_eq!(latency["sampleCount"], 3, "{way:?}: {latencies:#}");
        }
        let (mean, max) = (&latencies[0], &latencies[1]);
        assert_eq!(
            (&mean["actualMs"], &mean["passed"]),
            (&json!(1000), &json!(true)),
            "{way:?}"
        );
        assert_eq!(
            (&max["actualMs"], &max["passed"]),
            (&json!(1200), &json!(false)),
            "{way:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vapi_carries_calls_in_two_ways_and_retell_in_one() {
    let stand_in = StandIn::start().await;
    let server = Server::start(&stand_in, &[]).await;
    let api = &server.api;
    for way in WAYS {
        let carrying = Carrying::start(api, way).await;
        let created = api.post(RUNS, &carrying.batch(&stand_in, 3)).await;
        let id = text(&created["id"]);
        assert_eq!(counts(&ended(api, id).await), [3, 3, 0, 0, 0, 0], "{way:?}");
        let all = items(api, id, 10).await;
        assert_items_valid(&all);
        for item in &all {
            carrying.check(item);
        }
        assert_eq!(carrying.placed().len(), 3, "{way:?}");
        carrying
            .wait_for("the answers to all webhooks", |carrying| {
                carrying.answers().len() >= 6
            })
            .await;
        assert!(carrying.answers().iter().all(|&answer| answer == 200), "{way:?}");
        carrying.assert_faultless();
    }
    // Neither a key nor what was said is in the log.
    let log = std::fs::read_to_string(server.folder.path().join("log-0")).unwrap();
    assert!(!log.contains("caller 1") && !log.contains("Bearer"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_webhooks_may_come_twice_early_late_in_any_order_or_never() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    for way in WAYS {
        let carrying = Carrying::start(&api, way).await;
        for delivery in [
            Delivery::Duplicated,
            Delivery::Reversed,
            Delivery::Early,
            Delivery::Late,
            Delivery::Never,
        ] {
            carrying.deliver(delivery);
            let over = carrying.over();
            let created = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
            let what = format!("{way:?}, {delivery:?}");
            carrying.wait_for(&what, |carrying| carrying.over() > over).await;
            let id = text(&created["id"]);
            match delivery {
                Delivery::Late => {
                    // The item knows its call, and nobody has said anything of it.
                    until("the call's id", LONG, async || {
                        let item = api.get(&item_path(&created, 0)).await;
                        item["callId"].is_string().then_some(())
                    })
                    .await;
                    carrying.release().await;
                }
                Delivery::Never => {
                    until("the call's id", LONG, async || {
                        let item = api.get(&item_path(&created, 0)).await;
                        item["callId"].is_string().then_some(())
                    })
                    .await;
                    sweep(&local).await;
                }
                _ => {}
            }
            let done = ended(&api, id).await;
            assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{what}");
            let item = api.get(&item_path(&created, 0)).await;
            // A run that is looked up names the call of the target's leg only.
            let half = delivery == Delivery::Never && way == Way::Simulations;
            carrying.check_cost(&item, if half { 0.03 } else { 0.042 });
        }
        assert_eq!(carrying.placed().len(), 5, "{way:?}");
        carrying.assert_faultless();
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_without_an_answer_is_looked_for_and_not_repeated() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    for way in WAYS {
        // It does what it is asked, but does not say so, nor anything else.
        let carrying = Carrying::start(&api, way).await;
        carrying.placing(Placing::AcceptWithoutAnswer);
        carrying.deliver(Delivery::Never);
        let created = api.post(RUNS, &carrying.batch(&stand_in, 2)).await;
        carrying
            .wait_for("two orders", |carrying| carrying.placed().len() == 2)
            .await;
        let done = until("the run to end", LONG, async || {
            sweep(&local).await;
            let run = api.get(&format!("{RUNS}/{}", text(&created["id"]))).await;
            (run["status"] == "ended").then_some(run)
        })
        .await;
        assert_eq!(counts(&done), [2, 2, 0, 0, 0, 0], "{way:?}");
        assert_eq!(carrying.placed().len(), 2, "{way:?}: none was placed twice");
        carrying.assert_faultless();
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_with_too_much_to_do_is_asked_later_and_one_that_refuses_never_again() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let mut runs = Vec::new();
    for way in WAYS {
        let busy = Carrying::start(&api, way).await;
        busy.placing(Placing::Busy {
            retry_after_seconds: 1,
            times: 1,
        });
        let created = api.post(RUNS, &busy.batch(&stand_in, 1)).await;
        runs.push((way, busy, created, None));
        for (status, fault) in [(400, "provider"), (401, "ringback")] {
            let unwilling = Carrying::start(&api, way).await;
            unwilling.placing(Placing::Refuse(status));
            let created = api.post(RUNS, &unwilling.batch(&stand_in, 1)).await;
            runs.push((way, unwilling, created, Some((status, fault))));
        }
    }
    for (way, carrying, created, refused) in runs {
        let done = ended(&api, text(&created["id"])).await;
        let item = api.get(&item_path(&created, 0)).await;
        match refused {
            None => {
                assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{way:?}: {item:#}");
                carrying.check(&item);
                assert_eq!(carrying.placed().len(), 1);
            }
            Some((status, fault)) => {
                assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0], "{way:?}");
                assert_eq!(item["failureFault"], fault, "{way:?}: {item:#}");
                let reason = text(&item["failureReason"]);
                assert!(reason.contains(&status.to_string()), "{way:?}: {reason}");
                assert_eq!((carrying.placed().len(), item.get("results")), (0, None));
            }
        }
        carrying.assert_faultless();
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_placed_once_however_often_who_orders_it_is_killed() {
    let stand_in = StandIn::start().await;
    let mut server = Server::start(&stand_in, &[]).await;
    for way in WAYS {
        let carrying = Carrying::start(&server.api, way).await;
        carrying.auto(300);
        // The order is out and has no answer yet when the process dies; the call is placed all the same.
        carrying.placing(Placing::AcceptLate);
        let created = server.api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
        carrying
            .wait_for("the call", |carrying| carrying.placed().len() == 1)
            .await;
        server.kill_9();
        carrying.placing(Placing::Accept);
        server.restart().await;
        carrying.moved_to(&server.api.base);
        let api = &server.api;
        assert_eq!(
            counts(&ended(api, text(&created["id"])).await),
            [1, 1, 0, 0, 0, 0],
            "{way:?}"
        );
        assert_eq!(carrying.placed().len(), 1, "{way:?}: and only one");
        carrying.assert_faultless();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_canceled_is_hung_up_at_its_provider() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with_slots(&stand_in, 2).await;
    for way in WAYS {
        let carrying = Carrying::start(&api, way).await;
        carrying.manual();
        let created = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
        carrying
            .wait_for("the call", |carrying| carrying.placed().len() == 1)
            .await;
        let call = carrying.placed().remove(0);
        carrying.start_call(&call).await;
        until("the item to run", LONG, async || {
            let item = api.get(&item_path(&created, 0)).await;
            (item["status"] == "running").then_some(())
        })
        .await;
        api.patch(&format!("{RUNS}/{}", text(&created["id"]))).await;
        carrying
            .wait_for("the end of the call", |carrying| carrying.over() == 1)
            .await;
        // Its two slots are the only ones: the next call shows that they are free.
        carrying.auto(20);
        let next = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
        assert_eq!(
            counts(&ended(&api, text(&next["id"])).await),
            [1, 1, 0, 0, 0, 0],
            "{way:?}"
        );
        let done = ended(&api, text(&created["id"])).await;
        assert_eq!(counts(&done), [1, 0, 0, 0, 0, 1], "{way:?}");
        carrying.assert_faultless();
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_say_what_became_of_a_call() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    for way in WAYS {
        for auth in [Auth::Missing, Auth::Wrong] {
            let carrying = Carrying::start(&api, way).await;
            carrying.auth(auth);
            let created = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
            carrying
                .wait_for("refused webhooks", |carrying| {
                    carrying.over() == 1 && carrying.answers().len() >= 2
                })
                .await;
            let what = format!("{way:?}, {auth:?}");
            assert!(carrying.answers().iter().all(|&status| status == 401), "{what}");
            // What was really said, the provider says when it is asked.
            until("the call's id", LONG, async || {
                let item = api.get(&item_path(&created, 0)).await;
                item["callId"].is_string().then_some(())
            })
            .await;
            sweep(&local).await;
            let done = ended(&api, text(&created["id"])).await;
            assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{what}");
        }
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vapi_may_sign_with_a_credential_of_the_users() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let vapi = VapiStandIn::start().await;
    let base = json!({"provider": "vapi", "url": vapi.url(), "apiKey": vapi.key()});
    let with = |more: Value| {
        let mut body = base.clone();
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    // What Vapi has to sign, it needs a credential for.
    let hmac = json!({"scheme": "vapi-hmac", "algorithm": "sha512", "signaturePrefix": "sha512="});
    let (status, refused) = api
        .call(
            Method::POST,
            "/endpoint",
            Some(&with(json!({"signature": hmac, "secret": "s3cret"}))),
        )
        .await;
    assert_eq!(status, 400);
    assert!(
        text(&refused["message"]).contains("vapi.credentialId"),
        "{refused}"
    );
    let plan = HmacPlan {
        algorithm: crate::vapi::Algorithm::Sha512,
        signature_prefix: "sha512=".to_owned(),
        ..HmacPlan::new("s3cret")
    };
    vapi.credential("cred-hmac", Credential::Hmac(plan));
    vapi.credential(
        "cred-bearer",
        Credential::Bearer {
            token: "t0ken".to_owned(),
            header: "Authorization".to_owned(),
            prefix: true,
        },
    );
    for (credential, signature, secret) in [
        ("cred-hmac", hmac, "s3cret"),
        ("cred-bearer", json!({"scheme": "vapi-bearer"}), "t0ken"),
    ] {
        let endpoint = with(json!({
            "signature": signature, "secret": secret, "vapi": {"credentialId": credential},
        }));
        let endpoint = api.post("/endpoint", &endpoint).await;
        assert_eq!(endpoint["signature"]["scheme"], signature["scheme"]);
        assert_eq!(endpoint["secrets"][0].get("secret"), None, "who gave it has it");
        let carrying = Carrying {
            way: Way::Simulations,
            vapi: VapiStandIn::start().await,
            retell: RetellStandIn::start().await,
            endpoint,
        };
        let created = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
        let done = ended(&api, text(&created["id"])).await;
        assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{credential}");
        carrying.check(&api.get(&item_path(&created, 0)).await);
    }
    for run in vapi.runs() {
        assert!(
            !run.sent.is_empty() && run.sent.iter().all(|sent| sent.status == 200),
            "{run:?}"
        );
        let server = &run.body["simulations"][0]["scenario"]["hooks"][0]["do"][0]["server"];
        assert_eq!(
            server.get("headers"),
            None,
            "the secret is Vapi's already: {server}"
        );
    }
    assert_eq!(vapi.faults(), [""; 0]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_never_counted_against_the_agent() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    for (way, fields, fault) in [
        // In Vapi's simulations its assistant is the target, by phone the tester.
        (
            Way::Simulations,
            json!({"endedReason": "call.in-progress.error-vapifault-worker-died"}),
            "provider",
        ),
        (
            Way::Simulations,
            json!({"endedReason": "pipeline-error-openai-llm-failed"}),
            "target",
        ),
        (
            Way::Phone,
            json!({"endedReason": "pipeline-error-openai-llm-failed"}),
            "tester",
        ),
        (
            Way::Phone,
            json!({"endedReason": "customer-did-not-answer"}),
            "target",
        ),
        (
            Way::Phone,
            json!({"endedReason": "twilio-failed-to-connect-call"}),
            "provider",
        ),
        (
            Way::Phone,
            json!({"endedReason": "call.start.error-subscription-frozen"}),
            "ringback",
        ),
        (
            Way::Retell,
            json!({"disconnection_reason": "dial_no_answer"}),
            "target",
        ),
        (
            Way::Retell,
            json!({"disconnection_reason": "error_llm_websocket_open"}),
            "tester",
        ),
        (
            Way::Retell,
            json!({"disconnection_reason": "error_retell"}),
            "provider",
        ),
        (
            Way::Retell,
            json!({"disconnection_reason": "no_valid_payment"}),
            "ringback",
        ),
    ] {
        let carrying = Carrying::start(&api, way).await;
        match way {
            Way::Retell => carrying.retell.ended_with(fields.clone()),
            _ => carrying.vapi.ended_with(fields.clone()),
        }
        let created = api.post(RUNS, &carrying.batch(&stand_in, 1)).await;
        let done = ended(&api, text(&created["id"])).await;
        assert_eq!(counts(&done), [1, 0, 1, 0, 0, 0], "{way:?} {fields}");
        let item = api.get(&item_path(&created, 0)).await;
        assert_eq!(item["failureFault"], fault, "{way:?} {fields}: {item:#}");
        assert_eq!(item.get("results"), None, "{way:?} {fields}: it is not judged");
    }
    local.shutdown().await;
}

/// An assistant of which only Vapi knows.
fn elsewhere() -> Value {
    json!({
        "name": "Ada of the clinic", "firstMessage": "Clinic, this is Ada.",
        "server": {"url": "https://clinic.example.com/vapi", "headers": {"x-own": "very-secret"}},
        "model": {"provider": "openai", "model": "gpt-4o", "messages": [{"role": "system", "content": "You are Ada."}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assistant_that_only_vapi_knows_is_chatted_with_there() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let id = Uuid::now_v7().to_string();
    let target = json!({"type": "assistant", "assistantId": id});
    stand_in.judge("booked/booked", json!(true));
    let mut booked = scenario(
        "booked",
        3,
        json!([
            evaluation("booked", "boolean", "=", json!(true)),
            regex("answered", "(?m)^AI: Turn (\\d+)", "number", "=", json!(1)),
        ]),
    );
    booked["targetOverrides"] = json!({"variableValues": {"city": "Bern"}});
    let mut waits = personality("Wait");
    waits["assistant"]["firstMessageMode"] = json!("assistant-waits-for-user");
    let entries = |scenario: &Value| json!([inline(scenario, &personality("Pat")), inline(scenario, &waits)]);
    let body = run(entries(&booked), target.clone(), 2);

    // Without a credential nobody knows it.
    let (status, missing) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_eq!(
        (status, text(&missing["message"]).contains(&id)),
        (404, true),
        "{missing}"
    );
    let vapi = VapiStandIn::start().await;
    let endpoint = json!({"provider": "vapi", "url": vapi.url(), "apiKey": vapi.key()});
    let endpoint = api.post("/endpoint", &endpoint).await;
    let (status, missing) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_eq!(
        (status, text(&missing["message"]).contains(&id)),
        (404, true),
        "{missing}"
    );

    vapi.assistant(&id, elsewhere());
    vapi.chat_replies(|assistant, messages| {
        assert_eq!(assistant["name"], "Ada of the clinic");
        let users = messages.iter().filter(|message| message["role"] == "user").count();
        let answer = json!({"role": "assistant", "content": format!("Turn {users} by Ada.")});
        if users != 2 {
            return vec![answer];
        }
        let function = json!({"name": "book", "arguments": "{\"day\":\"Friday\"}"});
        vec![
            json!({"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}),
            json!({"role": "tool", "tool_call_id": "c1", "content": "booked for Friday"}),
            answer,
        ]
    });
    let created = api.post(RUNS, &body).await;
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [4, 4, 0, 0, 0, 0]);
    let all = items(&api, text(&created["id"]), 10).await;
    assert_items_valid(&all);
    for item in &all {
        let call = &item["metadata"]["call"];
        let messages = list(&call["messages"]);
        let roles: Vec<_> = messages.iter().map(|message| text(&message["role"])).collect();
        let place = roles.iter().position(|&role| role == "tool_calls").unwrap();
        assert_eq!(
            roles[place..place + 3],
            ["tool_calls", "tool_call_result", "assistant"],
            "{call:#}"
        );
        assert_eq!(messages[place + 1]["result"], "booked for Friday");
        assert_eq!(call["endedReason"], "customer-ended-call");
        // Who it was is shown, and its secrets are not.
        assert_eq!(item["metadata"]["assistant"]["name"], "Ada of the clinic");
        assert!(!item.to_string().contains("very-secret"));
        assert!(item["cost"].as_f64().unwrap() > 0.0, "{item:#}");
    }
    let chats = vapi.chats();
    // Of the turns that tester and target had, those of the target but its fixed first message are chats.
    assert!(chats.len() >= 12, "{}", chats.len());
    for chat in &chats {
        assert_eq!(
            chat.body["assistantOverrides"],
            json!({"variableValues": {"city": "Bern"}})
        );
    }
    assert!(chats.iter().any(|chat| chat.body.get("previousChatId").is_some()));

    // What cannot be done there is said before anything is.
    let mut mocked = booked.clone();
    mocked["toolMocks"] = json!([{"toolName": "book", "result": "ok"}]);
    let (status, refused) = api
        .call(
            Method::POST,
            RUNS,
            Some(&run(entries(&mocked), target.clone(), 1)),
        )
        .await;
    assert_eq!(
        (status, text(&refused["message"]).contains("toolMocks")),
        (400, true),
        "{refused}"
    );

    // Who has too much to do is asked when it says.
    vapi.placing(Placing::Busy {
        retry_after_seconds: 1,
        times: 1,
    });
    let created = api
        .post(RUNS, &run(json!([inline(&booked, &waits)]), target.clone(), 1))
        .await;
    assert_eq!(
        counts(&ended(&api, text(&created["id"])).await),
        [1, 1, 0, 0, 0, 0]
    );
    // A turn that may have been taken is not taken again: the assistant may have booked something in it.
    vapi.placing(Placing::AcceptWithoutAnswer);
    let before = vapi.chats().len();
    let created = api
        .post(RUNS, &run(json!([inline(&booked, &waits)]), target.clone(), 1))
        .await;
    assert_eq!(
        counts(&ended(&api, text(&created["id"])).await),
        [1, 0, 1, 0, 0, 0]
    );
    assert_eq!(vapi.chats().len(), before + 1);
    let item = api.get(&item_path(&created, 0)).await;
    assert_eq!(item["failureFault"], "provider", "{item:#}");
    // An outage of Vapi is nobody's failure but its own.
    vapi.placing(Placing::Refuse(400));
    let created = api
        .post(RUNS, &run(json!([inline(&booked, &waits)]), target.clone(), 1))
        .await;
    ended(&api, text(&created["id"])).await;
    let item = api.get(&item_path(&created, 0)).await;
    assert_eq!(
        (&item["status"], &item["failureFault"]),
        (&json!("failed"), &json!("provider")),
        "{item:#}"
    );
    vapi.placing(Placing::Accept);

    // By voice it is Vapi's as well, and named, not described.
    let created = api
        .post(RUNS, &by_voice(run(entries(&mocked), target, 1), &endpoint))
        .await;
    ended(&api, text(&created["id"])).await;
    let runs = vapi.runs();
    assert_eq!(runs.len(), 2);
    assert_eq!(
        runs[0].body["target"],
        json!({"type": "assistant", "assistantId": id})
    );
    assert_eq!(
        runs[0].body["simulations"][0]["scenario"]["toolMocks"][0]["result"],
        "ok"
    );
    assert_eq!(vapi.faults(), [""; 0]);
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_says_what_it_lacks_and_a_run_what_its_provider_cannot_do() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let retell = json!({"agentId": "agent_1", "fromNumber": "+15550100"});
    for (body, complaint) in [
        (json!({"provider": "vapi"}), "apiKey is required"),
        (json!({"provider": "retell", "apiKey": "k"}), "retell is required"),
        (
            json!({"provider": "retell", "apiKey": "k", "retell": {"agentId": "a", "fromNumber": "5550100"}}),
            "E.164",
        ),
        (
            json!({"provider": "retell", "retell": retell}),
            "apiKey is required",
        ),
        (
            json!({"provider": "vapi", "apiKey": "k", "vapi": {"calls": "phone"}}),
            "phoneNumberId",
        ),
        (
            json!({"provider": "vapi", "apiKey": "k", "vapi": {"calls": "fax"}}),
            "fax",
        ),
        (
            json!({"provider": "generic", "url": "http://p", "vapi": {}}),
            "vapi is for",
        ),
        (
            json!({"provider": "twilio", "url": "http://p"}),
            "secret is required",
        ),
        (
            json!({"provider": "telnyx", "url": "http://p", "secret": "short"}),
            "public key",
        ),
        (json!({"provider": "twilio"}), "url is required"),
        (json!({"provider": "nobody", "url": "http://p"}), "nobody"),
        (
            json!({"url": "http://p", "signature": {"scheme": "rot13"}}),
            "scheme must be one of",
        ),
        (
            json!({"url": "http://p", "signature": {"scheme": "retell", "window": 5}}),
            "window",
        ),
        (json!({"url": "http://p", "secret": "plain"}), "whsec_"),
        (
            json!({"url": "http://p", "signature": {"scheme": "custom", "signatureHeader": "x-s", "algorithm": "hmac-sha256", "template": "{timestamp}"}}),
            "{body}",
        ),
    ] {
        let (status, answer) = api.call(Method::POST, "/endpoint", Some(&body)).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(
            answer["message"].to_string().contains(complaint),
            "{body}: {answer}"
        );
    }
    // What the provider signs with is the key that it is asked with.
    let body = json!({"provider": "retell", "apiKey": "key_1", "retell": retell});
    let endpoint = api.post("/endpoint", &body).await;
    assert_eq!(endpoint["url"], "https://api.retellai.com");
    assert_eq!(endpoint["signature"], json!({"scheme": "retell"}));
    assert_eq!((&endpoint["secrets"], &endpoint["retell"]), (&json!([]), &retell));
    assert!(!endpoint.to_string().contains("key_1"));
    let path = format!("/endpoint/{}", text(&endpoint["id"]));
    let (status, answer) = api
        .call(Method::PATCH, &path, Some(&json!({"apiKey": null})))
        .await;
    assert_eq!(status, 400, "{answer}");
    let (status, changed) = api
        .call(
            Method::PATCH,
            &path,
            Some(&json!({"retell": {"agentId": "agent_2", "fromNumber": "+15550101"}})),
        )
        .await;
    assert_eq!(
        (status, &changed["retell"]["agentId"]),
        (200, &json!("agent_2")),
        "{changed}"
    );

    // Another signature for a provider of one's own: the secret of the old one counts no longer.
    let body = json!({"url": "http://127.0.0.1:9/calls", "name": "Own"});
    let own = api.post("/endpoint", &body).await;
    let path = format!("/endpoint/{}", text(&own["id"]));
    let custom = json!({
        "scheme": "custom", "signatureHeader": "x-own-signature", "algorithm": "hmac-sha256", "template": "{body}",
        "prefix": "sha256=",
    });
    let (status, changed) = api
        .call(Method::PATCH, &path, Some(&json!({"signature": custom})))
        .await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(changed["signature"]["signatureHeader"], "x-own-signature");
    let made = &changed["secrets"][0];
    assert_ne!(
        made["id"], own["secrets"][0]["id"],
        "what was made for one scheme is none of another"
    );
    assert!(
        made["secret"].is_string(),
        "and only this answer shows the new one: {changed}"
    );
    let (status, again) = api
        .call(Method::PATCH, &path, Some(&json!({"signature": custom})))
        .await;
    assert_eq!(
        (status, &again["secrets"][0]["id"]),
        (200, &made["id"]),
        "the same scheme"
    );
    let telnyx = json!({"scheme": "telnyx"});
    let (status, answer) = api
        .call(Method::PATCH, &path, Some(&json!({"signature": telnyx})))
        .await;
    assert_eq!(
        (status, text(&answer["message"]).contains("secret is required")),
        (400, true),
        "{answer}"
    );
    let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let public = json!({"signature": telnyx, "secret": key});
    let (status, _) = api.call(Method::PATCH, &path, Some(&public)).await;
    assert_eq!(status, 200);
    // A public key is known to all: it must not become what somebody else signs with.
    let bland = json!({"signature": {"scheme": "bland"}});
    let (status, answer) = api.call(Method::PATCH, &path, Some(&bland)).await;
    assert_eq!(
        (status, text(&answer["message"]).contains("secret is required")),
        (400, true),
        "{answer}"
    );
    let secret = format!("{path}/secret");
    let (status, answer) = api
        .call(Method::POST, &secret, Some(&json!({"secret": key})))
        .await;
    assert_eq!(
        (status, text(&answer["message"]).contains("already")),
        (400, true),
        "{answer}"
    );
    let (status, answer) = api
        .call(Method::PATCH, &path, Some(&json!({"provider": "vapi"})))
        .await;
    assert_eq!(
        (
            status,
            text(&answer["message"]).contains("provider cannot be changed")
        ),
        (400, true)
    );

    // A target without a number cannot be called.
    let carrying = Carrying::start(&api, Way::Retell).await;
    let mut body = carrying.batch(&stand_in, 1);
    body["transport"].as_object_mut().unwrap().remove("targetNumber");
    let (status, answer) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_eq!(
        (
            status,
            text(&answer["message"]).contains("transport.targetNumber")
        ),
        (400, true),
        "{answer}"
    );
    body["target"]["assistant"]["phoneNumber"] = json!(NUMBER);
    body["simulations"][0]["scenario"]["toolMocks"] = json!([{"toolName": "a", "result": "b"}]);
    let (status, answer) = api.call(Method::POST, RUNS, Some(&body)).await;
    assert_eq!(
        (status, text(&answer["message"]).contains("toolMocks")),
        (400, true),
        "{answer}"
    );
    body["simulations"][0]["scenario"]["toolMocks"][0]["enabled"] = json!(false);
    let created = api.post(RUNS, &body).await;
    assert_eq!(
        counts(&ended(&api, text(&created["id"])).await),
        [1, 1, 0, 0, 0, 0]
    );
    assert_eq!(carrying.retell.calls()[0].body["to_number"], NUMBER);
    // Again it is the same number, which is the assistant's own as it is now.
    let again = format!("{RUNS}/{}/rerun", text(&created["id"]));
    let again = api.post(&again, &json!({"items": "all"})).await;
    assert_eq!(counts(&ended(&api, text(&again["id"])).await), [1, 1, 0, 0, 0, 0]);
    assert_eq!(carrying.retell.calls()[1].body["to_number"], NUMBER);
    let mut other = body["target"].clone();
    other["assistant"]["phoneNumber"] = json!("+15550143");
    let again = format!("{RUNS}/{}/rerun", text(&created["id"]));
    let again = api.post(&again, &json!({"items": "all", "target": other})).await;
    ended(&api, text(&again["id"])).await;
    assert_eq!(
        carrying.retell.calls()[2].body["to_number"],
        "+15550143",
        "another target, another number"
    );
    // What the first request asked for is asked for again, but not of another target.
    body["transport"]["targetNumber"] = json!("+15550144");
    let created = api.post(RUNS, &body).await;
    ended(&api, text(&created["id"])).await;
    let path = format!("{RUNS}/{}/rerun", text(&created["id"]));
    for (rerun, number) in [
        (json!({"items": "all"}), "+15550144"),
        (json!({"items": "all", "target": other}), "+15550143"),
    ] {
        let again = api.post(&path, &rerun).await;
        ended(&api, text(&again["id"])).await;
        let calls = carrying.retell.calls();
        assert_eq!(calls.last().unwrap().body["to_number"], number);
    }
    carrying.assert_faultless();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_squad_of_stored_assistants_goes_to_vapi_whole_and_a_call_never_lasts_longer_than_it_may() {
    let stand_in = StandIn::start().await;
    let (local, api) = local_with(&stand_in, |options| {
        options
            .settings
            .insert("MAX_CALL_SECONDS".to_owned(), "90".to_owned());
    })
    .await;
    let carrying = Carrying::start(&api, Way::Simulations).await;
    let stored = api
        .post("/assistant", &assistant(&stand_in, "You run a clinic."))
        .await;
    let members = json!([{"assistantId": stored["id"]}, {"assistant": assistant(&stand_in, "You bill.")}]);
    let mut body = carrying.batch(&stand_in, 1);
    body["target"] = json!({"type": "squad", "squad": {"name": "Clinic", "members": members}});
    body["simulations"][0]["personality"]["assistant"]["maxDurationSeconds"] = json!(3600);
    let created = api.post(RUNS, &body).await;
    let done = ended(&api, text(&created["id"])).await;
    assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0]);
    let order = &carrying.vapi.runs()[0].body;
    let first = &order["target"]["squad"]["members"][0];
    assert_eq!(
        (first.get("assistantId"), &first["assistant"]["name"]),
        (None, &json!("Clinic")),
        "{first}"
    );
    let tester = &order["simulations"][0]["personality"]["assistant"];
    assert_eq!(tester["maxDurationSeconds"], 90);
    carrying.assert_faultless();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_never_calls_back_is_resolved_by_look_up_soon_after_its_deadline() {
    let stand_in = StandIn::start().await;
    // Nothing moves it forward but the program's own clock.
    let server = Server::start_with(&stand_in, &[], &[("MAX_CALL_SECONDS", "60")]).await;
    let api = &server.api;
    let mut runs = Vec::new();
    for way in WAYS {
        let carrying = Carrying::start(api, way).await;
        carrying.deliver(Delivery::Never);
        runs.push((api.post(RUNS, &carrying.batch(&stand_in, 1)).await, carrying));
    }
    let began = std::time::Instant::now();
    for (created, carrying) in &runs {
        let done = ended(api, text(&created["id"])).await;
        assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{:?}", carrying.way);
        assert!(carrying.answers().is_empty());
    }
    // Its longest duration, the time in which it may still be up, and a minute.
    assert!(
        began.elapsed() < Duration::from_secs(60 + 60 + 60),
        "{:?}",
        began.elapsed()
    );
}
/// How many webhooks the flood has. The full 10,000 are for an optimized program: `RINGBACK_WEBHOOKS=10000`, with
/// `RINGBACK_TEST_PROGRAM` naming it.
fn webhooks() -> usize {
    let wanted = std::env::var_os("RINGBACK_WEBHOOKS");
    wanted.map_or(520, |wanted| wanted.to_str().unwrap().parse().unwrap())
}

/// How many webhooks come in a second.
const PER_SECOND: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_webhooks_in_any_order_and_many_of_them_twice_makes_every_item_what_it_should_be() {
    let stand_in = StandIn::start().await;
    let provider = Arc::new(ProviderStandIn::start().await);
    let wanted = webhooks();
    // Of ten webhooks, three came before.
    let runs_of_ten = (wanted * 7 / 10 / 2).div_ceil(10);
    let calls = runs_of_ten * 10;
    let slots = (calls * 2).to_string();
    let server = Server::start_with(&stand_in, &[], &[("CALL_SLOTS", &slots)]).await;
    let api = &server.api;
    let endpoint = endpoint(api, &provider).await;
    let entries: Vec<Value> = (0..runs_of_ten)
        .map(|n| {
            // The verdict needs no model: it is in what is said, and differs from one simulation to the next.
            let heard = format!("caller \\d+ of flood{n}\\.");
            let evaluations = json!([regex("heard", &heard, "boolean", "=", json!(n % 5 != 0))]);
            inline(
                &scenario(&format!("flood{n}"), 2, evaluations),
                &personality("Pat"),
            )
        })
        .collect();
    let target = inline_target(&assistant(&stand_in, "You run a clinic."));
    let body = by_voice(run(json!(entries), target, 10), &endpoint);
    let created = api.post(RUNS, &body).await;
    let placed = provider
        .wait_for("all calls", |placed| placed.len() == calls)
        .await;

    // Both events of each call, and 30 of 70 of them once more, in an order that has nothing to do with theirs.
    let mut events: Vec<(String, bool)> = Vec::new();
    for call in &placed {
        provider.started_event(&call.id);
        provider.ended_event(&call.id);
        events.extend([(call.id.clone(), true), (call.id.clone(), false)]);
    }
    let again = events.len() * 3 / 7;
    let mut random = 42_u64;
    let mut below = |most: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(random >> 33).unwrap() % most
    };
    for n in 0..again {
        events.push(events[n * 2 % (calls * 2)].clone());
    }
    for n in (1..events.len()).rev() {
        events.swap(n, below(n + 1));
    }
    let mut pace = tokio::time::interval(Duration::from_millis(1000 / PER_SECOND));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sent = JoinSet::new();
    for (call, is_start) in events.clone() {
        pace.tick().await;
        let provider = Arc::clone(&provider);
        sent.spawn(async move {
            match is_start {
                true => provider.send_started(&call).await,
                false => provider.send_ended(&call).await,
            }
        });
    }
    let answers = sent.join_all().await;
    assert_eq!(answers.len(), events.len());
    assert!(
        answers.iter().all(|&answer| answer == 200),
        "{:?}",
        answers.iter().find(|&&answer| answer != 200)
    );

    let total = u64::try_from(calls).unwrap();
    let failed = u64::try_from(runs_of_ten.div_ceil(5) * 10).unwrap();
    let done = ended(api, text(&created["id"])).await;
    assert_eq!(counts(&done), [total, total - failed, failed, 0, 0, 0]);
    let of: BTreeMap<_, _> = placed
        .iter()
        .map(|call| (call.idempotency_key.as_str(), call.id.as_str()))
        .collect();
    let all = items(api, text(&created["id"]), 200).await;
    assert_eq!(all.len(), calls);
    for item in &all {
        let call = of[text(&item["id"])];
        let (begun, over) = (provider.started_event(call), provider.ended_event(call));
        let told = &item["metadata"]["call"];
        assert_eq!(item["startedAt"], begun["startedAt"], "{item:#}");
        for field in [
            "endedAt",
            "endedReason",
            "transcript",
            "messages",
            "recordingUrl",
            "cost",
        ] {
            assert_eq!(told[field], over[field], "{field} of {item:#}");
        }
        assert_eq!(told["providerCallId"], call);
        let heard = item["results"]["evaluations"][0]["extractedValue"].clone();
        assert_eq!(heard, json!(true), "{item:#}");
    }
    println!("{} webhooks about {calls} calls", events.len());
}

/// A fixture as it would come about `call`, for whose item the correlation value is `token`.
fn fixture(path: &str, ids: &[&str], call: &str, token: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/");
    let mut text = std::fs::read_to_string(format!("{folder}{path}")).unwrap();
    text = text.replace("rbc1.Zml4dHVyZQ.c2ln", token);
    // Telnyx has it in base64.
    let state = text.split("\"client_state\": \"").nth(1);
    if let Some(state) = state.and_then(|rest| rest.split('"').next()).map(str::to_owned) {
        let said = String::from_utf8(STANDARD.decode(&state).unwrap()).unwrap();
        let said = said.replace("rbc1.Zml4dHVyZQ.c2ln", token);
        text = text.replace(&state, &STANDARD.encode(said));
    }
    for id in ids {
        text = text.replace(id, call);
    }
    text.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_says_in_its_own_words_what_became_of_the_calls_that_a_bridge_places() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    // Who it is, what names a call in its fixtures, what it says (the last one ends the call), what of it does not matter, and what
    // was said then. Of those whose events have no words, the bridge is asked.
    let words_of_the_bridge = "AI: Answer 1 from the phone.";
    for (vendor, ids, said, ignored, words) in [
        (
            "elevenlabs",
            &["conv_fixture_1"][..],
            &["elevenlabs/post_call_transcription.json"][..],
            ("elevenlabs/post_call_audio.json", "post_call_audio"),
            "AI: ",
        ),
        (
            "bland",
            &["b1a9d000-0000-4000-8000-000000000001"],
            &["bland/post-call.json"],
            ("bland/queue.json", "queue"),
            "AI: ",
        ),
        (
            "twilio",
            &["CA00000000000000000000000000000005"],
            &["twilio/completed.json"],
            ("twilio/recording.json", ""),
            words_of_the_bridge,
        ),
        (
            "livekit",
            &["RM_fixture"],
            &["livekit/room_started.json", "livekit/room_finished.json"],
            ("livekit/participant_joined.json", "participant_joined"),
            words_of_the_bridge,
        ),
        (
            "telnyx",
            &["v3:fixture-control"],
            &["telnyx/call.answered.json", "telnyx/call.hangup.json"],
            ("telnyx/call.initiated.json", "call.initiated"),
            words_of_the_bridge,
        ),
    ] {
        let bridge = ProviderStandIn::start().await;
        let endpoint = json!({
            "provider": vendor, "url": bridge.url(), "signature": {"scheme": "standard-webhooks"},
        });
        let endpoint = api.post("/endpoint", &endpoint).await;
        bridge.set_secret(text(&endpoint["secrets"][0]["secret"]));
        let evaluations = json!([regex("said", "(?m)^AI: ", "boolean", "=", json!(true))]);
        let simulation = inline(&scenario("patient", 2, evaluations), &personality("Pat"));
        let target = inline_target(&assistant(&stand_in, "You run a clinic."));
        let body = by_voice(run(json!([simulation]), target, 1), &endpoint);
        let created = api.post(RUNS, &body).await;
        let call = bridge
            .wait_for("the call", |calls| calls.len() == 1)
            .await
            .remove(0);
        until("the call's id", LONG, async || {
            let item = api.get(&item_path(&created, 0)).await;
            item["callId"].is_string().then_some(())
        })
        .await;
        // By the bridge it is over before its vendor says so.
        bridge.started_event(&call.id);
        bridge.ended_event(&call.id);
        let url = text(&endpoint["webhooks"]["callEnded"]);
        let (path, kind) = ignored;
        if !kind.is_empty() {
            let body = fixture(path, ids, &call.id, &call.correlation);
            assert_eq!(bridge.deliver(url, body, Tamper::Nothing).await, 200, "{path}");
            let shown = api.get(&format!("/endpoint/{}", text(&endpoint["id"]))).await;
            assert_eq!(shown["ignoredEvents"], json!({kind: 1}), "{vendor}");
        }
        for path in said {
            let body = fixture(path, ids, &call.id, &call.correlation);
            assert_eq!(
                bridge.deliver(url, body.clone(), Tamper::ChangedByte).await,
                401,
                "{path}"
            );
            assert_eq!(bridge.deliver(url, body, Tamper::Nothing).await, 200, "{path}");
        }
        let done = ended(&api, text(&created["id"])).await;
        let item = api.get(&item_path(&created, 0)).await;
        assert_eq!(counts(&done), [1, 1, 0, 0, 0, 0], "{vendor}: {item:#}");
        let told = &item["metadata"]["call"];
        assert!(text(&told["transcript"]).contains(words), "{vendor}: {told:#}");
        assert_eq!(told["providerCallId"], call.id, "{vendor}");
        assert!(
            told["endedAt"].as_str().unwrap().starts_with("2026-11-22T17:00"),
            "{vendor}: the vendor's time: {told:#}"
        );
    }
    local.shutdown().await;
}

/// Those who verify for the providers are asked about the same signatures in `tests/clients/signatures.py`.
#[test]
fn what_the_stand_ins_sign_is_what_the_providers_own_libraries_are_asked_about() {
    let signed: Value = serde_json::from_str(include_str!("../fixtures/signed.json")).unwrap();
    let url = "http://127.0.0.1/hook".parse().unwrap();
    for (scheme, all) in signed.as_object().unwrap() {
        for one in list(all) {
            let (key, body) = (text(&one["key"]), text(&one["body"]).as_bytes());
            let at = one["at"].as_i64().unwrap();
            let headers = match scheme.as_str() {
                "retell" => vec![("x-retell-signature".to_owned(), signature(key, body, at))],
                "vapi-hmac" => HmacPlan::new(key).headers(&url, body, at, false),
                "standard-webhooks" => {
                    let id = text(&one["headers"][ID_HEADER]);
                    let signature = sign(&Secret::parse(key).unwrap(), id, at / 1000, body);
                    vec![
                        (ID_HEADER.to_owned(), id.to_owned()),
                        (TIMESTAMP_HEADER.to_owned(), (at / 1000).to_string()),
                        (SIGNATURE_HEADER.to_owned(), signature),
                    ]
                }
                other => panic!("nobody signs by {other}"),
            };
            let headers: BTreeMap<_, _> = headers.into_iter().collect();
            assert_eq!(json!(headers), one["headers"], "{scheme}");
        }
    }
}
