//! Signed webhooks and the correlation value: what lets the word of a provider count.
//!
//! Webhooks are signed by the symmetric scheme of [Standard Webhooks](https://www.standardwebhooks.com) 1.0.0, in both
//! directions. A delivery that came in is an [`UnverifiedDelivery`], which keeps its body to itself; only
//! [`UnverifiedDelivery::verify`] makes a [`VerifiedDelivery`] of it, which shows it.

use std::fmt;

use base64::{
    Engine, alphabet,
    engine::{
        DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig,
        general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    },
};
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use uuid::Uuid;

use crate::ids::sha256_hex;

/// The header with the delivery's id, which stays the same when the delivery is sent again.
pub const ID_HEADER: &str = "webhook-id";

/// The header with the time of the attempt, in seconds since the Unix epoch.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";

/// The header with the signatures, separated by spaces.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

/// How far a delivery's timestamp may be from the own clock, in milliseconds: before it or after it, the limit included.
pub const TOLERANCE_MS: i64 = 5 * 60 * 1000;

/// The most bytes that a delivery's id may have.
pub const MAX_ID: usize = 256;

/// The most entries of the signature header that are looked at, whatever their version.
pub const MAX_SIGNATURES: usize = 32;

const SECRET_PREFIX: &str = "whsec_";
const SHORTEST_SECRET: usize = 24;
/// As long as a block of SHA-256, which [`keyed`] relies on.
const LONGEST_SECRET: usize = 64;
const GENERATED_SECRET: usize = 32;

const SIGNATURE_PREFIX: &str = "v1,";

const TOKEN_PREFIX: &str = "rbc1.";
/// Keeps the tokens' codes apart from any other use of the same key.
const TOKEN_PURPOSE: &[u8] = b"ringback correlation";
/// A run's id and an index.
const TOKEN_CONTENT: usize = 20;
const TOKEN_CODE: usize = 16;
const TOKEN_TEXT: usize = (TOKEN_CONTENT + TOKEN_CODE) / 3 * 4;

/// Base64 from somebody else, who may have left out the padding.
const FOREIGN: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that is not a signing secret. It does not repeat the text, which may be one with a typing error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a signing secret is `whsec_` followed by the base64 of {SHORTEST_SECRET} to {LONGEST_SECRET} bytes, without spaces"
)]
pub struct SecretError;

/// The secret that one endpoint's webhooks are signed with.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Reads `text`: `whsec_` and the standard base64 of 24 to 64 bytes, with padding or without.
    ///
    /// # Errors
    /// `text` is anything else.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(SecretError)?;
        let bytes = FOREIGN.decode(encoded).map_err(|_| SecretError)?;
        if (SHORTEST_SECRET..=LONGEST_SECRET).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(SecretError)
        }
    }

    /// A new secret of 32 random bytes from the operating system.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = vec![0; GENERATED_SECRET];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The secret as [`Secret::parse`] reads it, with padding. For its owner and the store only.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a delivery is not believed. The texts are for the developer of the sender and go into the answer: they hold
/// neither a secret nor a signature that would have fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A header is not there or has no value. The name is in lower case.
    #[error(
        "the header {0} is missing or empty: send {ID_HEADER}, {TIMESTAMP_HEADER} and {SIGNATURE_HEADER}"
    )]
    MissingHeader(&'static str),
    /// The id is too long or has spaces, control characters or characters beyond ASCII.
    #[error("the header {ID_HEADER} must be 1 to {MAX_ID} visible ASCII characters")]
    OddId,
    /// The timestamp is not a number of seconds in plain digits.
    #[error(
        "the header {TIMESTAMP_HEADER} must be the whole seconds since the Unix epoch, in digits only: no sign, no \
         fraction, no date"
    )]
    OddTimestamp,
    /// The timestamp is too far back: a late attempt or a replay.
    #[error(
        "{TIMESTAMP_HEADER} is {age_ms} ms in the past and {TOLERANCE_MS} ms are allowed: take the present time for \
         each attempt and sign anew, and check the sender's clock"
    )]
    TooOld {
        /// How far, in milliseconds.
        age_ms: i64,
    },
    /// The timestamp is too far ahead.
    #[error(
        "{TIMESTAMP_HEADER} is {ahead_ms} ms in the future and {TOLERANCE_MS} ms are allowed: send seconds, not \
         milliseconds, and check the sender's clock"
    )]
    TooFarInFuture {
        /// How far, in milliseconds.
        ahead_ms: i64,
    },
    /// None of the entries that are looked at has the form of a `v1` signature.
    #[error(
        "the first {MAX_SIGNATURES} entries of {SIGNATURE_HEADER} hold no `v1,` followed by the base64 of an \
         HMAC-SHA256 (32 bytes): send at least one, and separate several by a space"
    )]
    NoSignature,
    /// No `v1` signature was made with one of the endpoint's secrets for this id, timestamp and body.
    #[error(
        "no signature in {SIGNATURE_HEADER} fits: sign `id.timestamp.body` with the headers' texts and the very bytes \
         of the body as it is sent, and with the secret's base64 decoded after `whsec_`; check that the secret is one \
         of this endpoint"
    )]
    NoSignatureFits,
}

