//! What the API can be asked for: one table, which routes requests and from which the API's description is made.
//!
//! To add an operation, add its line to [`TABLE`] and an [`Action`]; the compiler then asks for the arm that answers it. After
//! that, `cargo run -- openapi > functions/api/openapi.json` writes the description anew.

#[cfg(feature = "schema")]
use ringback_shared::models::{
    assistant::{Assistant, CreateAssistant, CreateSquad, Squad, UpdateSquad},
    eval::{CreateEval, CreateEvalRun, CreateEvalRunResponse, Eval, EvalRun, UpdateEval},
    evaluation::{CreateStructuredOutput, RunStructuredOutput, StructuredOutput, UpdateStructuredOutput},
    run::{
        CreateSimulationRun, CreateSimulationRunResponse, GenerateScenarios, GenerateScenariosResponse,
        Improvements, SimulationConcurrencyResponse, SimulationRun, SimulationRunItem, SimulationRunListItem,
    },
    schedule::{CreateSchedule, Schedule, ScheduleFirings, ScheduleTrend, UpdateSchedule},
    simulation::{
        CreatePersonality, CreateScenario, CreateSimulation, CreateSimulationSuite, Personality, Scenario,
        Simulation, SimulationSuite, UpdatePersonality, UpdateScenario, UpdateSimulation,
        UpdateSimulationSuite,
    },
    trials::{EvaluateSimulationRun, RerunSimulationRun, SimulationRunComparison, SimulationRunSummary},
};
use ringback_shared::store::Kind;

#[cfg(feature = "schema")]
use crate::openapi::{
    About,
    Answer::{List, One},
    Body, Refusal,
    answers::{
        AddEndpointSecret, CreateEndpoint, Description, Endpoint, Extracted, Health, HookSecrets,
        Organization, UpdateEndpoint, UpdateOrganization,
    },
    examples,
    parameters::{
        BASELINE, EVAL_RUNS, FIRINGS, ID, IDS, ITEMS, NAME, NUMBERED, PAGES, RUNS, SCHEMA_OVERRIDE,
        STANDALONE, SUGGESTIONS, TREND, UPDATED,
    },
    schema_of,
};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Health,
    /// One that asks models or changes secrets.
    Secret(SecretAction),
    List(Kind),
    Create(Kind),
    Read(Kind),
    Update(Kind),
    Delete(Kind),
    DuplicateSuite,
    ListOrgs,
    ReadOrg,
    UpdateOrg,
    ReadConcurrency,
    ListRuns,
    CreateRun,
    ReadRun,
    CancelRun,
    SummarizeRun,
    CompareRuns,
    RerunRun,
    EvaluateRun,
    ListItems,
    ReadItem,
    CancelItem,
    ListEvalRuns,
    CreateEvalRun,
    ReadEvalRun,
    CancelEvalRun,
    DeleteEvalRun,
}

/// What an operation does that asks models, changes secrets, or is large and seldom wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretAction {
    Describe,
    SuggestImprovements,
    GenerateScenarios,
    RunStructuredOutput,
    ListEndpoints,
    CreateEndpoint,
    ReadEndpoint,
    UpdateEndpoint,
    DeleteEndpoint,
    AddEndpointSecret,
    DeleteEndpointSecret,
    ReadHookSecrets,
    AddHookSecret,
    DeleteHookSecret,
    ListSchedules,
    CreateSchedule,
    ReadSchedule,
    UpdateSchedule,
    DeleteSchedule,
    RunSchedule,
    ListFirings,
    ReadTrend,
}

impl Action {
    /// Whether it is for everybody, with a key or without.
    pub(crate) const fn is_public(self) -> bool {
        matches!(self, Self::Health | Self::Secret(SecretAction::Describe))
    }
}

/// A method of a path.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    /// A template: `{…}` stands for one segment that names something.
    pub(crate) path: &'static str,
    pub(crate) action: Action,
    #[cfg(feature = "schema")]
    pub(crate) about: About,
}

