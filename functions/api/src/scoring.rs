//! What a scenario names beside its evaluations, as it is when a run is created: metrics, the project's rubric, and the test profile
//! that an entry of the run plays it with.

use ringback_shared::{
    context::Context,
    conversation::fill,
    models::{Object, metric::Scored},
    store::Kind,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{definitions::Named, http::ApiError};

/// What the scenarios of a run name.
#[derive(Default)]
pub(crate) struct Material {
    named: Named,
    rubric: Option<Value>,
}

impl Material {
    /// Reads what these scenarios and the test profiles with these ids come to.
    pub(crate) async fn load<'a>(
        ctx: &Context,
        org: Uuid,
        scenarios: impl Iterator<Item = &'a Value>,
        profiles: &[&str],
    ) -> Result<Self, ApiError> {
        let scored: Vec<Scored> = scenarios
            .map(Scored::of)
            .filter(|scored| !scored.is_empty())
            .collect();
        let mut material = Self::default();
        if !profiles.is_empty() {
            let profiles = profiles.iter().copied();
            material.named.load(ctx, org, Kind::TestProfile, profiles).await?;
        }
        if scored.is_empty() {
            return Ok(material);
        }
        let metrics = scored.iter().flat_map(|scored| &scored.metrics);
        material
            .named
            .load(ctx, org, Kind::Metric, metrics.map(String::as_str))
            .await?;
        if scored.iter().any(|scored| scored.rubric.is_none()) {
            // An organization is one project, which has its id.
            let project = ctx.store.definition(org, Kind::Project, org).await?;
            material.rubric = project.and_then(|project| project.body.get("rubric").cloned());
        }
        Ok(material)
    }

    /// Writes the project's rubric into a scenario that has none, and gives the metrics that it names. Those that are gone are left
    /// out: the verdict says so.
    pub(crate) fn complete(&self, scenario: &mut Value) -> Map<String, Value> {
        let scored = Scored::of(scenario);
        if let (Some(rubric), None, Value::Object(scenario)) = (&self.rubric, &scored.rubric, scenario)
            && !scored.is_empty()
        {
            scenario.insert("rubric".to_owned(), rubric.clone());
        }
        let metrics = scored.metrics.into_iter().filter_map(|id| {
            let (_, metric) = self.named.get(Kind::Metric, &id).ok()?;
            Some((id, metric.clone()))
        });
        metrics.collect()
    }

    /// Plays a scenario with a test profile: its variables for the target are set there, those for the tester are filled in. Gives
    /// what of the profile is shown with the item.
    pub(crate) fn play_with(&self, scenario: &mut Value, profile: &str) -> Result<Value, ApiError> {
        let (id, profile) = self.named.get(Kind::TestProfile, profile)?;
        let variables = |name: &str| profile.get(name).and_then(Value::as_object);
        if let Some(scenario) = scenario.as_object_mut() {
            if let Some(variables) = variables("mainAgentVariables").filter(|variables| !variables.is_empty())
            {
                in_object(scenario, "targetOverrides", |overrides| {
                    in_object(overrides, "variableValues", |values| {
                        values.extend(variables.clone())
                    });
                });
            }
            let none = Object::new();
            let known = variables("testingAgentVariables").unwrap_or(&none);
            for text in ["instructions", "expectedOutcome", "firstMessage"] {
                if let Some(Value::String(text)) = scenario.get_mut(text) {
                    *text = filled(text, known);
                }
            }
        }
        Ok(json!({
            "id": id, "name": profile.get("name"), "mainAgentVariables": variables("mainAgentVariables"),
            "testingAgentVariables": variables("testingAgentVariables"),
        }))
    }
}

/// Changes the object in a field, which is made where there is none.
fn in_object(of: &mut Object, field: &str, change: impl FnOnce(&mut Object)) {
    let mut inner = match of.remove(field) {
        Some(Value::Object(inner)) => inner,
        _ => Object::new(),
    };
    change(&mut inner);
    of.insert(field.to_owned(), Value::Object(inner));
}

