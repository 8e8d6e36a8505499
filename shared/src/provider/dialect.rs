//! Which API an endpoint's provider has, and its settings for it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Order, ProviderKind};
use crate::models::{Validate, check};

/// The longest name of something at a provider, in characters.
const MAX_NAME: usize = 200;

/// How Vapi carries calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VapiCalls {
    /// By its own simulation transport: no phone number is needed.
    #[default]
    Simulations,
    /// As a call from a tester assistant to the target's number.
    Phone,
}

/// What Ringback has to know to let Vapi carry calls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VapiSettings {
    /// How calls are carried: by simulations unless it says so. It cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<VapiCalls>,
    /// Vapi's id of the phone number that testers call from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME))]
    pub phone_number_id: Option<String>,
    /// Vapi's id of the webhook credential that its webhooks are to be sent with. Without it Ringback tells Vapi the secret with
    /// each order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME))]
    pub credential_id: Option<String>,
}

impl VapiSettings {
    /// How calls are carried.
    #[must_use]
    pub fn way(&self) -> VapiCalls {
        self.calls.unwrap_or_default()
    }
}

/// What Ringback has to know to place calls at Retell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetellSettings {
    /// The Retell agent that plays the tester. Its prompt is `{{ringback_prompt}}`.
    #[schemars(length(min = 1, max = MAX_NAME))]
    pub agent_id: String,
    /// The number that it calls from, in E.164.
    #[schemars(regex(pattern = r"^\+[1-9][0-9]{1,14}$"))]
    pub from_number: String,
}

/// Whether `text` is a phone number in E.164: a plus and at most 15 digits.
#[must_use]
pub fn is_e164(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (2..=15).contains(&digits.len())
            && !digits.starts_with('0')
            && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl Validate for VapiSettings {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        for (name, text) in [
            ("phoneNumberId", &self.phone_number_id),
            ("credentialId", &self.credential_id),
        ] {
            if let Some(text) = text {
                check::length(path, name, text, 1, MAX_NAME, faults);
            }
        }
        if self.calls == Some(VapiCalls::Phone) && self.phone_number_id.is_none() {
            faults.push(format!(
                "{} is required where calls is phone: Vapi's id of the number that testers call from",
                check::join(path, "phoneNumberId")
            ));
        }
    }
}

impl Validate for RetellSettings {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        check::length(path, "agentId", &self.agent_id, 1, MAX_NAME, faults);
        if !is_e164(&self.from_number) {
            faults.push(format!(
                "{} must be a phone number in E.164, such as +15550100",
                check::join(path, "fromNumber")
            ));
        }
    }
}

/// The API by which calls are ordered, looked up and ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The generic contract.
    #[default]
    Generic,
    /// Vapi's.
    Vapi(VapiSettings),
    /// Retell's.
    Retell(RetellSettings),
}

impl Dialect {
    /// The dialect of an endpoint, from its stored definition.
    ///
    /// # Errors
    /// When the definition is not one of this version.
    pub fn of(endpoint: &Value) -> Result<Self, serde_json::Error> {
        let settings = |name: &str| endpoint.get(name).cloned().unwrap_or_default();
        let kind = endpoint.get("provider").cloned().unwrap_or_default();
        Ok(match serde_json::from_value(kind)? {
            ProviderKind::Vapi => Self::Vapi(serde_json::from_value(settings("vapi"))?),
            ProviderKind::Retell => Self::Retell(serde_json::from_value(settings("retell"))?),
            _ => Self::Generic,
        })
    }

    /// Whether the target is reached by its phone number.
    #[must_use]
    pub fn needs_number(&self) -> bool {
        match self {
            Self::Generic => false,
            Self::Vapi(settings) => settings.way() == VapiCalls::Phone,
            Self::Retell(_) => true,
        }
    }