/// A delivery that anybody may have sent. There is no way to its body but [`UnverifiedDelivery::verify`].
pub struct UnverifiedDelivery {
    id: String,
    timestamp: String,
    signature: String,
    body: Vec<u8>,
}

impl UnverifiedDelivery {
    /// A delivery of `headers` (pairs of a name in any case and a value) and the raw bytes of `body`, as they were before
    /// any parsing. Of a header that is there twice the first counts.
    pub fn new<N: AsRef<str>, V: AsRef<[u8]>>(
        headers: impl IntoIterator<Item = (N, V)>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        let [mut id, mut timestamp, mut signature] = [None, None, None];
        for (name, value) in headers {
            let slot = match name.as_ref() {
                name if name.eq_ignore_ascii_case(ID_HEADER) => &mut id,
                name if name.eq_ignore_ascii_case(TIMESTAMP_HEADER) => &mut timestamp,
                name if name.eq_ignore_ascii_case(SIGNATURE_HEADER) => &mut signature,
                _ => continue,
            };
            // Only ASCII is accepted in any of the three, and what replaces bytes that are not UTF-8 is none.
            slot.get_or_insert_with(|| String::from_utf8_lossy(value.as_ref()).into_owned());
        }
        Self {
            id: id.unwrap_or_default(),
            timestamp: timestamp.unwrap_or_default(),
            signature: signature.unwrap_or_default(),
            body: body.into(),
        }
    }

    /// The delivery as one that a holder of one of `secrets` sent, at a time within [`TOLERANCE_MS`] of `now_ms`
    /// (milliseconds since the Unix epoch). One signature that fits one of the secrets is enough. The time that this
    /// takes does not tell which of them fits, nor how much of a signature is right.
    ///
    /// # Errors
    /// The first reason not to believe it: the headers, then the time, then the signatures. Without secrets nothing is
    /// believed.
    pub fn verify(self, secrets: &[Secret], now_ms: i64) -> Result<VerifiedDelivery, Refusal> {
        self.verify_or_return(secrets, now_ms)
            .map_err(|(refusal, _)| refusal)
    }

    /// The same as [`UnverifiedDelivery::verify`], for who may want to try other secrets.
    ///
    /// # Errors
    /// The same, together with the delivery, which is as unverified as before.
    pub fn verify_or_return(
        self,
        secrets: &[Secret],
        now_ms: i64,
    ) -> Result<VerifiedDelivery, (Refusal, Self)> {
        match self.check(secrets, now_ms) {
            Ok(timestamp_ms) => Ok(VerifiedDelivery {
                id: self.id,
                timestamp_ms,
                body: self.body,
            }),
            Err(refusal) => Err((refusal, self)),
        }
    }

    /// The time of the attempt, if the delivery is to be believed.
    fn check(&self, secrets: &[Secret], now_ms: i64) -> Result<i64, Refusal> {
        for (name, value) in [
            (ID_HEADER, &self.id),
            (TIMESTAMP_HEADER, &self.timestamp),
            (SIGNATURE_HEADER, &self.signature),
        ] {
            if value.is_empty() {
                return Err(Refusal::MissingHeader(name));
            }
        }
        if self.id.len() > MAX_ID || !self.id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::OddId);
        }
        let timestamp_ms = milliseconds(&self.timestamp).ok_or(Refusal::OddTimestamp)?;
        let age_ms = now_ms.saturating_sub(timestamp_ms);
        if age_ms > TOLERANCE_MS {
            return Err(Refusal::TooOld { age_ms });
        }
        if age_ms < -TOLERANCE_MS {
            return Err(Refusal::TooFarInFuture {
                ahead_ms: age_ms.saturating_neg(),
            });
        }
        let signatures = signatures(&self.signature);
        if signatures.is_empty() {
            // Without the cost of a code over a body of megabytes.
            return Err(Refusal::NoSignature);
        }
        let mut fits = Choice::from(0);
        for secret in secrets {
            let expected = code(secret, &self.id, &self.timestamp, &self.body);
            for signature in &signatures {
                fits |= signature.ct_eq(&expected);
            }
        }
        if bool::from(fits) {
            Ok(timestamp_ms)
        } else {
            Err(Refusal::NoSignatureFits)
        }
    }
}

impl fmt::Debug for UnverifiedDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A signature lets whoever reads the log send the delivery again.
        f.debug_struct("UnverifiedDelivery")
            .field("id", &self.id)
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}

/// A delivery that a holder of one of the endpoint's secrets sent. Only [`UnverifiedDelivery::verify`] makes one.
pub struct VerifiedDelivery {
    id: String,
    timestamp_ms: i64,
    body: Vec<u8>,
}

impl VerifiedDelivery {
    /// The sender's id for the delivery, the same at each attempt: 1 to [`MAX_ID`] visible ASCII characters.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When the attempt was made by the sender's clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The bytes that were signed.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// The body is not JSON, or not of a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// The SHA-256 of id, full stop and body in lower-case hexadecimal. It names the delivery, whatever else is in its
    /// headers: a further attempt has another timestamp and another signature, but the same digest.
    #[must_use]
    pub fn digest(&self) -> String {
        sha256_hex(&[self.id.as_bytes(), b".", &self.body].concat())
    }
}

