//! The description of the API: it is what the code says, and what the server answers is what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use jsonschema::Validator;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{PERSONALITY, SCENARIO, SIMULATION, UNKNOWN},
    docs::{code, paper, table},
    fixtures::{LONG, RUNS, batch, ended, items, list, text},
    server::{Api, local, program, until},
    stand_in::StandIn,
};

const EVAL_RUNS: &str = "/eval/run";

/// What the server says of itself.
struct Description {
    document: Value,
}

impl Description {
    async fn read(api: &Api) -> Self {
        Self {
            document: api.get("/openapi.json").await,
        }
    }

    /// The operations that are the API's own: path, method and what is said about it.
    fn operations(&self) -> Vec<(String, Method, Value)> {
        let mut all = Vec::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            // Webhooks have functions of their own.
            if path.starts_with("/hooks/") {
                continue;
            }
            for (method, operation) in methods.as_object().unwrap() {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                all.push((path.clone(), method, operation.clone()));
            }
        }
        all
    }

    /// A validator for a schema that may refer to the others.
    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .unwrap()
    }

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.document.pointer(reference.trim_start_matches('#')).unwrap(),
            None => value,
        }
    }

    /// This answer of this operation is one that is described.
    #[track_caller]
    fn assert_answers(&self, path: &str, method: &Method, status: u16, body: &Value) {
        let name = method.as_str().to_lowercase();
        let operation = &self.document["paths"][path][&name];
        let response = &operation["responses"][status.to_string()];
        assert!(
            response.is_object(),
            "{method} {path} answers {status}, which is not described: {body:#}"
        );
        let schema = &self.resolved(response)["content"]["application/json"]["schema"];
        assert_fits(
            &self.validator(schema),
            &format!("{method} {path}: {status}"),
            body,
        );
    }

    fn example(&self, path: &str, method: &Method) -> Option<&Value> {
        let name = method.as_str().to_lowercase();
        self.document["paths"][path][&name]
            .pointer("/requestBody/content/application~1json/examples/example/value")
    }
}

