//! What the verifier has to know about a sender, as data.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::models::{Validate, check};

/// How far a timestamp may be from the own clock where nothing else is said, in milliseconds.
pub const TOLERANCE_MS: u32 = 5 * 60 * 1000;

/// The widest window that a timestamp may have to either side, in milliseconds.
pub const MAX_WINDOW_MS: u32 = 24 * 60 * 60 * 1000;

/// The most characters of a secret.
pub const MAX_SECRET: usize = 4000;

/// The most characters of a template.
pub const MAX_TEMPLATE: usize = 200;

/// The most characters of a header's name.
pub const MAX_HEADER_NAME: usize = 100;

const MAX_PREFIX: usize = 64;
const MAX_KEY: usize = 32;
const MAX_NAME: usize = 200;

const WHSEC: &str = "whsec_";
const WHPK: &str = "whpk_";
const WHSEC_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Base64 from somebody else, who may have left out the padding.
pub(super) const FOREIGN: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that cannot be a secret of the endpoint's scheme. It does not repeat the text, which may be one with a typing
/// error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The secret is any text.
    #[error(
        "a secret is 1 to {MAX_SECRET} characters, without control characters and without spaces at either end"
    )]
    Text,
    /// The secret itself is sent in a header.
    #[error("a secret is 1 to {MAX_SECRET} visible ASCII characters, without spaces at either end")]
    Header,
    /// The secret is bytes in base64.
    #[error("a secret is the base64 of at least one byte, {MAX_SECRET} characters at the most")]
    Base64,
    /// The secret is bytes in hexadecimal.
    #[error("a secret is the hexadecimal digits of at least one byte, {MAX_SECRET} characters at the most")]
    Hex,
    /// The secret is one of Standard Webhooks.
    #[error("a signing secret is `whsec_` followed by the base64 of 24 to 64 bytes, without spaces")]
    Whsec,
    /// The secret is the sender's public key.
    #[error("a public key is the base64 of 32 bytes, after `whpk_` or alone, without spaces")]
    PublicKey,
    /// The same in hexadecimal.
    #[error("a public key is the 64 hexadecimal digits of 32 bytes")]
    PublicKeyHex,
}

/// What a signature is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The header holds the secret itself. Neither the body nor anything else is signed.
    Static,
    /// HMAC with SHA-1.
    HmacSha1,
    /// HMAC with SHA-256.
    HmacSha256,
    /// HMAC with SHA-512.
    HmacSha512,
    /// Ed25519; the endpoint's secret is the sender's public key.
    Ed25519,
    /// A JSON Web Token by HS256 with an `exp`, whose claim `sha256` is the standard base64 of the body's SHA-256.
    JwtHs256,
}

impl Algorithm {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Static => "nothing",
            Self::HmacSha1 => "HMAC-SHA1",
            Self::HmacSha256 => "HMAC-SHA256",
            Self::HmacSha512 => "HMAC-SHA512",
            Self::Ed25519 => "Ed25519",
            Self::JwtHs256 => "HS256",
        }
    }

    /// The bytes of a signature.
    pub(super) const fn length(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::Static | Self::HmacSha256 | Self::JwtHs256 => 32,
            Self::HmacSha512 | Self::Ed25519 => 64,
        }
    }

    const fn is_hmac(self) -> bool {
        matches!(self, Self::HmacSha1 | Self::HmacSha256 | Self::HmacSha512)
    }
}

/// How the text of a secret becomes the key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyEncoding {
    /// The key is the text's bytes in UTF-8.
    #[default]
    Utf8,
    /// The text is the key in standard base64, with padding or without; a public key may have `whpk_` before it.
    Base64,
    /// The text is the key in hexadecimal, in either case.
    Hex,
    /// The text is `whsec_` and the standard base64 of the key, 24 to 64 bytes.
    Whsec,
}

/// How a signature is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Hexadecimal, in lower case only.
    #[default]
    Hex,
    /// Standard base64, with padding or without.
    Base64,
}

impl Encoding {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hex => "lower-case hexadecimal",
            Self::Base64 => "base64",
        }
    }

    /// The bytes of `text`, which has one form only apart from the padding.
    pub(super) fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Hex => lower_hex(text),
            Self::Base64 => FOREIGN.decode(text).ok(),
        }
    }
}

/// What separates the signatures of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Separator {
    /// One space or more.
    Space,
    /// A comma, with spaces around it or without.
    Comma,
}

/// How the signature header holds signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entries {
    /// The header is one signature.
    Whole {},
    /// Several signatures, of which those count that begin with the profile's prefix.
    List {
        /// What separates them.
        separator: Separator,
    },
    /// Pairs of a key and a value, `key=value`, separated by commas without spaces. Other keys are passed over.
    #[serde(rename_all = "camelCase")]
    Pairs {
        /// The key of a signature, which may be there several times.
        signature_key: String,
        /// Nothing but the timestamp's pair (if it is in this header) and then one signature's pair is accepted.
        #[serde(default)]
        exact: bool,
    },
}

