//! `template.yaml` and the code must agree: what is deployed is never run by the other tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use ringback_local::{
    drivers::StreamMapping,
    emulator::{Emulator, Storage},
};
use ringback_shared::{
    config::{Config, ConfigError},
    provider::Webhooks,
    store::{
        EventHead, RunHead, RunOwed,
        schema::{self, DUE_INDEX},
    },
};
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// What a function may ask AWS for, besides the lines that all of them log.
const ACTIONS: &[(&str, &[&str])] = &[
    (
        "api",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:CreateSecret",
            "secretsmanager:GetSecretValue",
        ],
    ),
    (
        "api-secrets",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:CreateSecret",
            "secretsmanager:DeleteSecret",
            "secretsmanager:GetSecretValue",
            "secretsmanager:PutSecretValue",
        ],
    ),
    (
        "cekura",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:CreateSecret",
            "secretsmanager:GetSecretValue",
            "secretsmanager:PutSecretValue",
        ],
    ),
    (
        "sigmamind",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:CreateSecret",
            "secretsmanager:GetSecretValue",
            "secretsmanager:PutSecretValue",
        ],
    ),
    (
        "call-started",
        &[
            "dynamodb:BatchWriteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:UpdateItem",
            "secretsmanager:GetSecretValue",
        ],
    ),
    (
        "call-ended",
        &[
            "dynamodb:BatchWriteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:UpdateItem",
            "secretsmanager:GetSecretValue",
        ],
    ),
    (
        "relay",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:ConditionCheckItem",
            "dynamodb:DeleteItem",
            "dynamodb:DescribeStream",
            "dynamodb:GetItem",
            "dynamodb:GetRecords",
            "dynamodb:GetShardIterator",
            "dynamodb:ListStreams",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "sqs:SendMessage",
        ],
    ),
    (
        "start-item",
        &[
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:GetSecretValue",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:SendMessage",
        ],
    ),
    (
        "evaluate",
        &[
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:GetSecretValue",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:SendMessage",
        ],
    ),
    (
        "deliver",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "secretsmanager:GetSecretValue",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:SendMessage",
        ],
    ),
    (
        "sweep",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:ConditionCheckItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "sqs:GetQueueAttributes",
            "sqs:SendMessage",
        ],
    ),
    (
        "schedule",
        &[
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "secretsmanager:CreateSecret",
            "secretsmanager:GetSecretValue",
        ],
    ),
];

/// Which variables a function reads besides those that none starts without.
const VARIABLES: &[(&str, &[&str])] = &[
    ("api", &["CALL_SLOTS", "MAX_ITERATIONS", "ALLOW_PRIVATE_TARGETS"]),
    (
        "api-secrets",
        &[
            "OPENAI_BASE_URL",
            "OPENAI_API_KEY",
            "RINGBACK_MODEL",
            "MAX_ITERATIONS",
            "ALLOW_PRIVATE_TARGETS",
            "MODEL_PRICES",
        ],
    ),
    ("cekura", &["MAX_ITERATIONS", "ALLOW_PRIVATE_TARGETS"]),
    ("sigmamind", &["MAX_ITERATIONS", "ALLOW_PRIVATE_TARGETS"]),
    ("call-started", &[]),
    ("call-ended", &[]),
    ("relay", &["CALL_SLOTS"]),
    (
        "start-item",
        &[
            "OPENAI_BASE_URL",
            "OPENAI_API_KEY",
            "RINGBACK_MODEL",
            "MODEL_TIMEOUT_SECONDS",
            "ALLOW_PRIVATE_TARGETS",
            "MAX_TURNS",
            "MAX_CONVERSATION_SECONDS",
            "MAX_CALL_SECONDS",
            "SLICE_SECONDS",
            "MODEL_PRICES",
            "RECORD_CONCURRENCY",
            "DEAD_LETTERS_QUEUE_URL",
        ],
    ),
    (
        "evaluate",
        &[
            "OPENAI_BASE_URL",
            "OPENAI_API_KEY",
            "RINGBACK_MODEL",
            "MODEL_TIMEOUT_SECONDS",
            "ALLOW_PRIVATE_TARGETS",
            "MODEL_PRICES",
            "RECORD_CONCURRENCY",
            "DEAD_LETTERS_QUEUE_URL",
        ],
    ),
    (
        "deliver",
        &[
            "ALLOW_PRIVATE_TARGETS",
            "RECORD_CONCURRENCY",
            "DEAD_LETTERS_QUEUE_URL",
        ],
    ),
    ("sweep", &["CALL_SLOTS"]),
    ("schedule", &["MAX_ITERATIONS", "ALLOW_PRIVATE_TARGETS"]),
];

/// What only a deployment knows, of what a function starts without: there is no default to compare it with.
const DEPLOYED: &[&str] = &["STACK_NAME", "DEAD_LETTERS_QUEUE_URL"];

/// The metrics that the code writes, in the namespace `Ringback`: each by the stack, and most by one more dimension with these
/// values.
const METRICS: &[(&str, &str, &[&str])] = &[
    (
        "ItemsEnded",
        "Verdict",
        &["passed", "failed", "faulted", "canceled"],
    ),
    (
        "TimeInState",
        "State",
        &["queued", "admitted", "running", "evaluating"],
    ),
    ("ModelLatency", "Role", &["tester", "target", "judge", "writer"]),
    ("WebhooksRefused", "", &[]),
    ("Quarantined", "", &[]),
    ("Cost", "", &[]),
];

/// Fourteen days: the longest that SQS keeps a message.
const LONGEST_RETENTION: u64 = 1_209_600;

/// The longest that a hook may ask to be waited for, in seconds.
const LONGEST_HOOK: u64 = 300;

/// The most filters that a mapping may have.
const MOST_FILTERS: usize = 5;

// --- Reading it -------------------------------------------------------------------------------------------------------

/// Reads YAML into JSON; the tags of CloudFormation become what they abbreviate: `!Ref x` is `{"Ref": "x"}`.
fn yaml(text: &str) -> Value {
    let mut events = Parser::new_from_str(text)
        .map(|event| event.unwrap().0)
        .filter(|event| !matches!(event, Event::StreamStart | Event::DocumentStart(_)));
    let first = events.next().unwrap();
    let value = node(first, &mut events);
    assert!(
        matches!(events.next(), Some(Event::DocumentEnd)),
        "more than one document"
    );
    value
}

