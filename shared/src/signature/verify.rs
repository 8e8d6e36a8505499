//! The verifier: the one way from a delivery that anybody may have sent to one that is believed.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::{Choice, ConstantTimeEq};

use super::{
    Algorithm, Entries, KeyEncoding, Profile, Separator, TimestampRule,
    jwt::Token,
    profile::{self, Part},
    twilio,
};
use crate::{ids::sha256_hex, models::Validate};

/// The most bytes of the signature header.
pub const MAX_HEADER: usize = 16 * 1024;

/// The most bytes that a delivery's id may have.
pub const MAX_ID: usize = 256;

/// The most entries of the signature header that are looked at, whatever they are.
pub const MAX_SIGNATURES: usize = 32;

/// The most Ed25519 signatures that are tried. Each costs a pass over the body, where those of an HMAC share one.
pub const MAX_ED25519: usize = 4;

/// Why a delivery is not believed. The texts are for the developer of the sender and go into the answer: they hold
/// neither a secret nor a signature that would have fitted. Headers' names are as in the profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The endpoint's own settings cannot be verified by.
    #[error("this endpoint's signature settings are not usable: {0}")]
    Settings(String),
    /// A header is not there or has no value.
    #[error("the header {header} is missing or empty: send {wanted}")]
    MissingHeader {
        /// Its name.
        header: String,
        /// The names of all the headers that are wanted.
        wanted: String,
    },
    /// The signature header is longer than any that is read.
    #[error("the header {header} has more than {MAX_HEADER} bytes")]
    HeaderTooLong {
        /// Its name.
        header: String,
    },
    /// The id is too long or has spaces, control characters or characters beyond ASCII.
    #[error("the header {header} must be 1 to {MAX_ID} visible ASCII characters")]
    OddId {
        /// Its name.
        header: String,
    },
    /// The timestamp is not there or not a number in plain digits.
    #[error(
        "{place} must be the whole {unit} since the Unix epoch, in digits only: no sign, no zero before them, no \
         fraction, no date"
    )]
    OddTimestamp {
        /// Where the timestamp is.
        place: String,
        /// What it counts.
        unit: &'static str,
    },
    /// The timestamp is too far back: a late attempt or a replay.
    #[error(
        "{place} is {age_ms} ms in the past and {allowed_ms} ms are allowed: take the present time in {unit} for each \
         attempt and sign anew, and check the sender's clock"
    )]
    TooOld {
        /// Where the timestamp is.
        place: String,
        /// How far, in milliseconds.
        age_ms: i64,
        /// How far it may be, in milliseconds.
        allowed_ms: i64,
        /// What it counts.
        unit: &'static str,
    },
    /// The timestamp is too far ahead.
    #[error(
        "{place} is {ahead_ms} ms in the future and {allowed_ms} ms are allowed: send {unit}, and check the sender's \
         clock"
    )]
    TooFarInFuture {
        /// Where the timestamp is.
        place: String,
        /// How far, in milliseconds.
        ahead_ms: i64,
        /// How far it may be, in milliseconds.
        allowed_ms: i64,
        /// What it counts.
        unit: &'static str,
    },
    /// Nothing that is looked at has the form of a signature.
    #[error("the header {header} holds no signature: send {form}")]
    NoSignature {
        /// Its name.
        header: String,
        /// What a signature looks like.
        form: String,
    },
    /// The body is not part of what Twilio signs.
    #[error(
        "the body is not signed: send application/x-www-form-urlencoded with parameters whose names begin with a letter, \
         a digit or `_`, or else the body's SHA-256 as bodySHA256 in the signed URL"
    )]
    UnsignedBody,
    /// The hash that is signed is not the body's.
    #[error(
        "{place} is not the SHA-256 of the body in {form}: hash the very bytes of the body as it is sent"
    )]
    BodyHash {
        /// Where the hash is.
        place: String,
        /// How it is written.
        form: &'static str,
    },
    /// Twilio does not say that it signed with the endpoint's shared key.
    #[error("the header {header} must be key={key},algorithm={algorithm}")]
    SharedKey {
        /// Its name.
        header: &'static str,
        /// The key's id.
        key: String,
        /// Its algorithm.
        algorithm: &'static str,
    },
    /// The token lacks a claim or has one of another type.
    #[error(
        "the token in the header {header} must have the claims `exp` and, if at all, `nbf` as numbers, and `sha256` and, \
         if at all, `iss` as texts"
    )]
    OddToken {
        /// The header's name.
        header: String,
    },
    /// The token is of another issuer.
    #[error(
        "`iss` of the token in the header {header} is not the API key that this endpoint is configured with"
    )]
    Issuer {
        /// The header's name.
        header: String,
    },
    /// No signature was made for this delivery with one of the endpoint's secrets, or it has none.
    #[error(
        "no signature in the header {header} fits: {recipe}; check that the secret is one of this endpoint"
    )]
    NoSignatureFits {
        /// The header's name.
        header: String,
        /// How to make one that does.
        recipe: String,
    },
}