impl Default for Entries {
    fn default() -> Self {
        Self::Whole {}
    }
}

/// What a timestamp counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimestampUnit {
    /// Seconds since the Unix epoch.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since the Unix epoch.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Either: from 100 000 000 000 on it is milliseconds (of 1973 and later), below it is seconds (until 5138).
    #[serde(rename = "either")]
    Either,
}

impl TimestampUnit {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Either => "seconds or milliseconds",
        }
    }

    /// The milliseconds that `text` stands for: digits only, without a zero before others, which would let digits be
    /// moved between a body and a timestamp that are signed without a separator.
    pub(super) fn milliseconds(self, text: &str) -> Option<i64> {
        const LEAST_MS: i64 = 100_000_000_000;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
            return None;
        }
        let number = text.parse::<i64>().ok()?;
        let seconds = match self {
            Self::Seconds => true,
            Self::Milliseconds => false,
            Self::Either => number < LEAST_MS,
        };
        if seconds {
            number.checked_mul(1000)
        } else {
            Some(number)
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
const fn tolerance() -> Option<u32> {
    Some(TOLERANCE_MS)
}

/// Where the time of the attempt is and how far from the own clock it may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimestampRule {
    /// The header that holds it; or else `key` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The key of its pair in the signature header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What it counts.
    #[serde(default)]
    pub unit: TimestampUnit,
    /// How many milliseconds it may be in the past, the limit included; `null` for any, 300000 if absent.
    #[serde(default = "tolerance")]
    pub past_ms: Option<u32>,
    /// How many milliseconds it may be in the future, the limit included; `null` for any, 300000 if absent.
    #[serde(default = "tolerance")]
    pub future_ms: Option<u32>,
}

impl TimestampRule {
    /// A timestamp in its own header, within five minutes of the own clock.
    pub(super) fn in_header(header: &str, unit: TimestampUnit) -> Self {
        Self {
            header: Some(header.to_owned()),
            key: None,
            unit,
            past_ms: tolerance(),
            future_ms: tolerance(),
        }
    }

    /// A timestamp in the signature header, within five minutes of the own clock.
    pub(super) fn in_pairs(key: &str, unit: TimestampUnit) -> Self {
        Self {
            header: None,
            key: Some(key.to_owned()),
            ..Self::in_header("", unit)
        }
    }
}

/// What a sender signs and how it sends that: everything that the verifier has to know, but for the secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// The header with the signature.
    pub signature_header: String,
    /// The header that is read if there is no `signatureHeader`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_signature_header: Option<String>,
    /// What the signature is made by.
    pub algorithm: Algorithm,
    /// How the text of a secret becomes the key.
    #[serde(default)]
    pub key_encoding: KeyEncoding,
    /// What is signed: text with `{body}` (the raw bytes), `{timestamp}` and `{id}` (or `{svix-id}`; both as they are
    /// sent), `{method}` and `{url}` (as the sender called it), each once at the most; or `{twilio}` alone, which is the
    /// URL and the form as Twilio signs them. Absent for `static` and `jwt-hs256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// How the signature is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// What stands before each signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A signature without the prefix counts as well.
    #[serde(default)]
    pub prefix_optional: bool,
    /// How the header holds signatures.
    #[serde(default)]
    pub entries: Entries,
    /// The time of the attempt, if it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<TimestampRule>,
    /// The header with the delivery's id, if it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_header: Option<String>,
    /// What the `iss` of a token must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The id of the shared key that Twilio must say it signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_key_id: Option<String>,
}

impl Profile {
    /// A profile with `algorithm` and otherwise nothing but defaults.
    pub(super) fn new(signature_header: &str, algorithm: Algorithm) -> Self {
        Self {
            signature_header: signature_header.to_owned(),
            other_signature_header: None,
            algorithm,
            key_encoding: KeyEncoding::Utf8,
            template: None,
            encoding: Encoding::Hex,
            prefix: None,
            prefix_optional: false,
            entries: Entries::Whole {},
            timestamp: None,
            id_header: None,
            issuer: None,
            shared_key_id: None,
        }
    }

