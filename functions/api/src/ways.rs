//! The way to a run's target: in writing or by voice, through which endpoint, and what is known of the target.

use std::time::Duration;

use futures_util::future::try_join_all;
use ringback_shared::{
    context::Context,
    line::Line,
    models::{
        Object,
        run::{SimulationRunTarget, Transport, TransportProvider},
    },
    provider::{Dialect, ProviderError, Remote, is_e164},
    store::{Definition, Kind, ListQuery, Snapshot},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{definitions, http::ApiError, runs};

/// How many endpoints are asked for an assistant that is not known here.
const ASKED: usize = 20;
/// How long they have to answer: a request has half a minute.
const ASKED_WITHIN: Duration = Duration::from_secs(12);
/// What is kept of an assistant that only its provider knows: what a conversation and its judge go by, and no servers, which may
/// come with secrets.
const KEPT: [&str; 10] = [
    "id",
    "name",
    "firstMessage",
    "firstMessageMode",
    "endCallPhrases",
    "endCallMessage",
    "endCallFunctionEnabled",
    "maxDurationSeconds",
    "backgroundSound",
    "voicemailMessage",
];
const KEPT_OF_MODEL: [&str; 5] = ["provider", "model", "messages", "temperature", "toolIds"];
const KEPT_OF_SPEECH: [&str; 4] = ["provider", "voiceId", "model", "language"];
const KEPT_OF_TOOLS: [&str; 4] = ["type", "name", "description", "function"];

/// The way to a run's target.
#[derive(Debug)]
pub(crate) struct Way {
    /// How the tester reaches it.
    pub(crate) provider: TransportProvider,
    /// Through which endpoint, if it calls.
    pub(crate) endpoint: Option<Uuid>,
    /// The target as the run keeps it.
    pub(crate) target: Value,
    /// Its id here, if it is stored here.
    pub(crate) target_id: Option<Uuid>,
    dialect: Dialect,
}

impl Way {
    /// The way to `target` that a request wants. What does not say is voice, unless there is no provider to call through.
    pub(crate) async fn to(
        ctx: &Context,
        org: Uuid,
        target: &SimulationRunTarget,
        transport: Option<&Transport>,
    ) -> Result<Self, ApiError> {
        let (provider, endpoint) = transport_of(ctx, org, transport).await?;
        let dialect = match &endpoint {
            Some(endpoint) => Dialect::of(&endpoint.body).map_err(|error| ApiError::internal(&error))?,
            None => Dialect::Generic,
        };
        let endpoint = endpoint.map(|endpoint| endpoint.id);
        let resolved = runs::resolve_target(ctx, org, target).await;
        let (mut target, target_id) = match (resolved, target) {
            (Err(missing), SimulationRunTarget::Assistant(assistant)) if missing.is_not_found() => {
                let id = assistant.assistant_id.as_deref().unwrap_or_default();
                let asked = match (provider, endpoint, &dialect) {
                    (TransportProvider::Websocket, Some(endpoint), Dialect::Vapi(_)) => vec![endpoint],
                    (TransportProvider::Websocket, ..) => Vec::new(),
                    _ => vapi_endpoints(ctx, org).await?,
                };
                (elsewhere(ctx, org, &asked, id, missing).await?, None)
            }
            (resolved, _) => resolved?,
        };
        let number = number_of(&target, transport, dialect.needs_number())?;
        if let Some((number, asked)) = number {
            target["number"] = json!(number);
            // A rerun asks for the same, but not for what the target's own number was.
            if asked {
                target["numberAsked"] = json!(true);
            }
        } else if dialect.needs_number() {
            return Err(ApiError::bad_request(
                "this voice provider calls the target's phone number: give it as transport.targetNumber, or as phoneNumber of \
                 the assistant, in E.164 such as +15550100",
            ));
        }
        Ok(Self {
            provider,
            endpoint,
            target,
            target_id,
            dialect,
        })
    }

    /// Whether everything that the run's scenarios ask for can be done on this way.
    pub(crate) fn check(&self, snapshots: &[Snapshot]) -> Result<(), ApiError> {
        let remote_chat = self.endpoint.is_none() && self.target.get("remote").is_some();
        for snapshot in snapshots {
            let wrong = match remote_chat {
                true => cannot_chat(&snapshot.scenario),
                false => self.dialect.cannot_play(&snapshot.scenario),
            };
            if let Some(wrong) = wrong {
                let name = snapshot.scenario.get("name").and_then(Value::as_str);
                let name = name.unwrap_or_default();
                return Err(ApiError::bad_request(format!("scenario {name}: {wrong}")));
            }
        }
        Ok(())
    }
}

/// What of a scenario cannot be done in a chat that Vapi holds.
fn cannot_chat(scenario: &Value) -> Option<&'static str> {
    let mocks = scenario.get("toolMocks").and_then(Value::as_array);
    let mut mocks = mocks.into_iter().flatten();
    if mocks.any(|mock| mock.get("enabled") != Some(&Value::Bool(false))) {
        return Some(
            "toolMocks cannot be used in a chat with an assistant that only Vapi knows, because Vapi runs its tools; store the \
             assistant here, or use vapi.websocket with a Vapi endpoint",
        );
    }
    if scenario.get("unmockedTools").and_then(Value::as_str) == Some("error") {
        return Some(
            "unmockedTools error cannot be used in a chat with an assistant that only Vapi knows, because Vapi runs its tools; \
             store the assistant here, or leave it out",
        );
    }
    let overrides = scenario.get("targetOverrides").and_then(Value::as_object);
    let others = overrides.is_some_and(|overrides| overrides.keys().any(|name| name != "variableValues"));
    others.then_some(
        "of targetOverrides only variableValues can be used in a chat with an assistant that only Vapi knows; store the \
         assistant here, or use vapi.websocket with a Vapi endpoint",
    )
}