/// A delivery that anybody may have sent. There is no way to its body but [`Unverified::verify`].
pub struct Unverified {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// What is known of a delivery that is believed.
#[derive(Default)]
struct Facts {
    id: Option<String>,
    timestamp_ms: Option<i64>,
}

impl Unverified {
    /// A delivery by `method` to `url`, the public URL as the sender called it (scheme, host, port if it named one, path
    /// and raw query), with `headers` (pairs of a name in any case and a value) and the raw bytes of `body`, as they were
    /// before any parsing. Of a header that is there twice the first counts.
    pub fn new<N: AsRef<str>, V: AsRef<[u8]>>(
        method: &str,
        url: &str,
        headers: impl IntoIterator<Item = (N, V)>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_vec()))
                .collect(),
            body: body.into(),
        }
    }

    /// The delivery as one that a holder of one of `secrets` sent by `profile`, at a time within the profile's window
    /// around `now_ms` (milliseconds since the Unix epoch). One signature that fits one of the secrets is enough. The
    /// time that this takes does not tell which of them fits, nor how much of a signature is right.
    ///
    /// # Errors
    /// The first reason not to believe it: the headers, then the time, then the signatures. Without secrets nothing is
    /// believed, and texts that cannot be secrets of the profile count as none.
    pub fn verify(
        self,
        profile: &Profile,
        secrets: &[impl AsRef<str>],
        now_ms: i64,
    ) -> Result<Verified, Refusal> {
        self.verify_or_return(profile, secrets, now_ms)
            .map_err(|(refusal, _)| refusal)
    }

    /// The same as [`Unverified::verify`], for who may want to try other secrets.
    ///
    /// # Errors
    /// The same, together with the delivery, which is as unverified as before.
    #[expect(
        clippy::result_large_err,
        reason = "the delivery is what the caller goes on with"
    )]
    pub fn verify_or_return(
        self,
        profile: &Profile,
        secrets: &[impl AsRef<str>],
        now_ms: i64,
    ) -> Result<Verified, (Refusal, Self)> {
        match self.check(profile, secrets, now_ms) {
            Ok(facts) => Ok(Verified {
                id: facts.id,
                timestamp_ms: facts.timestamp_ms,
                content_type: self.text("content-type").map(str::to_owned),
                body: self.body,
            }),
            Err(refusal) => Err((refusal, self)),
        }
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    fn text(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.header(name)?).ok()
    }

    /// The value of a header that must be there.
    fn wanted(&self, name: &str, profile: &Profile) -> Result<&[u8], Refusal> {
        self.header(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Refusal::MissingHeader {
                header: name.to_owned(),
                wanted: wanted(profile),
            })
    }

    fn check(&self, profile: &Profile, secrets: &[impl AsRef<str>], now_ms: i64) -> Result<Facts, Refusal> {
        let mut faults = Vec::new();
        profile.validate("", &mut faults);
        if !faults.is_empty() {
            return Err(Refusal::Settings(faults.join("; ")));
        }
        let id = match &profile.id_header {
            Some(name) => Some((name, self.wanted(name, profile)?)),
            None => None,
        };
        let own_timestamp = match profile.timestamp.as_ref().and_then(|rule| rule.header.as_ref()) {
            Some(name) => Some(self.wanted(name, profile)?),
            None => None,
        };
        // The older name counts only where the newer one is not there at all.
        let header = match &profile.other_signature_header {
            Some(other) if self.header(&profile.signature_header).is_none() => other,
            _ => &profile.signature_header,
        };
        let value = self
            .wanted(header, profile)
            .or_else(|_| self.wanted(&profile.signature_header, profile))?;
        if value.len() > MAX_HEADER {
            return Err(Refusal::HeaderTooLong {
                header: header.clone(),
            });
        }
        let keys: Vec<_> = secrets
            .iter()
            .filter_map(|secret| profile.key(secret.as_ref()).ok())
            .collect();
        let unfit = || Refusal::NoSignatureFits {
            header: header.clone(),
            recipe: self.recipe(profile),
        };
        let formless = || Refusal::NoSignature {
            header: header.clone(),
            form: form(profile),
        };
        match profile.algorithm {
            Algorithm::Static => {
                let token = match &profile.prefix {
                    None => value,
                    Some(prefix) => match value.strip_prefix(prefix.as_bytes()) {
                        Some(token) => token,
                        None if profile.prefix_optional => value,
                        None => return Err(formless()),
                    },
                };
                let fits = fits_token(token, &keys);
                fits.then(Facts::default).ok_or_else(unfit)
            }
            Algorithm::JwtHs256 => {
                let token = str::from_utf8(value)
                    .ok()
                    .and_then(|text| bare(text, profile))
                    .and_then(Token::parse)
                    .ok_or_else(formless)?;
                let message = [token.signed.as_bytes()];
                let signatures = std::slice::from_ref(&token.signature);
                if !fits(Algorithm::HmacSha256, &keys, &[&message], signatures) {
                    return Err(unfit());
                }
                let timestamp_ms = token.check(header, profile.issuer.as_deref(), &self.body, now_ms)?;
                Ok(Facts {
                    id: None,
                    timestamp_ms,
                })
            }
            Algorithm::HmacSha1 | Algorithm::HmacSha256 | Algorithm::HmacSha512 | Algorithm::Ed25519 => {
                let id = match id {
                    Some((name, id)) => Some(readable(name, id)?),
                    None => None,
                };
                let found = str::from_utf8(value)
                    .ok()
                    .and_then(|text| Found::read(text, profile))
                    .ok_or_else(formless)?;
                let time = match &profile.timestamp {
                    Some(rule) => {
                        // What is not UTF-8 is as little a number as nothing at all.
                        let text = match own_timestamp {
                            Some(own) => str::from_utf8(own).unwrap_or_default(),
                            None => found.timestamp.unwrap_or_default(),
                        };
                        Some((text, within(rule, header, text, now_ms)?))
                    }
                    None => None,
                };
                // Without the cost of a code over a body of megabytes.
                if found.signatures.is_empty() {
                    return Err(formless());
                }
                let timestamp = time.map_or("", |(text, _)| text);
                if self.signed_by(profile, &keys, id.unwrap_or(""), timestamp, &found.signatures)? {
                    Ok(Facts {
                        id: id.map(str::to_owned),
                        timestamp_ms: time.map(|(_, ms)| ms),
                    })
                } else {
                    Err(unfit())
                }
            }
        }
    }

    /// Whether one of `signatures` fits one of `keys`.
    fn signed_by(
        &self,
        profile: &Profile,
        keys: &[Vec<u8>],
        id: &str,
        timestamp: &str,
        signatures: &[Vec<u8>],
    ) -> Result<bool, Refusal> {
        let template = profile.template.as_deref().unwrap_or_default();
        let parts = profile::parts(template).map_err(|what| Refusal::Settings(format!("template {what}")))?;
        if parts == [Part::Twilio] {
            if let Some(id) = &profile.shared_key_id {
                let settings = self.wanted(twilio::SETTINGS_HEADER, profile)?;
                if !twilio::names_key(settings, id, profile.algorithm) {
                    return Err(Refusal::SharedKey {
                        header: twilio::SETTINGS_HEADER,
                        key: id.clone(),
                        algorithm: twilio::algorithm_name(profile.algorithm),
                    });
                }
            }
            let messages = twilio::messages(&self.url, self.text("content-type"), &self.body)?;
            let messages: Vec<_> = messages.iter().map(|message| [message.as_bytes()]).collect();
            let messages: Vec<_> = messages.iter().map(<[_; 1]>::as_slice).collect();
            return Ok(fits(profile.algorithm, keys, &messages, signatures));
        }
        let message: Vec<_> = parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_bytes(),
                Part::Body => &self.body,
                Part::Timestamp => timestamp.as_bytes(),
                Part::Id => id.as_bytes(),
                Part::Method => self.method.as_bytes(),
                Part::Url => self.url.as_bytes(),
                Part::Twilio => b"",
            })
            .collect();
        Ok(fits(profile.algorithm, keys, &[&message], signatures))
    }

    /// How to make a signature that fits, without one.
    fn recipe(&self, profile: &Profile) -> String {
        let key = match profile.key_encoding {
            KeyEncoding::Utf8 => "with the secret's text as the key",
            KeyEncoding::Base64 => "with the secret's base64 decoded as the key",
            KeyEncoding::Hex => "with the secret's hexadecimal digits decoded as the key",
            KeyEncoding::Whsec => "with the secret's base64 decoded after `whsec_` as the key",
        };
        // A query may hold what is nobody's business in a log.
        let url = self.url.split('?').next().unwrap_or_default();
        let name = profile.algorithm.name();
        match (profile.algorithm, profile.template.as_deref()) {
            (Algorithm::Static, _) => "send the secret itself".to_owned(),
            (Algorithm::JwtHs256, _) => format!("sign the token by HS256 {key}"),
            (_, Some("{twilio}")) => format!(
                "sign the URL as it was called ({url} and its query) and the form's parameters by {name} {key}"
            ),
            (algorithm, template) => {
                let template = template.unwrap_or_default();
                let of_url = if template.contains("{url}") {
                    format!(", {{url}} being {url} and its query")
                } else {
                    String::new()
                };
                let key = if algorithm == Algorithm::Ed25519 {
                    "with the private key to this endpoint's public key"
                } else {
                    key
                };
                format!(
                    "sign `{template}` with the headers' texts and the very bytes of the body as it is sent{of_url}, by \
                     {name} {key}"
                )
            }
        }
    }
}

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A signature lets whoever reads the log send the delivery again, and a header may be the secret itself.
        f.debug_struct("Unverified")
            .field("method", &self.method)
            .field("headers", &self.headers.len())
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}

