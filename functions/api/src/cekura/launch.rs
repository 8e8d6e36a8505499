//! Launches: scenarios that are run against an agent, with the personalities and test profiles that are wanted.

use ringback_shared::{
    models::{
        Object,
        run::{
            CreateSimulationRun, SimulationEntry, SimulationRunEntry, SimulationRunTarget, TargetAssistant,
            Transport, TransportProvider,
        },
    },
    provider::is_e164,
    store::{Definition, Kind},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    agents,
    answer::{Answer, Fields, Refusal},
    objects::{self, Asked, text, uuids},
    profiles, results, scenarios, webhooks,
};
use crate::{filters::Definitions, runs};

/// How the tester reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// By a call, through whatever endpoint there is, or through one of this provider.
    Voice(Option<&'static str>),
    /// In writing.
    Text,
}

impl Channel {
    /// The channel of `run_scenarios` with this suffix, or why there is none.
    pub(super) fn of_suffix(suffix: &str) -> Result<Self, String> {
        let cannot = |what: &str, instead: &str| Err(format!("Ringback cannot {what}; {instead}"));
        match suffix {
            "" => Ok(Self::Voice(None)),
            "_text" => Ok(Self::Text),
            "_vapi_webrtc" => Ok(Self::Voice(Some("vapi"))),
            "_retell_webrtc" => Ok(Self::Voice(Some("retell"))),
            "_api_chat" => cannot(
                "be asked for the tester's turns over REST, because it drives conversations itself",
                "give the agent a model that can be asked over HTTP (model.url) and use run_scenarios_text",
            ),
            "_with_websockets" | "_chirp" => cannot(
                "talk to agents over a websocket",
                "give the agent a model that can be asked over HTTP (model.url) and use run_scenarios_text",
            ),
            "_email" => cannot("write e-mails", "use run_scenarios_text"),
            "_json" => cannot(
                "run a suite that comes as one document",
                "create its scenarios and use run_scenarios or run_scenarios_text",
            ),
            "_sip" | "_livekit" | "_livekit_v2" | "_livekit_chat" | "_pipecat" | "_pipecat_v2"
            | "_elevenlabs" | "_agora" | "_ello" | "_jotform" => cannot(
                "reach agents this way by itself",
                "connect what can as an endpoint by the generic contract (POST /endpoint) and use run_scenarios",
            ),
            _ => Err(String::new()),
        }
    }

    /// The channel of a cron job's `execution_mode`, or why there is none.
    pub(super) fn of_mode(mode: &str) -> Result<Self, String> {
        match mode {
            "voice" => Self::of_suffix(""),
            mode => Self::of_suffix(&format!("_{mode}")),
        }
    }
}

/// What is to be launched, all of it read.
pub(super) struct Launch {
    pub(super) agent: Definition,
    pub(super) scenarios: Vec<Definition>,
    personalities: Vec<Definition>,
    profiles: Vec<Definition>,
    channel: Channel,
    frequency: i64,
    concurrency: Option<i64>,
    agent_number: Option<String>,
    name: Option<String>,
    settings: Object,
}

/// What the agent and the personalities may be called.
const AGENT: [&str; 2] = ["agent_id", "agent"];
const PERSONALITIES: [&str; 4] = [
    "personality_ids",
    "personality_id",
    "personalities",
    "personality",
];
const PROFILES: [&str; 3] = ["test_profile_ids", "test_profile_id", "test_profiles"];