impl fmt::Debug for VerifiedDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body holds what people said in a call.
        f.debug_struct("VerifiedDelivery")
            .field("id", &self.id)
            .field("timestamp_ms", &self.timestamp_ms)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

/// The value of [`SIGNATURE_HEADER`] for `body` (the very bytes to be sent), with `id` in [`ID_HEADER`] and
/// `timestamp_seconds` (since the Unix epoch, not negative) in [`TIMESTAMP_HEADER`]: `v1,` and base64 with padding.
///
/// `id` should hold no full stop, the scheme's separator. While a secret is being replaced, join the signatures of the
/// old one and the new one by a space.
#[must_use]
pub fn sign(secret: &Secret, id: &str, timestamp_seconds: i64, body: &[u8]) -> String {
    let code = code(secret, id, &timestamp_seconds.to_string(), body);
    format!("{SIGNATURE_PREFIX}{}", STANDARD.encode(code))
}

/// Which item a call belongs to, in the form that goes to the provider and comes back in what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Correlation {
    /// The run's id.
    pub run: Uuid,
    /// The index of the item in the run.
    pub index: u32,
}

impl Correlation {
    /// The value that only a holder of `key` can make: `rbc1.` and the base64url, without padding, of the run's 16
    /// bytes, the index as 4 bytes (big endian) and the first 16 bytes of the HMAC-SHA256 of `ringback correlation` and
    /// those 20 bytes. It has 53 ASCII characters, which fit into a URL and a header, and is the same each time.
    #[must_use]
    pub fn to_token(&self, key: &[u8; 32]) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_CONTENT + TOKEN_CODE);
        bytes.extend_from_slice(self.run.as_bytes());
        bytes.extend_from_slice(&self.index.to_be_bytes());
        let code = token_code(key, &bytes);
        bytes.extend_from_slice(&code);
        format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What `token` stands for; `None` for every text but the one that [`Correlation::to_token`] makes with `key`. The
    /// time that this takes does not tell how much of the code is right.
    #[must_use]
    pub fn from_token(token: &str, key: &[u8; 32]) -> Option<Self> {
        let text = token.strip_prefix(TOKEN_PREFIX)?;
        // Before it is decoded: the token comes from outside and may have any length.
        if text.len() != TOKEN_TEXT {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (content, code) = bytes.split_first_chunk::<TOKEN_CONTENT>()?;
        if !bool::from(code.ct_eq(&token_code(key, content))) {
            return None;
        }
        let (run, index) = content.split_first_chunk::<16>()?;
        Some(Self {
            run: Uuid::from_bytes(*run),
            index: u32::from_be_bytes(index.try_into().ok()?),
        })
    }
}

/// HMAC-SHA256 with `key`, which has at most [`LONGEST_SECRET`] bytes.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // HMAC fills up a short key with zeros anyhow; from a whole block it can be made without an error to handle.
    let mut block = [0; LONGEST_SECRET];
    block[..key.len()].copy_from_slice(key);
    Hmac::new(&block.into())
}

/// The code of a delivery. An id may hold full stops; that lets no two deliveries of JSON objects have the same code,
/// since neither a time before an object nor the rest of an id before one is JSON.
fn code(secret: &Secret, id: &str, timestamp: &str, body: &[u8]) -> [u8; 32] {
    keyed(&secret.0)
        .chain_update(id)
        .chain_update(b".")
        .chain_update(timestamp)
        .chain_update(b".")
        .chain_update(body)
        .finalize()
        .into_bytes()
        .into()
}

fn token_code(key: &[u8; 32], content: &[u8]) -> [u8; TOKEN_CODE] {
    let whole: [u8; 32] = keyed(key)
        .chain_update(TOKEN_PURPOSE)
        .chain_update(content)
        .finalize()
        .into_bytes()
        .into();
    let mut code = [0; TOKEN_CODE];
    code.copy_from_slice(&whole[..TOKEN_CODE]);
    code
}

/// The milliseconds of a text of decimal seconds.
fn milliseconds(seconds: &str) -> Option<i64> {
    // `parse` takes a sign too.
    if !seconds.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    seconds.parse::<i64>().ok()?.checked_mul(1000)
}