    /// The key of `text`.
    ///
    /// # Errors
    /// `text` cannot be a secret of this profile: none that is empty is.
    pub(super) fn key(&self, text: &str) -> Result<Vec<u8>, SecretError> {
        let short = text.len() <= MAX_SECRET;
        match (self.algorithm, self.key_encoding) {
            (Algorithm::Ed25519, KeyEncoding::Hex) => hex(text)
                .filter(|key| key.len() == 32)
                .ok_or(SecretError::PublicKeyHex),
            (Algorithm::Ed25519, _) => FOREIGN
                .decode(text.strip_prefix(WHPK).unwrap_or(text))
                .ok()
                .filter(|key| key.len() == 32)
                .ok_or(SecretError::PublicKey),
            (Algorithm::Static, _) => {
                let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
                if short && visible && plain(text) {
                    Ok(text.into())
                } else {
                    Err(SecretError::Header)
                }
            }
            (_, KeyEncoding::Utf8) => {
                if short && plain(text) {
                    Ok(text.into())
                } else {
                    Err(SecretError::Text)
                }
            }
            (_, KeyEncoding::Base64) => FOREIGN
                .decode(text)
                .ok()
                .filter(|key| short && !key.is_empty())
                .ok_or(SecretError::Base64),
            (_, KeyEncoding::Hex) => hex(text)
                .filter(|key| short && !key.is_empty())
                .ok_or(SecretError::Hex),
            (_, KeyEncoding::Whsec) => text
                .strip_prefix(WHSEC)
                .and_then(|encoded| FOREIGN.decode(encoded).ok())
                .filter(|key| WHSEC_BYTES.contains(&key.len()))
                .ok_or(SecretError::Whsec),
        }
    }
}

impl Validate for Profile {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let fault = |field: &str, what: &str| format!("{} {what}", check::join(path, field));
        for (field, name) in [
            ("signatureHeader", Some(&self.signature_header)),
            ("otherSignatureHeader", self.other_signature_header.as_ref()),
            ("idHeader", self.id_header.as_ref()),
        ] {
            if let Some(name) = name {
                header_name(path, field, name, faults);
            }
        }
        for (field, text) in [("issuer", &self.issuer), ("sharedKeyId", &self.shared_key_id)] {
            if let Some(text) = text {
                check::length(path, field, text, 1, MAX_NAME, faults);
            }
        }
        match &self.prefix {
            Some(text) => prefix(path, "prefix", text, faults),
            None if self.prefix_optional => faults.push(fault("prefixOptional", "needs a prefix")),
            None => {}
        }
        self.entries(path, faults);
        if let Some(rule) = &self.timestamp {
            rule.validate(&check::join(path, "timestamp"), faults);
            if rule.key.is_some() && !matches!(self.entries, Entries::Pairs { .. }) {
                faults.push(fault("timestamp.key", "needs entries of the form pairs"));
            }
        }
        if self.issuer.is_some() && self.algorithm != Algorithm::JwtHs256 {
            faults.push(fault(
                "issuer",
                "must be absent unless the algorithm is jwt-hs256",
            ));
        }
        if self.algorithm == Algorithm::Ed25519
            && !matches!(self.key_encoding, KeyEncoding::Base64 | KeyEncoding::Hex)
        {
            faults.push(fault("keyEncoding", "must be base64 or hex for ed25519"));
        }
        if matches!(self.algorithm, Algorithm::Static | Algorithm::JwtHs256) {
            for (field, set) in [
                ("template", self.template.is_some()),
                ("timestamp", self.timestamp.is_some()),
                ("idHeader", self.id_header.is_some()),
                ("sharedKeyId", self.shared_key_id.is_some()),
            ] {
                if set {
                    faults.push(fault(field, "must be absent for static and jwt-hs256"));
                }
            }
            if self.entries != (Entries::Whole {}) {
                faults.push(fault(
                    "entries",
                    "must be of the form whole for static and jwt-hs256",
                ));
            }
            if self.algorithm == Algorithm::Static && self.key_encoding != KeyEncoding::Utf8 {
                faults.push(fault("keyEncoding", "must be utf8 for static"));
            }
        } else {
            self.signed(path, faults);
        }
    }
}

impl Profile {
    fn entries(&self, path: &str, faults: &mut Vec<String>) {
        match &self.entries {
            Entries::Whole {} => {}
            Entries::List { separator } => {
                let between = match separator {
                    Separator::Space => ' ',
                    Separator::Comma => ',',
                };
                if self
                    .prefix
                    .as_ref()
                    .is_some_and(|prefix| prefix.contains(between))
                {
                    faults.push(format!(
                        "{} must not hold what separates the entries",
                        check::join(path, "prefix")
                    ));
                }
            }
            Entries::Pairs { signature_key, .. } => {
                pair_key(path, "entries.signatureKey", signature_key, faults);
                if self
                    .timestamp
                    .as_ref()
                    .is_some_and(|rule| rule.key.as_ref() == Some(signature_key))
                {
                    faults.push(format!(
                        "{} must be another than entries.signatureKey",
                        check::join(path, "timestamp.key")
                    ));
                }
            }
        }
    }