impl Launch {
    /// Reads what a request wants to be launched. `agent_field` is what it calls the agent.
    pub(super) async fn read(
        asked: Asked<'_>,
        fields: &mut Fields,
        channel: Channel,
        agent_field: &str,
    ) -> Result<Self, Refusal> {
        let field = fields.first(&AGENT);
        let mut agent = match field {
            Some(field) => objects::named(asked, fields, field, Kind::Assistant).await?,
            None => None,
        };
        let assistant = fields.text("assistant_id", 1..=255);
        if let (None, None, Some(id)) = (&agent, field, &assistant) {
            agent = agent_at_provider(asked, id).await?;
            if agent.is_none() {
                fields.wrong("assistant_id", format!("No agent has the assistant_id \"{id}\"."));
            }
        }
        let scenarios = selected(asked, fields).await?;
        if agent.is_none() && field.is_none() && assistant.is_none() {
            // All of one agent's scenarios say whom they are for.
            let mut of = scenarios.iter().map(|one| uuids(one.body.get("agentId")).next());
            let first = of.next().flatten();
            match first.filter(|first| of.all(|other| other == Some(*first))) {
                Some(id) => agent = asked.ctx.store.definition(asked.org, Kind::Assistant, id).await?,
                None => fields.wrong(agent_field, "This field is required."),
            }
        }
        let mut lists = Vec::new();
        for (names, kind) in [
            (&PERSONALITIES[..], Kind::Personality),
            (&PROFILES[..], Kind::TestProfile),
        ] {
            let mut list: Vec<Definition> = Vec::new();
            for name in names {
                for one in objects::all_named(asked, fields, name, kind)
                    .await?
                    .into_iter()
                    .flatten()
                {
                    if !list.iter().any(|known| known.id == one.id) {
                        list.push(one);
                    }
                }
            }
            lists.push(list);
        }
        let (profiles, personalities) = (lists.pop().unwrap_or_default(), lists.pop().unwrap_or_default());
        let frequency = fields.integer("frequency", 1..=100).unwrap_or(1);
        let concurrency = fields.integer("concurrency_limit", 1..=100_000);
        let name = fields.text("name", 0..=255).filter(|name| !name.is_empty());
        let agent_number = fields
            .text("agent_number", 0..=20)
            .filter(|number| !number.is_empty());
        if agent_number.as_deref().is_some_and(|number| !is_e164(number)) {
            fields.wrong("agent_number", "Give the number in E.164, such as +15550100.");
        }
        if fields.raw("mock_tool_names").is_some() {
            fields.wrong(
                "mock_tool_names",
                "Ringback mocks the tools that a scenario has mocks for (toolMocks); leave this out.",
            );
        }
        if fields.raw("outbound_phone_number").is_some() {
            fields.wrong(
                "outbound_phone_number",
                "The provider of the call has the number that calls are made from; leave this out.",
            );
        }
        if fields.raw("websocket_url").is_some() {
            fields.wrong(
                "websocket_url",
                "Ringback cannot talk to agents over a websocket; give the agent a model that can be asked over HTTP.",
            );
        }
        fields.check()?;
        let settings = settings(fields);
        let agent = agent.ok_or_else(|| Refusal::field(agent_field, "This field is required."))?;
        Ok(Self {
            agent,
            scenarios,
            personalities,
            profiles,
            channel,
            frequency,
            concurrency,
            agent_number,
            name,
            settings,
        })
    }

    /// The personalities and the test profiles that are played with in the place of the scenarios' own.
    pub(super) fn personalities(&self) -> &[Definition] {
        &self.personalities
    }

    /// The test profiles.
    pub(super) fn profiles(&self) -> &[Definition] {
        &self.profiles
    }

    /// The run that is wanted.
    pub(super) async fn run(&self, asked: Asked<'_>) -> Result<CreateSimulationRun, Refusal> {
        let (target, transport) = self.way(asked).await?;
        // More than a run may repeat each simulation are so many entries.
        let most = i64::from(asked.ctx.config.max_iterations);
        let (iterations, times) = match self.frequency {
            frequency if frequency <= most => (frequency, 1),
            frequency => (1, frequency),
        };
        let mut simulations = Vec::new();
        let mut played_with = Vec::new();
        for scenario in &self.scenarios {
            let own = |field: &str| uuids(scenario.body.get(field)).next().map(|id| id.to_string());
            let ids =
                |list: &[Definition]| -> Vec<String> { list.iter().map(|one| one.id.to_string()).collect() };
            let personalities = match self.personalities.is_empty() {
                false => ids(&self.personalities),
                true => vec![own("personalityId").ok_or_else(|| {
                    Refusal::field(
                        "scenarios",
                        format!(
                            "Scenario \"{}\" has no personality; give personality_ids.",
                            text(&scenario.body, "name")
                        ),
                    )
                })?],
            };
            let profiles: Vec<Option<String>> = match self.profiles.is_empty() {
                false => ids(&self.profiles).into_iter().map(Some).collect(),
                true => vec![own("testProfileId")],
            };
            for personality in &personalities {
                for profile in &profiles {
                    let mut entry = SimulationEntry {
                        scenario_id: Some(scenario.id.to_string()),
                        personality_id: Some(personality.clone()),
                        ..SimulationEntry::default()
                    };
                    if let Some(profile) = profile {
                        entry.extra.insert("testProfileId".to_owned(), json!(profile));
                    }
                    for _ in 0..times {
                        played_with.push(profile.clone());
                        simulations.push(SimulationRunEntry::Simulation(Box::new(entry.clone())));
                    }
                }
            }
        }
        let mut label = Object::new();
        let mut put = |name: &str, value: Value| {
            label.insert(name.to_owned(), value);
        };
        put("shape", json!("cekura"));
        put("name", json!(self.name.clone()));
        put("agentId", json!(self.agent.id));
        put("agentName", json!(agents::name(&self.agent.body)));
        put("agentInbound", json!(agents::is_inbound(&self.agent.body)));
        put(
            "agentNumber",
            json!(
                self.agent_number
                    .as_deref()
                    .unwrap_or(text(&self.agent.body, "phoneNumber"))
            ),
        );
        put(
            "runType",
            json!(if self.channel == Channel::Text {
                "Text"
            } else {
                "Voice"
            }),
        );
        put("settings", Value::Object(self.settings.clone()));
        if self.profiles.is_empty() && played_with.iter().all(Option::is_none) {
            // Nobody plays with a profile.
        } else {
            put("profiles", self.profile_data(asked, &played_with).await?);
        }
        label.retain(|_, value| !value.is_null());
        let mut extra = Object::new();
        extra.insert("label".to_owned(), Value::Object(label));
        Ok(CreateSimulationRun {
            simulations,
            target,
            iterations,
            transport: Some(transport),
            concurrency_limit: self.concurrency,
            notify: None,
            extra,
        })
    }

