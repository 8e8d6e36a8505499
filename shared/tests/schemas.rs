//! The wire models against the published schemas: every property has a typed field, what is written is valid, and
//! nothing a client sends is lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::LazyLock;

use jsonschema::Validator;
use proptest::prelude::*;
use ringback_shared::models::eval::{
    ChatEvalMessage, CreateEval, CreateEvalRun, CreateEvalRunResponse, Eval, EvalRun, ToolArguments,
    UpdateEval,
};
use ringback_shared::models::evaluation::{CreateStructuredOutput, StructuredOutput, UpdateStructuredOutput};
use ringback_shared::models::page::{Page, PaginationMeta, SortOrder};
use ringback_shared::models::run::{
    CreateSimulationRun, CreateSimulationRunResponse, GenerateScenarios, GenerateScenariosResponse,
    ItemStatus, PaymentRequired, SimulationConcurrencyResponse, SimulationRun, SimulationRunEntry,
    SimulationRunItem, SimulationRunListItem,
};
use ringback_shared::models::simulation::{
    BackoffPlan, CreatePersonality, CreateScenario, CreateSimulation, CreateSimulationSuite, InUseConflict,
    Personality, Scenario, Server, Simulation, SimulationHook, SimulationHookEvent, SimulationSuite,
    UpdatePersonality, UpdateScenario, UpdateSimulation, UpdateSimulationSuite,
};
use ringback_shared::models::{Object, Validate, parse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

static CONTRACT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("schemas/contract.json")).unwrap());

const UUID: &str = "123e4567-e89b-42d3-a456-426614174000";
const TIME: &str = "2026-01-02T03:04:05.678Z";

/// A validator for one definition of the contract, changed by `adapt`.
fn validator(name: &str, adapt: impl FnOnce(&mut Value)) -> Validator {
    let mut schema = CONTRACT.clone();
    adapt(&mut schema["$defs"][name]);
    schema["$ref"] = json!(format!("#/$defs/{name}"));
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, value: &Value) {
    let faults: Vec<_> = validator
        .iter_errors(value)
        .map(|fault| format!("{fault} at {}", fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{faults:#?} in {value:#}");
}

/// Makes instances of the contract's definitions.
struct Sampler<'a> {
    /// Which optional properties an instance has.
    optional: &'a dyn Fn(usize) -> bool,
    /// Which value of an enum or variant of a union it takes, out of so many.
    choose: &'a dyn Fn(usize, usize) -> usize,
    /// Whether numbers are written with a fraction of zero.
    floats: bool,
    /// A property to add to every object.
    unknown: bool,
    /// Decisions taken so far.
    step: usize,
    /// Definitions under way, to end recursion.
    stack: Vec<String>,
}

impl<'a> Sampler<'a> {
    fn new(optional: &'a dyn Fn(usize) -> bool, choose: &'a dyn Fn(usize, usize) -> usize) -> Self {
        Self {
            optional,
            choose,
            floats: false,
            unknown: false,
            step: 0,
            stack: Vec::new(),
        }
    }

    fn choose<'s>(&mut self, among: &'s [Value]) -> &'s Value {
        self.step += 1;
        &among[(self.choose)(self.step, among.len()) % among.len()]
    }

    fn definition(&mut self, name: &str) -> Value {
        self.sample(&json!({ "$ref": format!("#/$defs/{name}") }))
    }

    fn sample(&mut self, schema: &Value) -> Value {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.trim_start_matches("#/$defs/").to_owned();
            self.stack.push(name.clone());
            let value = self.sample(&CONTRACT["$defs"][&name]);
            self.stack.pop();
            return value;
        }
        if let Some(among) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let among = self.choose(among).clone();
            let floats = self.floats;
            // A value of any type and the model of a structured output are kept as they were written.
            self.floats &= among["$ref"]
                .as_str()
                .is_some_and(|name| !name.contains("/Workflow"));
            let value = self.sample(&among);
            self.floats = floats;
            return value;
        }
        if let Some(among) = schema["enum"].as_array() {
            return self.choose(among).clone();
        }
        match schema["type"].as_str().or(schema["type"][0].as_str()) {
            Some("object") => self.object(schema),
            Some("array") => json!([self.sample(&schema["items"])]),
            Some("string") => match schema["format"].as_str() {
                Some("uuid") => json!(UUID),
                Some("date-time") => json!(TIME),
                Some("uri") => json!("https://example.test/run"),
                _ if schema["pattern"].is_string() => json!("team/feature"),
                _ => json!("text"),
            },
            Some("boolean") => json!(true),
            Some("null") => Value::Null,
            Some("number" | "integer") => {
                let number = schema["minimum"].as_i64().unwrap_or(0).max(3);
                let number = schema["maximum"].as_i64().map_or(number, |most| number.min(most));
                if self.floats && schema["type"].is_string() {
                    json!(f64::from(i32::try_from(number).unwrap()))
                } else {
                    json!(number)
                }
            }
            other => panic!("no sample for {other:?} in {schema}"),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let required: BTreeSet<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let recursive = self
            .stack
            .last()
            .is_some_and(|last| self.stack.iter().filter(|name| *name == last).count() > 1);
        let mut object = Object::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            self.step += 1;
            if required.contains(name.as_str()) || (!recursive && (self.optional)(self.step)) {
                object.insert(name.clone(), self.sample(property));
            }
        }
        if schema["properties"].is_null() {
            let content = &schema["additionalProperties"];
            let value = if content.is_object() && !recursive {
                self.sample(content)
            } else {
                json!({ "a": [1, 2.5] })
            };
            object.insert("key".into(), value);
        } else if self.unknown {
            object.insert("fromTheFuture".into(), json!({ "a": [1, null] }));
        }
        Value::Object(object)
    }
}

