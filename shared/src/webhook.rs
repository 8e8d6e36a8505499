//! Webhooks that Ringback signs, by the symmetric scheme of [Standard Webhooks](https://www.standardwebhooks.com) 1.0.0, and the
//! correlation value, which lets what a provider says be about one item. What comes in is verified by [`crate::signature`].

use std::fmt;

use base64::{
    Engine, alphabet,
    engine::{
        DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig,
        general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    },
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// The header with the delivery's id, which stays the same when the delivery is sent again.
pub const ID_HEADER: &str = "webhook-id";

/// The header with the time of the attempt, in seconds since the Unix epoch.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";

/// The header with the signatures, separated by spaces.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

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

    /// A new secret of 24 random bytes, the fewest that there may be, as their 32 characters of standard base64: for a shape whose
    /// secrets have that length. With `whsec_` before it, it is what [`Secret::parse`] reads.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate_short() -> Result<String, getrandom::Error> {
        let mut bytes = [0; SHORTEST_SECRET];
        getrandom::fill(&mut bytes)?;
        Ok(STANDARD.encode(bytes))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signature::{Scheme, Unverified};

    // The example that the scheme's own libraries are tested with.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const NOW_MS: i64 = 1_614_265_330_000;
    const BODY: &str = r#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn published() -> Secret {
        Secret::parse(SECRET).unwrap()
    }

    #[test]
    fn the_published_example_is_signed() {
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
    fn a_short_secret_has_32_characters() {
        let text = Secret::generate_short().unwrap();
        assert_eq!(text.len(), 32);
        assert_eq!(Secret::parse(&format!("whsec_{text}")).unwrap().0.len(), 24);
    }

    #[test]
    fn no_text_shows_what_is_secret() {
        assert_eq!(format!("{:?}", published()), "Secret(…)");
        assert_eq!(
            SecretError.to_string(),
            "a signing secret is `whsec_` followed by the base64 of 24 to 64 bytes, without spaces"
        );
    }

    fn any_secret() -> impl Strategy<Value = Secret> {
        prop::collection::vec(any::<u8>(), SHORTEST_SECRET..=LONGEST_SECRET).prop_map(Secret)
    }

    proptest! {
        #[test]
        fn what_is_signed_is_believed(
            secret in any_secret(),
            id in "[!-~]{1,256}",
            seconds in 0_i64..=4_102_444_800,
            body in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let headers = [
                (ID_HEADER, id.clone()),
                (TIMESTAMP_HEADER, seconds.to_string()),
                (SIGNATURE_HEADER, sign(&secret, &id, seconds, &body)),
            ];
            let delivery = Unverified::new("POST", "https://r.example.com/", headers, body);
            let profile = Scheme::StandardWebhooks.profile();
            prop_assert!(delivery.verify(&profile, &[secret.to_text()], seconds * 1000).is_ok());
        }

        #[test]
        fn a_secret_survives_its_text(secret in any_secret()) {
            prop_assert_eq!(Secret::parse(&secret.to_text()).unwrap().0, secret.0);
        }

        #[test]
        fn nothing_from_outside_panics(text in ".*") {
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
