//! What Twilio signs: the URL, and the form if there is one.
//!
//! A form is signed as its parameters, not as its bytes: how they are escaped, in which order they are and how often one
//! is repeated is not signed, nor where a name ends and its value begins. A body of any other kind is signed only by the
//! hash of it in the URL.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Algorithm, Refusal, profile};

/// The header that names the shared key.
pub(super) const SETTINGS_HEADER: &str = "x-twilio-webhooks-signature-settings";

/// The parameter of the URL's query with the body's SHA-256.
const HASH: &str = "bodySHA256";

/// What may have been signed for a delivery to `url`, which the sender may have written with its port or without.
///
/// # Errors
/// The URL's hash is not of `body`, or the body is not part of what is signed.
pub(super) fn messages(url: &str, content_type: Option<&str>, body: &[u8]) -> Result<Vec<String>, Refusal> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let hash = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == HASH);
    let mut signed = body.is_empty();
    if let Some((_, hash)) = hash {
        let hash = profile::hex(&hash).unwrap_or_default();
        if !bool::from(hash.ct_eq(&Sha256::digest(body))) {
            return Err(Refusal::BodyHash {
                place: format!("{HASH} in the URL"),
                form: "hexadecimal",
            });
        }
        signed = true;
    }
    let mut form = String::new();
    if content_type.is_some_and(is_form) {
        let mut parameters = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, value) in form_urlencoded::parse(body) {
            // Otherwise the end of a URL that was signed alone could come as a parameter.
            if !name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_') {
                return Err(Refusal::UnsignedBody);
            }
            parameters.entry(name).or_default().insert(value);
        }
        signed |= !parameters.is_empty();
        for (name, values) in parameters {
            for value in values {
                form.push_str(&name);
                form.push_str(&value);
            }
        }
    }
    if !signed {
        return Err(Refusal::UnsignedBody);
    }
    Ok(urls(url).into_iter().map(|url| url + &form).collect())
}

fn is_form(content_type: &str) -> bool {
    let kind = content_type
        .split_once(';')
        .map_or(content_type, |(kind, _)| kind);
    kind.trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// `url` as it is and with its port left out, or with the usual port if it has none.
fn urls(url: &str) -> Vec<String> {
    let mut urls = vec![url.to_owned()];
    let Some((scheme, rest)) = url.split_once("://") else {
        return urls;
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let port = authority
        .rsplit_once(':')
        .filter(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    match (port, scheme) {
        (Some((host, _)), _) => urls.push(format!("{scheme}://{host}{tail}")),
        (None, "https") => urls.push(format!("https://{authority}:443{tail}")),
        (None, "http") => urls.push(format!("http://{authority}:80{tail}")),
        (None, _) => {}
    }
    urls
}

/// Whether `settings` says that the key `id` and `algorithm` were used. Of a setting that is there twice the first counts.
pub(super) fn names_key(settings: &[u8], id: &str, algorithm: Algorithm) -> bool {
    let setting = |name: &str| {
        str::from_utf8(settings)
            .ok()?
            .split(',')
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    };
    setting("key") == Some(id) && setting("algorithm") == Some(algorithm_name(algorithm))
}

/// Twilio's own name of `algorithm`.
pub(super) const fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HmacSha1 => "HMAC_SHA1",
        Algorithm::HmacSha512 => "HMAC_SHA512",
        _ => "HMAC_SHA256",
    }
}