/// The `v1` signatures among the first [`MAX_SIGNATURES`] entries of `header`.
fn signatures(header: &str) -> Vec<[u8; 32]> {
    header
        .split(' ')
        .filter(|entry| !entry.is_empty())
        .take(MAX_SIGNATURES)
        .filter_map(|entry| entry.strip_prefix(SIGNATURE_PREFIX))
        .filter_map(|encoded| FOREIGN.decode(encoded).ok()?.try_into().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    // The example that the scheme's own libraries are tested with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: &str = "1614265330";
    const NOW_MS: i64 = 1_614_265_330_000;
    const BODY: &str = r#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn secret(byte: u8) -> Secret {
        Secret(vec![byte; 32])
    }

    fn published() -> Secret {
        Secret::parse(SECRET).unwrap()
    }

    fn delivery(id: &str, timestamp: &str, signature: &str, body: &str) -> UnverifiedDelivery {
        UnverifiedDelivery::new(
            [
                (ID_HEADER, id),
                (TIMESTAMP_HEADER, timestamp),
                (SIGNATURE_HEADER, signature),
            ],
            body,
        )
    }

    /// What becomes of the published delivery with `signature` instead of its own.
    fn with_signature(signature: &str) -> Result<(), Refusal> {
        delivery(ID, TIMESTAMP, signature, BODY)
            .verify(&[published()], NOW_MS)
            .map(drop)
    }

    #[test]
    fn the_published_example_verifies() {
        let verified = delivery(ID, TIMESTAMP, SIGNATURE, BODY)
            .verify(&[published()], NOW_MS)
            .unwrap();
        assert_eq!(verified.id(), ID);
        assert_eq!(verified.timestamp_ms(), NOW_MS);
        assert_eq!(verified.body(), BODY.as_bytes());
        let parsed: HashMap<String, u64> = verified.parse().unwrap();
        assert_eq!(parsed["test"], 2_432_232_314);
        assert!(verified.parse::<Vec<u8>>().is_err());
        assert_eq!(
            verified.digest(),
            "bcda2c50c55350fde15cb6a403311daac6f7adf9e5d5b836363f31d1b908edb1"
        );
        assert_eq!(sign(&published(), ID, NOW_MS / 1000, BODY.as_bytes()), SIGNATURE);
    }

    #[test]
    fn secrets_of_every_length_sign_as_another_implementation_does() {
        // Made with Python's hmac.
        for (secret, signature) in [
            (
                "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX",
                "v1,bhWZUS2lQMf+Au9tShwVwWgqSsQCAwfA+NL2ed/ipVQ=",
            ),
            (
                "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g",
                "v1,EtYXI4Mxu0FUtfgUsPpEnkFMQ0sk4FW8A2cildJJSC4=",
            ),
            (
                "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==",
                "v1,GbUlfw+QSNMppHasjGJOhYOxgIJVO8BvT40DFQhricY=",
            ),
        ] {
            let secret = Secret::parse(secret).unwrap();
            assert_eq!(sign(&secret, "a", 1_700_000_000, b"{}"), signature);
        }
    }

    #[test]
    fn a_secret_is_read_in_its_own_form_only() {
        for length in 0..=70 {
            let bytes: Vec<u8> = (0..length).collect();
            let padded = format!("whsec_{}", STANDARD.encode(&bytes));
            for text in [padded.as_str(), padded.trim_end_matches('=')] {
                match Secret::parse(text) {
                    Ok(secret) => {
                        assert!((24..=64).contains(&length), "{length}");
                        assert_eq!(secret.to_text(), padded);
                    }
                    Err(SecretError) => assert!(!(24..=64).contains(&length), "{length}"),
                }
            }
        }
        for text in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            " whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw==",
            "whsec_whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            // The other alphabet, and bits beyond the last byte.
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS_",
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9",
            "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        ] {
            assert!(Secret::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_generated_secret_is_new_and_can_be_read_back() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_eq!(one.0.len(), 32);
        assert_ne!(one.0, other.0);
        assert_eq!(Secret::parse(&one.to_text()).unwrap().0, one.0);
    }

    #[test]
    fn no_text_shows_what_is_secret() {
        assert_eq!(format!("{:?}", published()), "Secret(…)");
        assert_eq!(
            SecretError.to_string(),
            "a signing secret is `whsec_` followed by the base64 of 24 to 64 bytes, without spaces"
        );
        let shown = format!("{:?}", delivery(ID, TIMESTAMP, SIGNATURE, BODY));
        assert_eq!(
            shown,
            format!("UnverifiedDelivery {{ id: {ID:?}, timestamp: {TIMESTAMP:?}, .. }}")
        );
        let verified = delivery(ID, TIMESTAMP, SIGNATURE, BODY)
            .verify(&[published()], NOW_MS)
            .unwrap();
        assert_eq!(
            format!("{verified:?}"),
            format!("VerifiedDelivery {{ id: {ID:?}, timestamp_ms: {NOW_MS}, body: 20 bytes }}")
        );
        let refusal = delivery(ID, TIMESTAMP, SIGNATURE, "{}")
            .verify(&[published()], NOW_MS)
            .unwrap_err();
        let expected = sign(&published(), ID, NOW_MS / 1000, b"{}");
        for text in [refusal.to_string(), format!("{refusal:?}")] {
            for hidden in [&SECRET[6..], &SIGNATURE[3..], &expected[3..]] {
                assert!(!text.contains(hidden), "{text}");
            }
        }
    }

    #[test]
    fn a_change_to_any_part_is_noticed() {
        let ids = ["msg_p5jXN8AQM9LWM0D4loKWxJeK", "msg_p5jXN8AQM9LWM0D4loKWxJe", "m"];
        let timestamps = ["1614265331", "1614265329", "01614265330"];
        let bodies = [
            r#"{"test": 2432232315}"#,
            r#"{"test":2432232314}"#,
            "{\"test\": 2432232314}\n",
            "",
        ];
        let changed = (ids.iter().map(|id| (*id, TIMESTAMP, BODY)))
            .chain(timestamps.iter().map(|timestamp| (ID, *timestamp, BODY)))
            .chain(bodies.iter().map(|body| (ID, TIMESTAMP, *body)));
        for (id, timestamp, body) in changed {
            assert_eq!(
                delivery(id, timestamp, SIGNATURE, body)
                    .verify(&[published()], NOW_MS)
                    .unwrap_err(),
                Refusal::NoSignatureFits,
                "{id} {timestamp} {body}"
            );
        }
    }

    #[test]
    fn the_timestamp_counts_as_the_text_that_was_signed() {
        let code = code(&published(), ID, "01614265330", BODY.as_bytes());
        let signature = format!("v1,{}", STANDARD.encode(code));
        let verified = delivery(ID, "01614265330", &signature, BODY)
            .verify(&[published()], NOW_MS)
            .unwrap();
        assert_eq!(verified.timestamp_ms(), NOW_MS);
    }

    #[test]
    fn a_signature_has_one_form_only() {
        let encoded = &SIGNATURE[3..];
        assert_eq!(with_signature(SIGNATURE), Ok(()));
        assert_eq!(with_signature(SIGNATURE.trim_end_matches('=')), Ok(()));
        assert_eq!(
            with_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdd"),
            Err(Refusal::NoSignature)
        );
        assert_eq!(
            with_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdA="),
            Err(Refusal::NoSignatureFits)
        );
        for entry in [
            format!("v2,{encoded}"),
            format!("v1a,{encoded}"),
            format!("V1,{encoded}"),
            format!("v1={encoded}"),
            format!("v1{encoded}"),
            format!("v1, {encoded}"),
            format!("v1,v1,{encoded}"),
            format!("v1,,{encoded}"),
            format!("xv1,{encoded}"),
            format!("\tv1,{encoded}"),
            format!("sha256=v1,{encoded}"),
            encoded.to_owned(),
            format!("v1,{encoded}{encoded}"),
            format!("v1,{encoded}="),
            format!("v1,{encoded},"),
            format!("v1,{encoded},v1,{encoded}"),
            format!("v1,{encoded}\u{fffd}"),
            format!("v1,{}", encoded.replace('/', "_").replace('+', "-")),
            "v1,83484cf52b04f8e4cf2531adfed9882ad4b2665137b852442d594d20e2c9d4e1".to_owned(),
            // Bits beyond the last byte.
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OF=".to_owned(),
            "v1,".to_owned(),
            "v1".to_owned(),
            ",".to_owned(),
            " ".to_owned(),
        ] {
            assert_eq!(with_signature(&entry), Err(Refusal::NoSignature), "{entry}");
            // It does no harm to a good one.
            assert_eq!(with_signature(&format!("{entry} {SIGNATURE}")), Ok(()), "{entry}");
        }
        for end in 0..SIGNATURE.len() - 1 {
            assert!(with_signature(&SIGNATURE[..end]).is_err(), "{end}");
        }
        // Codes that are too short or too long, although they begin well.
        let code = STANDARD.decode(encoded).unwrap();
        for odd in [&code[..31], &code[..16], &[code.as_slice(), &[0]].concat()] {
            assert_eq!(
                with_signature(&format!("v1,{}", STANDARD.encode(odd))),
                Err(Refusal::NoSignature)
            );
        }
    }

    #[test]
    fn one_signature_of_several_is_enough() {
        let other = sign(&secret(1), ID, NOW_MS / 1000, BODY.as_bytes());
        let asymmetric =
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
        for header in [
            format!("{SIGNATURE} {other}"),
            format!("{other} {SIGNATURE}"),
            format!("{asymmetric} {SIGNATURE}"),
            format!("v2,{} {other}  {SIGNATURE} ", &SIGNATURE[3..]),
            format!("{SIGNATURE} {SIGNATURE}"),
            format!("{}{SIGNATURE}", " ".repeat(MAX_SIGNATURES)),
        ] {
            assert_eq!(with_signature(&header), Ok(()), "{header}");
        }
        assert_eq!(
            with_signature(&format!("{other} {other}")),
            Err(Refusal::NoSignatureFits)
        );
        assert_eq!(with_signature(asymmetric), Err(Refusal::NoSignature));
    }

    #[test]
    fn a_long_list_is_looked_at_up_to_a_limit() {
        let other = sign(&secret(1), ID, NOW_MS / 1000, BODY.as_bytes());
        for (filler, beyond) in [
            (other.as_str(), Refusal::NoSignatureFits),
            ("v9,x", Refusal::NoSignature),
        ] {
            let list = |before: usize| format!("{}{SIGNATURE}", format!("{filler} ").repeat(before));
            assert_eq!(with_signature(&list(MAX_SIGNATURES - 1)), Ok(()));
            assert_eq!(with_signature(&list(MAX_SIGNATURES)), Err(beyond));
            assert_eq!(with_signature(&list(100_000)), Err(beyond));
        }
        assert_eq!(with_signature(&"v1,".repeat(100_000)), Err(Refusal::NoSignature));
        assert_eq!(with_signature(&"A".repeat(1_000_000)), Err(Refusal::NoSignature));
    }

    #[test]
    fn any_of_the_secrets_will_do() {
        let verify = |secrets: &[Secret]| {
            delivery(ID, TIMESTAMP, SIGNATURE, BODY)
                .verify(secrets, NOW_MS)
                .map(drop)
        };
        assert_eq!(verify(&[published(), secret(1), secret(2)]), Ok(()));
        assert_eq!(verify(&[secret(1), published(), secret(2)]), Ok(()));
        assert_eq!(verify(&[secret(1), secret(2), published()]), Ok(()));
        assert_eq!(verify(&[secret(1), secret(2)]), Err(Refusal::NoSignatureFits));
        assert_eq!(verify(&[]), Err(Refusal::NoSignatureFits));
    }

    #[test]
    fn the_window_is_five_minutes_to_either_side() {
        let verify = |now_ms: i64| {
            delivery(ID, TIMESTAMP, SIGNATURE, BODY)
                .verify(&[published()], now_ms)
                .map(drop)
        };
        for offset in [0, 1, -1, 299_999, -299_999, 300_000, -300_000] {
            assert_eq!(verify(NOW_MS + offset), Ok(()), "{offset}");
        }
        for age_ms in [300_001, 301_000, NOW_MS] {
            assert_eq!(verify(NOW_MS + age_ms), Err(Refusal::TooOld { age_ms }));
            assert_eq!(
                verify(NOW_MS - age_ms),
                Err(Refusal::TooFarInFuture { ahead_ms: age_ms })
            );
        }
        assert!(matches!(verify(i64::MAX), Err(Refusal::TooOld { .. })));
        assert!(matches!(verify(i64::MIN), Err(Refusal::TooFarInFuture { .. })));
    }

    #[test]
    fn a_timestamp_is_plain_digits() {
        let verify = |timestamp: &str| {
            delivery(ID, timestamp, SIGNATURE, BODY)
                .verify(&[published()], NOW_MS)
                .unwrap_err()
        };
        for timestamp in [
            "+1614265330",
            "-1614265330",
            " 1614265330",
            "1614265330 ",
            "1614265330.0",
            "1614265330,1614265330",
            "1.614e9",
            "0x60378a32",
            "1_614_265_330",
            "2021-02-25T15:02:10Z",
            "١٦١٤٢٦٥٣٣٠",
            "now",
            // Too much for a number of seconds, and for one of milliseconds.
            "99999999999999999999",
            "9223372036854775807",
            &"9".repeat(100_000),
        ] {
            assert_eq!(verify(timestamp), Refusal::OddTimestamp, "{timestamp}");
        }
        assert_eq!(verify("0"), Refusal::TooOld { age_ms: NOW_MS });
        assert!(matches!(verify("1614265330000"), Refusal::TooFarInFuture { .. }));
    }

    #[test]
    fn an_id_is_visible_ascii() {
        let verify = |id: &str| {
            let signature = sign(&published(), id, NOW_MS / 1000, BODY.as_bytes());
            delivery(id, TIMESTAMP, &signature, BODY)
                .verify(&[published()], NOW_MS)
                .map(|verified| verified.id().to_owned())
        };
        for id in ["1", "!~", "a.b.1614265330", &"x".repeat(MAX_ID)] {
            assert_eq!(verify(id).as_deref(), Ok(id));
        }
        for id in [
            " ",
            "a b",
            "a\n",
            "a\0",
            "\u{7f}",
            "ä",
            "\u{fffd}",
            &"x".repeat(MAX_ID + 1),
        ] {
            assert_eq!(verify(id), Err(Refusal::OddId), "{id:?}");
        }
    }

    #[test]
    fn a_header_without_value_is_missing() {
        let all = [
            (ID_HEADER, ID),
            (TIMESTAMP_HEADER, TIMESTAMP),
            (SIGNATURE_HEADER, SIGNATURE),
        ];
        for (place, (name, _)) in all.into_iter().enumerate() {
            let mut empty = all;
            empty[place].1 = "";
            let without: Vec<_> = all.into_iter().filter(|(other, _)| *other != name).collect();
            for headers in [empty.to_vec(), without] {
                assert_eq!(
                    UnverifiedDelivery::new(headers, BODY)
                        .verify(&[published()], NOW_MS)
                        .unwrap_err(),
                    Refusal::MissingHeader(name)
                );
            }
        }
        let nothing: [(&str, &str); 0] = [];
        let refusal = UnverifiedDelivery::new(nothing, BODY)
            .verify(&[published()], NOW_MS)
            .unwrap_err();
        assert_eq!(refusal, Refusal::MissingHeader(ID_HEADER));
        assert_eq!(
            refusal.to_string(),
            "the header webhook-id is missing or empty: send webhook-id, webhook-timestamp and webhook-signature"
        );
    }

    #[test]
    fn headers_come_in_any_case_and_from_any_map() {
        let map: HashMap<String, Vec<u8>> = [
            ("Webhook-Id", ID),
            ("WEBHOOK-TIMESTAMP", TIMESTAMP),
            ("webHook-signature", SIGNATURE),
            ("content-type", "application/json"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
        let delivery = UnverifiedDelivery::new(&map, BODY.as_bytes().to_vec());
        assert!(delivery.verify(&[published()], NOW_MS).is_ok());
    }

    #[test]
    fn the_first_of_two_equal_headers_counts_and_odd_bytes_are_refused() {
        let verify = |headers: &[(&str, &[u8])]| {
            UnverifiedDelivery::new(headers.iter().copied(), BODY)
                .verify(&[published()], NOW_MS)
                .map(drop)
        };
        let (id, timestamp, signature) = (
            (ID_HEADER, ID.as_bytes()),
            (TIMESTAMP_HEADER, TIMESTAMP.as_bytes()),
            (SIGNATURE_HEADER, SIGNATURE.as_bytes()),
        );
        let other: (&str, &[u8]) = ("Webhook-Id", b"other");
        assert_eq!(verify(&[id, timestamp, signature, other]), Ok(()));
        assert_eq!(
            verify(&[other, id, timestamp, signature]),
            Err(Refusal::NoSignatureFits)
        );
        let empty: (&str, &[u8]) = (ID_HEADER, b"");
        assert_eq!(
            verify(&[empty, id, timestamp, signature]),
            Err(Refusal::MissingHeader(ID_HEADER))
        );
        let odd: &[u8] = b"\xff\xfe";
        assert_eq!(
            verify(&[(ID_HEADER, odd), timestamp, signature]),
            Err(Refusal::OddId)
        );
        assert_eq!(
            verify(&[id, (TIMESTAMP_HEADER, odd), signature]),
            Err(Refusal::OddTimestamp)
        );
        assert_eq!(
            verify(&[id, timestamp, (SIGNATURE_HEADER, odd)]),
            Err(Refusal::NoSignature)
        );
    }

    #[test]
    fn a_refused_delivery_can_be_verified_with_other_secrets() {
        let first = delivery(ID, TIMESTAMP, SIGNATURE, BODY).verify_or_return(&[secret(1)], NOW_MS);
        let (refusal, again) = first.unwrap_err();
        assert_eq!(refusal, Refusal::NoSignatureFits);
        let verified = again.verify(&[secret(1), published()], NOW_MS).unwrap();
        assert_eq!((verified.id(), verified.body()), (ID, BODY.as_bytes()));
    }

    #[test]
    fn the_digest_stays_the_same_at_a_further_attempt() {
        let digest = |id: &str, seconds: i64, secret: &Secret, body: &str| {
            let signature = sign(secret, id, seconds, body.as_bytes());
            delivery(id, &seconds.to_string(), &signature, body)
                .verify(std::slice::from_ref(secret), seconds * 1000)
                .unwrap()
                .digest()
        };
        let first = digest(ID, 1_700_000_000, &secret(1), BODY);
        assert_eq!(digest(ID, 1_700_000_060, &secret(2), BODY), first);
        assert_ne!(digest("other", 1_700_000_000, &secret(1), BODY), first);
        assert_ne!(digest(ID, 1_700_000_000, &secret(1), "{}"), first);
    }

    fn any_secret() -> impl Strategy<Value = Secret> {
        prop::collection::vec(any::<u8>(), SHORTEST_SECRET..=LONGEST_SECRET).prop_map(Secret)
    }

    /// A delivery that `secret` signed, with `body` instead of the signed one.
    fn signed(
        secret: &Secret,
        id: &str,
        seconds: i64,
        signed: &[u8],
        body: Vec<u8>,
    ) -> Result<VerifiedDelivery, Refusal> {
        let headers = [
            (ID_HEADER, id.to_owned()),
            (TIMESTAMP_HEADER, seconds.to_string()),
            (SIGNATURE_HEADER, sign(secret, id, seconds, signed)),
        ];
        UnverifiedDelivery::new(headers, body).verify(std::slice::from_ref(secret), seconds * 1000)
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies(
            secret in any_secret(),
            id in "[!-~]{1,256}",
            seconds in 0_i64..=4_102_444_800,
            body in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let verified = signed(&secret, &id, seconds, &body, body.clone()).unwrap();
            prop_assert_eq!(verified.body(), body);
            prop_assert_eq!(verified.id(), id);
            prop_assert_eq!(verified.timestamp_ms(), seconds * 1000);
        }

        #[test]
        fn a_flipped_bit_of_the_body_does_not(
            secret in any_secret(),
            body in prop::collection::vec(any::<u8>(), 1..2000),
            byte: Index,
            bit in 0..8,
        ) {
            let mut flipped = body.clone();
            *byte.get_mut(&mut flipped) ^= 1_u8 << bit;
            prop_assert_eq!(
                signed(&secret, ID, NOW_MS / 1000, &body, flipped).unwrap_err(),
                Refusal::NoSignatureFits
            );
        }

        #[test]
        fn a_flipped_bit_of_the_secret_does_not(secret in any_secret(), byte: Index, bit in 0..8) {
            let mut other = secret.clone();
            *byte.get_mut(&mut other.0) ^= 1_u8 << bit;
            let signature = sign(&secret, ID, NOW_MS / 1000, BODY.as_bytes());
            prop_assert_eq!(
                delivery(ID, TIMESTAMP, &signature, BODY).verify(&[other], NOW_MS).unwrap_err(),
                Refusal::NoSignatureFits
            );
        }

        #[test]
        fn a_secret_survives_its_text(secret in any_secret()) {
            prop_assert_eq!(Secret::parse(&secret.to_text()).unwrap().0, secret.0);
        }

        #[test]
        fn nothing_from_outside_panics(
            id in ".*", timestamp in ".*", signature in "(v1,|[A-Za-z0-9+/=, ]|.)*", text in ".*", now_ms: i64,
        ) {
            let verified = delivery(&id, &timestamp, &signature, &text).verify(&[published()], now_ms);
            prop_assert!(verified.is_err());
            let _ = Secret::parse(&text);
            prop_assert_eq!(Correlation::from_token(&text, &KEY), None);
        }
    }

    const KEY: [u8; 32] = {
        let mut key = [0; 32];
        let mut at = 0;
        while at < 32 {
            key[at as usize] = at;
            at += 1;
        }
        key
    };

    #[test]
    fn a_correlation_token_has_a_known_form() {
        let correlation = Correlation {
            run: "0198f3c2-7b00-7abc-8def-0123456789ab".parse().unwrap(),
            index: 70_000,
        };
        // Made with Python's hmac.
        let token = "rbc1.AZjzwnsAeryN7wEjRWeJqwABEXAX58V5Y7Qr8X-E09xb0VxH";
        assert_eq!(correlation.to_token(&KEY), token);
        assert_eq!(Correlation::from_token(token, &KEY), Some(correlation));
    }

    #[test]
    fn a_token_in_another_form_is_none() {
        let token = Correlation {
            run: Uuid::max(),
            index: u32::MAX,
        }
        .to_token(&KEY);
        let text = &token[5..];
        for other in [
            String::new(),
            "rbc1.".to_owned(),
            text.to_owned(),
            format!("rbc1{text}"),
            format!("RBC1.{text}"),
            format!("rbc2.{text}"),
            format!("rbc1.rbc1.{text}"),
            format!("{token}{text}"),
            format!("{token}A"),
            format!("{token}AAAA"),
            format!("{token}="),
            format!("{token}===="),
            format!("{token}\n"),
            format!(" {token}"),
            format!("rbc1. {}", &text[1..]),
            format!("rbc1.{}", &text[..47]),
            format!("rbc1.{}=", &text[..47]),
            format!("rbc1.{}", &text[..44]),
            // As many bytes, but not as many characters.
            format!("rbc1.{}ä", &text[..46]),
            format!("rbc1.{}", text.replace('_', "/")),
            "x".repeat(1_000_000),
            format!("rbc1.{}", "A".repeat(1_000_000)),
        ] {
            assert_eq!(Correlation::from_token(&other, &KEY), None);
        }
        assert!(text.contains('_'));
    }

    #[test]
    fn no_token_with_one_other_character_is_accepted() {
        let token = Correlation {
            run: Uuid::from_u128(7),
            index: 3,
        }
        .to_token(&KEY);
        for place in 0..token.len() {
            for byte in 0..128_u8 {
                let mut other = token.clone().into_bytes();
                other[place] = byte;
                let other = String::from_utf8(other).unwrap();
                assert_eq!(Correlation::from_token(&other, &KEY).is_some(), other == token);
            }
        }
    }

    proptest! {
        #[test]
        fn a_correlation_survives_its_token(run: u128, index: u32, key: [u8; 32], other: [u8; 32]) {
            let correlation = Correlation { run: Uuid::from_u128(run), index };
            let token = correlation.to_token(&key);
            prop_assert_eq!(token.len(), 53);
            prop_assert_eq!(Correlation::from_token(&token, &key), Some(correlation));
            prop_assume!(key != other);
            prop_assert_eq!(Correlation::from_token(&token, &other), None);
        }

        #[test]
        fn no_other_token_is_accepted(
            token in prop_oneof![
                "rbc1\\.[A-Za-z0-9_-]{48}",
                "rbc1\\.[A-Za-z0-9_-]{0,80}",
                "rbc1\\..{48}",
                any::<[u8; 36]>().prop_map(|bytes| format!("rbc1.{}", URL_SAFE_NO_PAD.encode(bytes))),
            ],
            key: [u8; 32],
        ) {
            prop_assert_eq!(Correlation::from_token(&token, &key), None);
        }

        #[test]
        fn no_code_fits_another_item(run: u128, index: u32, other_run: u128, other_index: u32) {
            prop_assume!((run, index) != (other_run, other_index));
            let bytes = |run, index| {
                let token = Correlation { run: Uuid::from_u128(run), index }.to_token(&KEY);
                URL_SAFE_NO_PAD.decode(&token[5..]).unwrap()
            };
            let mixed = [&bytes(other_run, other_index)[..20], &bytes(run, index)[20..]].concat();
            let token = format!("rbc1.{}", URL_SAFE_NO_PAD.encode(mixed));
            prop_assert_eq!(Correlation::from_token(&token, &KEY), None);
        }
    }
}