fn node<'a>(event: Event<'a>, events: &mut impl Iterator<Item = Event<'a>>) -> Value {
    match event {
        Event::Scalar(text, style, _, tag) => {
            let plain = style == ScalarStyle::Plain && tag.is_none();
            let value = if plain { scalar(&text) } else { json!(text) };
            tagged(tag.as_deref(), value)
        }
        Event::SequenceStart(_, tag) => {
            let mut list = Vec::new();
            loop {
                match events.next().unwrap() {
                    Event::SequenceEnd => return tagged(tag.as_deref(), Value::Array(list)),
                    event => list.push(node(event, events)),
                }
            }
        }
        Event::MappingStart(_, tag) => {
            let mut map = Map::new();
            loop {
                match events.next().unwrap() {
                    Event::MappingEnd => return tagged(tag.as_deref(), Value::Object(map)),
                    Event::Scalar(key, ..) => {
                        let event = events.next().unwrap();
                        let before = map.insert(key.to_string(), node(event, events));
                        assert!(before.is_none(), "{key} is there twice");
                    }
                    event => panic!("{event:?} as a key"),
                }
            }
        }
        Event::Alias(_) => panic!("CloudFormation promises nothing about YAML aliases"),
        event => panic!("{event:?} in the middle"),
    }
}

fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => json!(true),
        "false" => json!(false),
        _ => text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n)),
    }
}

fn tagged(tag: Option<&Tag>, value: Value) -> Value {
    let Some(tag) = tag else { return value };
    match tag.suffix.as_str() {
        name @ ("Ref" | "Condition") => json!({ name: value }),
        "GetAtt" => {
            let (of, what) = value.as_str().unwrap().split_once('.').unwrap();
            json!({ "Fn::GetAtt": [of, what] })
        }
        name => json!({ format!("Fn::{name}"): value }),
    }
}

/// The template, with all parameters at their defaults.
struct Template(Value);

/// A function with what it has from the template's globals.
struct Function {
    /// Its folder.
    name: String,
    /// Its logical id.
    id: String,
    own: Value,
    properties: Value,
}

impl Template {
    fn read() -> Self {
        Self(yaml(
            &std::fs::read_to_string(root().join("template.yaml")).unwrap(),
        ))
    }

    /// The template with a parameter at another value than its default.
    fn with(mut self, parameter: &str, value: &str) -> Self {
        let parameter = &mut self.0["Parameters"][parameter];
        assert!(parameter.is_object(), "there is no such parameter");
        parameter["Default"] = json!(value);
        self
    }

    fn resource(&self, id: &str) -> &Value {
        let resource = &self.0["Resources"][id];
        assert!(resource.is_object(), "there is no {id}");
        resource
    }

    fn resources(&self, kind: &str) -> BTreeMap<&str, &Value> {
        self.0["Resources"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, resource)| resource["Type"] == kind)
            .map(|(id, resource)| (id.as_str(), &resource["Properties"]))
            .collect()
    }

    fn functions(&self) -> Vec<Function> {
        self.resources("AWS::Serverless::Function")
            .into_iter()
            .map(|(id, own)| {
                let code = own["CodeUri"].as_str().unwrap();
                let mut properties = self.0["Globals"]["Function"].clone();
                merge(&mut properties, own);
                Function {
                    name: code
                        .strip_prefix("functions/")
                        .unwrap_or_else(|| panic!("{id} is in {code}"))
                        .to_owned(),
                    id: id.to_owned(),
                    own: own.clone(),
                    properties,
                }
            })
            .collect()
    }

    fn function(&self, name: &str) -> Function {
        self.functions()
            .into_iter()
            .find(|function| function.name == name)
            .unwrap()
    }

    /// What a condition chooses; nothing where that is `AWS::NoValue`.
    fn chosen<'a>(&'a self, value: &'a Value) -> Option<&'a Value> {
        let Some([condition, yes, no]) = value["Fn::If"].as_array().map(Vec::as_slice) else {
            return (value["Ref"] != "AWS::NoValue").then_some(value);
        };
        let holds = self.holds(&self.0["Conditions"][condition.as_str().unwrap()]);
        self.chosen(if holds { yes } else { no })
    }

    /// What a function's role allows: which actions, on which resources.
    fn grants(&self, function: &Function) -> Vec<(Vec<&str>, Vec<&Value>)> {
        let role = self.resource(attribute(&function.properties["Role"], "Arn"));
        role["Properties"]["Policies"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|policy| policy["PolicyDocument"]["Statement"].as_array().unwrap())
            .filter_map(|statement| self.chosen(statement))
            .map(|statement| {
                assert_eq!(statement["Effect"], "Allow", "{}", function.name);
                let resources: Vec<&Value> = match &statement["Resource"] {
                    Value::Array(list) => list.iter().collect(),
                    one => vec![self.chosen(one).unwrap()],
                };
                (strings(&statement["Action"]), resources)
            })
            .collect()
    }

    /// A variable of all functions.
    fn global(&self, variable: &str) -> &Value {
        &self.0["Globals"]["Function"]["Environment"]["Variables"][variable]
    }

    /// A value with parameters and conditions replaced by what they are; what only a deployment knows stays as it is.
    fn resolved(&self, value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                if let Some(default) = map
                    .get("Ref")
                    .and_then(Value::as_str)
                    .and_then(|name| self.0["Parameters"].get(name))
                {
                    return default["Default"].clone();
                }
                if let Some([condition, yes, no]) =
                    map.get("Fn::If").and_then(Value::as_array).map(Vec::as_slice)
                {
                    let holds = self.holds(&self.0["Conditions"][condition.as_str().unwrap()]);
                    return self.resolved(if holds { yes } else { no });
                }
                map.iter()
                    .map(|(key, value)| (key.clone(), self.resolved(value)))
                    .collect()
            }
            Value::Array(list) => list.iter().map(|value| self.resolved(value)).collect(),
            other => other.clone(),
        }
    }

    fn holds(&self, condition: &Value) -> bool {
        if let Some([inner]) = condition["Fn::Not"].as_array().map(Vec::as_slice) {
            return !self.holds(inner);
        }
        let [one, other] = condition["Fn::Equals"].as_array().map(Vec::as_slice).unwrap() else {
            panic!("{condition} compares no two values");
        };
        self.resolved(one) == self.resolved(other)
    }
}

impl Function {
    fn number(&self, property: &str) -> u64 {
        self.properties[property]
            .as_u64()
            .unwrap_or_else(|| panic!("{} has no {property}", self.name))
    }

    fn variables(&self) -> &Map<String, Value> {
        self.properties["Environment"]["Variables"].as_object().unwrap()
    }

    fn events(&self, kind: &str) -> Vec<&Value> {
        let events = self.properties["Events"].as_object();
        events
            .into_iter()
            .flat_map(Map::values)
            .filter(|event| event["Type"] == kind)
            .map(|event| &event["Properties"])
            .collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// As SAM merges a function into the globals.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// The resource whose attribute `value` is.
fn attribute<'a>(value: &'a Value, what: &str) -> &'a str {
    let of = &value["Fn::GetAtt"];
    assert_eq!(of[1], what, "{value}");
    of[0].as_str().unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(list) => list.iter().map(|one| one.as_str().unwrap()).collect(),
        one => vec![one.as_str().unwrap()],
    }
}