/// Checks one type against one definition. `minimal` are required properties that may yet be missing.
#[track_caller]
fn conforms_but<T>(name: &str, missing: &[&str])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let read = |value: &Value| {
        serde_json::from_value::<T>(value.clone())
            .unwrap_or_else(|fault| panic!("{name}: {fault} in {value:#}"))
    };
    let strict = validator(name, |_| {});
    for pick in 0..6 {
        let choose = |_: usize, _: usize| pick;
        // Every property set: each has a field of its own, and comes back.
        let full = Sampler::new(&|_| true, &choose).definition(name);
        assert_valid(&strict, &full);
        let value = read(&full);
        let written = serde_json::to_value(&value).unwrap();
        assert_valid(&strict, &written);
        assert_eq!(written, full, "{name}");
        let debug = format!("{value:?}");
        let unclaimed = debug
            .match_indices("extra: {")
            .find(|(at, text)| !debug[at + text.len()..].starts_with('}'));
        assert!(
            unclaimed.is_none(),
            "{name} lacks a field: {}",
            &debug[unclaimed.unwrap().0..]
        );

        // Whole numbers may be written as floats.
        let mut floats = Sampler::new(&|_| true, &choose);
        floats.floats = true;
        let floats = floats.definition(name);
        assert_eq!(read(&floats), value, "{name}");

        // What is not known is kept, at every level.
        let mut unknown = Sampler::new(&|_| true, &choose);
        unknown.unknown = true;
        let mut unknown = unknown.definition(name);
        if name.ends_with("PaginatedResponse") {
            // Pages are only ever written.
            unknown.as_object_mut().unwrap().remove("fromTheFuture");
        }
        assert_eq!(serde_json::to_value(read(&unknown)).unwrap(), unknown, "{name}");

        // Required properties only: what is written still has them all.
        let mut minimal = Sampler::new(&|_| false, &choose).definition(name);
        for field in missing {
            minimal.as_object_mut().unwrap().remove(*field);
        }
        let written = serde_json::to_value(read(&minimal)).unwrap();
        let relaxed = validator(name, |schema| {
            if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
                required.retain(|field| !missing.contains(&field.as_str().unwrap()));
            }
        });
        assert_valid(&relaxed, &written);
        assert_eq!(serde_json::to_value(read(&written)).unwrap(), written, "{name}");
    }
}

#[track_caller]
fn conforms<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str) {
    conforms_but::<T>(name, &[]);
}

