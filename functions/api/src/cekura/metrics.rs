//! Metrics, and the catalogue of those that are computed.

use ringback_shared::{
    measure::Measure,
    models::{
        Object, Validate,
        metric::{EvalType, Metric, NAME, PROMPT, VALUES},
    },
    store::Kind,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    answer::{Answer, Fields, Refusal},
    objects::{self, Asked, Filter, Numbers, Resource, own, text},
};
use crate::http::Response;

/// The older names of binary metrics: one whose failure is the run's, and one that only tells.
const ADHERENCE: &str = "binary_workflow_adherence";
const QUALITATIVE: &str = "binary_qualitative";
/// What is kept under names of Ringback's own.
const TAKEN: [&str; 12] = [
    "name",
    "eval_type",
    "enum_values",
    "function_name",
    "vocera_defined_metric_code",
    "simulation_enabled",
    "silence_duration",
    "evaluation_trigger_prompt",
    "agents",
    "id",
    "project",
    "model",
];

/// Metrics.
pub(super) struct Metrics;

/// How an API of this version names a kind of metric.
pub(super) fn eval_type(version: u8, kind: EvalType, decides: bool) -> &'static str {
    match (version, kind, decides) {
        (1, EvalType::Binary, true) => ADHERENCE,
        (1, EvalType::Binary, false) => QUALITATIVE,
        (_, kind, _) => kind.as_str(),
    }
}

impl Resource for Metrics {
    const KIND: Kind = Kind::Metric;
    const BARE: bool = false;

    async fn write(asked: Asked<'_>, mut fields: Fields, stored: Option<&Value>) -> Result<Object, Refusal> {
        let name = fields.required_text("name", 1..=NAME);
        let kind = fields.choice("type", &["llm_judge", "custom_code", "basic", "custom_prompt"]);
        if kind.as_deref() == Some("custom_code") {
            fields.wrong(
                "type",
                "custom_code metrics are Python, which Ringback does not run; describe the metric in words (llm_judge), or name a \
                 computed one as function_name",
            );
        }
        let wanted = fields.choice(
            "eval_type",
            &[
                "binary",
                "continuous_qualitative",
                "numeric",
                "enum",
                ADHERENCE,
                QUALITATIVE,
            ],
        );
        let measure = fields.first(&["function_name", "vocera_defined_metric_code"]);
        let measure = match measure {
            Some(field) => {
                let names: Vec<&str> = Measure::ALL.iter().map(|measure| measure.as_str()).collect();
                let name = fields.choice(field, &names);
                name.and_then(|name| name.parse::<Measure>().ok())
            }
            None => None,
        };
        let eval_type = match wanted.as_deref() {
            None => match measure {
                Some(measure) if measure.is_rating() => EvalType::Rating,
                Some(_) => EvalType::Numeric,
                None => {
                    fields.wrong("eval_type", "This field is required.");
                    EvalType::Binary
                }
            },
            Some(ADHERENCE | QUALITATIVE) => EvalType::Binary,
            Some(name) => name.parse().unwrap_or(EvalType::Binary),
        };
        let before = stored
            .and_then(|stored| stored.get("decides"))
            .and_then(Value::as_bool);
        let decides = match wanted.as_deref() {
            Some(ADHERENCE) => true,
            Some(QUALITATIVE) => false,
            // The newer name says nothing of it.
            _ => before.unwrap_or(true),
        };
        let said = fields.first(&["prompt", "description"]);
        let prompt = said.and_then(|field| fields.text(field, 0..=PROMPT));
        if measure.is_none() && prompt.as_deref().is_none_or(str::is_empty) {
            fields.wrong(
                "description",
                "This field is required: it is what the conversation is judged by.",
            );
        }
        let values = fields.texts("enum_values").unwrap_or_default();
        if eval_type == EvalType::Enum && !(2..=VALUES).contains(&values.len()) {
            fields.wrong(
                "enum_values",
                format!("An enum metric has 2 to {VALUES} different values."),
            );
        }
        let triggered = fields.choice("evaluation_trigger", &["always", "automatic", "custom"]);
        let trigger_type = fields.choice("trigger_type", &["llm_judge", "custom_code"]);
        let trigger = fields.text("evaluation_trigger_prompt", 0..=PROMPT);
        if triggered.as_deref() == Some("custom") {
            if trigger_type.as_deref() == Some("custom_code") {
                fields.wrong(
                    "trigger_type",
                    "custom_code triggers are Python, which Ringback does not run; use llm_judge",
                );
            } else if trigger.as_deref().is_none_or(str::is_empty) {
                fields.wrong("evaluation_trigger_prompt", "This field is required.");
            }
        }
        let enabled = fields.flag("simulation_enabled").unwrap_or(true);
        let silence = fields.integer("silence_duration", 1..=3600);
        let model = fields.object("model");
        let agents = objects::all_named(asked, &mut fields, "agents", Kind::Assistant).await?;
        let rest = fields.checked()?;
        let metric = Metric {
            name,
            eval_type,
            prompt: prompt.filter(|_| measure.is_none()),
            measure,
            enum_values: values,
            decides,
            enabled,
            trigger: trigger.filter(|text| triggered.as_deref() == Some("custom") && !text.is_empty()),
            #[expect(clippy::cast_precision_loss, reason = "at most 3600")]
            silence_seconds: silence.map(|seconds| seconds as f64),
            model,
            extra: Object::new(),
        };
        let mut faults = Vec::new();
        metric.validate("", &mut faults);
        if let Some(fault) = faults.into_iter().next() {
            return Err(Refusal::list(fault));
        }
        let mut kept: Object = rest
            .into_iter()
            .filter(|(name, _)| !TAKEN.contains(&name.as_str()))
            .collect();
        if let Some(agents) = agents {
            kept.insert(
                "agents".to_owned(),
                agents.iter().map(|agent| json!(agent.id)).collect(),
            );
        }
        if let Some(trigger) = &metric.trigger {
            kept.insert("evaluation_trigger_prompt".to_owned(), json!(trigger));
        }
        let mut body = match serde_json::to_value(&metric) {
            Ok(Value::Object(body)) => body,
            _ => Object::new(),
        };
        body.insert("cekura".to_owned(), Value::Object(kept));
        Ok(body)
    }

