//! JSON Web Tokens by HS256 that vouch for a body by its hash.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Refusal;

/// How far the clocks may be apart, in milliseconds.
pub(super) const LEEWAY_MS: i64 = 60_000;

/// A token of which nothing is believed yet.
pub(super) struct Token<'a> {
    /// What is signed.
    pub(super) signed: &'a str,
    /// The signature, 32 bytes.
    pub(super) signature: Vec<u8>,
    claims: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Names what a reader must understand.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    nbf: Option<f64>,
    iss: Option<String>,
    sha256: String,
}

impl<'a> Token<'a> {
    /// Reads `text`, which must be a token by HS256 in the compact form.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.alg != "HS256" || header.crit.is_some() {
            return None;
        }
        Some(Self {
            signed,
            signature: URL_SAFE_NO_PAD
                .decode(signature)
                .ok()
                .filter(|bytes| bytes.len() == 32)?,
            claims: URL_SAFE_NO_PAD.decode(claims).ok()?,
        })
    }

    /// Checks the claims of a token in `header` whose signature fits. What it is good from (`nbf`), in milliseconds.
    ///
    /// # Errors
    /// The token is over, not yet good, of another issuer or for another body.
    pub(super) fn check(
        &self,
        header: &str,
        issuer: Option<&str>,
        body: &[u8],
        now_ms: i64,
    ) -> Result<Option<i64>, Refusal> {
        let claims: Claims = serde_json::from_slice(&self.claims).map_err(|_| Refusal::OddToken {
            header: header.to_owned(),
        })?;
        let place = |claim: &str| format!("`{claim}` of the token in the header {header}");
        // More than an i64 holds becomes the most that it does.
        let milliseconds = |seconds: f64| (seconds * 1000.0) as i64;
        let age_ms = now_ms.saturating_sub(milliseconds(claims.exp));
        if age_ms > LEEWAY_MS {
            return Err(Refusal::TooOld {
                place: place("exp"),
                age_ms,
                allowed_ms: LEEWAY_MS,
                unit: "seconds",
            });
        }
        let from_ms = claims.nbf.map(milliseconds);
        let ahead_ms = from_ms.unwrap_or(now_ms).saturating_sub(now_ms);
        if ahead_ms > LEEWAY_MS {
            return Err(Refusal::TooFarInFuture {
                place: place("nbf"),
                ahead_ms,
                allowed_ms: LEEWAY_MS,
                unit: "seconds",
            });
        }
        if issuer.is_some() && claims.iss.as_deref() != issuer {
            return Err(Refusal::Issuer {
                header: header.to_owned(),
            });
        }
        let hash = STANDARD.decode(claims.sha256).unwrap_or_default();
        if bool::from(hash.ct_eq(&Sha256::digest(body))) {
            Ok(from_ms)
        } else {
            Err(Refusal::BodyHash {
                place: place("sha256"),
                form: "standard base64 with padding",
            })
        }
    }
}