/// The target's phone number, and whether it is the request's; or else it is the assistant's own, which is looked at closely only where
/// it is `needed`.
fn number_of(
    target: &Value,
    transport: Option<&Transport>,
    needed: bool,
) -> Result<Option<(String, bool)>, ApiError> {
    let asked = transport.and_then(|transport| transport.extra.get("targetNumber"));
    let own = target.get("assistant").or_else(|| target.get("squad"));
    let own = own.and_then(|target| target.get("phoneNumber"));
    for (field, number, is_asked) in [
        ("transport.targetNumber", asked, true),
        ("the target's phoneNumber", own, false),
    ] {
        match number {
            None | Some(Value::Null) => {}
            Some(Value::String(number)) if is_e164(number) => return Ok(Some((number.clone(), is_asked))),
            // An assistant may have something else under that name.
            Some(_) if !is_asked && !needed => {}
            Some(_) => {
                return Err(ApiError::bad_request(format!(
                    "{field} must be a phone number in E.164, such as +15550100"
                )));
            }
        }
    }
    Ok(None)
}

/// How a run's tester reaches the target, and through which endpoint if it calls.
async fn transport_of(
    ctx: &Context,
    org: Uuid,
    transport: Option<&Transport>,
) -> Result<(TransportProvider, Option<Definition>), ApiError> {
    let Some(transport) = transport else {
        return Ok(match endpoints(ctx, org, 1).await?.pop() {
            Some(endpoint) => (TransportProvider::Websocket, Some(endpoint)),
            None => (TransportProvider::Webchat, None),
        });
    };
    let provider = transport.provider;
    if provider != TransportProvider::Websocket {
        return Ok((provider, None));
    }
    let named = match transport.extra.get("endpointId") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(definitions::found(ctx, org, Kind::Endpoint, id).await?),
        Some(_) => return Err(ApiError::bad_request("transport.endpointId must be an id")),
    };
    let endpoint = match named {
        Some(endpoint) => endpoint,
        None => endpoints(ctx, org, 1).await?.pop().ok_or_else(|| {
            ApiError::bad_request(
                "transport.provider vapi.websocket needs a voice provider and there is none; create one with POST \
                 /endpoint, or use vapi.webchat",
            )
        })?,
    };
    Ok((provider, Some(endpoint)))
}

/// The organization's endpoints, oldest first.
async fn endpoints(ctx: &Context, org: Uuid, limit: usize) -> Result<Vec<Definition>, ApiError> {
    let oldest = ListQuery {
        ids: Uuid::nil()..=Uuid::max(),
        newest_first: false,
        after: None,
        limit,
    };
    let listed = ctx.store.list_definitions(org, Kind::Endpoint, &oldest).await?;
    Ok(listed.entries)
}

/// The endpoints whose keys are for Vapi.
async fn vapi_endpoints(ctx: &Context, org: Uuid) -> Result<Vec<Uuid>, ApiError> {
    let all = endpoints(ctx, org, 1000).await?;
    let vapi = |endpoint: &&Definition| matches!(Dialect::of(&endpoint.body), Ok(Dialect::Vapi(_)));
    Ok(all
        .iter()
        .filter(vapi)
        .map(|endpoint| endpoint.id)
        .take(ASKED)
        .collect())
}