#[track_caller]
fn assert_fits(validator: &Validator, what: &str, value: &Value) {
    let faults: Vec<_> = validator
        .iter_errors(value)
        .map(|fault| format!("{fault} at {}", fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{what}: {faults:#?} in {value:#}");
}

/// The path with ids that nobody has.
fn unknown(path: &str) -> String {
    let segment = |segment: &str| {
        if segment.starts_with('{') {
            UNKNOWN.to_owned()
        } else {
            segment.to_owned()
        }
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// An example's agent is nobody's: the stand-in is asked instead.
fn here(stand_in: &StandIn, body: &Value) -> Value {
    let text = body
        .to_string()
        .replace("https://agent.example.com/v1", &stand_in.target_url());
    serde_json::from_str(&text).unwrap()
}

fn committed() -> Value {
    serde_json::from_str(&paper("functions/api/openapi.json")).unwrap()
}

#[test]
fn the_committed_description_is_what_the_program_writes() {
    let output = Command::new(program()).arg("openapi").output().unwrap();
    assert!(output.status.success());
    let written: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        written == committed(),
        "functions/api/openapi.json is out of date; write it anew:\n\
         cargo run -- openapi > functions/api/openapi.json"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_description_is_served_to_everybody() {
    let (local, api) = local(&StandIn::start().await).await;
    let nobody = Api {
        key: None,
        ..api.clone()
    };
    let answer = nobody.request(Method::GET, "/openapi.json").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/json"), "{kind}");
    let served: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(served, committed());
    assert_eq!(served["openapi"], "3.1.0");
    for path in ["/openapi.json", "/health"] {
        let refused = nobody.request(Method::POST, path).send().await.unwrap();
        assert_eq!(refused.status(), 405, "{path}");
        assert_eq!(refused.headers()["allow"], "GET", "{path}");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_served_as_described() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let nobody = Api {
        key: None,
        ..api.clone()
    };
    let description = Description::read(&api).await;
    let operations = description.operations();
    assert!(operations.len() > 40, "only {} operations", operations.len());
    let mut methods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, method, operation) in &operations {
        methods.entry(path).or_default().insert(method.as_str());
        let body = operation.get("requestBody").map(|taken| {
            let schema = &taken["content"]["application/json"]["schema"];
            match description.example(path, method) {
                Some(example) => {
                    assert_fits(&description.validator(schema), path, example);
                    here(&stand_in, example)
                }
                None => json!({}),
            }
        });
        let (status, answer) = api.call(method.clone(), &unknown(path), body.as_ref()).await;
        assert!(
            !answer["message"].to_string().starts_with("\"Cannot "),
            "{method} {path}: {status} {answer}"
        );
        description.assert_answers(path, method, status, &answer);
        // A body that works as it stands; only what it names by id is not there.
        if description.example(path, method).is_some() && path != SIMULATION && !path.contains('{') {
            assert_eq!(status, 201, "{path}: {answer:#}");
        }
        if operation["security"] == json!([]) {
            continue;
        }
        let refused = nobody
            .request(method.clone(), &unknown(path))
            .send()
            .await
            .unwrap();
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        let status = refused.status().as_u16();
        let answer: Value = serde_json::from_slice(&refused.bytes().await.unwrap()).unwrap();
        assert_eq!(status, 401, "{method} {path}");
        description.assert_answers(path, method, status, &answer);
    }
    for (path, methods) in methods {
        let refused = api.request(Method::PUT, &unknown(path)).send().await.unwrap();
        assert_eq!(refused.status(), 405, "PUT {path}");
        let allowed = refused.headers()["allow"].to_str().unwrap();
        let allowed: BTreeSet<&str> = allowed.split(", ").collect();
        assert_eq!(allowed, methods, "{path}");
    }
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_about_things_that_are_there_is_as_described() {
    let stand_in = StandIn::start().await;
    let (local, api) = local(&stand_in).await;
    let description = Description::read(&api).await;
    // A run of everything there is, to its end.
    let created = api.post(RUNS, &batch(&api, &stand_in, 2).await).await;
    description.assert_answers(RUNS, &Method::POST, 201, &created);
    let run = text(&created["id"]);
    let done = ended(&api, run).await;
    description.assert_answers(&format!("{RUNS}/{{id}}"), &Method::GET, 200, &done);
    for item in items(&api, run, 10).await {
        let path = format!("{RUNS}/{run}/item/{}", text(&item["id"]));
        let one = api.get(&path).await;
        description.assert_answers(&format!("{RUNS}/{{id}}/item/{{itemId}}"), &Method::GET, 200, &one);
    }
    let cancel = api.call(Method::PATCH, &format!("{RUNS}/{run}"), None).await;
    description.assert_answers(&format!("{RUNS}/{{id}}"), &Method::PATCH, cancel.0, &cancel.1);

    // One of each, read, changed, listed in both shapes, and deleted.
    for (path, method, _) in description.operations() {
        let Some(example) = description
            .example(&path, &method)
            .filter(|_| path != RUNS && path != EVAL_RUNS && !path.contains('{'))
        else {
            continue;
        };
        let mut body = here(&stand_in, example);
        if path == SIMULATION {
            body["scenarioId"] = list(&api.get(SCENARIO).await)[0]["id"].clone();
        }
        let made = api.post(&path, &body).await;
        description.assert_answers(&path, &method, 201, &made);
        let template = format!("{path}/{{id}}");
        let one = format!("{path}/{}", text(&made["id"]));
        let change = json!({"name": "Changed"});
        for (method, body) in [
            (Method::GET, None),
            (Method::PATCH, Some(&change)),
            (Method::DELETE, None),
        ] {
            for query in ["", "?limit=1", "?limit=0&sortOrder=ASC", "?page=2&limit=1"] {
                let listed = api.get(&format!("{path}{query}")).await;
                description.assert_answers(&path, &Method::GET, 200, &listed);
            }
            let (status, answer) = api.call(method.clone(), &one, body).await;
            assert_eq!(status, 200, "{method} {one}: {answer:#}");
            description.assert_answers(&template, &method, 200, &answer);
        }
        let refused = api.call(Method::GET, &format!("{path}?limit=x"), None).await;
        description.assert_answers(&path, &Method::GET, refused.0, &refused.1);
        let refused = api.call(Method::POST, &path, Some(&json!({"name": 1}))).await;
        assert_eq!(refused.0, 400);
        description.assert_answers(&path, &method, 400, &refused.1);
    }
    // A run of an eval, which cannot be canceled after its end.
    let example = description.example(EVAL_RUNS, &Method::POST).unwrap();
    let made = api.post(EVAL_RUNS, &here(&stand_in, example)).await;
    description.assert_answers(EVAL_RUNS, &Method::POST, 201, &made);
    let (template, one) = (
        format!("{EVAL_RUNS}/{{id}}"),
        format!("{EVAL_RUNS}/{}", text(&made["id"])),
    );
    until("the run of the eval to end", LONG, async || {
        let run = api.get(&one).await;
        description.assert_answers(&template, &Method::GET, 200, &run);
        (run["status"] == "ended").then_some(())
    })
    .await;
    let canceled = api.call(Method::PATCH, &one, None).await;
    assert_eq!(canceled.0, 400);
    description.assert_answers(&template, &Method::PATCH, canceled.0, &canceled.1);
    description.assert_answers(EVAL_RUNS, &Method::GET, 200, &api.get(EVAL_RUNS).await);
    description.assert_answers(&template, &Method::DELETE, 200, &api.delete(&one).await);

    for path in [RUNS.to_owned(), format!("{RUNS}/{run}/item")] {
        for query in ["", "?limit=1", "?limit=1&page=9"] {
            let listed = api.get(&format!("{path}{query}")).await;
            description.assert_answers(&path.replace(run, "{id}"), &Method::GET, 200, &listed);
        }
    }
    // What is built in has no organization, and what is used cannot be deleted.
    let personalities = api.get(PERSONALITY).await;
    assert!(list(&personalities).iter().any(|one| one["orgId"].is_null()));
    description.assert_answers(PERSONALITY, &Method::GET, 200, &personalities);
    let simulations = api.get(SIMULATION).await;
    let used = format!("{SCENARIO}/{}", text(&simulations[0]["scenarioId"]));
    let (status, answer) = api.call(Method::DELETE, &used, None).await;
    assert_eq!(status, 409);
    description.assert_answers(&format!("{SCENARIO}/{{id}}"), &Method::DELETE, 409, &answer);

    // Secrets.
    let endpoint = json!({"url": "https://calls.example.com/v1", "apiKey": "k"});
    let endpoint = api.post("/endpoint", &endpoint).await;
    description.assert_answers("/endpoint", &Method::POST, 201, &endpoint);
    let one = format!("/endpoint/{}", text(&endpoint["id"]));
    let two = api.post(&format!("{one}/secret"), &json!({})).await;
    description.assert_answers("/endpoint/{id}/secret", &Method::POST, 201, &two);
    let first = format!("{one}/secret/{}", text(&two["secrets"][0]["id"]));
    description.assert_answers(
        "/endpoint/{id}/secret/{secretId}",
        &Method::DELETE,
        200,
        &api.delete(&first).await,
    );
    let hooks = api.post("/hook/secret", &json!({})).await;
    description.assert_answers("/hook/secret", &Method::POST, 201, &hooks);
    description.assert_answers("/hook/secret", &Method::GET, 200, &api.get("/hook/secret").await);
    local.shutdown().await;
}

#[test]
fn the_readme_and_the_description_name_the_same_paths() {
    let named: BTreeSet<String> = table(&paper("README.md"), "path")
        .iter()
        .flat_map(|row| code(&row[0]))
        .filter(|text| text.starts_with('/'))
        .collect();
    let document = committed();
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|path| !path.starts_with("/hooks/"))
        .cloned()
        .collect();
    assert_eq!(named, described);
}
