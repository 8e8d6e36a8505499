//! The schemes that an endpoint can be configured with, by their senders' names.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::{Map, Value};

use super::{
    Algorithm, Encoding, Entries, KeyEncoding, Profile, SecretError, Separator, TimestampRule, TimestampUnit,
    profile::{self, Part},
};
use crate::models::{Validate, check};

const MAX_TOLERANCE_SECONDS: u32 = super::MAX_WINDOW_MS / 1000;
const MAX_NAME: usize = 200;
const GENERATED_SECRET: usize = 32;

/// How an endpoint's webhooks are signed: `{"scheme": …}` with the scheme's settings beside it, if it has any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "scheme", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scheme {
    /// Standard Webhooks 1.0.0 by HMAC-SHA256 (`v1`).
    #[default]
    StandardWebhooks,
    /// Standard Webhooks 1.0.0 by Ed25519 (`v1a`).
    StandardWebhooksEd25519,
    /// Svix, with its own names for the headers.
    Svix,
    /// Vapi's plain secret in `X-Vapi-Secret`.
    VapiSecret,
    /// Vapi's bearer credential.
    VapiBearer(VapiBearer),
    /// Vapi's HMAC credential.
    VapiHmac(VapiHmac),
    /// Retell; the secret is the API key with the webhook badge.
    Retell,
    /// ElevenLabs.
    Elevenlabs,
    /// Bland. A delivery has no time, so nothing tells a replay from the first one.
    Bland,
    /// Twilio; the secret is the account's primary auth token, or a shared key.
    Twilio(Twilio),
    /// LiveKit; the secret is the API secret.
    Livekit(Livekit),
    /// Telnyx; the secret is the public key.
    Telnyx,
    /// GitHub. A delivery has no time, so nothing tells a replay from the first one.
    Github,
    /// Slack.
    Slack,
    /// Stripe; the secret counts as it is, `whsec_` included.
    Stripe,
    /// Any other sender, whose profile is given.
    Custom(Profile),
}

/// The schemes' names, in the order of [`Scheme`].
const NAMES: [&str; 16] = [
    "standard-webhooks",
    "standard-webhooks-ed25519",
    "svix",
    "vapi-secret",
    "vapi-bearer",
    "vapi-hmac",
    "retell",
    "elevenlabs",
    "bland",
    "twilio",
    "livekit",
    "telnyx",
    "github",
    "slack",
    "stripe",
    "custom",
];

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut settings = Map::deserialize(input)?;
        let name = settings.remove("scheme");
        let scheme = match name.as_ref().and_then(Value::as_str) {
            Some("vapi-bearer") => return read(settings).map(Self::VapiBearer),
            Some("vapi-hmac") => return read(settings).map(Self::VapiHmac),
            Some("twilio") => return read(settings).map(Self::Twilio),
            Some("livekit") => return read(settings).map(Self::Livekit),
            Some("custom") => return read(settings).map(Self::Custom),
            Some("standard-webhooks") => Self::StandardWebhooks,
            Some("standard-webhooks-ed25519") => Self::StandardWebhooksEd25519,
            Some("svix") => Self::Svix,
            Some("vapi-secret") => Self::VapiSecret,
            Some("retell") => Self::Retell,
            Some("elevenlabs") => Self::Elevenlabs,
            Some("bland") => Self::Bland,
            Some("telnyx") => Self::Telnyx,
            Some("github") => Self::Github,
            Some("slack") => Self::Slack,
            Some("stripe") => Self::Stripe,
            _ => {
                return Err(Error::custom(format!(
                    "scheme must be one of the following values: {}",
                    NAMES.join(", ")
                )));
            }
        };
        match settings.keys().next() {
            None => Ok(scheme),
            Some(field) => Err(Error::custom(format!(
                "unknown field `{field}`, the scheme has no settings"
            ))),
        }
    }
}

/// Reads the settings of a scheme; a fault begins with its path among them.
fn read<T: DeserializeOwned, E: Error>(settings: Map<String, Value>) -> Result<T, E> {
    serde_path_to_error::deserialize(Value::Object(settings)).map_err(|fault| {
        let path = fault.path().to_string();
        let inner = fault.into_inner();
        if path == "." || path == "?" {
            E::custom(inner)
        } else {
            E::custom(format!("{path}: {inner}"))
        }
    })
}

/// What a Vapi bearer credential is set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VapiBearer {
    /// The header with the token.
    pub header_name: String,
    /// Whether `Bearer ` stands before the token.
    pub bearer_prefix_enabled: bool,
}

impl Default for VapiBearer {
    fn default() -> Self {
        Self {
            header_name: "authorization".to_owned(),
            bearer_prefix_enabled: true,
        }
    }
}