/// A delivery that a holder of one of the endpoint's secrets sent. Only [`Unverified::verify`] makes one.
pub struct Verified {
    id: Option<String>,
    timestamp_ms: Option<i64>,
    content_type: Option<String>,
    body: Vec<u8>,
}

impl Verified {
    /// The sender's id for the delivery, the same at each attempt, if it is signed: 1 to [`MAX_ID`] visible ASCII
    /// characters.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// When the attempt was made by the sender's clock, in milliseconds since the Unix epoch, if that is signed.
    #[must_use]
    pub const fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }

    /// The bytes that were signed; with a static secret, those that came with it.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// What the sender says the body is. It is not signed.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// The body is not JSON, or not of a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// The SHA-256 of the signed id (nothing without one), full stop and body in lower-case hexadecimal. It names the
    /// delivery, whatever else is in its headers: a further attempt has another timestamp and another signature, but the
    /// same digest.
    #[must_use]
    pub fn digest(&self) -> String {
        let id = self.id.as_deref().unwrap_or_default();
        sha256_hex(&[id.as_bytes(), b".", &self.body].concat())
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body holds what people said in a call.
        f.debug_struct("Verified")
            .field("id", &self.id)
            .field("timestamp_ms", &self.timestamp_ms)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}

/// What a signature header holds.
struct Found<'a> {
    timestamp: Option<&'a str>,
    /// Each as long as one of the algorithm.
    signatures: Vec<Vec<u8>>,
}