/// A line of the table. What is said about an operation is no part of the functions, only of what describes them.
macro_rules! operation {
    ($method:literal, $path:expr, $action:expr, $($field:ident: $value:expr),+ $(,)?) => {
        Operation {
            method: $method,
            path: $path,
            action: $action,
            #[cfg(feature = "schema")]
            about: About { $($field: $value,)+ ..About::NOTHING },
        }
    };
}

/// The five operations on a kind of definition.
macro_rules! definitions {
    (
        $kind:ident, $path:literal, tag: $tag:literal, one: $One:literal $one:literal, many: $Many:literal $many:literal,
        create: $create:ty, update: $update:ty, stored: $stored:ty, example: $example:expr,
        filters: $filters:expr, $(change: $change:expr,)? delete: $delete:expr $(,)?
    ) => {
        [
            operation!("GET", $path, Action::List(Kind::$kind),
                id: concat!("list", $Many), tag: $tag, summary: concat!("Lists ", $many),
                query: $filters,
                answer: List(schema_of::<$stored>, schema_of::<$stored>), refuses: &[Refusal::BadRequest]),
            operation!("POST", $path, Action::Create(Kind::$kind),
                id: concat!("create", $One), tag: $tag, summary: concat!("Creates ", $one),
                body: Some(Body { schema: schema_of::<$create>, example: $example }),
                answer: One(201, schema_of::<$stored>),
                refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::TooLarge]),
            operation!("GET", concat!($path, "/{id}"), Action::Read(Kind::$kind),
                id: concat!("get", $One), tag: $tag, summary: concat!("Reads ", $one),
                answer: One(200, schema_of::<$stored>), refuses: &[Refusal::NotFound]),
            operation!("PATCH", concat!($path, "/{id}"), Action::Update(Kind::$kind),
                id: concat!("update", $One), tag: $tag,
                summary: concat!("Changes ", $one, ": the fields that are sent"),
                query: &[$($change)?],
                body: Some(Body { schema: schema_of::<$update>, example: "" }),
                answer: One(200, schema_of::<$stored>),
                refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
            operation!("DELETE", concat!($path, "/{id}"), Action::Delete(Kind::$kind),
                id: concat!("delete", $One), tag: $tag,
                summary: concat!("Deletes ", $one, " and answers with it"),
                answer: One(200, schema_of::<$stored>), refuses: $delete),
        ]
    };
}