/// `text` with the variables of a test profile in the place of `{{test_profile.name}}` and `{{test_profile['name']}}`; one that there
/// is not becomes nothing.
fn filled(text: &str, variables: &Object) -> String {
    fill(text, |name| {
        let path = name.strip_prefix("test_profile")?;
        let (first, mut at) = (path.chars().next()?, variables);
        if first != '.' && first != '[' {
            return None;
        }
        let steps: Vec<&str> = path
            .split(['.', '[', ']', '"', '\''])
            .filter(|step| !step.is_empty())
            .collect();
        let (last, before) = steps.split_last()?;
        for step in before {
            at = match at.get(*step) {
                Some(Value::Object(inner)) => inner,
                _ => return Some(String::new()),
            };
        }
        Some(match at.get(*last) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    })
}

/// Writes what the `stored` scenario is scored by now into the one that a conversation was held by. Of the expected outcome the variables
/// of the test profile that the `simulation` was played with are filled in once more.
pub(crate) fn renew(scenario: &mut Object, stored: &Value, simulation: &Value) {
    for name in ["metrics", "rubric", "expectedOutcome"] {
        match stored.get(name) {
            Some(value) => scenario.insert(name.to_owned(), value.clone()),
            None => scenario.remove(name),
        };
    }
    let variables = simulation
        .pointer("/testProfile/testingAgentVariables")
        .and_then(Value::as_object);
    if let (Some(variables), Some(Value::String(expected))) = (variables, scenario.get_mut("expectedOutcome"))
    {
        *expected = filled(expected, variables);
    }
}

/// Adds metrics to those that a scenario names.
pub(crate) fn add_metrics(scenario: &mut Object, metrics: &[Uuid]) {
    if metrics.is_empty() {
        return;
    }
    let mut named = match scenario.remove("metrics") {
        Some(Value::Array(named)) => named,
        _ => Vec::new(),
    };
    for metric in metrics.iter().map(|metric| json!(metric)) {
        if !named.contains(&metric) {
            named.push(metric);
        }
    }
    scenario.insert("metrics".to_owned(), Value::Array(named));
}

/// Whether there is anything that a scenario's conversations are judged by, or need not be.
pub(crate) fn is_judged(scenario: &Value) -> bool {
    let evaluations = scenario.get("evaluations").and_then(Value::as_array);
    evaluations.is_some_and(|list| !list.is_empty())
        || !Scored::of(scenario).is_empty()
        || is_cekuras(scenario)
}

/// Whether a scenario was made in the shape of Cekura: there it need not be judged by anything.
pub(crate) fn is_cekuras(scenario: &Value) -> bool {
    scenario.get("cekura").is_some_and(Value::is_object)
}

/// What a scenario in the shape of Cekura says of how its conversations begin and how long they may be, written where conversations
/// look for it.
pub(crate) fn prepare_conversation(scenario: &mut Value, personality: &mut Value) {
    if !is_cekuras(scenario) {
        return;
    }
    if let Some(Value::String(first)) = scenario.get("firstMessage").filter(|first| **first != json!(""))
        && let Some(personality) = personality.as_object_mut()
    {
        in_object(personality, "assistant", |assistant| {
            assistant.insert("firstMessage".to_owned(), json!(first));
        });
    }
    if let Some(seconds) = scenario.get("maxDurationSeconds").and_then(Value::as_i64)
        && let Some(scenario) = scenario.as_object_mut()
    {
        in_object(scenario, "targetOverrides", |overrides| {
            overrides.insert("maxDurationSeconds".to_owned(), json!(seconds));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_test_profile_are_filled_in() {
        let variables = json!({"name": "Ann", "order": {"id": 7, "items": ["a"]}, "none": null});
        let variables = variables.as_object().unwrap();
        for (text, expected) in [
            ("I am {{test_profile.name}}.", "I am Ann."),
            ("{{ test_profile.order.id }}", "7"),
            (
                "{{test_profile['name']}} {{test_profile[\"order\"][\"id\"]}}",
                "Ann 7",
            ),
            ("{{test_profile.order.items}}", r#"["a"]"#),
            (
                "[{{test_profile.gone}}] [{{test_profile.name.first}}] [{{test_profile.none}}]",
                "[] [] []",
            ),
            (
                "{{name}} {{test_profiles.name}}",
                "{{name}} {{test_profiles.name}}",
            ),
        ] {
            assert_eq!(filled(text, variables), expected);
        }
    }

    #[test]
    fn what_is_scored_is_what_the_stored_scenario_says_now() {
        let mut held =
            json!({"metrics": ["a"], "rubric": {}, "expectedOutcome": "Old.", "instructions": "I"});
        let stored = json!({"metrics": ["b"], "expectedOutcome": "{{test_profile.name}} is told.", "instructions": "J"});
        let simulation = json!({"testProfile": {"testingAgentVariables": {"name": "Ann"}}});
        renew(held.as_object_mut().unwrap(), &stored, &simulation);
        let expected = json!({"metrics": ["b"], "expectedOutcome": "Ann is told.", "instructions": "I"});
        assert_eq!(held, expected);
        add_metrics(
            held.as_object_mut().unwrap(),
            &[Uuid::from_u128(1), Uuid::from_u128(1)],
        );
        assert_eq!(held["metrics"], json!(["b", Uuid::from_u128(1)]));
    }

    #[test]
    fn a_scenario_says_how_it_begins_and_when_it_ends() {
        let mut scenario =
            json!({"cekura": {}, "firstMessage": "Hi", "maxDurationSeconds": 60, "targetOverrides": null});
        let mut personality = json!({"assistant": {"model": {}}});
        prepare_conversation(&mut scenario, &mut personality);
        assert_eq!(scenario["targetOverrides"], json!({"maxDurationSeconds": 60}));
        assert_eq!(
            personality,
            json!({"assistant": {"model": {}, "firstMessage": "Hi"}})
        );
        let (mut scenario, mut personality) = (
            json!({"cekura": {}, "firstMessage": ""}),
            json!({"assistant": {}}),
        );
        prepare_conversation(&mut scenario, &mut personality);
        assert_eq!(personality, json!({"assistant": {}}));
    }
}