#[test]
fn definitions_conform() {
    conforms::<CreatePersonality>("CreatePersonalityDTO");
    conforms::<UpdatePersonality>("UpdatePersonalityDTO");
    conforms::<Personality>("Personality");
    conforms::<CreateScenario>("CreateScenarioDTO");
    conforms::<UpdateScenario>("UpdateScenarioDTO");
    conforms::<Scenario>("Scenario");
    conforms::<CreateSimulation>("CreateSimulationDTO");
    conforms::<UpdateSimulation>("UpdateSimulationDTO");
    conforms::<Simulation>("Simulation");
    conforms::<CreateSimulationSuite>("CreateSimulationSuiteDTO");
    conforms::<UpdateSimulationSuite>("UpdateSimulationSuiteDTO");
    conforms::<SimulationSuite>("SimulationSuite");
    conforms::<InUseConflict>("ScenarioInUseConflictResponseDTO");
    conforms::<InUseConflict>("PersonalityInUseConflictResponseDTO");
    conforms::<PaginationMeta>("PaginationMeta");
}

#[test]
fn runs_conform() {
    conforms::<CreateSimulationRun>("CreateSimulationRunDTO");
    conforms::<CreateSimulationRunResponse>("CreateSimulationRunResponse");
    conforms::<SimulationRun>("SimulationRun");
    conforms::<SimulationRunListItem>("SimulationRunListItem");
    conforms::<Page<SimulationRunListItem>>("SimulationRunsPaginatedResponse");
    conforms::<SimulationRunItem>("SimulationRunItem");
    conforms::<SimulationConcurrencyResponse>("SimulationConcurrencyResponse");
    conforms::<PaymentRequired>("SimulationRunPaymentRequiredResponse");
    conforms::<GenerateScenarios>("GenerateScenariosDTO");
    conforms::<GenerateScenariosResponse>("GenerateScenariosResponse");
}

#[test]
fn evals_conform() {
    conforms::<CreateEval>("CreateEvalDTO");
    conforms::<UpdateEval>("UpdateEvalDTO");
    conforms::<Eval>("Eval");
    conforms::<CreateEvalRun>("CreateEvalRunDTO");
    conforms::<EvalRun>("EvalRun");
    conforms::<Page<Eval>>("EvalPaginatedResponse");
    conforms::<Page<EvalRun>>("EvalRunPaginatedResponse");
    // Before its end a run has neither a start nor an end to tell of.
    conforms_but::<EvalRun>("EvalRun", &["endedReason", "startedAt", "endedAt"]);
}

#[test]
fn structured_outputs_conform() {
    conforms::<CreateStructuredOutput>("CreateStructuredOutputDTO");
    conforms::<UpdateStructuredOutput>("UpdateStructuredOutputDTO");
    conforms::<StructuredOutput>("StructuredOutput");
    conforms::<Page<StructuredOutput>>("StructuredOutputPaginatedResponse");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any mixture of optional fields and variants comes back as it was.
    #[test]
    fn mixtures_round_trip(bits in proptest::collection::vec(any::<u8>(), 64)) {
        let optional = |step: usize| bits[step % bits.len()] & 1 == 1;
        let choose = |step: usize, of: usize| usize::from(bits[step % bits.len()] >> 1) % of;
        let mut sampler = Sampler::new(&optional, &choose);
        let item = sampler.definition("SimulationRunItem");
        let read: SimulationRunItem = serde_json::from_value(item).unwrap();
        let again = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        prop_assert_eq!(read, again);
        let run = sampler.definition("EvalRun");
        let read: EvalRun = serde_json::from_value(run).unwrap();
        let again = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        prop_assert_eq!(read, again);
    }

    /// Text of any kind is neither changed nor a reason to panic.
    #[test]
    fn any_text_survives(text in any::<String>()) {
        let message = json!({ "role": "assistant", "content": text, "toolCalls": [{ "name": text, "arguments": text }] });
        let read: ChatEvalMessage = serde_json::from_value(message.clone()).unwrap();
        read.validate("", &mut Vec::new());
        prop_assert_eq!(serde_json::to_value(read).unwrap(), message);
    }
}