    /// What is shown of the test profiles that the simulations are played with.
    async fn profile_data(&self, asked: Asked<'_>, played_with: &[Option<String>]) -> Result<Value, Refusal> {
        let ids: Vec<Uuid> = played_with
            .iter()
            .flatten()
            .filter_map(|id| Uuid::try_parse(id).ok())
            .collect();
        let stored = asked
            .ctx
            .store
            .definitions(asked.org, Kind::TestProfile, &ids)
            .await?;
        let mut numbers = objects::Numbers::default();
        numbers
            .load_all(asked, stored.iter().map(|one| (Kind::TestProfile, one.id)))
            .await?;
        let shown = |id: &Option<String>| {
            let id = Uuid::try_parse(id.as_deref()?).ok()?;
            let profile = stored.iter().find(|one| one.id == id)?;
            Some(json!({
                "id": numbers.of(Kind::TestProfile, id), "name": text(&profile.body, "name"),
                "information": profiles::information(&profile.body),
            }))
        };
        Ok(played_with.iter().map(|id| json!(shown(id))).collect())
    }

    /// Whom the run tests, and how the tester reaches it.
    async fn way(&self, asked: Asked<'_>) -> Result<(SimulationRunTarget, Transport), Refusal> {
        let own = |name: &str| {
            self.agent
                .body
                .pointer(&format!("/cekura/{name}"))
                .and_then(Value::as_str)
        };
        let provider = agents::hosted_by(&self.agent.body);
        let id = match self.channel {
            Channel::Text => agents::chat_target(&self.agent.body, self.agent.id).map_err(Refusal::list)?,
            Channel::Voice(_) => agents::target_id(&self.agent.body, self.agent.id),
        };
        let target = SimulationRunTarget::Assistant(TargetAssistant {
            assistant_id: Some(id),
            ..TargetAssistant::default()
        });
        let mut extra = Object::new();
        let kind = match self.channel {
            Channel::Text => TransportProvider::Webchat,
            Channel::Voice(wanted) => {
                if !agents::is_inbound(&self.agent.body) {
                    return Err(Refusal::list(
                        "Ringback calls agents and cannot be called by them: run this agent with run_scenarios_text, or make it \
                         inbound.",
                    ));
                }
                let wanted = wanted.or(provider.filter(|provider| ["vapi", "retell"].contains(provider)));
                if let Some(endpoint) = own("endpoint_id") {
                    extra.insert("endpointId".to_owned(), json!(endpoint));
                } else if let Some(provider) = wanted {
                    let endpoint = endpoint_of(asked, provider).await?;
                    extra.insert("endpointId".to_owned(), json!(endpoint));
                }
                if let Some(number) = &self.agent_number {
                    extra.insert("targetNumber".to_owned(), json!(number));
                }
                TransportProvider::Websocket
            }
        };
        Ok((
            target,
            Transport {
                provider: kind,
                extra,
            },
        ))
    }
}

/// What is kept of what a launch was asked for.
fn settings(fields: &Fields) -> Object {
    let kept = [
        "personality_ids",
        "test_profile_ids",
        "frequency",
        "concurrency_limit",
        "mode",
        "tags",
        "folder_path",
        "agent_number",
    ];
    kept.into_iter()
        .filter_map(|name| Some((name.to_owned(), fields.raw(name)?.clone())))
        .collect()
}