/// An assistant that is not known here, from the first of these endpoints that knows it; `missing` is what is to be answered if none
/// does.
async fn elsewhere(
    ctx: &Context,
    org: Uuid,
    asked: &[Uuid],
    id: &str,
    missing: ApiError,
) -> Result<Value, ApiError> {
    let ask = |&endpoint: &Uuid| async move {
        let Ok(line) = Line::of(ctx, org, endpoint).await? else {
            return Ok((endpoint, Ok(None)));
        };
        let provider = line.provider();
        let found = tokio::time::timeout(ASKED_WITHIN, provider.assistant(&ctx.outbound, id)).await;
        let late = |_| Err(ProviderError::Unanswered("it takes too long".to_owned()));
        Ok::<_, ApiError>((endpoint, found.unwrap_or_else(late)))
    };
    let mut unanswered = None;
    for (endpoint, found) in try_join_all(asked.iter().map(ask)).await? {
        match found {
            Ok(Some(assistant)) => {
                let remote = Remote {
                    endpoint,
                    assistant_id: id.to_owned(),
                };
                return Ok(json!({"assistant": kept(&assistant), "remote": remote}));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%endpoint, %error, "an assistant could not be looked up");
                unanswered = Some((error.is_transient(), error));
            }
        }
    }
    Err(match unanswered {
        Some((true, error)) => ApiError::new(
            503,
            format!("assistant {id} is not stored here, and Vapi cannot be asked for it: {error}"),
        ),
        Some((false, error)) => ApiError::bad_request(format!(
            "assistant {id} is not stored here, and Vapi was asked for it: {error}"
        )),
        None => missing,
    })
}

fn kept(assistant: &Object) -> Value {
    let pick = |object: &Object, names: &[&str]| -> Object {
        let fields = names.iter().filter_map(|&name| object.get_key_value(name));
        fields
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let mut kept = pick(assistant, &KEPT);
    for part in ["voice", "transcriber"] {
        if let Some(speech) = assistant.get(part).and_then(Value::as_object) {
            kept.insert(part.to_owned(), Value::Object(pick(speech, &KEPT_OF_SPEECH)));
        }
    }
    if let Some(model) = assistant.get("model").and_then(Value::as_object) {
        let mut short = pick(model, &KEPT_OF_MODEL);
        if let Some(tools) = model.get("tools").and_then(Value::as_array) {
            let tools = tools.iter().filter_map(Value::as_object);
            let tools: Vec<Object> = tools.map(|tool| pick(tool, &KEPT_OF_TOOLS)).collect();
            short.insert("tools".to_owned(), json!(tools));
        }
        kept.insert("model".to_owned(), Value::Object(short));
    }
    Value::Object(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_of_somebody_elses_assistant_is_kept() {
        let assistant = json!({
            "id": "a", "name": "Ada", "server": {"url": "https://s", "headers": {"x": "secret"}}, "credentials": [1],
            "voice": {"provider": "custom-voice", "server": {"headers": {"x": "secret"}}, "fallbackPlan": {}},
            "model": {"provider": "openai", "model": "m", "knowledgeBase": {"server": {}}, "tools": [
                {"type": "function", "function": {"name": "book"}, "server": {"secret": "s"}},
            ]},
        });
        assert_eq!(
            kept(assistant.as_object().unwrap()),
            json!({
                "id": "a", "name": "Ada", "voice": {"provider": "custom-voice"},
                "model": {"provider": "openai", "model": "m", "tools": [
                    {"type": "function", "function": {"name": "book"}},
                ]},
            })
        );
    }

    #[test]
    fn a_chat_that_vapi_holds_can_do_less() {
        for (scenario, fine) in [
            (json!({}), true),
            (
                json!({"toolMocks": [{"toolName": "a", "enabled": false}], "targetOverrides": {"variableValues": {}}}),
                true,
            ),
            (json!({"unmockedTools": "run"}), true),
            (json!({"unmockedTools": "error"}), false),
            (json!({"toolMocks": [{"toolName": "a"}]}), false),
            (json!({"targetOverrides": {"firstMessage": "Hi"}}), false),
        ] {
            assert_eq!(cannot_chat(&scenario).is_none(), fine, "{scenario}");
        }
    }

    #[test]
    fn the_requests_number_goes_before_the_assistants() {
        let transport = |number: Value| Transport {
            provider: TransportProvider::Websocket,
            extra: json!({"targetNumber": number})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        };
        let target = json!({"assistant": {"phoneNumber": "+15550100"}});
        let number = |target: &Value, transport: Option<&Transport>, needed| {
            number_of(target, transport, needed).map_err(drop)
        };
        let found = |number: &str, asked| Ok(Some((number.to_owned(), asked)));
        assert_eq!(number(&target, None, true), found("+15550100", false));
        let asked = transport(json!("+15550199"));
        assert_eq!(number(&target, Some(&asked), true), found("+15550199", true));
        assert_eq!(number(&json!({}), Some(&transport(Value::Null)), true), Ok(None));
        for odd in [json!({"id": "p"}), json!("555-0100"), json!(7)] {
            let own = json!({"assistant": {"phoneNumber": odd}});
            assert_eq!(
                number(&own, None, false),
                Ok(None),
                "it was never meant to be called"
            );
            assert_eq!(number(&own, None, true), Err(()));
            assert_eq!(number(&target, Some(&transport(odd)), false), Err(()));
        }
    }
}