/// The hash of an HMAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HmacAlgorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// What a Vapi HMAC credential is set to, by Vapi's names, and what Vapi does not say of its timestamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VapiHmac {
    /// The HMAC's hash.
    pub algorithm: HmacAlgorithm,
    /// The header with the signature.
    #[serde(default = "signature_header")]
    pub signature_header: String,
    /// The header with the timestamp, if one is signed.
    #[serde(default = "timestamp_header")]
    pub timestamp_header: String,
    /// What stands before the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_prefix: Option<String>,
    /// Whether a timestamp is signed.
    #[serde(default = "yes")]
    pub include_timestamp: bool,
    /// What is signed, with the placeholders `{body}`, `{timestamp}`, `{method}`, `{url}` (the endpoint's public URL) and
    /// `{svix-id}`. If absent, `{timestamp}.{body}`, or `{body}` without a timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_format: Option<String>,
    /// The header with the message's id, `svix-id` if absent. It is read only if the id is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id_header: Option<String>,
    /// How the signature is written.
    #[serde(default)]
    pub signature_encoding: Encoding,
    /// Whether the secret is the key in base64 rather than the key itself.
    #[serde(default)]
    pub secret_is_base64: bool,
    /// What the timestamp counts.
    #[serde(default = "either")]
    pub timestamp_unit: TimestampUnit,
    /// How many seconds the timestamp may be in the past or in the future.
    #[serde(default = "tolerance_seconds")]
    pub tolerance_seconds: u32,
}

fn signature_header() -> String {
    "x-signature".to_owned()
}

fn timestamp_header() -> String {
    "x-timestamp".to_owned()
}

const fn yes() -> bool {
    true
}

const fn either() -> TimestampUnit {
    TimestampUnit::Either
}

const fn tolerance_seconds() -> u32 {
    super::TOLERANCE_MS / 1000
}

impl VapiHmac {
    fn format(&self) -> &str {
        match &self.payload_format {
            Some(format) => format,
            None if self.include_timestamp => "{timestamp}.{body}",
            None => "{body}",
        }
    }

    fn profile(&self) -> Profile {
        let algorithm = match self.algorithm {
            HmacAlgorithm::Sha1 => Algorithm::HmacSha1,
            HmacAlgorithm::Sha256 => Algorithm::HmacSha256,
            HmacAlgorithm::Sha512 => Algorithm::HmacSha512,
        };
        let window_ms = Some(self.tolerance_seconds.saturating_mul(1000));
        let id_signed = profile::parts(self.format()).is_ok_and(|parts| parts.contains(&Part::Id));
        Profile {
            key_encoding: if self.secret_is_base64 {
                KeyEncoding::Base64
            } else {
                KeyEncoding::Utf8
            },
            encoding: self.signature_encoding,
            prefix: self.signature_prefix.clone().filter(|prefix| !prefix.is_empty()),
            timestamp: self.include_timestamp.then(|| TimestampRule {
                past_ms: window_ms,
                future_ms: window_ms,
                ..TimestampRule::in_header(&self.timestamp_header, self.timestamp_unit)
            }),
            id_header: id_signed.then(|| self.message_id_header.as_deref().unwrap_or("svix-id").to_owned()),
            ..signing(&self.signature_header, algorithm, self.format())
        }
    }
}

impl Validate for VapiHmac {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        profile::header_name(path, "signatureHeader", &self.signature_header, faults);
        if self.include_timestamp {
            profile::header_name(path, "timestampHeader", &self.timestamp_header, faults);
        }
        if let Some(name) = &self.message_id_header {
            profile::header_name(path, "messageIdHeader", name, faults);
        }
        if let Some(prefix) = self.signature_prefix.as_ref().filter(|prefix| !prefix.is_empty()) {
            profile::prefix(path, "signaturePrefix", prefix, faults);
        }
        let field = check::join(path, "payloadFormat");
        if let Some(parts) = profile::template(path, "payloadFormat", self.format(), faults) {
            if parts.contains(&Part::Twilio) {
                faults.push(format!("{field} must not contain {{twilio}}"));
            }
            match (self.include_timestamp, parts.contains(&Part::Timestamp)) {
                (true, false) => faults.push(format!(
                    "{field} must contain {{timestamp}} unless includeTimestamp is false: anybody could change a \
                     timestamp that is not signed"
                )),
                (false, true) => faults.push(format!(
                    "{field} must not contain {{timestamp}} if includeTimestamp is false"
                )),
                _ => {}
            }
        }
        let tolerance = self.tolerance_seconds.into();
        check::range(
            path,
            "toleranceSeconds",
            tolerance,
            1.0,
            MAX_TOLERANCE_SECONDS.into(),
            faults,
        );
    }
}