/// The endpoint that calls through this provider.
async fn endpoint_of(asked: Asked<'_>, provider: &str) -> Result<Uuid, Refusal> {
    let mut endpoints = Definitions::all(asked.ctx, asked.org, Kind::Endpoint);
    while let Some(entries) = endpoints.next().await? {
        if let Some(found) = entries.iter().find(|one| text(&one.body, "provider") == provider) {
            return Ok(found.id);
        }
    }
    Err(Refusal::list(format!(
        "There is no endpoint for {provider}: create one with POST /endpoint."
    )))
}

/// The agent whose provider knows it by this id.
async fn agent_at_provider(asked: Asked<'_>, id: &str) -> Result<Option<Definition>, Refusal> {
    let mut all = Definitions::all(asked.ctx, asked.org, Kind::Assistant);
    while let Some(entries) = all.next().await? {
        let is_it =
            |one: &Definition| one.body.pointer("/cekura/assistant_id").and_then(Value::as_str) == Some(id);
        if let Some(found) = entries.into_iter().find(is_it) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The scenarios that exactly one of `scenarios`, `tags` and `folder_path` selects.
pub(super) async fn selected(asked: Asked<'_>, fields: &mut Fields) -> Result<Vec<Definition>, Refusal> {
    let given: Vec<&str> = ["scenarios", "tags", "folder_path"]
        .into_iter()
        .filter(|name| match fields.raw(name) {
            None => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        })
        .collect();
    let found = match given.as_slice() {
        ["scenarios"] => {
            let named = objects::all_named(asked, fields, "scenarios", Kind::Scenario).await?;
            return Ok(named.unwrap_or_default());
        }
        ["tags"] => {
            let tags = fields.texts("tags").unwrap_or_default();
            let all = every_scenario(asked).await?;
            all.into_iter()
                .filter(|one| scenarios::has_tags(&one.body, &tags, "or"))
                .collect::<Vec<_>>()
        }
        ["folder_path"] => {
            let folder = fields.text("folder_path", 1..=200).unwrap_or_default();
            let all = every_scenario(asked).await?;
            all.into_iter()
                .filter(|one| scenarios::is_in_folder(&one.body, &folder))
                .collect()
        }
        _ => {
            fields.wrong(
                "scenarios",
                "Give exactly one of scenarios, tags and folder_path.",
            );
            return Ok(Vec::new());
        }
    };
    if found.is_empty() {
        let name = given.first().copied().unwrap_or("scenarios");
        fields.wrong(name, "No scenario fits.");
    }
    Ok(found)
}

async fn every_scenario(asked: Asked<'_>) -> Result<Vec<Definition>, Refusal> {
    let mut found = Vec::new();
    let mut all = Definitions::all(asked.ctx, asked.org, Kind::Scenario);
    while let Some(entries) = all.next().await? {
        found.extend(entries);
    }
    // In the order in which they were made.
    found.sort_by_key(|one| one.id);
    Ok(found)
}

/// Launches scenarios on the channel that the path names.
pub(super) async fn launch(asked: Asked<'_>, suffix: &str) -> Answer {
    let channel = Channel::of_suffix(suffix).map_err(|why| match why.is_empty() {
        true => Refusal::not_found(),
        false => Refusal::list(why),
    })?;
    let now = asked.ctx.clock.now_ms();
    let idempotency = crate::idempotency::of(asked.request)?;
    let before = runs::begun(
        asked.ctx,
        asked.org,
        ringback_shared::store::RunKind::Simulation,
        idempotency.as_ref(),
        now,
    );
    if let Some((head, _)) = before.await? {
        return results::launched(asked, head).await;
    }
    let mut fields = Fields::of(asked.request)?;
    let launch = Launch::read(asked, &mut fields, channel, "agent_id").await?;
    let wanted = launch.run(asked).await?;
    let prepared = runs::prepare(asked.ctx, asked.org, wanted, now).await;
    let mut new = prepared.map_err(|error| match error.is_not_found() {
        // Something that a scenario names was deleted.
        true => Refusal::field("scenarios", error.text()),
        false => error.into(),
    })?;
    webhooks::listen(asked, &mut new, webhooks::Starter::Request).await?;
    let (head, _) = runs::begin(asked.ctx, results::of_request(asked, new)?, now).await?;
    results::launched(asked, head).await
}