    /// What is signed must hold the body, and the timestamp and the id exactly if they are read.
    fn signed(&self, path: &str, faults: &mut Vec<String>) {
        let Some(text) = &self.template else {
            faults.push(format!("{} is missing", check::join(path, "template")));
            return;
        };
        let Some(parts) = template(path, "template", text, faults) else {
            return;
        };
        for (part, field, read) in [
            (Part::Timestamp, "timestamp", self.timestamp.is_some()),
            (Part::Id, "idHeader", self.id_header.is_some()),
        ] {
            let (field, signed) = (check::join(path, field), parts.contains(&part));
            if read && !signed {
                faults.push(format!(
                    "{field} must be absent unless the template signs it: anybody could change it"
                ));
            } else if signed && !read {
                faults.push(format!("{field} is missing: the template signs it"));
            }
        }
        let twilio = parts.contains(&Part::Twilio);
        if twilio && !self.algorithm.is_hmac() {
            faults.push(format!(
                "{} must be hmac-sha1, hmac-sha256 or hmac-sha512 for the template {{twilio}}",
                check::join(path, "algorithm")
            ));
        }
        if self.shared_key_id.is_some() && !twilio {
            faults.push(format!(
                "{} must be absent unless the template is {{twilio}}",
                check::join(path, "sharedKeyId")
            ));
        }
    }
}

impl Validate for TimestampRule {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        match (&self.header, &self.key) {
            (Some(header), None) => header_name(path, "header", header, faults),
            (None, Some(key)) => pair_key(path, "key", key, faults),
            _ => faults.push(format!("{path} must have either header or key")),
        }
        for (field, window) in [("pastMs", self.past_ms), ("futureMs", self.future_ms)] {
            if window.is_some_and(|window| window > MAX_WINDOW_MS) {
                faults.push(format!(
                    "{} must not be greater than {MAX_WINDOW_MS}",
                    check::join(path, field)
                ));
            }
        }
    }
}

/// A piece of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Body,
    Timestamp,
    Id,
    Method,
    Url,
    Twilio,
}

/// The pieces of `template`; otherwise what is wrong with it.
pub(super) fn parts(template: &str) -> Result<Vec<Part<'_>>, &'static str> {
    const UNKNOWN: &str = "must have no other braces than those of {body}, {timestamp}, {id}, {svix-id}, {method}, {url} and {twilio}";
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (text, token) = rest.split_at(at);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        let end = token.find('}').ok_or(UNKNOWN)?;
        let (token, after) = token.split_at(end + 1);
        let part = match token {
            "{body}" => Part::Body,
            "{timestamp}" => Part::Timestamp,
            "{id}" | "{svix-id}" => Part::Id,
            "{method}" => Part::Method,
            "{url}" => Part::Url,
            "{twilio}" => Part::Twilio,
            _ => return Err(UNKNOWN),
        };
        if parts.contains(&part) {
            return Err("must have each placeholder once at the most");
        }
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    if parts.contains(&Part::Twilio) {
        if parts.len() > 1 {
            return Err("must be nothing but {twilio} if it has that");
        }
    } else if !parts.contains(&Part::Body) {
        return Err("must contain {body}: anybody could change what is not signed");
    }
    Ok(parts)
}

/// Checks a template; its pieces if it is right.
pub(super) fn template<'a>(
    path: &str,
    field: &str,
    text: &'a str,
    faults: &mut Vec<String>,
) -> Option<Vec<Part<'a>>> {
    check::length(path, field, text, 1, MAX_TEMPLATE, faults);
    parts(text)
        .map_err(|what| faults.push(format!("{} {what}", check::join(path, field))))
        .ok()
}

/// A header's name must be a token of HTTP.
pub(super) fn header_name(path: &str, field: &str, name: &str, faults: &mut Vec<String>) {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(token) {
        faults.push(format!(
            "{} must be a header's name of 1 to {MAX_HEADER_NAME} characters",
            check::join(path, field)
        ));
    }
}

/// A prefix must be something that a header's value can begin with.
pub(super) fn prefix(path: &str, field: &str, text: &str, faults: &mut Vec<String>) {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if text.is_empty() || text.len() > MAX_PREFIX || !visible || text.starts_with(' ') {
        faults.push(format!(
            "{} must be 1 to {MAX_PREFIX} visible ASCII characters",
            check::join(path, field)
        ));
    }
}

fn pair_key(path: &str, field: &str, key: &str, faults: &mut Vec<String>) {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b',' && byte != b'=';
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(good) {
        faults.push(format!(
            "{} must be 1 to {MAX_KEY} visible ASCII characters other than ',' and '='",
            check::join(path, field)
        ));
    }
}

/// Not empty, nothing at either end that is lost on the way, and no control characters.
fn plain(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

/// The bytes of an even number of lower-case hexadecimal digits.
fn lower_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks() else {
        return None;
    };
    pairs
        .iter()
        .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect()
}

/// The same in either case.
pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    lower_hex(&text.to_ascii_lowercase())
}