#[test]
fn what_clients_leave_out_has_its_default() {
    let scenario: CreateScenario = serde_json::from_value(json!({
        "name": "n", "instructions": "i", "evaluations": [], "path": null, "targetOverrides": null,
        "toolMocks": [{ "toolName": "t" }, { "toolName": "u", "enabled": null }, { "toolName": "v", "enabled": false }],
        "hooks": [
            { "on": "call.started", "do": [{ "type": "webhook", "include": { "transcript": true, "messages": null } }] },
            { "on": "simulation.run.ended", "do": [] },
        ],
    }))
    .unwrap();
    let enabled: Vec<bool> = scenario
        .tool_mocks
        .as_ref()
        .unwrap()
        .iter()
        .map(|mock| mock.enabled)
        .collect();
    assert_eq!(enabled, [true, true, false]);
    let hooks: &[SimulationHook] = scenario.hooks.as_ref().unwrap();
    assert_eq!(hooks[0].on, SimulationHookEvent::Started);
    assert_eq!(
        serde_json::to_value(&hooks[0]).unwrap()["on"],
        "simulation.run.started"
    );
    let include = hooks[0].actions[0].include.as_ref().unwrap();
    assert!(include.transcript && !include.messages && !include.recording_url);
    assert_eq!(scenario.path, None);

    let run = json!({ "simulations": [], "target": { "type": "assistant", "assistantId": UUID } });
    let run: CreateSimulationRun = serde_json::from_value(run).unwrap();
    assert_eq!((run.iterations, run.transport), (1, None));
    let old: SimulationRunEntry =
        serde_json::from_value(json!({ "type": "simulationSuite", "suiteId": "s" })).unwrap();
    assert!(matches!(old, SimulationRunEntry::SimulationSuite(suite) if suite.suite() == Some("s")));

    let plan: BackoffPlan = serde_json::from_value(json!({ "excludedStatusCodes": [400, 404.0] })).unwrap();
    assert_eq!((plan.max_retries, plan.base_delay_seconds), (0, 0.0));
    assert!(plan.excludes(404) && !plan.excludes(500));

    let run: CreateEvalRun =
        serde_json::from_value(json!({ "evalId": "e", "target": { "type": "squad", "squadId": "s" } }))
            .unwrap();
    assert_eq!(serde_json::to_value(run).unwrap()["type"], "eval");
    assert_eq!(SortOrder::default(), SortOrder::Descending);
    assert_eq!("evaluating".parse(), Ok(ItemStatus::Evaluating));
    assert!("done".parse::<ItemStatus>().is_err());
}

#[test]
fn a_patch_tells_null_from_absent() {
    let read = |value| serde_json::from_value::<UpdateSimulation>(value).unwrap();
    assert_eq!(read(json!({})).path, None);
    assert_eq!(read(json!({ "path": null })).path, Some(None));
    assert_eq!(
        serde_json::to_value(read(json!({ "path": null }))).unwrap(),
        json!({ "path": null })
    );
}