/// The hash of the HMAC that Twilio makes with a shared key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SharedKeyAlgorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    #[default]
    Sha256,
}

/// Which key Twilio signs with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Twilio {
    /// The id of the shared key that is the endpoint's secret; the auth token is the secret if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_key_id: Option<String>,
    /// The algorithm of the shared key. It has no meaning without one.
    #[serde(default)]
    pub shared_key_algorithm: SharedKeyAlgorithm,
}

/// Which tokens of LiveKit count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Livekit {
    /// The API key, which must be the token's issuer; any issuer counts if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

/// A profile that signs `template`.
fn signing(signature_header: &str, algorithm: Algorithm, template: &str) -> Profile {
    Profile {
        template: Some(template.to_owned()),
        ..Profile::new(signature_header, algorithm)
    }
}

/// Standard Webhooks with headers that begin with `names`.
fn standard(names: &str, algorithm: Algorithm, key_encoding: KeyEncoding, prefix: &str) -> Profile {
    Profile {
        key_encoding,
        encoding: Encoding::Base64,
        prefix: Some(prefix.to_owned()),
        entries: Entries::List {
            separator: Separator::Space,
        },
        timestamp: Some(TimestampRule::in_header(
            &format!("{names}-timestamp"),
            TimestampUnit::Seconds,
        )),
        id_header: Some(format!("{names}-id")),
        ..signing(
            &format!("{names}-signature"),
            algorithm,
            "{id}.{timestamp}.{body}",
        )
    }
}

/// HMAC-SHA256 with a header of pairs, which has the timestamp too.
fn pairs(
    signature_header: &str,
    template: &str,
    timestamp: (&str, TimestampUnit),
    signature_key: &str,
) -> Profile {
    Profile {
        entries: Entries::Pairs {
            signature_key: signature_key.to_owned(),
            exact: false,
        },
        timestamp: Some(TimestampRule::in_pairs(timestamp.0, timestamp.1)),
        ..signing(signature_header, Algorithm::HmacSha256, template)
    }
}

impl Scheme {
    /// All that the verifier goes by.
    #[must_use]
    pub fn profile(&self) -> Profile {
        match self {
            Self::StandardWebhooks => standard("webhook", Algorithm::HmacSha256, KeyEncoding::Whsec, "v1,"),
            Self::StandardWebhooksEd25519 => {
                standard("webhook", Algorithm::Ed25519, KeyEncoding::Base64, "v1a,")
            }
            Self::Svix => standard("svix", Algorithm::HmacSha256, KeyEncoding::Whsec, "v1,"),
            Self::VapiSecret => Profile::new("x-vapi-secret", Algorithm::Static),
            Self::VapiBearer(bearer) => Profile {
                prefix: bearer.bearer_prefix_enabled.then(|| "Bearer ".to_owned()),
                ..Profile::new(&bearer.header_name, Algorithm::Static)
            },
            Self::VapiHmac(hmac) => hmac.profile(),
            Self::Retell => Profile {
                entries: Entries::Pairs {
                    signature_key: "d".to_owned(),
                    exact: true,
                },
                ..pairs(
                    "x-retell-signature",
                    "{body}{timestamp}",
                    ("v", TimestampUnit::Milliseconds),
                    "d",
                )
            },
            Self::Elevenlabs => {
                // ElevenLabs allows half an hour and knows no limit ahead, which would let a delivery be sent again at
                // any time. A clock ahead gets as much as one behind.
                const WINDOW_MS: u32 = 30 * 60 * 1000;
                Profile {
                    timestamp: Some(TimestampRule {
                        past_ms: Some(WINDOW_MS),
                        future_ms: Some(WINDOW_MS),
                        ..TimestampRule::in_pairs("t", TimestampUnit::Seconds)
                    }),
                    ..pairs(
                        "elevenlabs-signature",
                        "{timestamp}.{body}",
                        ("t", TimestampUnit::Seconds),
                        "v0",
                    )
                }
            }
            Self::Bland => signing("x-webhook-signature", Algorithm::HmacSha256, "{body}"),
            Self::Twilio(twilio) => {
                let algorithm = match (&twilio.shared_key_id, twilio.shared_key_algorithm) {
                    (Some(_), SharedKeyAlgorithm::Sha256) => Algorithm::HmacSha256,
                    _ => Algorithm::HmacSha1,
                };
                Profile {
                    encoding: Encoding::Base64,
                    shared_key_id: twilio.shared_key_id.clone(),
                    ..signing("x-twilio-signature", algorithm, "{twilio}")
                }
            }
            Self::Livekit(livekit) => Profile {
                other_signature_header: Some("authorize".to_owned()),
                prefix: Some("Bearer ".to_owned()),
                prefix_optional: true,
                issuer: livekit.api_key.clone(),
                ..Profile::new("authorization", Algorithm::JwtHs256)
            },
            Self::Telnyx => Profile {
                key_encoding: KeyEncoding::Base64,
                encoding: Encoding::Base64,
                timestamp: Some(TimestampRule::in_header(
                    "telnyx-timestamp",
                    TimestampUnit::Seconds,
                )),
                ..signing(
                    "telnyx-signature-ed25519",
                    Algorithm::Ed25519,
                    "{timestamp}|{body}",
                )
            },
            Self::Github => Profile {
                prefix: Some("sha256=".to_owned()),
                ..signing("x-hub-signature-256", Algorithm::HmacSha256, "{body}")
            },
            Self::Slack => Profile {
                prefix: Some("v0=".to_owned()),
                timestamp: Some(TimestampRule::in_header(
                    "x-slack-request-timestamp",
                    TimestampUnit::Seconds,
                )),
                ..signing(
                    "x-slack-signature",
                    Algorithm::HmacSha256,
                    "v0:{timestamp}:{body}",
                )
            },
            Self::Stripe => pairs(
                "stripe-signature",
                "{timestamp}.{body}",
                ("t", TimestampUnit::Seconds),
                "v1",
            ),
            Self::Custom(profile) => profile.clone(),
        }
    }