    fn names(body: &Value) -> Vec<(Kind, Uuid)> {
        let agents = objects::uuids(body.pointer("/cekura/agents"));
        agents.map(|id| (Kind::Assistant, id)).collect()
    }

    fn show(asked: Asked<'_>, body: &Value, numbers: &Numbers) -> Object {
        let metric: Option<Metric> = serde_json::from_value(body.clone()).ok();
        let mut shown = defaults();
        shown.extend(own(body));
        let mut put = |name: &str, value: Value| {
            shown.insert(name.to_owned(), value);
        };
        put("name", json!(text(body, "name")));
        put(
            "agents",
            numbers.all_named(Kind::Assistant, body.pointer("/cekura/agents")),
        );
        put("project", json!(numbers.of(Kind::Project, asked.org)));
        if let Some(metric) = metric {
            put(
                "eval_type",
                json!(eval_type(asked.version, metric.eval_type, metric.decides)),
            );
            put("enum_values", json!(metric.enum_values));
            put("simulation_enabled", json!(metric.enabled));
            put("silence_duration", json!(metric.silence_seconds));
            put("function_name", json!(metric.measure));
            put("model", json!(metric.model));
            if shown.get("description").is_none_or(Value::is_null) {
                shown.insert("description".to_owned(), json!(metric.prompt.unwrap_or_default()));
            }
        }
        shown
    }

    async fn filter(asked: Asked<'_>) -> Result<Filter, Refusal> {
        let agent = objects::asked_for(asked, "agent_id", Kind::Assistant).await?;
        let search = asked.request.query.get("search").map(str::to_lowercase);
        Ok(Box::new(move |body| {
            let agents: Vec<Uuid> = objects::uuids(body.pointer("/cekura/agents")).collect();
            agent.is_none_or(|agent| agents.is_empty() || agents.contains(&agent))
                && search
                    .as_ref()
                    .is_none_or(|part| text(body, "name").to_lowercase().contains(part))
        }))
    }
}

/// What a metric says unless somebody has said otherwise.
fn defaults() -> Object {
    let fields = json!({
        "type": "llm_judge", "description": null, "evaluation_trigger": "automatic", "trigger_type": "llm_judge",
        "evaluation_trigger_prompt": "", "observability_enabled": false, "sampling_enabled": false, "audio_enabled": false,
        "alert_type": "disabled",
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Object::new(),
    }
}

/// What a computed metric is called.
fn title(measure: Measure) -> String {
    let mut title = measure.as_str().replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// The metrics that are computed, as a catalogue: nobody has to describe them.
pub(super) fn predefined(asked: Asked<'_>) -> Answer {
    let entries: Vec<Value> = Measure::ALL
        .iter()
        .map(|&measure| {
            let kind = if measure.is_rating() { EvalType::Rating } else { EvalType::Numeric };
            json!({
                "code": measure, "function_name": measure, "name": title(measure),
                "eval_type": eval_type(asked.version, kind, false), "type": "custom_code", "description": measure.describe(),
            })
        })
        .collect();
    Ok(Response::ok(entries)?)
}

/// Makes metrics of some of the catalogue's.
pub(super) async fn copy(asked: Asked<'_>) -> Answer {
    let mut fields = Fields::of(asked.request)?;
    let field = fields
        .first(&["codes", "code", "function_names", "predefined_metrics"])
        .unwrap_or("codes");
    let codes = match fields.raw(field) {
        Some(Value::String(code)) => vec![code.clone()],
        _ => fields.texts(field).unwrap_or_default(),
    };
    let mut chosen = Vec::new();
    for code in codes {
        match code.parse::<Measure>() {
            Ok(measure) => chosen.push(measure),
            Err(_) => fields.wrong(field, format!("There is no predefined metric \"{code}\".")),
        }
    }
    if chosen.is_empty() {
        fields.wrong(field, "Name at least one predefined metric by its code.");
    }
    fields.check()?;
    let agents = fields.raw("agents").cloned().unwrap_or(Value::Null);
    let mut made = Vec::with_capacity(chosen.len());
    for measure in chosen {
        let body = json!({ "name": title(measure), "function_name": measure, "agents": agents });
        let body = body.as_object().cloned().unwrap_or_default();
        made.push(objects::keep::<Metrics>(asked, Fields::new(body)).await?);
    }
    Ok(Response::created(objects::shown::<Metrics>(asked, &made).await?)?)
}

/// Makes several metrics. Either all of them are right, or none is made.
pub(super) async fn bulk_create(asked: Asked<'_>) -> Answer {
    let list: Vec<Object> = serde_json::from_slice(&asked.request.body)
        .map_err(|_| Refusal::list("Expected a list of metrics."))?;
    let mut written = Vec::with_capacity(list.len());
    for fields in list {
        written.push(Metrics::write(asked, Fields::new(fields), None).await?);
    }
    let mut made = Vec::with_capacity(written.len());
    for fields in written {
        made.push(objects::keep_written::<Metrics>(asked, fields).await?);
    }
    Ok(Response::created(objects::shown::<Metrics>(asked, &made).await?)?)
}