fn listed<'a>(table: &'a [(&str, &[&str])], name: &str) -> &'a [&'a str] {
    table
        .iter()
        .find(|(function, _)| *function == name)
        .unwrap_or_else(|| panic!("say here what {name} needs"))
        .1
}

// --- Functions --------------------------------------------------------------------------------------------------------

#[test]
fn each_folder_of_functions_is_deployed_and_nothing_else() {
    let template = Template::read();
    let folders: BTreeSet<String> = std::fs::read_dir(root().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let functions = template.functions();
    let deployed: BTreeSet<String> = functions.iter().map(|function| function.name.clone()).collect();
    assert_eq!(deployed, folders);
    assert_eq!(deployed.len(), functions.len(), "two functions have one folder");
    for Function { name, id, .. } in functions {
        assert_eq!(id.to_lowercase(), name.replace('-', ""));
        assert_eq!(
            template.resource(&id)["Metadata"]["BuildMethod"],
            "rust-cargolambda"
        );
        // What is built is the one binary of the package in the folder, by its name.
        let manifest =
            std::fs::read_to_string(root().join("functions").join(&name).join("Cargo.toml")).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), 1, "{name}");
        assert!(
            manifest.contains(&format!("[[bin]]\nname = \"{name}\"\n")),
            "{name}"
        );
    }
}

#[test]
fn each_function_says_what_it_runs_on_and_where_it_logs() {
    let template = Template::read();
    let architecture = &template.0["Parameters"]["Architecture"];
    assert_eq!(architecture["Default"], "arm64");
    assert_eq!(architecture["AllowedValues"], json!(["arm64", "x86_64"]));
    let groups = template.resources("AWS::Logs::LogGroup");
    for (id, group) in &groups {
        assert_eq!(
            group["RetentionInDays"],
            json!({ "Ref": "LogRetentionDays" }),
            "{id}"
        );
    }
    let mut used = BTreeSet::new();
    for function in template.functions() {
        let Function {
            name,
            own,
            properties,
            ..
        } = &function;
        assert_eq!(properties["Runtime"], "provided.al2023", "{name}");
        assert_eq!(properties["Handler"], "bootstrap", "{name}");
        assert_eq!(
            properties["Architectures"],
            json!([{ "Ref": "Architecture" }]),
            "{name}"
        );
        assert!(function.number("MemorySize") >= 256, "{name}");
        assert!(own["Timeout"].is_u64(), "{name} has no time limit of its own");
        let logging = &properties["LoggingConfig"];
        assert_eq!(logging["LogFormat"], "JSON", "{name}");
        let group = logging["LogGroup"]["Ref"].as_str().unwrap();
        assert!(groups.contains_key(group), "{name}");
        assert!(
            used.insert(group.to_owned()),
            "{group} is another function's as well"
        );
    }
    // Lambda takes a line without a time for INFO.
    assert_eq!(
        template.0["Parameters"]["LogLevel"]["AllowedValues"],
        json!(["TRACE", "DEBUG", "INFO"])
    );
}

#[test]
fn each_function_has_the_variables_that_it_reads_and_no_others() {
    let template = Template::read();
    let required = required();
    let minimal = |name: &str| required.contains(name).then(|| format!("the-{name}"));
    let default = Config::read(&minimal).unwrap();
    let mut set = BTreeSet::new();
    for function in template.functions() {
        let name = &function.name;
        let variables = function.variables();
        let wanted: BTreeSet<&str> = required
            .iter()
            .chain(&["STACK_NAME"])
            .chain(listed(VARIABLES, name))
            .copied()
            .collect();
        let present: BTreeSet<&str> = variables.keys().map(String::as_str).collect();
        assert_eq!(present, wanted, "{name}");
        set.extend(present.iter().map(ToString::to_string));

        // What is set by default is what the code does without it.
        let mut config = Config::read(&|asked| {
            minimal(asked).or_else(|| match template.resolved(variables.get(asked)?) {
                Value::String(text) => Some(text),
                Value::Number(number) => Some(number.to_string()),
                _ if DEPLOYED.contains(&asked) => None,
                other => panic!("{name}: {asked} is {other}"),
            })
        })
        .unwrap();
        for mapping in function.events("SQS") {
            // A record that waits for another of its batch runs out of time.
            assert!(
                config.record_concurrency as u64 >= mapping["BatchSize"].as_u64().unwrap(),
                "{name}"
            );
        }
        config.record_concurrency = default.record_concurrency;
        assert_eq!(format!("{config:?}"), format!("{default:?}"), "{name}");

        if let Some(key) = variables.get("OPENAI_API_KEY") {
            let reference = key["Fn::If"][1]["Fn::Sub"].as_str().unwrap();
            assert!(
                reference.starts_with("{{resolve:secretsmanager:"),
                "{name}: {reference}"
            );
        }
    }
    let declared: BTreeSet<String> = Config::VARIABLES.iter().map(ToString::to_string).collect();
    assert_eq!(set, declared);
    // Metrics of two stacks must not be added up.
    assert_eq!(*template.global("STACK_NAME"), json!({ "Ref": "AWS::StackName" }));
    // The address that runs link to and that providers are given is the one that the stack tells.
    let outputs = &template.0["Outputs"];
    let own = template.resolved(template.global("PUBLIC_URL"));
    assert_eq!(own, outputs["ApiUrl"]["Value"]);
    let hooks = &outputs["HookBaseUrl"]["Value"];
    let below = |base: &str| json!({ "Fn::Sub": format!("{base}/hooks") });
    assert_eq!(template.resolved(hooks), below(own["Fn::Sub"].as_str().unwrap()));
    assert_eq!(hooks["Fn::If"][0], "HasPublicUrl");
    assert_eq!(hooks["Fn::If"][1], below("${PublicUrl}"));
}