impl<'a> Found<'a> {
    /// Reads `header`; `None` if it is not in the one form that is accepted.
    fn read(header: &'a str, profile: &Profile) -> Option<Self> {
        let mut timestamp = None;
        let texts: Vec<_> = match &profile.entries {
            Entries::Whole {} => vec![header],
            Entries::List { separator } => header
                .split(match separator {
                    Separator::Space => ' ',
                    Separator::Comma => ',',
                })
                .map(|entry| entry.trim_matches(' '))
                .filter(|entry| !entry.is_empty())
                .take(MAX_SIGNATURES)
                .collect(),
            Entries::Pairs { signature_key, exact } => {
                let key = profile.timestamp.as_ref().and_then(|rule| rule.key.as_deref());
                let pairs: Vec<_> = header
                    .split(',')
                    .take(MAX_SIGNATURES)
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                    .collect();
                let keys = pairs.iter().map(|(key, _)| *key);
                if *exact && !keys.eq(key.into_iter().chain([signature_key.as_str()])) {
                    return None;
                }
                timestamp = pairs
                    .iter()
                    .find(|(other, _)| Some(*other) == key)
                    .map(|(_, value)| *value);
                let signatures = pairs.iter().filter(|(key, _)| key == signature_key);
                signatures.map(|(_, value)| *value).collect()
            }
        };
        let most = match profile.algorithm {
            Algorithm::Ed25519 => MAX_ED25519,
            _ => MAX_SIGNATURES,
        };
        Some(Self {
            timestamp,
            signatures: texts
                .into_iter()
                .filter_map(|text| profile.encoding.decode(bare(text, profile)?))
                .filter(|signature| signature.len() == profile.algorithm.length())
                .take(most)
                .collect(),
        })
    }
}