#[test]
fn messages_are_told_apart_by_role_and_plan() {
    let kind = |value: Value| match serde_json::from_value::<ChatEvalMessage>(value) {
        Ok(ChatEvalMessage::User(_)) => "user",
        Ok(ChatEvalMessage::System(_)) => "system",
        Ok(ChatEvalMessage::Assistant(_)) => "assistant",
        Ok(ChatEvalMessage::Tool(_)) => "tool",
        Ok(ChatEvalMessage::AssistantEvaluation(_)) => "assistant checkpoint",
        Ok(ChatEvalMessage::ToolEvaluation(_)) => "tool checkpoint",
        Err(_) => "fault",
    };
    let plan = json!({ "type": "regex", "toolCalls": [{ "name": "t" }] });
    for (message, expected) in [
        (json!({ "role": "user", "content": "" }), "user"),
        (json!({ "role": "system", "content": "s" }), "system"),
        (json!({ "role": "assistant", "content": "a" }), "assistant"),
        (
            json!({ "role": "assistant", "content": "a", "judge": { "status": "fail", "failureReason": "r" } }),
            "assistant",
        ),
        (json!({ "role": "assistant", "judgePlan": null }), "assistant"),
        (json!({ "role": "tool", "content": "t" }), "tool"),
        (
            json!({ "role": "assistant", "judgePlan": plan }),
            "assistant checkpoint",
        ),
        (
            json!({ "role": "tool", "judgePlan": { "type": "ai" } }),
            "tool checkpoint",
        ),
        (json!({ "role": "user" }), "fault"),
        (json!({ "role": "narrator", "content": "" }), "fault"),
        (json!({ "content": "" }), "fault"),
    ] {
        assert_eq!(kind(message.clone()), expected, "{message}");
    }
    let text = ToolArguments::Text(r#"{"city": "Delft"}"#.into());
    assert_eq!(text.to_object().unwrap()["city"], "Delft");
    assert_eq!(ToolArguments::Text("Delft".into()).to_object(), None);

    let run = json!({
        "id": "1", "orgId": "o", "createdAt": TIME, "status": "queued",
        "target": { "type": "assistant", "assistantId": "a" }, "evalRunId": "1", "workflowId": "w",
    });
    let run: CreateEvalRunResponse = serde_json::from_value(run).unwrap();
    assert!(run.run.extra.is_empty());
    assert_eq!(run.workflow_id, "w");
}

#[track_caller]
fn faults<T: DeserializeOwned + Validate + Debug>(value: Value) -> String {
    parse::<T>(value).map_or_else(|fault| fault.to_string(), |_| String::new())
}

#[test]
fn faults_begin_with_their_path() {
    let scenario = |more: Value| {
        let mut value = json!({ "name": "n", "instructions": "i", "evaluations": [] });
        value
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        faults::<CreateScenario>(value)
    };
    let long = |n| "é".repeat(n);
    assert_eq!(scenario(json!({ "name": long(80) })), "");
    assert_eq!(
        scenario(json!({ "name": long(81) })),
        "name must be shorter than or equal to 80 characters"
    );
    assert!(scenario(json!({ "instructions": long(10_001) })).starts_with("instructions must be shorter"));
    assert!(scenario(json!({ "path": "a/b/c/d" })).starts_with("path must be"));
    assert_eq!(scenario(json!({ "unmockedTools": "run" })), "");
    assert!(scenario(json!({ "unmockedTools": "maybe" })).starts_with("unmockedTools: "));
    let server =
        json!({ "timeoutSeconds": 301, "backoffPlan": { "maxRetries": 11, "baseDelaySeconds": -0.5 } });
    let hooks = json!([{ "on": "simulation.run.ended", "do": [{ "type": "webhook", "server": server }] }]);
    assert_eq!(
        scenario(json!({ "hooks": hooks })),
        "hooks.0.do.0.server.timeoutSeconds must be between 1 and 300; \
         hooks.0.do.0.server.backoffPlan.maxRetries must be between 0 and 10; \
         hooks.0.do.0.server.backoffPlan.baseDelaySeconds must be between 0 and 10"
    );
    assert_eq!(faults::<Server>(json!({ "timeoutSeconds": 20.0 })), "");
    assert_eq!(
        faults::<CreateSimulation>(json!({ "scenarioId": "s", "personalityId": UUID })),
        "scenarioId must be a UUID"
    );
    assert_eq!(
        faults::<CreatePersonality>(json!({ "name": "n", "assistant": { "name": long(41) } })),
        "assistant.name must be shorter than or equal to 40 characters"
    );
    let suite = json!({ "name": "n", "simulationIds": [], "targetAssignments": [{ "targetType": "squad", "targetId": "x" }] });
    assert_eq!(
        faults::<CreateSimulationSuite>(suite),
        "targetAssignments.0.targetId must be a UUID"
    );
    assert_eq!(
        faults::<UpdatePersonality>(json!({ "name": long(81), "path": "/" }))
            .matches(" must be ")
            .count(),
        2
    );
}

#[test]
fn runs_name_each_part_once() {
    let target = json!({ "type": "assistant", "assistantId": UUID });
    let entry =
        |entry: Value| faults::<CreateSimulationRun>(json!({ "simulations": [entry], "target": target }));
    let scenario = json!({ "name": "n", "instructions": "i", "evaluations": [] });
    // A stored simulation wins over whatever else is there.
    assert_eq!(
        entry(json!({ "type": "simulation", "simulationId": UUID, "scenarioId": "x", "scenario": scenario })),
        ""
    );
    assert_eq!(
        entry(json!({ "type": "simulation", "scenario": scenario, "personalityId": UUID })),
        ""
    );
    assert_eq!(
        entry(
            json!({ "type": "simulation", "scenarioId": UUID, "scenario": scenario, "personalityId": UUID })
        ),
        "simulations.0.scenarioId cannot be combined with scenario"
    );
    assert_eq!(
        entry(json!({ "type": "simulation", "scenarioId": UUID })),
        "simulations.0.personalityId or personality must be given"
    );
    assert_eq!(
        entry(json!({ "type": "simulationSuite", "suiteId": "older" })),
        ""
    );
    assert_eq!(
        entry(json!({ "type": "simulationSuite" })),
        "simulations.0.simulationSuiteId must be given"
    );
    assert_eq!(
        entry(json!({ "type": "other" })),
        "simulations[0]: type must be one of the following values: simulation, simulationSuite"
    );
    let broken = entry(json!({ "type": "simulation", "scenario": { "name": 1 } }));
    assert!(
        broken.starts_with("simulations[0]: scenario.name: invalid type"),
        "{broken}"
    );

    let target = |target: Value| {
        faults::<CreateSimulationRun>(
            json!({ "simulations": [{ "type": "simulation", "simulationId": UUID }], "target": target, "iterations": 0.0 }),
        )
    };
    assert_eq!(
        target(json!({ "type": "squad", "squadId": UUID, "squad": { "members": [{ "assistant": {} }] } })),
        "target.squadId cannot be combined with squad; iterations must not be less than 1"
    );
    assert!(
        target(json!({ "type": "assistant" })).starts_with("target.assistantId or assistant must be given")
    );
    assert!(
        target(json!({ "type": "squad", "squad": { "members": [{ "assistantId": "x" }] } }))
            .starts_with("target.squad.members.0.assistantId must be a UUID")
    );
    assert!(
        faults::<CreateSimulationRun>(
            json!({ "simulations": [], "target": { "type": "squad", "squadId": UUID } })
        )
        .starts_with("simulations should not be empty")
    );
    assert_eq!(
        faults::<GenerateScenarios>(json!({})),
        "assistantId or squadId must be given"
    );
}

#[test]
fn evals_are_checked() {
    let checkpoint = |plan: Value| {
        faults::<CreateEval>(json!({ "messages": [{ "role": "assistant", "judgePlan": plan }] }))
    };
    assert_eq!(
        checkpoint(json!({ "type": "exact", "toolCalls": [{ "name": "t" }] })),
        ""
    );
    assert_eq!(
        checkpoint(json!({ "type": "exact", "toolCalls": [] })),
        "messages.0.judgePlan.content or toolCalls must be given"
    );
    assert!(
        checkpoint(json!({ "type": "regex", "content": "x".repeat(1001) }))
            .starts_with("messages.0.judgePlan.content")
    );
    assert_eq!(checkpoint(json!({ "type": "ai" })), "");
    let model = json!({ "provider": "custom-llm", "model": "m", "temperature": 2.5, "maxTokens": 49.0, "timeoutSeconds": 5 });
    assert_eq!(
        checkpoint(json!({ "type": "ai", "model": model })),
        "messages.0.judgePlan.model.temperature must be between 0 and 2; \
         messages.0.judgePlan.model.maxTokens must be between 50 and 10000; \
         messages.0.judgePlan.model.url must be given; \
         messages.0.judgePlan.model.timeoutSeconds must be between 20 and 600"
    );
    let thinking = json!({ "type": "enabled", "budgetTokens": 2000 });
    let model = json!({ "provider": "anthropic", "model": "m", "maxTokens": 2000, "thinking": thinking });
    assert_eq!(
        checkpoint(json!({ "type": "ai", "model": model })),
        "messages.0.judgePlan.model.maxTokens must be greater than thinking.budgetTokens"
    );
    let tool = json!({ "messages": [{ "role": "tool", "judgePlan": { "type": "exact", "content": "c" } }] });
    assert_eq!(
        faults::<CreateEval>(tool),
        "messages.0.judgePlan.type must be ai for a tool's answer"
    );
    assert_eq!(
        faults::<UpdateEval>(json!({ "name": "" })),
        "name must be between 1 and 80 characters"
    );
    assert!(
        faults::<UpdateEval>(json!({ "description": "x".repeat(501) })).starts_with("description must be")
    );
    let call =
        json!({ "messages": [{ "role": "assistant", "toolCalls": [{ "name": "t", "arguments": "no" }] }] });
    assert_eq!(
        faults::<CreateEval>(call),
        "messages.0.toolCalls.0.arguments must be an object"
    );
    let target = json!({ "type": "assistant", "assistant": {} });
    assert_eq!(
        faults::<CreateEvalRun>(json!({ "target": target })),
        "evalId or eval must be given"
    );
}