/// The variables without which no function starts.
fn required() -> BTreeSet<&'static str> {
    let mut required = BTreeSet::new();
    loop {
        match Config::read(&|name| required.contains(name).then(|| format!("the-{name}"))) {
            Ok(_) => return required,
            Err(ConfigError::Missing(name)) => assert!(required.insert(name)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn each_function_may_do_what_it_does_and_no_more() {
    let template = Template::read();
    // The secrets of this stack: they are made while it runs, so only their names' beginning is known.
    let prefix = template.global("SECRETS_PREFIX")["Fn::Sub"].as_str().unwrap();
    assert!(prefix.ends_with("/${AWS::StackName}"), "{prefix}");
    let account = "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}";
    // Endpoints' secrets and organizations' are read by different functions; who starts runs needs both.
    let secrets = |function: &str, actions: &[&str]| {
        let part = match function {
            // They change the secrets of their webhooks, and nothing of endpoints.
            "cekura" | "sigmamind" if actions == ["secretsmanager:PutSecretValue"] => "org/",
            "api" | "api-secrets" | "cekura" | "sigmamind" | "schedule" => "",
            "deliver" => "org/",
            _ => "endpoint/",
        };
        json!({ "Fn::Sub": format!("{account}:secret:{prefix}/{part}*") })
    };
    let mut used = BTreeSet::new();
    for function in template.functions() {
        let name = &function.name;
        let role = attribute(&function.properties["Role"], "Arn");
        assert!(
            used.insert(role.to_owned()),
            "{role} is another function's as well"
        );
        let properties = &template.resource(role)["Properties"];
        assert!(properties["ManagedPolicyArns"].is_null(), "{name}");
        let mut may = BTreeSet::new();
        for (actions, resources) in template.grants(&function) {
            let service = actions[0].split_once(':').unwrap().0;
            assert!(
                actions
                    .iter()
                    .all(|action| action.split(':').next() == Some(service)),
                "{name}: {actions:?}"
            );
            let allowed: &[&str] = match service {
                "logs" => &["Logs"],
                "sqs" => &["RunItems", "Evaluations", "Deliveries", "RelayDeadLetters"],
                "secretsmanager" => &[],
                _ => &["Table"],
            };
            for resource in resources {
                if service == "secretsmanager" {
                    assert_eq!(*resource, secrets(name, &actions), "{name}");
                    continue;
                }
                let text = resource.to_string();
                assert!(allowed.iter().any(|part| text.contains(part)), "{name}: {text}");
                assert!(!text.contains('*'), "{name}: {text}");
            }
            may.extend(actions);
        }
        let logs = ["logs:CreateLogStream", "logs:PutLogEvents"];
        let wanted: BTreeSet<&str> = listed(ACTIONS, name).iter().copied().chain(logs).collect();
        assert_eq!(may, wanted, "{name}");
        assert!(
            may.iter()
                .all(|action| !action.contains('*') && *action != "dynamodb:Scan"),
            "{name}"
        );
    }
    // The index is for the two that tick: what clients read after their own write never comes from it.
    let reads_index: Vec<_> = template
        .resources("AWS::IAM::Role")
        .into_iter()
        .filter(|(_, role)| role.to_string().contains(&format!("/index/{DUE_INDEX}")))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(reads_index, ["ScheduleRole", "SweepRole"]);
}

#[test]
fn functions_write_traces_only_where_they_are_traced() {
    let (passive, active) = (Template::read(), Template::read().with("Tracing", "Active"));
    assert_eq!(
        passive.0["Parameters"]["Tracing"]["AllowedValues"],
        json!(["PassThrough", "Active"])
    );
    let everything = json!("*");
    let traces = (
        vec!["xray:PutTelemetryRecords", "xray:PutTraceSegments"],
        vec![&everything],
    );
    for function in active.functions() {
        let name = &function.name;
        assert_eq!(
            function.properties["Tracing"],
            json!({ "Ref": "Tracing" }),
            "{name}"
        );
        let without = passive.grants(&function);
        let (more, same): (Vec<_>, Vec<_>) = active
            .grants(&function)
            .into_iter()
            .partition(|grant| *grant == traces);
        assert_eq!(more.len(), 1, "{name}");
        assert_eq!(same, without, "{name}");
    }
}

#[test]
fn a_restored_table_takes_the_place_of_the_stacks_own_everywhere() {
    let own = Template::read();
    let restored = Template::read().with("RestoredTable", "restored");
    let is_own =
        |value: &Value| value.to_string().contains("[\"Table\",") || value.to_string().contains("${Table.");
    let is_restored = |value: &Value| value.to_string().contains(":table/${RestoredTable}");
    for function in restored.functions() {
        let name = &function.name;
        let tables = |template: &Template, which: &dyn Fn(&Value) -> bool| {
            let grants = template.grants(&function);
            let resources = grants.iter().flat_map(|(_, resources)| resources);
            resources.filter(|resource| which(resource)).count()
        };
        assert!(tables(&own, &is_own) > 0, "{name}");
        assert_eq!(tables(&own, &is_restored), 0, "{name}");
        assert_eq!(tables(&restored, &is_own), 0, "{name}");
        assert_eq!(tables(&restored, &is_restored), tables(&own, &is_own), "{name}");
    }
    let relay = restored.function("relay");
    let stream = restored.resolved(&relay.events("DynamoDB")[0]["Stream"]);
    assert!(
        is_restored(&stream) && stream.to_string().ends_with("/stream/${RestoredTableStream}\"}"),
        "{stream}"
    );
    for name in [
        restored.global("TABLE_NAME"),
        &restored.0["Outputs"]["TableName"]["Value"],
        &restored.resource("Dashboard")["Properties"]["Parameters"]["Table"],
    ] {
        assert_eq!(restored.resolved(name), "restored");
        assert_eq!(own.resolved(name), json!({ "Ref": "Table" }));
    }
}

#[test]
fn webhooks_lead_to_their_functions_and_every_other_request_to_the_api() {
    let template = Template::read();
    let functions = template.functions();
    let permissions: BTreeMap<&str, &Value> = template
        .resources("AWS::Lambda::Permission")
        .into_values()
        .map(|permission| (permission["FunctionName"]["Ref"].as_str().unwrap(), permission))
        .collect();
    let mut routes = BTreeMap::new();
    for (id, route) in template.resources("AWS::ApiGatewayV2::Route") {
        let integration = route["Target"]["Fn::Sub"]
            .as_str()
            .and_then(|target| target.strip_prefix("integrations/${")?.strip_suffix('}'))
            .unwrap();
        let integration = &template.resource(integration)["Properties"];
        assert_eq!(integration["PayloadFormatVersion"], "2.0", "{id}");
        let function = functions
            .iter()
            .find(|function| function.id == attribute(&integration["IntegrationUri"], "Arn"))
            .unwrap();
        assert!(
            function.number("Timeout") * 1000 < integration["TimeoutInMillis"].as_u64().unwrap(),
            "{id}"
        );
        let permission = permissions[function.id.as_str()];
        assert_eq!(permission["Principal"], "apigateway.amazonaws.com", "{id}");
        let source = permission["SourceArn"]["Fn::Sub"].as_str().unwrap();
        assert!(source.ends_with(":${HttpApi}/*"), "{id}: {source}");
        for of in [&route["ApiId"], &integration["ApiId"]] {
            assert_eq!(*of, json!({ "Ref": "HttpApi" }), "{id}");
        }
        routes.insert(
            route["RouteKey"].as_str().unwrap().to_owned(),
            function.name.as_str(),
        );
    }
    // Nobody else may be called from outside.
    let called: BTreeSet<&str> = routes.values().copied().collect();
    assert_eq!(permissions.len(), called.len());

    // The URLs that providers are given.
    let endpoint = Uuid::nil();
    let webhooks = Webhooks::of("", endpoint);
    let key = |url: &str| format!("POST {}", url.replace(&endpoint.to_string(), "{endpointId}"));
    let mut wanted = BTreeMap::from([
        ("$default".to_owned(), "api"),
        (key(&webhooks.call_started), "call-started"),
        (key(&webhooks.call_ended), "call-ended"),
    ]);
    // A path is one function's, whatever the method.
    let of = |with_secrets: bool| -> BTreeSet<&str> {
        ringback_api::operations()
            .filter(|(.., theirs)| *theirs == with_secrets)
            .map(|(_, path, _)| path)
            .collect()
    };
    let (plain, secret) = (of(false), of(true));
    assert!(plain.is_disjoint(&secret), "{:?}", plain.intersection(&secret));
    wanted.extend(secret.iter().map(|path| (format!("ANY {path}"), "api-secrets")));
    // Another shape has all paths that begin as its own do, so that its function says what there is not.
    let root = |path: &str| format!("ANY /{}/{{proxy+}}", path.split('/').nth(1).unwrap());
    wanted.extend(ringback_api::cekura_operations().map(|(_, path)| (root(path), "cekura")));
    wanted.extend(ringback_api::sigmamind_operations().map(|(_, path)| (root(path), "sigmamind")));
    assert_eq!(routes, wanted);

    // Anybody can send a webhook. It is kept and nothing more: what follows from it is relay's.
    for name in ["call-started", "call-ended"] {
        let function = template.function(name);
        for (actions, _) in template.grants(&function) {
            assert!(
                actions.iter().all(|action| !action.starts_with("sqs:")),
                "{name}: {actions:?}"
            );
        }
        assert!(!function.variables().contains_key("OPENAI_API_KEY"), "{name}");
    }
}

// --- Queues and the stream --------------------------------------------------------------------------------------------

#[test]
fn a_message_comes_back_after_its_worker_and_in_the_end_to_a_dead_letter_queue() {
    let template = Template::read();
    let queues = template.resources("AWS::SQS::Queue");
    let mut fed = BTreeSet::new();
    let mut dead = BTreeSet::new();
    for function in template.functions() {
        let name = &function.name;
        for mapping in function.events("SQS") {
            assert_eq!(
                mapping["FunctionResponseTypes"],
                json!(["ReportBatchItemFailures"]),
                "{name}"
            );
            let most = template.resolved(&mapping["ScalingConfig"]["MaximumConcurrency"]);
            assert!(most.as_u64().is_some_and(|most| most >= 2), "{name}");
            let queue = attribute(&mapping["Queue"], "Arn");
            assert!(fed.insert(queue.to_owned()), "{queue} feeds two functions");
            let visibility = queues[queue]["VisibilityTimeout"].as_u64().unwrap();
            assert!(
                visibility >= 6 * function.number("Timeout"),
                "{name}: {visibility} s"
            );
        }
        for mapping in function.events("DynamoDB") {
            let given_up = &mapping["DestinationConfig"]["OnFailure"]["Destination"];
            dead.insert(attribute(given_up, "Arn").to_owned());
        }
    }
    for (id, queue) in &queues {
        let redrive = &queue["RedrivePolicy"];
        if redrive.is_null() {
            continue;
        }
        let target = attribute(&redrive["deadLetterTargetArn"], "Arn");
        assert!(redrive["maxReceiveCount"].as_u64().unwrap() >= 5, "{id}");
        // The time on the first queue counts on the second.
        let kept = queue["MessageRetentionPeriod"].as_u64().unwrap();
        assert!(
            kept <= queues[target]["MessageRetentionPeriod"].as_u64().unwrap(),
            "{id}"
        );
        assert!(queues[target]["RedrivePolicy"].is_null(), "{id}");
        assert!(dead.insert(target.to_owned()), "{target} is for two queues");
    }
    for (id, queue) in &queues {
        assert_eq!(queue["SqsManagedSseEnabled"], true, "{id}");
        assert_ne!(
            fed.contains(*id),
            dead.contains(*id),
            "{id} feeds a function or takes what fails"
        );
        assert_eq!(queue["RedrivePolicy"].is_null(), dead.contains(*id), "{id}");
        if dead.contains(*id) {
            assert_eq!(queue["MessageRetentionPeriod"], LONGEST_RETENTION, "{id}");
        }
    }
}

#[test]
fn who_sends_may_use_every_queue_and_a_worker_only_its_own() {
    let template = Template::read();
    let queues = template.resources("AWS::SQS::Queue");
    let dead_letters: BTreeMap<&str, &str> = queues
        .iter()
        .filter(|(_, queue)| !queue["RedrivePolicy"].is_null())
        .map(|(id, queue)| {
            (
                *id,
                attribute(&queue["RedrivePolicy"]["deadLetterTargetArn"], "Arn"),
            )
        })
        .collect();
    let fed: BTreeSet<&str> = dead_letters.keys().copied().collect();
    for function in template.functions() {
        let name = &function.name;
        let (mut sends, mut receives) = (BTreeSet::new(), BTreeSet::new());
        for (actions, resources) in template.grants(&function) {
            let queues = resources.into_iter().map(|queue| attribute(queue, "Arn"));
            if actions.contains(&"sqs:SendMessage") {
                sends.extend(queues);
            } else if actions.contains(&"sqs:ReceiveMessage") {
                receives.extend(queues);
            }
        }
        let own: BTreeSet<&str> = function
            .events("SQS")
            .into_iter()
            .map(|mapping| attribute(&mapping["Queue"], "Arn"))
            .collect();
        assert_eq!(receives, own, "{name}");
        // A worker puts aside what can never succeed, where SQS itself puts what failed too often, and sends nothing else.
        let aside: BTreeSet<&str> = own.iter().map(|queue| dead_letters[queue]).collect();
        if aside.is_empty() {
            assert!(sends.is_empty() || sends.is_superset(&fed), "{name}: {sends:?}");
        } else {
            assert_eq!(sends, aside, "{name}");
        }
        let told: BTreeSet<&str> = function
            .variables()
            .get("DEAD_LETTERS_QUEUE_URL")
            .map(|url| url["Ref"].as_str().unwrap())
            .into_iter()
            .collect();
        assert_eq!(told, aside, "{name}");
    }
    for (output, queue) in [
        ("RunItemsQueueUrl", "RunItems"),
        ("RunItemsDeadLettersUrl", dead_letters["RunItems"]),
    ] {
        assert_eq!(template.0["Outputs"][output]["Value"], json!({ "Ref": queue }));
    }
}

#[test]
fn workers_outlive_the_longest_model_call_and_the_longest_hook() {
    let template = Template::read();
    let longest = template.0["Parameters"]["ModelTimeoutSeconds"]["MaxValue"]
        .as_u64()
        .unwrap();
    let accepts = |seconds: u64| {
        Config::models(&|name| (name == "MODEL_TIMEOUT_SECONDS").then(|| seconds.to_string())).is_ok()
    };
    assert!(
        accepts(longest) && !accepts(longest + 1),
        "the code allows another number of seconds"
    );
    for function in template.functions() {
        if function.variables().contains_key("MODEL_TIMEOUT_SECONDS") {
            assert!(function.number("Timeout") > longest + 15, "{}", function.name);
        }
    }
    assert!(template.function("deliver").number("Timeout") > LONGEST_HOOK + 15);
}

#[test]
fn the_stream_is_fed_to_relay_as_locally() {
    let template = Template::read();
    let relay = template.function("relay");
    let [mapping] = relay.events("DynamoDB")[..] else {
        panic!("one mapping")
    };
    let local = StreamMapping::new("relay", "table");
    let stream = template.resolved(&mapping["Stream"]);
    assert_eq!(attribute(&stream, "StreamArn"), "Table");
    assert_eq!(mapping["StartingPosition"], "TRIM_HORIZON");
    assert_eq!(
        mapping["FunctionResponseTypes"],
        json!(["ReportBatchItemFailures"])
    );
    assert_eq!(mapping["BisectBatchOnFunctionError"], true);
    assert_eq!(mapping["BatchSize"], local.batch);
    assert_eq!(mapping["MaximumRetryAttempts"], local.attempts);
    assert_eq!(relay.number("Timeout"), local.timeout.as_secs());
    // Else one bad record stops its shard for a day.
    assert!(mapping["MaximumRecordAgeInSeconds"].as_u64().unwrap() <= 3600);
}

#[test]
fn the_stream_is_filtered_to_what_relay_acts_on() {
    let template = Template::read();
    let relay = template.function("relay");
    let filters: Vec<Value> = relay.events("DynamoDB")[0]["FilterCriteria"]["Filters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|filter| serde_json::from_str(filter["Pattern"].as_str().unwrap()).unwrap())
        .collect();
    assert!(filters.len() <= MOST_FILTERS);
    let passes = |record: &Value| filters.iter().any(|pattern| matches(pattern, Some(record)));
    let local = StreamMapping::new("relay", "table");

    let stray = json!({
        "event": "ended",
        "source": "report",
        "facts": { "ended": { "source": "report", "value": { "at": 1, "reason": "hang-up" } } },
    });
    let mut known = stray.clone();
    known["run"] = json!("01900000-0000-7000-8000-000000000001");
    known["index"] = json!(7);
    let hook = |event: &str, owed: &str| json!({ "event": event, "owed": owed, "version": 1 });
    let rows = [
        row("RUN#0190-a#0", "ITEM#00000007", &json!({ "owed": "start" })),
        row("RUN#0190-a#3", "ITEM#00000399", &json!({ "owed": "nothing" })),
        run_head(RunOwed::Expand),
        run_head(RunOwed::Cancel),
        // relay has to see that nothing is left to expand.
        run_head(RunOwed::Recount),
        run_head(RunOwed::Nothing),
        event_head("ITEM#0190-b", &known),
        event_head("CALL#0190-c#call-1", &stray),
        row(
            "CALL#0190-c#call-1",
            "LINK",
            &json!({ "run": "0190-a", "index": 7 }),
        ),
        row("ORG#0190-c", "ORG", &json!({ "name": "main", "version": 1 })),
        row("ITEM#0190-b", "HOOK#started", &hook("started", "deliver")),
        row("ITEM#0190-b", "HOOK#ended", &hook("ended", "nothing")),
    ];
    for row in &rows {
        assert!(passes(&record("INSERT", None, Some(row))), "{row}");
        assert!(passes(&record("MODIFY", Some(row), Some(row))), "{row}");
        assert!(!passes(&record("REMOVE", Some(row), None)), "{row}");
        assert!(!row["sk"]["S"].as_str().unwrap().starts_with(local.skip), "{row}");
    }

    let document = json!({ "body": "{\"owed\":\"start\"}", "parts": "0190" });
    let mut others: Vec<Value> = [
        ("ITEM#0190-b", "TURN#000001"),
        ("ITEM#0190-b", "TURN#000001~0190~000"),
        ("ITEM#0190-b", "EXTRACT#000000"),
        ("ITEM#0190-b", "RESULT"),
        ("ITEM#0190-b", "RESULT~0190~001"),
        ("ITEM#0190-b", "IMPROVEMENTS"),
        ("ITEM#0190-b", "OUTPUT#0190-e"),
        ("ITEM#0190-b", "EVENT#e3b0c442~0190~000"),
        ("CALL#0190-c#call-1", "EVENT#e3b0c442~0190~000"),
        ("RUN#0190-a", "BODY"),
        ("RUN#0190-a", "BODY~0190~000"),
        ("RUN#0190-a", "TARGET"),
        ("RUN#0190-a", "NAMES"),
        ("RUN#0190-a", "SNAP#000000"),
        ("RUN#0190-a", "SNAP#000000~0190~000"),
        ("RUN#0190-a#0", "TALLY"),
        ("ORG#0190-c#slots", "SLOT#000001"),
        ("ORG#0190-c#waiting", "0190-a"),
        ("ORG#0190-c#spent", "2026-11#07"),
        ("ORG#0190-c#number", "next"),
        ("ORG#0190-c#number", "id#run#0190-a"),
        ("ORG#0190-c#number", "n#00000000000000000007"),
        ("ORG#0190-c#idempotency", "e3b0c442"),
        ("ORG#0190-c#idempotency", "e3b0c442~0190~000"),
        ("ORG#0190-c#call#0190-d", "CALL"),
        ("KEY#e3b0c442", "KEY"),
        ("ENDPOINT#0190-f", "ENDPOINT"),
        ("QUARANTINE#2026-11-22", "0190-d"),
        // Webhooks are named by whoever sends them.
        ("QUARANTINE#2026-11-22", "ITEM#00000007"),
        ("QUARANTINE#2026-11-22", "EVENT#e3b0c442"),
        ("QUARANTINE#2026-11-22", "LINK"),
        ("QUARANTINE#2026-11-22", "ORG"),
    ]
    .into_iter()
    .map(|(pk, sk)| row(pk, sk, &document))
    .collect();
    for kind in [
        "assistant",
        "squad",
        "structured-output",
        "personality",
        "scenario",
        "simulation",
        "endpoint",
        "metric",
        "test-profile",
        "project",
    ] {
        others.push(row(&format!("ORG#0190-c#{kind}"), "0190-e", &document));
    }
    for other in &others {
        assert!(!passes(&record("INSERT", None, Some(other))), "{other}");
        assert!(!passes(&record("MODIFY", Some(other), Some(other))), "{other}");
        assert!(!passes(&record("REMOVE", Some(other), None)), "{other}");
    }
}

/// A run's head as it is stored.
fn run_head(owed: RunOwed) -> Value {
    let id = "01900000-0000-7000-8000-000000000001";
    let head: RunHead = serde_json::from_value(json!({
        "id": id, "org": id, "state": "running", "total": 200, "expanded": 50, "iterations": 1,
        "transport": "vapi.webchat", "targetType": "assistant", "createdAt": 1, "updatedAt": 1,
        "owed": owed, "version": 1,
    }))
    .unwrap();
    row(&format!("ORG#{id}#run"), id, &serde_json::to_value(head).unwrap())
}

/// An event of a provider as it is stored.
fn event_head(pk: &str, event: &Value) -> Value {
    let head: EventHead = serde_json::from_value(event.clone()).unwrap();
    row(pk, "EVENT#e3b0c442", &serde_json::to_value(head).unwrap())
}

/// A row as a stream record shows it.
fn row(pk: &str, sk: &str, attributes: &Value) -> Value {
    let mut image = Map::new();
    image.insert("pk".to_owned(), json!({ "S": pk }));
    image.insert("sk".to_owned(), json!({ "S": sk }));
    for (name, value) in attributes.as_object().unwrap() {
        image.insert(name.clone(), stored(value));
    }
    Value::Object(image)
}

/// A value as the table keeps it.
fn stored(value: &Value) -> Value {
    match value {
        Value::String(text) => json!({ "S": text }),
        Value::Number(number) => json!({ "N": number.to_string() }),
        Value::Object(fields) => {
            let fields: Map<String, Value> = fields
                .iter()
                .map(|(name, value)| (name.clone(), stored(value)))
                .collect();
            json!({ "M": fields })
        }
        other => panic!("{other}"),
    }
}

fn record(event: &str, old: Option<&Value>, new: Option<&Value>) -> Value {
    let row = new.or(old).unwrap();
    let mut change = json!({ "Keys": { "pk": row["pk"], "sk": row["sk"] }, "SequenceNumber": "1" });
    for (name, image) in [("OldImage", old), ("NewImage", new)] {
        if let Some(image) = image {
            change[name] = image.clone();
        }
    }
    json!({ "eventName": event, "eventSource": "aws:dynamodb", "dynamodb": change })
}

/// Whether Lambda hands over what is at a pattern's place: all fields of an object, any alternative of a list.
fn matches(pattern: &Value, at: Option<&Value>) -> bool {
    match pattern {
        Value::Object(fields) => fields
            .iter()
            .all(|(name, pattern)| matches(pattern, at.and_then(|at| at.get(name)))),
        Value::Array(alternatives) => alternatives.iter().any(|alternative| match alternative {
            Value::Object(test) => test.iter().all(|(name, wanted)| match name.as_str() {
                "prefix" => at
                    .and_then(Value::as_str)
                    .is_some_and(|text| text.starts_with(wanted.as_str().unwrap())),
                "exists" => at.is_some() == wanted.as_bool().unwrap(),
                other => panic!("teach this test the comparison {other}"),
            }),
            exact => at == Some(exact),
        }),
        other => panic!("{other} in a pattern"),
    }
}

// --- The table --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_table_is_the_one_that_the_local_stack_makes() {
    let emulator = Emulator::start(Storage::Memory).await.unwrap();
    let client = emulator.dynamodb();
    schema::create_table(&client, "made").await.unwrap();
    let made = client
        .describe_table()
        .table_name("made")
        .send()
        .await
        .unwrap()
        .table
        .unwrap();
    let expiry = client
        .describe_time_to_live()
        .table_name("made")
        .send()
        .await
        .unwrap();

    let template = Template::read();
    let [(id, table)] = Vec::from_iter(template.resources("AWS::DynamoDB::Table"))[..] else {
        panic!("one table");
    };
    assert_eq!(id, "Table");

    let element = |name: &str, kind: &str| json!({ "AttributeName": name, "KeyType": kind });
    let keys: Value = made
        .key_schema()
        .iter()
        .map(|key| element(&key.attribute_name, key.key_type.as_str()))
        .collect();
    assert_eq!(table["KeySchema"], keys);
    let attributes: BTreeMap<&str, &str> = made
        .attribute_definitions()
        .iter()
        .map(|a| (a.attribute_name.as_str(), a.attribute_type.as_str()))
        .collect();
    let defined: BTreeMap<&str, &str> = table["AttributeDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| {
            (
                a["AttributeName"].as_str().unwrap(),
                a["AttributeType"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(defined, attributes);

    let [index] = made.global_secondary_indexes() else {
        panic!("one index")
    };
    let defined = table["GlobalSecondaryIndexes"].as_array().unwrap();
    assert_eq!(defined.len(), 1);
    assert_eq!(index.index_name.as_deref(), Some(DUE_INDEX));
    assert_eq!(defined[0]["IndexName"], DUE_INDEX);
    let keys: Value = index
        .key_schema()
        .iter()
        .map(|key| element(&key.attribute_name, key.key_type.as_str()))
        .collect();
    assert_eq!(defined[0]["KeySchema"], keys);
    let projection = index
        .projection
        .as_ref()
        .unwrap()
        .projection_type
        .as_ref()
        .unwrap();
    assert_eq!(defined[0]["Projection"]["ProjectionType"], projection.as_str());

    let stream = made.stream_specification.unwrap();
    assert!(stream.stream_enabled);
    assert_eq!(
        table["StreamSpecification"]["StreamViewType"],
        stream.stream_view_type.unwrap().as_str()
    );
    let expiry = expiry.time_to_live_description.unwrap();
    assert_eq!(
        table["TimeToLiveSpecification"],
        json!({ "AttributeName": expiry.attribute_name.unwrap(), "Enabled": true })
    );

    assert_eq!(table["BillingMode"], "PAY_PER_REQUEST");
    assert_eq!(
        table["PointInTimeRecoverySpecification"],
        json!({ "PointInTimeRecoveryEnabled": true })
    );
    assert_eq!(template.resolved(&table["DeletionProtectionEnabled"]), "true");
}

// --- Alarms -----------------------------------------------------------------------------------------------------------

#[test]
fn what_goes_wrong_raises_an_alarm() {
    let template = Template::read();
    let alarms = template.resources("AWS::CloudWatch::Alarm");
    let mut watched = BTreeSet::new();
    for (id, alarm) in &alarms {
        for tells in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[tells]["Fn::If"][0], "HasAlarmTopic", "{id}");
        }
        let dimensions = &alarm["Dimensions"];
        if alarm["Namespace"] == "Ringback" {
            // A metric that nobody writes is silent for ever, and so is its alarm.
            let metric = alarm["MetricName"].as_str().unwrap();
            assert!(METRICS.contains(&(metric, "", &[])), "{id}: {metric}");
            let stack = json!([{ "Name": "Stack", "Value": { "Ref": "AWS::StackName" } }]);
            assert_eq!(*dimensions, stack, "{id}");
            watched.insert((metric, "Stack"));
            continue;
        }
        let of = &dimensions[0]["Value"];
        let of = of["Ref"]
            .as_str()
            .or_else(|| of["Fn::GetAtt"][0].as_str())
            .unwrap();
        template.resource(of);
        watched.insert((alarm["MetricName"].as_str().unwrap(), of));
    }
    for function in template.functions() {
        for metric in ["Errors", "Throttles"] {
            assert!(
                watched.contains(&(metric, function.id.as_str())),
                "{metric} of {}",
                function.id
            );
        }
    }
    for (id, queue) in template.resources("AWS::SQS::Queue") {
        let metric = if queue["RedrivePolicy"].is_null() {
            "ApproximateNumberOfMessagesVisible"
        } else {
            "ApproximateAgeOfOldestMessage"
        };
        assert!(watched.contains(&(metric, id)), "{metric} of {id}");
    }
    assert!(watched.contains(&("IteratorAge", "Relay")));
    assert!(watched.contains(&("Invocations", "Sweep")));
    assert!(watched.contains(&("Invocations", "Schedule")));
    assert!(watched.contains(&("Quarantined", "Stack")));
    assert!(watched.contains(&("WebhooksRefused", "Stack")));
}

// --- The dashboard ----------------------------------------------------------------------------------------------------

/// A text with every `${…}` of `Fn::Sub` as the one word in it, and which words these were.
fn filled(text: &str) -> (String, BTreeSet<String>) {
    let mut words = BTreeSet::new();
    let mut parts = text.split("${");
    let mut whole = parts.next().unwrap().to_owned();
    for part in parts {
        let (word, rest) = part.split_once('}').unwrap();
        words.insert(word.to_owned());
        whole.push_str(word);
        whole.push_str(rest);
    }
    (whole, words)
}

/// The dashboard's template, and the properties of the stack that is made of it.
fn dashboard(template: &Template) -> (Value, &Value) {
    let nested = &template.resource("Dashboard")["Properties"];
    let file = nested["TemplateURL"].as_str().unwrap();
    (yaml(&std::fs::read_to_string(root().join(file)).unwrap()), nested)
}

#[test]
fn the_dashboard_is_given_the_names_that_it_shows() {
    let template = Template::read();
    let (inner, nested) = dashboard(&template);
    let dashboard = &inner["Resources"]["Dashboard"];
    assert_eq!(dashboard["Type"], "AWS::CloudWatch::Dashboard");
    let (name, mut used) = filled(
        dashboard["Properties"]["DashboardName"]["Fn::Sub"]
            .as_str()
            .unwrap(),
    );
    // Dashboards are an account's, not a region's.
    assert_eq!(name, "Stack-AWS::Region");
    let url = &template.0["Outputs"]["DashboardUrl"]["Value"]["Fn::Sub"];
    assert!(
        url.as_str()
            .unwrap()
            .ends_with("/${AWS::StackName}-${AWS::Region}"),
        "{url}"
    );
    used.extend(
        filled(
            dashboard["Properties"]["DashboardBody"]["Fn::Sub"]
                .as_str()
                .unwrap(),
        )
        .1,
    );
    assert!(used.remove("AWS::Region"));
    let names = |map: &Value| -> BTreeSet<String> { map.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(&inner["Parameters"]), used);
    assert_eq!(names(&nested["Parameters"]), used);

    // A parameter is called as what it names is called in the template.
    let queues = template.resources("AWS::SQS::Queue");
    for (parameter, value) in nested["Parameters"].as_object().unwrap() {
        let wanted = match parameter.as_str() {
            "Stack" => json!({ "Ref": "AWS::StackName" }),
            queue if queues.contains_key(queue) => json!({ "Fn::GetAtt": [queue, "QueueName"] }),
            other => {
                template.resource(other);
                json!({ "Ref": other })
            }
        };
        assert_eq!(template.resolved(value), wanted, "{parameter}");
    }
}

#[test]
fn the_dashboard_shows_every_function_every_queue_and_every_metric() {
    let template = Template::read();
    let (inner, _) = dashboard(&template);
    let body = &inner["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"];
    let (body, _) = filled(body.as_str().unwrap());

    // What is in the places of names are now the words themselves.
    let body: Value = serde_json::from_str(&body).unwrap();
    let mut shown = BTreeSet::new();
    let mut own = BTreeSet::new();
    for widget in body["widgets"].as_array().unwrap() {
        let properties = &widget["properties"];
        if widget["type"] == "text" {
            continue;
        }
        assert_eq!(widget["type"], "metric");
        assert_eq!(properties["region"], "AWS::Region");
        for metric in properties["metrics"].as_array().unwrap() {
            // The last one may be how it is drawn.
            let texts: Vec<&str> = metric
                .as_array()
                .unwrap()
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let [namespace, name, dimensions @ ..] = &texts[..] else {
                panic!("{metric} is no metric");
            };
            assert_eq!(dimensions.len() % 2, 0, "{metric}");
            if *namespace == "Ringback" {
                assert_eq!(dimensions[..2], ["Stack", "Stack"], "{metric}");
                let more = dimensions[2..].iter().copied();
                own.insert(std::iter::once(*name).chain(more).collect::<Vec<_>>().join(" "));
            } else {
                shown.insert(((*name).to_owned(), dimensions[1].to_owned()));
            }
        }
    }
    let mut written = BTreeSet::new();
    for (name, dimension, values) in METRICS {
        if values.is_empty() {
            written.insert((*name).to_owned());
        }
        written.extend(values.iter().map(|value| format!("{name} {dimension} {value}")));
    }
    assert_eq!(own, written);
    let shows = |metric: &str, of: &str| {
        assert!(
            shown.contains(&(metric.to_owned(), of.to_owned())),
            "{metric} of {of}"
        );
    };
    for Function { id, .. } in template.functions() {
        for metric in ["Errors", "Throttles", "Duration", "ConcurrentExecutions"] {
            shows(metric, &id);
        }
    }
    for (id, queue) in template.resources("AWS::SQS::Queue") {
        shows("ApproximateNumberOfMessagesVisible", id);
        if !queue["RedrivePolicy"].is_null() {
            shows("ApproximateAgeOfOldestMessage", id);
        }
    }
    shows("IteratorAge", "Relay");
    for metric in ["Count", "4xx", "5xx", "Latency"] {
        shows(metric, "HttpApi");
    }
    for metric in [
        "ConsumedReadCapacityUnits",
        "ConsumedWriteCapacityUnits",
        "ReadThrottleEvents",
        "WriteThrottleEvents",
    ] {
        shows(metric, "Table");
    }
}