/// `text` without the prefix; `None` if it lacks one that it must have.
fn bare<'a>(text: &'a str, profile: &Profile) -> Option<&'a str> {
    match &profile.prefix {
        None => Some(text),
        Some(prefix) => text
            .strip_prefix(prefix.as_str())
            .or_else(|| profile.prefix_optional.then_some(text)),
    }
}

/// An id that can be kept and logged.
fn readable<'a>(header: &str, id: &'a [u8]) -> Result<&'a str, Refusal> {
    if id.len() <= MAX_ID
        && id.iter().all(u8::is_ascii_graphic)
        && let Ok(id) = str::from_utf8(id)
    {
        return Ok(id);
    }
    Err(Refusal::OddId {
        header: header.to_owned(),
    })
}

/// The milliseconds of a timestamp that is within its window around `now_ms`.
fn within(rule: &TimestampRule, signature_header: &str, text: &str, now_ms: i64) -> Result<i64, Refusal> {
    let unit = rule.unit.name();
    let place = || match (&rule.header, &rule.key) {
        (Some(header), _) => format!("the header {header}"),
        (None, key) => format!(
            "`{}` in the header {signature_header}",
            key.as_deref().unwrap_or_default()
        ),
    };
    let timestamp_ms = rule
        .unit
        .milliseconds(text)
        .ok_or_else(|| Refusal::OddTimestamp { place: place(), unit })?;
    let age_ms = now_ms.saturating_sub(timestamp_ms);
    match (rule.past_ms.map(i64::from), rule.future_ms.map(i64::from)) {
        (Some(allowed_ms), _) if age_ms > allowed_ms => Err(Refusal::TooOld {
            place: place(),
            age_ms,
            allowed_ms,
            unit,
        }),
        (_, Some(allowed_ms)) if age_ms < -allowed_ms => Err(Refusal::TooFarInFuture {
            place: place(),
            ahead_ms: age_ms.saturating_neg(),
            allowed_ms,
            unit: match rule.unit {
                profile::TimestampUnit::Seconds => "seconds, not milliseconds",
                _ => unit,
            },
        }),
        _ => Ok(timestamp_ms),
    }
}

/// Whether `token` is one of `keys`. Digests are compared, which are of one length.
fn fits_token(token: &[u8], keys: &[Vec<u8>]) -> bool {
    let token = Sha256::digest(token);
    let mut fits = Choice::from(0);
    for key in keys {
        fits |= token.as_slice().ct_eq(Sha256::digest(key).as_slice());
    }
    fits.into()
}