    /// The header, in lower case, and its value that make a delivery believed whoever sends it, where the scheme signs nothing:
    /// a sender that cannot sign by itself can be told to repeat them.
    #[must_use]
    pub fn plain_header(&self, secret: &str) -> Option<(String, String)> {
        let profile = self.profile();
        (profile.algorithm == Algorithm::Static).then(|| {
            let prefix = profile.prefix.as_deref().unwrap_or_default();
            (
                profile.signature_header.to_ascii_lowercase(),
                format!("{prefix}{secret}"),
            )
        })
    }

    /// Checks that `text` can be a secret of this scheme.
    ///
    /// # Errors
    /// It cannot. The error says what can, and does not repeat `text`.
    pub fn check_secret(&self, text: &str) -> Result<(), SecretError> {
        self.profile().key(text).map(drop)
    }

    /// A new secret of 32 random bytes in this scheme's form; `None` where the sender alone can make one.
    #[must_use]
    pub fn generate(&self) -> Option<Result<String, getrandom::Error>> {
        let encoding = match self {
            Self::StandardWebhooks | Self::Svix => KeyEncoding::Whsec,
            Self::VapiHmac(hmac) if hmac.secret_is_base64 => KeyEncoding::Base64,
            Self::VapiSecret | Self::VapiBearer(_) | Self::VapiHmac(_) | Self::Github => KeyEncoding::Utf8,
            Self::Custom(profile) => match profile.algorithm {
                Algorithm::Ed25519 | Algorithm::JwtHs256 => return None,
                Algorithm::Static | Algorithm::HmacSha1 | Algorithm::HmacSha256 | Algorithm::HmacSha512 => {
                    profile.key_encoding
                }
            },
            Self::StandardWebhooksEd25519
            | Self::Retell
            | Self::Elevenlabs
            | Self::Bland
            | Self::Twilio(_)
            | Self::Livekit(_)
            | Self::Telnyx
            | Self::Slack
            | Self::Stripe => return None,
        };
        let mut bytes = [0; GENERATED_SECRET];
        Some(getrandom::fill(&mut bytes).map(|()| match encoding {
            KeyEncoding::Utf8 => URL_SAFE_NO_PAD.encode(bytes),
            KeyEncoding::Base64 => STANDARD.encode(bytes),
            KeyEncoding::Hex => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            KeyEncoding::Whsec => format!("whsec_{}", STANDARD.encode(bytes)),
        }))
    }
}

impl Validate for Scheme {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match self {
            Self::VapiBearer(bearer) => profile::header_name(path, "headerName", &bearer.header_name, faults),
            Self::VapiHmac(hmac) => hmac.validate(path, faults),
            Self::Twilio(Twilio {
                shared_key_id: Some(id),
                ..
            }) => check::length(path, "sharedKeyId", id, 1, MAX_NAME, faults),
            Self::Livekit(Livekit { api_key: Some(key) }) => {
                check::length(path, "apiKey", key, 1, MAX_NAME, faults);
            }
            Self::Custom(profile) => profile.validate(path, faults),
            _ => {}
        }
    }
}