/// Every operation, in the order of the description.
pub(crate) static TABLE: &[&[Operation]] = &[
    &[
        operation!("GET", "/health", Action::Health,
            id: "getHealth", tag: "System", summary: "Says that the API is up",
            answer: One(200, schema_of::<Health>)),
        operation!("GET", "/openapi.json", Action::Secret(SecretAction::Describe),
            id: "getDescription", tag: "System", summary: "This description",
            answer: One(200, schema_of::<Description>)),
    ],
    &[
        operation!("GET", "/org", Action::ListOrgs,
            id: "listOrgs", tag: "Organization", summary: "Lists the organizations of the key, which is one",
            answer: One(200, schema_of::<Vec<Organization>>)),
        operation!("GET", "/org/{id}", Action::ReadOrg,
            id: "getOrg", tag: "Organization", summary: "Reads the organization's settings and what it spent this month",
            answer: One(200, schema_of::<Organization>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/org/{id}", Action::UpdateOrg,
            id: "updateOrg", tag: "Organization", summary: "Changes the organization's name or limits",
            body: Some(Body { schema: schema_of::<UpdateOrganization>, example: r#"{"concurrencyLimit": 20, "billingLimit": 50}"# }),
            answer: One(200, schema_of::<Organization>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
    ],
    &definitions!(Assistant, "/assistant", tag: "Assistants",
        one: "Assistant" "an assistant", many: "Assistants" "assistants",
        create: CreateAssistant, update: CreateAssistant, stored: Assistant, example: examples::ASSISTANT,
        filters: &[PAGES, UPDATED], delete: &[Refusal::NotFound]),
    &definitions!(Squad, "/squad", tag: "Squads",
        one: "Squad" "a squad", many: "Squads" "squads",
        create: CreateSquad, update: UpdateSquad, stored: Squad, example: examples::SQUAD,
        filters: &[PAGES, UPDATED, IDS], delete: &[Refusal::NotFound]),
    &definitions!(StructuredOutput, "/structured-output", tag: "Structured outputs",
        one: "StructuredOutput" "a structured output", many: "StructuredOutputs" "structured outputs",
        create: CreateStructuredOutput, update: UpdateStructuredOutput, stored: StructuredOutput,
        example: examples::STRUCTURED_OUTPUT, filters: &[PAGES, UPDATED, NAME, ID], change: SCHEMA_OVERRIDE,
        delete: &[Refusal::NotFound]),
    &definitions!(Eval, "/eval", tag: "Evals",
        one: "Eval" "an eval", many: "Evals" "evals",
        create: CreateEval, update: UpdateEval, stored: Eval, example: examples::EVAL,
        filters: &[PAGES, UPDATED, ID], delete: &[Refusal::NotFound]),
    &definitions!(Personality, "/eval/simulation/personality", tag: "Personalities",
        one: "Personality" "a personality", many: "Personalities" "personalities",
        create: CreatePersonality, update: UpdatePersonality, stored: Personality, example: examples::PERSONALITY,
        filters: &[PAGES, UPDATED], delete: &[Refusal::NotFound, Refusal::InUse]),
    &definitions!(Scenario, "/eval/simulation/scenario", tag: "Scenarios",
        one: "Scenario" "a scenario", many: "Scenarios" "scenarios",
        create: CreateScenario, update: UpdateScenario, stored: Scenario, example: examples::SCENARIO,
        filters: &[PAGES, UPDATED, NAME, IDS], delete: &[Refusal::NotFound, Refusal::InUse]),
    &definitions!(Simulation, "/eval/simulation", tag: "Simulations",
        one: "Simulation" "a simulation", many: "Simulations" "simulations",
        create: CreateSimulation, update: UpdateSimulation, stored: Simulation, example: examples::SIMULATION,
        filters: &[PAGES, UPDATED, IDS, STANDALONE], delete: &[Refusal::NotFound]),
    &definitions!(Suite, "/eval/simulation/suite", tag: "Suites",
        one: "Suite" "a suite", many: "Suites" "suites",
        create: CreateSimulationSuite, update: UpdateSimulationSuite, stored: SimulationSuite, example: examples::SUITE,
        filters: &[PAGES, UPDATED, NAME], delete: &[Refusal::NotFound]),
    &[
        operation!("POST", "/eval/simulation/suite/{id}/duplicate", Action::DuplicateSuite,
            id: "duplicateSuite", tag: "Suites", summary: "Copies a suite",
            answer: One(201, schema_of::<SimulationSuite>), refuses: &[Refusal::NotFound, Refusal::TooLarge]),
        operation!("GET", "/eval/simulation/concurrency", Action::ReadConcurrency,
            id: "getConcurrency", tag: "Runs",
            summary: "Says how many call slots the organization has, and how many are held now",
            answer: One(200, schema_of::<SimulationConcurrencyResponse>)),
        operation!("GET", "/eval/simulation/run", Action::ListRuns,
            id: "listRuns", tag: "Runs", summary: "Lists runs; a page says what each of them played",
            query: &[PAGES, UPDATED, RUNS],
            answer: List(schema_of::<SimulationRun>, schema_of::<SimulationRunListItem>),
            refuses: &[Refusal::BadRequest]),
        operation!("POST", "/eval/simulation/run", Action::CreateRun,
            id: "createRun", tag: "Runs", summary: "Starts a run",
            idempotent: true,
            body: Some(Body { schema: schema_of::<CreateSimulationRun>, example: examples::RUN }),
            answer: One(201, schema_of::<CreateSimulationRunResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("GET", "/eval/simulation/run/{id}", Action::ReadRun,
            id: "getRun", tag: "Runs", summary: "Reads a run",
            answer: One(200, schema_of::<SimulationRun>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/eval/simulation/run/{id}", Action::CancelRun,
            id: "cancelRun", tag: "Runs", summary: "Cancels what has not ended of a run",
            answer: One(200, schema_of::<SimulationRun>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("GET", "/eval/simulation/run/{id}/summary", Action::SummarizeRun,
            id: "summarizeRun", tag: "Runs", summary: "Says how often each simulation of a run passed",
            query: &[NUMBERED],
            answer: One(200, schema_of::<SimulationRunSummary>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound]),
        operation!("GET", "/eval/simulation/run/{id}/compare", Action::CompareRuns,
            id: "compareRuns", tag: "Runs", summary: "Says what became of each simulation since another run",
            query: &[BASELINE, NUMBERED],
            answer: One(200, schema_of::<SimulationRunComparison>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound]),
        operation!("POST", "/eval/simulation/run/{id}/rerun", Action::RerunRun,
            id: "rerunRun", tag: "Runs", summary: "Plays failed items of a run again, in a new run",
            idempotent: true,
            body: Some(Body { schema: schema_of::<RerunSimulationRun>, example: r#"{"items": "failed"}"# }),
            optional: true,
            answer: One(201, schema_of::<CreateSimulationRunResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("POST", "/eval/simulation/run/{id}/evaluate", Action::EvaluateRun,
            id: "evaluateRun", tag: "Runs", summary: "Judges the kept conversations of a run again, in a new run",
            idempotent: true,
            body: Some(Body { schema: schema_of::<EvaluateSimulationRun>, example: "{}" }),
            optional: true,
            answer: One(201, schema_of::<CreateSimulationRunResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("GET", "/eval/simulation/run/{id}/item", Action::ListItems,
            id: "listItems", tag: "Items", summary: "Lists the items of a run",
            query: &[PAGES, UPDATED, ITEMS],
            answer: List(schema_of::<SimulationRunItem>, schema_of::<SimulationRunItem>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound]),
        operation!("GET", "/eval/simulation/run/{id}/item/{itemId}", Action::ReadItem,
            id: "getItem", tag: "Items", summary: "Reads an item with its conversation and results",
            answer: One(200, schema_of::<SimulationRunItem>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/eval/simulation/run/{id}/item/{itemId}", Action::CancelItem,
            id: "cancelItem", tag: "Items", summary: "Cancels an item",
            answer: One(200, schema_of::<SimulationRunItem>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("POST", "/eval/simulation/run/{id}/item/{itemId}/generate", Action::Secret(SecretAction::SuggestImprovements),
            id: "suggestImprovements", tag: "Items", summary: "Suggests what to change after an item failed",
            idempotent: true,
            query: &[SUGGESTIONS],
            answer: One(201, schema_of::<Improvements>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge, Refusal::Model]),
        operation!("POST", "/eval/simulation/scenario/generate", Action::Secret(SecretAction::GenerateScenarios),
            id: "generateScenarios", tag: "Scenarios", summary: "Writes scenarios for an agent, which are kept nowhere",
            idempotent: true,
            body: Some(Body { schema: schema_of::<GenerateScenarios>, example: "" }),
            answer: One(201, schema_of::<GenerateScenariosResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge, Refusal::Model]),
        operation!("POST", "/structured-output/run", Action::Secret(SecretAction::RunStructuredOutput),
            id: "runStructuredOutput", tag: "Structured outputs",
            summary: "Runs a structured output on conversations that are over",
            idempotent: true,
            body: Some(Body { schema: schema_of::<RunStructuredOutput>, example: "" }),
            answer: One(200, schema_of::<Extracted>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge, Refusal::Model]),
        operation!("GET", "/eval/run", Action::ListEvalRuns,
            id: "listEvalRuns", tag: "Eval runs", summary: "Lists runs of evals",
            query: &[PAGES, UPDATED, RUNS, EVAL_RUNS],
            answer: List(schema_of::<EvalRun>, schema_of::<EvalRun>),
            refuses: &[Refusal::BadRequest]),
        operation!("POST", "/eval/run", Action::CreateEvalRun,
            id: "createEvalRun", tag: "Eval runs", summary: "Starts a run of one or several evals",
            idempotent: true,
            body: Some(Body { schema: schema_of::<CreateEvalRun>, example: examples::EVAL_RUN }),
            answer: One(201, schema_of::<CreateEvalRunResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("GET", "/eval/run/{id}", Action::ReadEvalRun,
            id: "getEvalRun", tag: "Eval runs", summary: "Reads a run of evals with its results",
            answer: One(200, schema_of::<EvalRun>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/eval/run/{id}", Action::CancelEvalRun,
            id: "cancelEvalRun", tag: "Eval runs", summary: "Cancels what has not ended of a run of evals",
            answer: One(200, schema_of::<EvalRun>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("DELETE", "/eval/run/{id}", Action::DeleteEvalRun,
            id: "deleteEvalRun", tag: "Eval runs", summary: "Deletes a run of evals, canceled if it had not ended, and answers with it",
            answer: One(200, schema_of::<EvalRun>), refuses: &[Refusal::NotFound]),
        operation!("GET", "/schedule", Action::Secret(SecretAction::ListSchedules),
            id: "listSchedules", tag: "Schedules", summary: "Lists schedules",
            query: &[PAGES, UPDATED, NAME], answer: List(schema_of::<Schedule>, schema_of::<Schedule>),
            refuses: &[Refusal::BadRequest]),
        operation!("POST", "/schedule", Action::Secret(SecretAction::CreateSchedule),
            id: "createSchedule", tag: "Schedules", summary: "Creates a schedule, which starts runs by the clock",
            body: Some(Body { schema: schema_of::<CreateSchedule>, example: examples::SCHEDULE }),
            answer: One(201, schema_of::<Schedule>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::TooLarge]),
        operation!("GET", "/schedule/{id}", Action::Secret(SecretAction::ReadSchedule),
            id: "getSchedule", tag: "Schedules", summary: "Reads a schedule with its next five firings",
            answer: One(200, schema_of::<Schedule>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/schedule/{id}", Action::Secret(SecretAction::UpdateSchedule),
            id: "updateSchedule", tag: "Schedules",
            summary: "Changes a schedule: the fields that are sent. `\"active\": false` pauses it",
            body: Some(Body { schema: schema_of::<UpdateSchedule>, example: r#"{"active": false}"# }),
            answer: One(200, schema_of::<Schedule>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("DELETE", "/schedule/{id}", Action::Secret(SecretAction::DeleteSchedule),
            id: "deleteSchedule", tag: "Schedules",
            summary: "Deletes a schedule with its history and answers with it; its runs stay",
            answer: One(200, schema_of::<Schedule>), refuses: &[Refusal::NotFound, Refusal::Conflict]),
        operation!("POST", "/schedule/{id}/run", Action::Secret(SecretAction::RunSchedule),
            id: "runSchedule", tag: "Schedules", summary: "Starts a run of a schedule now, paused or not",
            idempotent: true,
            answer: One(201, schema_of::<CreateSimulationRunResponse>),
            refuses: &[Refusal::BadRequest, Refusal::PaymentRequired, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("GET", "/schedule/{id}/firing", Action::Secret(SecretAction::ListFirings),
            id: "listFirings", tag: "Schedules", summary: "Lists what became of a schedule's firings, with their runs",
            query: &[FIRINGS], answer: One(200, schema_of::<ScheduleFirings>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound]),
        operation!("GET", "/schedule/{id}/trend", Action::Secret(SecretAction::ReadTrend),
            id: "getTrend", tag: "Schedules",
            summary: "Says how the newest runs of a schedule came out: pass rate, latency and cost of each",
            query: &[TREND], answer: One(200, schema_of::<ScheduleTrend>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound]),
        operation!("GET", "/endpoint", Action::Secret(SecretAction::ListEndpoints),
            id: "listEndpoints", tag: "Endpoints", summary: "Lists the voice providers",
            query: &[PAGES], answer: List(schema_of::<Endpoint>, schema_of::<Endpoint>),
            refuses: &[Refusal::BadRequest]),
        operation!("POST", "/endpoint", Action::Secret(SecretAction::CreateEndpoint),
            id: "createEndpoint", tag: "Endpoints",
            summary: "Makes a voice provider known; only this answer shows its first secret",
            body: Some(Body { schema: schema_of::<CreateEndpoint>, example: examples::ENDPOINT }),
            answer: One(201, schema_of::<Endpoint>), refuses: &[Refusal::BadRequest, Refusal::TooLarge]),
        operation!("GET", "/endpoint/{id}", Action::Secret(SecretAction::ReadEndpoint),
            id: "getEndpoint", tag: "Endpoints", summary: "Reads a voice provider",
            answer: One(200, schema_of::<Endpoint>), refuses: &[Refusal::NotFound]),
        operation!("PATCH", "/endpoint/{id}", Action::Secret(SecretAction::UpdateEndpoint),
            id: "updateEndpoint", tag: "Endpoints", summary: "Changes name, key, settings or signature of a voice provider",
            body: Some(Body { schema: schema_of::<UpdateEndpoint>, example: "" }),
            answer: One(200, schema_of::<Endpoint>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("DELETE", "/endpoint/{id}", Action::Secret(SecretAction::DeleteEndpoint),
            id: "deleteEndpoint", tag: "Endpoints", summary: "Deletes a voice provider with its secrets",
            answer: One(200, schema_of::<Endpoint>), refuses: &[Refusal::NotFound, Refusal::Conflict]),
        operation!("POST", "/endpoint/{id}/secret", Action::Secret(SecretAction::AddEndpointSecret),
            id: "addEndpointSecret", tag: "Endpoints", summary: "Adds a secret; one that is made here only this answer shows",
            body: Some(Body { schema: schema_of::<AddEndpointSecret>, example: "" }), optional: true,
            answer: One(201, schema_of::<Endpoint>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict, Refusal::TooLarge]),
        operation!("DELETE", "/endpoint/{id}/secret/{secretId}", Action::Secret(SecretAction::DeleteEndpointSecret),
            id: "deleteEndpointSecret", tag: "Endpoints", summary: "Deletes a secret",
            answer: One(200, schema_of::<Endpoint>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict]),
        operation!("GET", "/hook/secret", Action::Secret(SecretAction::ReadHookSecrets),
            id: "listHookSecrets", tag: "Hooks", summary: "Shows the secrets that outgoing hooks are signed with",
            answer: One(200, schema_of::<HookSecrets>)),
        operation!("POST", "/hook/secret", Action::Secret(SecretAction::AddHookSecret),
            id: "addHookSecret", tag: "Hooks", summary: "Adds a secret",
            answer: One(201, schema_of::<HookSecrets>), created: "/secrets/0/id",
            refuses: &[Refusal::BadRequest, Refusal::Conflict, Refusal::TooLarge]),
        operation!("DELETE", "/hook/secret/{id}", Action::Secret(SecretAction::DeleteHookSecret),
            id: "deleteHookSecret", tag: "Hooks", summary: "Deletes a secret",
            answer: One(200, schema_of::<HookSecrets>),
            refuses: &[Refusal::BadRequest, Refusal::NotFound, Refusal::Conflict]),
    ],
];

/// Every operation.
pub(crate) fn all() -> impl Iterator<Item = &'static Operation> {
    TABLE.iter().copied().flatten()
}

/// What a request names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// An operation, with what the path's first and second `{…}` stand for; empty where there is none.
    Operation {
        action: Action,
        id: &'a str,
        inner: &'a str,
    },
    /// A path that has these methods only.
    OtherMethod {
        allowed: Vec<&'static str>,
        public: bool,
    },
    /// Nothing.
    Nothing,
}

/// The segments of a path; empty ones do not count.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn is_parameter(segment: &str) -> bool {
    segment.starts_with('{')
}

/// What the parameters of `template` stand for in `path`, and how literally it fits: of two templates that fit, the one that is
/// literal earlier is the greater.
fn fit<'a>(template: &str, path: &[&'a str]) -> Option<(Vec<bool>, Vec<&'a str>)> {
    let mut given = path.iter();
    let (mut literal, mut named) = (Vec::new(), Vec::new());
    for segment in segments(template) {
        let given = given.next()?;
        if is_parameter(segment) {
            named.push(*given);
        } else if segment != *given {
            return None;
        }
        literal.push(!is_parameter(segment));
    }
    given.next().is_none().then_some((literal, named))
}

/// The template of the path that serves `path`, and what its parameters stand for there.
fn serving(path: &str) -> Option<(&'static str, Vec<&str>)> {
    let path: Vec<&str> = segments(path).collect();
    let fitting = all().filter_map(|operation| Some((operation.path, fit(operation.path, &path)?)));
    let (template, (_, named)) = fitting.max_by(|(_, (a, _)), (_, (b, _))| a.cmp(b))?;
    Some((template, named))
}

/// The template of the path that serves `path`; nothing of what a client has put into it.
pub(crate) fn template(path: &str) -> Option<&'static str> {
    serving(path).map(|(template, _)| template)
}

/// Finds what a request names by its method and path.
pub(crate) fn find<'a>(method: &str, path: &'a str) -> Found<'a> {
    let Some((template, named)) = serving(path) else {
        return Found::Nothing;
    };
    let methods = || all().filter(|operation| operation.path == template);
    match methods().find(|operation| operation.method == method) {
        Some(operation) => Found::Operation {
            action: operation.action,
            id: named.first().copied().unwrap_or_default(),
            inner: named.get(1).copied().unwrap_or_default(),
        },
        None => Found::OtherMethod {
            allowed: methods().map(|operation| operation.method).collect(),
            public: methods().any(|operation| operation.action.is_public()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn action(method: &str, path: &str) -> Option<Action> {
        match find(method, path) {
            Found::Operation { action, .. } => Some(action),
            _ => None,
        }
    }

    #[test]
    fn every_operation_is_found_by_its_own_template_and_none_is_there_twice() {
        let mut seen = HashSet::new();
        for operation in all() {
            assert_eq!(action(operation.method, operation.path), Some(operation.action));
            assert!(seen.insert((operation.method, operation.path)), "{operation:?}");
            // Two templates of one shape would be told apart by nothing.
            for other in all().filter(|other| other.path != operation.path) {
                let shape = |path: &'static str| {
                    segments(path)
                        .map(|segment| if is_parameter(segment) { "{}" } else { segment })
                        .collect::<Vec<_>>()
                };
                assert_ne!(shape(operation.path), shape(other.path));
            }
        }
        assert!(seen.len() > 40);
    }

    #[test]
    fn what_is_written_out_goes_before_what_is_named() {
        for (method, path, expected) in [
            ("GET", "/eval/simulation/run", Some(Action::ListRuns)),
            (
                "GET",
                "/eval/simulation/runs",
                Some(Action::Read(Kind::Simulation)),
            ),
            ("GET", "/eval/simulation/suite/", Some(Action::List(Kind::Suite))),
            (
                "PATCH",
                "//eval/simulation//suite/x",
                Some(Action::Update(Kind::Suite)),
            ),
            ("DELETE", "/eval/simulation/concurrency", None),
            ("get", "/eval/simulation", None),
            ("GET", "/eval", Some(Action::List(Kind::Eval))),
            ("GET", "/eval/run", Some(Action::ListEvalRuns)),
            ("GET", "/evals", None),
            ("GET", "/eval/simulation/run/1/item/2/3", None),
            ("GET", "", None),
        ] {
            assert_eq!(action(method, path), expected, "{method} {path}");
        }
        assert_eq!(
            find("PATCH", "/eval/simulation/run/1/item/%00"),
            Found::Operation {
                action: Action::CancelItem,
                id: "1",
                inner: "%00"
            }
        );
        let allowed = |path| match find("BREW", path) {
            Found::OtherMethod { allowed, public } => Some((allowed, public)),
            _ => None,
        };
        assert_eq!(allowed("/health"), Some((vec!["GET"], true)));
        assert_eq!(
            allowed("/eval/simulation/run/1"),
            Some((vec!["GET", "PATCH"], false))
        );
        assert_eq!(
            allowed("/eval/simulation/1"),
            Some((vec!["GET", "PATCH", "DELETE"], false))
        );
        assert_eq!(
            allowed("/eval/simulation/suite/1/duplicate"),
            Some((vec!["POST"], false))
        );
        assert_eq!(allowed("/nothing"), None);
    }
}