/// Whether one of `signatures` is by one of `keys` for one of `messages`, which are in pieces. All are looked at, whichever
/// fits.
fn fits(algorithm: Algorithm, keys: &[Vec<u8>], messages: &[&[&[u8]]], signatures: &[Vec<u8>]) -> bool {
    let mut fits = Choice::from(0);
    for message in messages {
        if algorithm == Algorithm::Ed25519 {
            let message = message.concat();
            for key in keys {
                let key = UnparsedPublicKey::new(&ED25519, key);
                for signature in signatures {
                    fits |= Choice::from(u8::from(key.verify(&message, signature).is_ok()));
                }
            }
            continue;
        }
        for key in keys {
            let Some(expected) = code(algorithm, key, message) else {
                continue;
            };
            for signature in signatures {
                fits |= signature.as_slice().ct_eq(&expected);
            }
        }
    }
    fits.into()
}

/// The HMAC of a message in pieces; `None` for another algorithm.
fn code(algorithm: Algorithm, key: &[u8], message: &[&[u8]]) -> Option<Vec<u8>> {
    fn keyed<M: Mac + KeyInit>(key: &[u8], message: &[&[u8]]) -> Option<Vec<u8>> {
        let mut mac = <M as KeyInit>::new_from_slice(key).ok()?;
        message.iter().for_each(|piece| mac.update(piece));
        Some(mac.finalize().into_bytes().to_vec())
    }
    match algorithm {
        Algorithm::HmacSha1 => keyed::<Hmac<Sha1>>(key, message),
        Algorithm::HmacSha256 => keyed::<Hmac<Sha256>>(key, message),
        Algorithm::HmacSha512 => keyed::<Hmac<Sha512>>(key, message),
        Algorithm::Static | Algorithm::Ed25519 | Algorithm::JwtHs256 => None,
    }
}

/// The names of the headers that a delivery must have.
fn wanted(profile: &Profile) -> String {
    let timestamp = profile.timestamp.as_ref().and_then(|rule| rule.header.as_deref());
    let names: Vec<_> = [
        profile.id_header.as_deref(),
        timestamp,
        Some(profile.signature_header.as_str()),
        profile.shared_key_id.is_some().then_some(twilio::SETTINGS_HEADER),
    ]
    .into_iter()
    .flatten()
    .collect();
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// What the signature header must hold.
fn form(profile: &Profile) -> String {
    let prefix = match &profile.prefix {
        None => String::new(),
        Some(prefix) if profile.prefix_optional => format!("`{prefix}` (or nothing) followed by "),
        Some(prefix) => format!("`{prefix}` followed by "),
    };
    let signature = match profile.algorithm {
        Algorithm::Static => return format!("{prefix}the secret itself"),
        Algorithm::JwtHs256 => return format!("{prefix}a JSON Web Token by HS256 in the compact form"),
        algorithm => format!(
            "{prefix}the {} of an {} ({} bytes)",
            profile.encoding.name(),
            match algorithm {
                Algorithm::Ed25519 => "Ed25519 signature",
                algorithm => algorithm.name(),
            },
            algorithm.length()
        ),
    };
    let most = match profile.algorithm {
        Algorithm::Ed25519 => MAX_ED25519,
        _ => MAX_SIGNATURES,
    };
    match &profile.entries {
        Entries::Whole {} => format!("{signature} and nothing else"),
        Entries::List { separator } => format!(
            "at least one in the form of {signature}, and separate several by a {}, {most} at the most",
            match separator {
                Separator::Space => "space",
                Separator::Comma => "comma",
            },
        ),
        Entries::Pairs { signature_key, exact } => {
            let timestamp = profile.timestamp.as_ref().and_then(|rule| rule.key.as_ref());
            let timestamp = timestamp.map_or_else(String::new, |key| format!("{key}=<timestamp>,"));
            let only = if *exact { " and nothing else" } else { "" };
            format!("`{timestamp}{signature_key}=` followed by {signature}{only}")
        }
    }
}