    /// What it cannot do of what a scenario asks for, in a sentence for the user.
    #[must_use]
    pub fn cannot_play(&self, scenario: &Value) -> Option<&'static str> {
        let has_mocks = || {
            let mocks = scenario.get("toolMocks").and_then(Value::as_array);
            let mut mocks = mocks.into_iter().flatten();
            mocks.any(|mock| mock.get("enabled") != Some(&Value::Bool(false)))
        };
        let overrides = || {
            let overrides = scenario.get("targetOverrides").and_then(Value::as_object);
            overrides.is_some_and(|overrides| !overrides.is_empty())
        };
        let unmocked = scenario.get("unmockedTools").and_then(Value::as_str);
        match self {
            Self::Generic => None,
            _ if unmocked == Some("error") => Some(
                "unmockedTools error needs a provider that can hold back the target's tools; leave it out or let the target be \
                 chatted with",
            ),
            _ if !self.needs_number() => None,
            _ if has_mocks() => Some(
                "toolMocks cannot be used on a target that is reached by its phone number; remove or disable them, or use \
                 another voice provider",
            ),
            _ if overrides() => Some(
                "targetOverrides cannot be used on a target that is reached by its phone number; remove them, or use another \
                 voice provider",
            ),
            _ => None,
        }
    }

    /// What it cannot do of an order.
    pub(super) fn cannot_do(&self, order: &Order) -> Option<&'static str> {
        if self.needs_number() && order.target_number.is_none() {
            return Some("the target has no phone number");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn phone() -> Dialect {
        Dialect::of(&json!({"provider": "vapi", "vapi": {"calls": "phone", "phoneNumberId": "p"}})).unwrap()
    }

    #[test]
    fn an_endpoint_says_how_its_provider_is_talked_to() {
        assert_eq!(
            Dialect::of(&json!({"provider": "generic"})).unwrap(),
            Dialect::Generic
        );
        assert_eq!(
            Dialect::of(&json!({"provider": "twilio"})).unwrap(),
            Dialect::Generic
        );
        assert!(phone().needs_number());
        let simulations = Dialect::of(&json!({"provider": "vapi", "vapi": {}})).unwrap();
        assert_eq!(simulations, Dialect::Vapi(VapiSettings::default()));
        assert!(!simulations.needs_number());
        assert!(Dialect::of(&json!({"provider": "retell"})).is_err());
        assert!(Dialect::of(&json!({"provider": "nobody"})).is_err());
    }

    #[test]
    fn what_cannot_be_played_is_said_before() {
        let simulations = Dialect::Vapi(VapiSettings::default());
        let mocks = json!({"toolMocks": [{"toolName": "a", "result": "b"}]});
        let off =
            json!({"toolMocks": [{"toolName": "a", "result": "b", "enabled": false}], "targetOverrides": {}});
        let overrides = json!({"targetOverrides": {"variableValues": {"a": "b"}}});
        let error = json!({"unmockedTools": "error"});
        for (scenario, by_phone, simulated, generic) in [
            (&mocks, true, false, false),
            (&off, false, false, false),
            (&overrides, true, false, false),
            (&error, true, true, false),
            (&json!({"unmockedTools": "run"}), false, false, false),
        ] {
            assert_eq!(phone().cannot_play(scenario).is_some(), by_phone, "{scenario}");
            assert_eq!(
                simulations.cannot_play(scenario).is_some(),
                simulated,
                "{scenario}"
            );
            assert_eq!(
                Dialect::Generic.cannot_play(scenario).is_some(),
                generic,
                "{scenario}"
            );
        }
    }

    #[test]
    fn numbers_are_in_their_international_form() {
        for (text, good) in [
            ("+15550100", true),
            ("+44", true),
            ("15550100", false),
            ("+05550100", false),
            ("+1555 0100", false),
            ("+1555010012345678", false),
            ("+", false),
            ("", false),
        ] {
            assert_eq!(is_e164(text), good, "{text}");
        }
        let settings = |calls, id: Option<&str>| VapiSettings {
            calls: Some(calls),
            phone_number_id: id.map(str::to_owned),
            credential_id: None,
        };
        for (settings, good) in [
            (settings(VapiCalls::Simulations, None), true),
            (settings(VapiCalls::Phone, Some("p")), true),
            (settings(VapiCalls::Phone, None), false),
            (settings(VapiCalls::Phone, Some("")), false),
        ] {
            let mut faults = Vec::new();
            settings.validate("vapi", &mut faults);
            assert_eq!(faults.is_empty(), good, "{faults:?}");
        }
    }
}
