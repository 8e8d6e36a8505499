use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use proptest::{prelude::*, sample::Index};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::*;
use crate::models::{Validate, parse};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const URL: &str = "https://hooks.example.com/hooks/1?a=b%20c";

/// A delivery, and what it is verified with.
#[derive(Debug, Clone)]
struct Case {
    scheme: Scheme,
    secret: String,
    url: String,
    content_type: &'static str,
    /// Those that the scheme reads, the signature last.
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
    now_ms: i64,
}

impl Case {
    fn new(scheme: Scheme, secret: &str, headers: &[(&'static str, &str)], body: &str, now_ms: i64) -> Self {
        Self {
            scheme,
            secret: secret.to_owned(),
            url: URL.to_owned(),
            content_type: JSON,
            headers: headers
                .iter()
                .map(|(name, value)| (*name, value.as_bytes().to_vec()))
                .collect(),
            body: body.into(),
            now_ms,
        }
    }

    fn at(&self, url: &str, content_type: &'static str) -> Self {
        Self {
            url: url.to_owned(),
            content_type,
            ..self.clone()
        }
    }

    fn body(&self, body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..self.clone()
        }
    }

    fn now(&self, now_ms: i64) -> Self {
        Self {
            now_ms,
            ..self.clone()
        }
    }

    fn header(&self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        let mut case = self.clone();
        case.headers
            .iter_mut()
            .find(|(other, _)| *other == name)
            .unwrap()
            .1 = value.into();
        case
    }

    fn signature(&self) -> String {
        String::from_utf8(self.headers.last().unwrap().1.clone()).unwrap()
    }

    fn with_signature(&self, value: impl Into<Vec<u8>>) -> Self {
        self.header(self.headers.last().unwrap().0, value)
    }

    fn delivery(&self) -> Unverified {
        let content_type = ("Content-Type", self.content_type.as_bytes());
        let headers = self.headers.iter().map(|(name, value)| (*name, value.as_slice()));
        Unverified::new(
            "POST",
            &self.url,
            headers.chain([content_type]),
            self.body.clone(),
        )
    }

    fn with_secrets(&self, secrets: &[&str]) -> Result<Verified, Refusal> {
        self.delivery()
            .verify(&self.scheme.profile(), secrets, self.now_ms)
    }

    fn verify(&self) -> Result<Verified, Refusal> {
        self.with_secrets(&[&self.secret])
    }

    fn refusal(&self) -> Refusal {
        self.verify().unwrap_err()
    }

    #[track_caller]
    fn accepted(&self) -> Verified {
        let verified = self.verify();
        assert!(verified.is_ok(), "{self:?}: {verified:?}");
        verified.unwrap()
    }

    #[track_caller]
    fn unfit(&self) {
        let refusal = self.refusal();
        assert!(
            matches!(refusal, Refusal::NoSignatureFits { .. }),
            "{self:?}: {refusal:?}"
        );
    }

    #[track_caller]
    fn formless(&self) {
        let refusal = self.refusal();
        assert!(
            matches!(refusal, Refusal::NoSignature { .. }),
            "{self:?}: {refusal:?}"
        );
    }

    fn is_static(&self) -> bool {
        self.scheme.profile().algorithm == Algorithm::Static
    }

    /// Every delivery with one bit changed in what is signed or is the signature.
    fn flipped(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        for place in 0..self.headers.len() {
            for bit in 0..self.headers[place].1.len() * 8 {
                let mut case = self.clone();
                case.headers[place].1[bit / 8] ^= 1 << (bit % 8);
                cases.push(case);
            }
        }
        if !self.is_static() {
            for bit in 0..self.body.len() * 8 {
                let mut case = self.clone();
                case.body[bit / 8] ^= 1 << (bit % 8);
                cases.push(case);
            }
        }
        cases
    }
}

const SW_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SW_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const SW_TIMESTAMP: &str = "1614265330";
const SW_NOW_MS: i64 = 1_614_265_330_000;
const SW_BODY: &str = r#"{"test": 2432232314}"#;
const SW_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

fn standard_webhooks() -> Case {
    Case::new(
        Scheme::StandardWebhooks,
        SW_SECRET,
        &[
            ("webhook-id", SW_ID),
            ("webhook-timestamp", SW_TIMESTAMP),
            ("webhook-signature", SW_SIGNATURE),
        ],
        SW_BODY,
        SW_NOW_MS,
    )
}

const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
    0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
const PUBLIC_KEY: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
const HANGUP: &str = r#"{"data":{"event_type":"call.hangup","id":"0ccc7b54-4df3-4bca-a65a-3da1ecc777f0"}}"#;

fn standard_webhooks_ed25519() -> Case {
    Case::new(
        Scheme::StandardWebhooksEd25519,
        "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        &[
            ("webhook-id", "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"),
            ("webhook-timestamp", "1674087231"),
            (
                "webhook-signature",
                "v1a,IuW+dAbdAJorJQiiJIgiwl0mHCf2emjeHxPf6dTY3Bq4vPEKMP2aTT+d+d5YeH2Cxrig75RvxMAP3fSjajMgBQ==",
            ),
        ],
        HANGUP,
        1_674_087_231_000,
    )
}

fn telnyx() -> Case {
    Case::new(
        Scheme::Telnyx,
        PUBLIC_KEY,
        &[
            ("telnyx-timestamp", "1700000000"),
            (
                "telnyx-signature-ed25519",
                "RmHAa1XgoWQoXUq+UulYKVrfjsxIasWWFupfTB8oXOb7Vx4+abrmL6sacp+LpWglWJ1gsZxl7zCufwt0ZRl1AQ==",
            ),
        ],
        HANGUP,
        1_700_000_000_000,
    )
}

fn github() -> Case {
    Case::new(
        Scheme::Github,
        "It's a Secret to Everybody",
        &[(
            "X-Hub-Signature-256",
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        )],
        "Hello, World!",
        0,
    )
}

fn slack() -> Case {
    Case::new(
        Scheme::Slack,
        "8f742231b10e8888abcd99yyyzzz85a5",
        &[
            ("X-Slack-Request-Timestamp", "1531420618"),
            (
                "X-Slack-Signature",
                "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            ),
        ],
        "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&\
         channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&\
         response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&\
         trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        1_531_420_618_000,
    )
}

const RETELL_DIGEST: &str = "07024cabe7dd8f6d1c6e4a8324ca92c812e6ad4a7ee506c04f7e462e3321823e";

fn retell() -> Case {
    Case::new(
        Scheme::Retell,
        "test-api-key",
        &[(
            "x-retell-signature",
            &format!("v=1700000000000,d={RETELL_DIGEST}"),
        )],
        r#"{"event":"call_ended"}"#,
        1_700_000_000_000,
    )
}

fn elevenlabs() -> Case {
    Case::new(
        Scheme::Elevenlabs,
        "wsec_test",
        &[(
            "ElevenLabs-Signature",
            "t=1739537297,v0=5eb63acd01c5101979af63ea7612dcac75400f49ba1cc1834a555723e0973c84",
        )],
        r#"{"type":"post_call_transcription","event_timestamp":1739537297,"data":{"agent_id":"xyz","conversation_id":"abc","status":"done"}}"#,
        1_739_537_297_000,
    )
}

const STRIPE_DIGEST: &str = "88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a";

fn stripe() -> Case {
    Case::new(
        Scheme::Stripe,
        "whsec_test_secret",
        &[("Stripe-Signature", &format!("t=1492774577,v1={STRIPE_DIGEST}"))],
        r#"{"id":"evt_test_webhook","object":"event"}"#,
        1_492_774_577_000,
    )
}

fn bland() -> Case {
    Case::new(
        Scheme::Bland,
        "bland_test_secret",
        &[(
            "X-Webhook-Signature",
            "7b2bba8207deb21f7b90704137adb9992c1e9c5699d4438497cc124f2d8a52e7",
        )],
        r#"{"call_id":"c1","completed":true}"#,
        0,
    )
}

const VAPI_BODY: &str = r#"{"message":{"type":"status-update","status":"ended"}}"#;
const VAPI_DIGEST: &str = "242d1dfb67dba287b71dfa4cfe0c7572f3bc9437d9cf3d789f5ae490b70c4dd5";
const BODY_DIGEST: &str = "2307b27f9a770dd30e0b4c81dd3a04919fa6ead6abd6fd17ef921138ede061da";

fn vapi(settings: Value) -> Scheme {
    let mut scheme = json!({ "scheme": "vapi-hmac", "algorithm": "sha256" });
    scheme
        .as_object_mut()
        .unwrap()
        .extend(settings.as_object().unwrap().clone());
    parse(scheme).unwrap()
}

fn vapi_hmac(settings: Value, headers: &[(&'static str, &str)]) -> Case {
    Case::new(
        vapi(settings),
        "vapi_test_secret",
        headers,
        VAPI_BODY,
        1_700_000_000_000,
    )
}

/// The header that has no one meaning: an HMAC of the body, which some write with `sha256=` before it.
fn x_vapi_signature() -> Case {
    let scheme = parse(json!({
        "scheme": "custom",
        "signatureHeader": "x-vapi-signature",
        "algorithm": "hmac-sha256",
        "template": "{body}",
        "prefix": "sha256=",
        "prefixOptional": true,
    }))
    .unwrap();
    Case::new(
        scheme,
        "vapi_test_secret",
        &[("x-vapi-signature", BODY_DIGEST)],
        VAPI_BODY,
        0,
    )
}

const TWILIO_URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const TWILIO_FORM: &str =
    "CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309";
const TWILIO_HASH: &str = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";

fn twilio() -> Case {
    Case::new(
        Scheme::Twilio(Twilio::default()),
        "12345",
        &[("X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=")],
        TWILIO_FORM,
        0,
    )
    .at(TWILIO_URL, FORM)
}

fn twilio_json() -> Case {
    twilio()
        .with_signature("a9nBmqA0ju/hNViExpshrM61xv4=")
        .body(r#"{"property": "value", "boolean": true}"#)
        .at(&format!("{TWILIO_URL}&bodySHA256={TWILIO_HASH}"), JSON)
}

fn twilio_shared_key() -> Case {
    Case {
        scheme: parse(json!({ "scheme": "twilio", "sharedKeyId": "KY1" })).unwrap(),
        headers: vec![
            (
                "X-Twilio-Webhooks-Signature-Settings",
                b"key=KY1,algorithm=HMAC_SHA256".to_vec(),
            ),
            (
                "X-Twilio-Signature",
                b"033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s=".to_vec(),
            ),
        ],
        ..twilio()
    }
}

const LIVEKIT_BODY: &str = r#"{"event":"room_started", "room":{"sid":"RM_TkVjUvAqgzKz", "name":"mytestroom", "emptyTimeout":300, "creationTime":"1628545903", "turnPassword":"ICkSr2rEeslkN6e9bXL4Ji5zzMD5Z7zzr6ulOaxMj6N", "enabledCodecs":[{"mime":"audio/opus"}, {"mime":"video/VP8"}]}}"#;
const LIVEKIT_TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJhYmNkZWZnIiwibmJmIjoxNzAwMDAwMDAwLCJleHAiOjE3MDAwMDAzMDAsInNoYTI1NiI6IkNvRVF6MWNocUo5Ym5aUmNPUmRkanBsa3Zwam1QdWptTFRSNDJEYmVmWUk9In0.QLlQ-5xMtFLk_JfRbssfOlqXMkhStbUKIwDTMCaicfw";

fn livekit() -> Case {
    Case::new(
        parse(json!({ "scheme": "livekit", "apiKey": "abcdefg" })).unwrap(),
        "abababa",
        &[("Authorization", LIVEKIT_TOKEN)],
        LIVEKIT_BODY,
        1_700_000_000_000,
    )
}

fn vapi_secret() -> Case {
    Case::new(
        Scheme::VapiSecret,
        "s3cret, token",
        &[("X-Vapi-Secret", "s3cret, token")],
        "{}",
        0,
    )
}

fn vapi_bearer() -> Case {
    Case::new(
        Scheme::VapiBearer(VapiBearer::default()),
        "t0ken",
        &[("Authorization", "Bearer t0ken")],
        "{}",
        0,
    )
}

/// One good delivery, or several, of each scheme: the vectors of the providers and of their libraries.
fn vectors() -> Vec<Case> {
    let timestamp = ("x-timestamp", "1700000000");
    let svix = Case {
        scheme: Scheme::Svix,
        headers: ["svix-id", "svix-timestamp", "svix-signature"]
            .into_iter()
            .zip(standard_webhooks().headers)
            .map(|(name, (_, value))| (name, value))
            .collect(),
        ..standard_webhooks()
    };
    let bytes = Case {
        secret: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..vapi_hmac(
            json!({
                "payloadFormat": "{svix-id}.{timestamp}.{body}",
                "signatureEncoding": "base64",
                "secretIsBase64": true,
            }),
            &[
                ("svix-id", "msg_1"),
                timestamp,
                ("x-signature", "EVJj4jkHh4ss1zGH1ORCMjvPYqx8ddzmCPrCAoKkOsA="),
            ],
        )
    };
    let custom = json!({
        "scheme": "custom",
        "signatureHeader": "x-sig",
        "algorithm": "hmac-sha512",
        "keyEncoding": "hex",
        "template": "v1\n{timestamp}\n{body}",
        "entries": { "form": "list", "separator": "comma" },
        "timestamp": { "header": "x-ts" },
    });
    let custom = Case {
        scheme: parse(custom).unwrap(),
        secret: "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F".to_owned(),
        headers: vec![
            ("x-ts", b"1700000000".to_vec()),
            (
                "x-sig",
                b"0a6733298f0cb64f88554a41d6154a2ce833533a3c2f0e4ed215f0952d0cf801e1f3a2e333afc193dacb5c14d0b03212db38\
                  a36e7ad39db451947f8c661c5fca"
                    .to_vec(),
            ),
        ],
        ..bytes.clone()
    };
    vec![
        standard_webhooks(),
        svix,
        standard_webhooks_ed25519(),
        telnyx(),
        github(),
        slack(),
        retell(),
        elevenlabs(),
        stripe(),
        bland(),
        vapi_hmac(json!({}), &[timestamp, ("x-signature", VAPI_DIGEST)]),
        vapi_hmac(
            json!({ "includeTimestamp": false, "timestampHeader": "", "signatureHeader": "x-vapi-signature" }),
            &[("x-vapi-signature", BODY_DIGEST)],
        ),
        vapi_hmac(
            json!({ "includeTimestamp": false, "signaturePrefix": "sha256=" }),
            &[("x-signature", &format!("sha256={BODY_DIGEST}"))],
        ),
        // The rest of Vapi's settings and the one custom profile were signed with Python's hmac.
        vapi_hmac(
            json!({ "algorithm": "sha1", "timestampHeader": "X-Time" }),
            &[
                ("x-time", "1700000000"),
                ("x-signature", "dc5bab8079dba6cd2abbbdf5d101e826cbece96d"),
            ],
        ),
        vapi_hmac(
            json!({ "algorithm": "sha512", "signatureEncoding": "base64" }),
            &[
                timestamp,
                (
                    "x-signature",
                    "74ZV+tTLngHFKKGFhcRlWS25yPjJP8fwtMgx5nEcDuj5NZl7rauTB7PVRJCWKiDoGCIpDoPQ9TYnRtQfou9efA==",
                ),
            ],
        ),
        vapi_hmac(
            json!({ "payloadFormat": "{method} {url} {timestamp} {body}", "timestampUnit": "ms" }),
            &[
                ("x-timestamp", "1700000000000"),
                (
                    "x-signature",
                    "dbf53f3f65efea5c29afb00a706430a323f4d0c30b0063f485d69ae47d61512d",
                ),
            ],
        ),
        bytes,
        custom,
        x_vapi_signature(),
        twilio(),
        twilio_json(),
        twilio_shared_key(),
        livekit(),
        vapi_secret(),
        vapi_bearer(),
    ]
}

#[test]
fn every_vector_verifies() {
    for case in vectors() {
        let mut faults = Vec::new();
        case.scheme.validate("", &mut faults);
        case.scheme.profile().validate("", &mut faults);
        assert_eq!(faults, [""; 0], "{case:?}");
        case.scheme.check_secret(&case.secret).unwrap();
        let verified = case.accepted();
        assert_eq!(verified.body(), case.body);
        assert_eq!(verified.content_type(), Some(case.content_type));
        if case.scheme.profile().timestamp.is_some() {
            assert_eq!(verified.timestamp_ms(), Some(case.now_ms));
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    for case in vectors() {
        // A form's escapes may be written in more than one way.
        let form = case.content_type == FORM && case.headers[0].0.contains("Twilio");
        for flipped in case.flipped() {
            if let Ok(verified) = flipped.verify() {
                let parameters = |body| form_urlencoded::parse(body).into_owned().collect::<Vec<_>>();
                assert!(
                    form && parameters(verified.body()) == parameters(&case.body),
                    "{flipped:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_cut_or_longer_or_doubled_is_refused() {
    for case in vectors() {
        let value = case.signature();
        let profile = case.scheme.profile();
        // The padding may be left out.
        let least = value.trim_end_matches('=').len();
        for end in 0..least {
            assert!(
                case.with_signature(&value[..end]).verify().is_err(),
                "{case:?} {end}"
            );
        }
        let several = !matches!(
            profile.entries,
            Entries::Whole {} | Entries::Pairs { exact: true, .. }
        );
        let mut odd = vec![
            format!("x{value}"),
            format!("{value}x"),
            format!("{value}00"),
            format!("{value}0000"),
            format!("sha512={value}"),
            format!("\u{fffd}{value}"),
            format!("{value}\n"),
            value.to_uppercase(),
            value.to_lowercase() + "=",
        ];
        if !several {
            odd.push(format!("{value}{value}"));
            for between in [" ", ",", ", ", ";"] {
                odd.push(format!("{value}{between}{value}"));
                odd.push(format!("{value}{between}"));
                odd.push(format!("{between}{value}"));
                odd.push(format!("{value}{between}extra=value"));
                odd.push(format!("extra=value{between}{value}"));
            }
        }
        for odd in odd {
            assert!(
                case.with_signature(odd.as_str()).verify().is_err(),
                "{case:?} {odd}"
            );
        }
        for (name, _) in &case.headers {
            let refusal = case.header(name, "").refusal();
            assert!(matches!(refusal, Refusal::MissingHeader { .. }), "{refusal:?}");
            let mut without = case.clone();
            without.headers.retain(|(other, _)| other != name);
            let refusal = without.refusal();
            assert!(matches!(refusal, Refusal::MissingHeader { .. }), "{refusal:?}");
        }
        let long = case.with_signature(vec![b'a'; MAX_HEADER + 1]).refusal();
        assert!(matches!(long, Refusal::HeaderTooLong { .. }), "{long:?}");
    }
}

/// Another secret of the same form.
fn other_secret(case: &Case) -> String {
    let scheme = &case.scheme;
    let profile = scheme.profile();
    match (profile.algorithm, profile.key_encoding) {
        (Algorithm::Ed25519, _) => STANDARD.encode(keys(&[7; 32]).public_key()),
        (_, KeyEncoding::Utf8) => format!("{}x", case.secret),
        _ => scheme.generate().unwrap().unwrap(),
    }
}

#[test]
fn any_usable_secret_will_do_and_none_without() {
    for case in vectors() {
        let (right, other) = (case.secret.as_str(), other_secret(&case));
        let other = other.as_str();
        for secrets in [
            &[right, other, other][..],
            &[other, right, other],
            &[other, other, right],
            &["", "\0", right],
        ] {
            assert!(case.with_secrets(secrets).is_ok(), "{case:?} {secrets:?}");
        }
        for secrets in [
            &[][..],
            &[""],
            &["", "whsec_", "whpk_", " "],
            &[other],
            &[other, other],
        ] {
            let refusal = case.with_secrets(secrets).unwrap_err();
            assert!(
                matches!(refusal, Refusal::NoSignatureFits { .. }),
                "{case:?} {secrets:?} {refusal:?}"
            );
        }
        // First with the wrong one, then with the one that was added.
        let profile = case.scheme.profile();
        let first = case.delivery().verify_or_return(&profile, &[other], case.now_ms);
        let (refusal, again) = first.unwrap_err();
        assert!(matches!(refusal, Refusal::NoSignatureFits { .. }), "{refusal:?}");
        let verified = again.verify(&profile, &[other, right], case.now_ms).unwrap();
        assert_eq!(verified.body(), case.body);
    }
}

#[test]
fn an_empty_secret_signs_nothing() {
    let empty = |scheme: Scheme, headers: &[(&'static str, &str)], body: &str| {
        Case::new(scheme, "", headers, body, 0).refusal()
    };
    let unsigned = hex(&mac256(b"", b"{}"));
    assert!(matches!(
        empty(Scheme::Bland, &[("x-webhook-signature", &unsigned)], "{}"),
        Refusal::NoSignatureFits { .. }
    ));
    // Nothing at all is sent, or nothing behind the prefix.
    assert!(matches!(
        empty(Scheme::VapiSecret, &[("x-vapi-secret", "")], "{}"),
        Refusal::MissingHeader { .. }
    ));
    assert!(matches!(
        empty(
            Scheme::VapiBearer(VapiBearer::default()),
            &[("authorization", "Bearer ")],
            "{}"
        ),
        Refusal::NoSignatureFits { .. }
    ));
}

#[test]
fn a_timestamp_is_within_its_window() {
    for case in vectors() {
        let Some(rule) = case.scheme.profile().timestamp else {
            for now_ms in [0, i64::MAX, i64::MIN] {
                // A token has times of its own.
                assert_eq!(
                    case.now(now_ms).verify().is_ok(),
                    case.signature() != LIVEKIT_TOKEN
                );
            }
            continue;
        };
        let (past, future) = (
            i64::from(rule.past_ms.unwrap()),
            i64::from(rule.future_ms.unwrap()),
        );
        let half_an_hour = case.scheme == Scheme::Elevenlabs;
        assert_eq!(
            (past, future),
            if half_an_hour {
                (1_800_000, 1_800_000)
            } else {
                (300_000, 300_000)
            }
        );
        for offset in [0, 1, -1, past, -future] {
            case.now(case.now_ms + offset).accepted();
        }
        for offset in [past + 1, past * 100] {
            let refusal = case.now(case.now_ms + offset).refusal();
            assert!(
                matches!(refusal, Refusal::TooOld { age_ms, allowed_ms, .. } if age_ms == offset && allowed_ms == past),
                "{refusal:?}"
            );
        }
        for offset in [future + 1, future * 100] {
            let refusal = case.now(case.now_ms - offset).refusal();
            assert!(
                matches!(refusal, Refusal::TooFarInFuture { ahead_ms, allowed_ms, .. } if ahead_ms == offset && allowed_ms == future),
                "{refusal:?}"
            );
        }
        assert!(matches!(case.now(i64::MAX).refusal(), Refusal::TooOld { .. }));
        assert!(matches!(
            case.now(i64::MIN).refusal(),
            Refusal::TooFarInFuture { .. }
        ));
    }
}

#[test]
fn a_window_may_be_open_or_narrow() {
    let mut profile = Scheme::Slack.profile();
    let verify = |profile: &Profile, now_ms: i64| {
        let case = slack();
        case.delivery().verify(profile, &[case.secret], now_ms).map(drop)
    };
    let rule = profile.timestamp.as_mut().unwrap();
    (rule.past_ms, rule.future_ms) = (None, None);
    for now_ms in [i64::MIN, 0, i64::MAX] {
        assert_eq!(verify(&profile, now_ms), Ok(()));
    }
    let rule = profile.timestamp.as_mut().unwrap();
    (rule.past_ms, rule.future_ms) = (Some(0), Some(10));
    assert_eq!(verify(&profile, 1_531_420_618_000), Ok(()));
    assert_eq!(verify(&profile, 1_531_420_617_990), Ok(()));
    assert!(verify(&profile, 1_531_420_618_001).is_err());
    assert!(verify(&profile, 1_531_420_617_989).is_err());
}

#[test]
fn a_timestamp_is_plain_digits() {
    let case = standard_webhooks();
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
        "01614265330",
        "00",
        // Too much for a number of seconds, and for one of milliseconds.
        "99999999999999999999",
        "9223372036854775807",
        &"9".repeat(100_000),
    ] {
        assert_eq!(
            case.header("webhook-timestamp", timestamp).refusal(),
            Refusal::OddTimestamp {
                place: "the header webhook-timestamp".to_owned(),
                unit: "seconds",
            },
            "{timestamp}"
        );
    }
    let odd = case.header("webhook-timestamp", *b"\xff").refusal();
    assert!(matches!(odd, Refusal::OddTimestamp { .. }));
    let zero = case.header("webhook-timestamp", "0").refusal();
    assert!(matches!(
        zero,
        Refusal::TooOld {
            age_ms: SW_NOW_MS,
            ..
        }
    ));
    let milliseconds = case.header("webhook-timestamp", "1614265330000").refusal();
    assert!(
        milliseconds
            .to_string()
            .contains("send seconds, not milliseconds")
    );
}

#[test]
fn the_unit_of_vapis_timestamp_is_told_by_its_size() {
    let verify = |settings: Value, timestamp: &str, now_ms: i64| {
        let signature = hex(&mac256(b"k", format!("{timestamp}.{{}}").as_bytes()));
        let headers = [("x-timestamp", timestamp), ("x-signature", signature.as_str())];
        let verified = Case::new(vapi(settings), "k", &headers, "{}", now_ms).verify();
        verified.map(|verified| verified.timestamp_ms().unwrap())
    };
    let ms = 1_700_000_000_000;
    assert_eq!(verify(json!({}), "1700000000", ms), Ok(ms));
    assert_eq!(verify(json!({}), "1700000000123", ms), Ok(ms + 123));
    assert_eq!(
        verify(json!({}), "99999999999", 99_999_999_999_000),
        Ok(99_999_999_999_000)
    );
    assert_eq!(
        verify(json!({}), "100000000000", 100_000_000_000),
        Ok(100_000_000_000)
    );
    for (unit, timestamp) in [("s", "1700000000123"), ("ms", "1700000000")] {
        assert!(verify(json!({ "timestampUnit": unit }), timestamp, ms).is_err());
    }
    assert_eq!(
        verify(json!({ "toleranceSeconds": 1 }), "1700000000", ms + 1000),
        Ok(ms)
    );
    assert!(verify(json!({ "toleranceSeconds": 1 }), "1700000000", ms + 1001).is_err());
}

#[test]
fn standard_webhooks_has_the_digest_and_the_ids_that_it_had() {
    let verified = standard_webhooks().accepted();
    assert_eq!(verified.id(), Some(SW_ID));
    assert_eq!(verified.parse::<Value>().unwrap()["test"], 2_432_232_314_u64);
    assert!(verified.parse::<Vec<u8>>().is_err());
    assert_eq!(
        verified.digest(),
        "bcda2c50c55350fde15cb6a403311daac6f7adf9e5d5b836363f31d1b908edb1"
    );
    // Nothing stands before the full stop where no id is signed.
    let digest = github().accepted().digest();
    assert_eq!(digest, hex(&Sha256::digest(b".Hello, World!")));
    let case = standard_webhooks();
    for id in ["1", "!~", "a.b.1614265330", &"x".repeat(MAX_ID)] {
        let code = mac256(
            &STANDARD.decode(&SW_SECRET[6..]).unwrap(),
            format!("{id}.{SW_TIMESTAMP}.{SW_BODY}").as_bytes(),
        );
        let case = case
            .header("webhook-id", id)
            .with_signature(format!("v1,{}", STANDARD.encode(code)));
        assert_eq!(case.accepted().id(), Some(id));
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
        let refusal = case.header("webhook-id", id).refusal();
        assert!(matches!(refusal, Refusal::OddId { .. }), "{id:?}");
    }
    assert!(matches!(
        case.header("webhook-id", *b"\xff\xfe").refusal(),
        Refusal::OddId { .. }
    ));
}

#[test]
fn standard_webhooks_takes_one_right_signature_of_several() {
    let case = standard_webhooks();
    let encoded = &SW_SIGNATURE[3..];
    let other = format!("v1,{}", STANDARD.encode([1; 32]));
    let published = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4= v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
    case.with_signature(published).unfit();
    case.with_signature(published.split(' ').nth(1).unwrap())
        .formless();
    for header in [
        format!("{SW_SIGNATURE} {other}"),
        format!("{other} {SW_SIGNATURE}"),
        format!("{published} {SW_SIGNATURE}"),
        format!("v2,{encoded} {other}  {SW_SIGNATURE} "),
        format!("{SW_SIGNATURE} {SW_SIGNATURE}"),
        format!("{}{SW_SIGNATURE}", " ".repeat(MAX_SIGNATURES)),
        SW_SIGNATURE.trim_end_matches('=').to_owned(),
    ] {
        case.with_signature(header).accepted();
    }
    case.with_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdd")
        .formless();
    case.with_signature("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLawdA=")
        .unfit();
    for entry in [
        format!("v2,{encoded}"),
        format!("v1a,{encoded}"),
        format!("V1,{encoded}"),
        format!("v1={encoded}"),
        format!("v1{encoded}"),
        format!("v1, {encoded}"),
        format!("v1,v1,{encoded}"),
        format!("\tv1,{encoded}"),
        encoded.to_owned(),
        format!("v1,{encoded}{encoded}"),
        format!("v1,{encoded}="),
        format!("v1,{encoded},v1,{encoded}"),
        format!("v1,{}", encoded.replace('/', "_").replace('+', "-")),
        "v1,83484cf52b04f8e4cf2531adfed9882ad4b2665137b852442d594d20e2c9d4e1".to_owned(),
        // Bits beyond the last byte.
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OF=".to_owned(),
        "v1,".to_owned(),
        "v1".to_owned(),
        ",".to_owned(),
    ] {
        case.with_signature(entry.as_str()).formless();
        // It does no harm to a good one.
        case.with_signature(format!("{entry} {SW_SIGNATURE}")).accepted();
    }
    let list = |before: usize| case.with_signature(format!("{}{SW_SIGNATURE}", "v9,x ".repeat(before)));
    list(MAX_SIGNATURES - 1).accepted();
    list(MAX_SIGNATURES).formless();
}

#[test]
fn few_ed25519_signatures_are_tried() {
    let case = standard_webhooks_ed25519();
    let right = case.signature();
    let wrong = format!("v1a,{} ", STANDARD.encode([1; 64]));
    let list = |before: usize| case.with_signature(format!("{}{right}", wrong.repeat(before)));
    list(MAX_ED25519 - 1).accepted();
    list(MAX_ED25519).unfit();
    // Others cost nothing.
    case.with_signature(format!(
        "{SW_SIGNATURE} {SW_SIGNATURE} {SW_SIGNATURE} {SW_SIGNATURE} {right}"
    ))
    .accepted();
    let bare = Case {
        secret: PUBLIC_KEY.to_owned(),
        ..case
    };
    bare.accepted();
}

#[test]
fn retells_header_has_one_form() {
    let case = retell();
    let digest = RETELL_DIGEST;
    for header in [
        "v=1700000000000".to_owned(),
        format!("d={digest}"),
        format!("d={digest},v=1700000000000"),
        format!("prefix-v=1700000000000,d={digest}"),
        format!("v=1700000000000,d={digest}-suffix"),
        format!("v=1700000000000,d={}", digest.replace('0', "g")),
        format!("v=1700000000000,d={}", &digest[2..]),
        format!("v=1700000000000,d={digest},extra=value"),
        format!("v=1700000000000,d={digest},d={digest}"),
        format!("v=1700000000000,v=1700000000000,d={digest}"),
        format!("v=1700000000000,x=1,d={digest}"),
        format!("v=1700000000000, d={digest}"),
        format!("v=1700000000000,d={}", digest.to_uppercase()),
        format!("v=1700000000000,d={digest},"),
        digest.to_owned(),
    ] {
        case.with_signature(header).formless();
    }
    for odd in ["-1700000000000", "", "01700000000000", "1.7e12"] {
        let refusal = case.with_signature(format!("v={odd},d={digest}")).refusal();
        assert!(matches!(refusal, Refusal::OddTimestamp { .. }), "{refusal:?}");
    }
    // What others take for its scheme: an HMAC of the body alone.
    let alone = hex(&mac256(b"test-api-key", &case.body));
    case.with_signature(alone.as_str()).formless();
    case.with_signature(format!("v=1700000000000,d={alone}")).unfit();
}

#[test]
fn digits_cannot_be_moved_between_retells_body_and_timestamp() {
    let code = hex(&mac256(b"test-api-key", b"101700000000000"));
    let verify = |body: &str, timestamp: &str| {
        retell()
            .body(body)
            .with_signature(format!("v={timestamp},d={code}"))
            .verify()
            .map(drop)
    };
    assert_eq!(verify("10", "1700000000000"), Ok(()));
    assert!(matches!(
        verify("1", "01700000000000"),
        Err(Refusal::OddTimestamp { .. })
    ));
    assert!(verify("101", "700000000000").is_err());
}

#[test]
fn stripe_takes_any_v1_and_no_v0() {
    let case = stripe();
    let other = "0".repeat(64);
    for header in [
        format!("t=1492774577,v1={other},v1={STRIPE_DIGEST}"),
        format!("t=1492774577,v1={STRIPE_DIGEST},v1={other}"),
        format!("t=1492774577,v1={STRIPE_DIGEST},v0={other}"),
        format!("t=1492774577,v0=x,v1=x,v1={STRIPE_DIGEST},x"),
        format!("v1={STRIPE_DIGEST},t=1492774577"),
        format!("t=1492774577,v1={STRIPE_DIGEST},t=1"),
    ] {
        case.with_signature(header).accepted();
    }
    case.with_signature(format!("t=1492774577,v0={STRIPE_DIGEST}"))
        .formless();
    case.with_signature(format!("t=1492774577,v0={STRIPE_DIGEST},v1={other}"))
        .unfit();
    case.with_signature("t=1492774577,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd,v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39")
        .unfit();
    for odd in [
        format!("v1={STRIPE_DIGEST}"),
        format!("t=,v1={STRIPE_DIGEST}"),
        format!("t=1,t=1492774577,v1={STRIPE_DIGEST}"),
    ] {
        let refusal = case.with_signature(odd).refusal();
        assert!(
            matches!(refusal, Refusal::OddTimestamp { .. } | Refusal::TooOld { .. }),
            "{refusal:?}"
        );
    }
    let list = |before: usize| {
        case.with_signature(format!(
            "t=1492774577,{}v1={STRIPE_DIGEST}",
            "v0=x,".repeat(before)
        ))
    };
    list(MAX_SIGNATURES - 2).accepted();
    list(MAX_SIGNATURES - 1).formless();
    // Its secret is not that of Standard Webhooks, which begins alike.
    assert_eq!(Scheme::Stripe.profile().key_encoding, KeyEncoding::Utf8);
    Scheme::StandardWebhooks
        .check_secret("whsec_test_secret")
        .unwrap_err();
}

#[test]
fn a_prefix_is_needed_unless_it_is_optional() {
    let digest = &github().signature()[7..];
    github().with_signature(digest).formless();
    github().with_signature(format!("sha1={digest}")).formless();
    github()
        .with_signature(format!("sha256=sha256={digest}"))
        .formless();
    // The old header is not read.
    let mut legacy = github();
    legacy.headers = vec![(
        "X-Hub-Signature",
        b"sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59".to_vec(),
    )];
    assert!(matches!(legacy.refusal(), Refusal::MissingHeader { .. }));
    let case = x_vapi_signature();
    case.with_signature(format!("sha256={BODY_DIGEST}")).accepted();
    case.with_signature(format!("sha256=sha256={BODY_DIGEST}"))
        .formless();
    case.with_signature(format!("sha1={BODY_DIGEST}")).formless();
    // The secret itself is no signature.
    case.with_signature("vapi_test_secret").formless();
}

#[test]
fn a_static_secret_is_compared_whole() {
    for value in [
        "s3cret, toke",
        "s3cret, tokenn",
        "S3cret, token",
        "s3cret",
        "Bearer s3cret, token",
    ] {
        vapi_secret().with_signature(value).unfit();
    }
    vapi_bearer().with_signature("t0ken").formless();
    vapi_bearer().with_signature("bearer t0ken").formless();
    vapi_bearer().with_signature("Bearer  t0ken").unfit();
    vapi_bearer().with_signature(*b"Bearer t0ken\xff").unfit();
    let bare: Scheme = parse(json!({
        "scheme": "vapi-bearer", "headerName": "X-Token", "bearerPrefixEnabled": false,
    }))
    .unwrap();
    let case = Case::new(bare, "t0ken", &[("x-token", "t0ken")], "{}", 0);
    case.accepted();
    case.with_signature("Bearer t0ken").unfit();
}

#[test]
fn twilio_signs_the_url_with_its_port_or_without() {
    let verify = |url: &str, signature: &str| {
        twilio()
            .at(url, FORM)
            .with_signature(signature)
            .verify()
            .map(drop)
            .is_ok()
    };
    let with_port = "https://mycompany.com:443/myapp.php?foo=1&bar=2";
    let plain = "http://mycompany.com/myapp.php?foo=1&bar=2";
    for (url, signature, right) in [
        (TWILIO_URL, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", true),
        (TWILIO_URL, "kvajT1Ptam85bY51eRf/AJRuM3w=", true),
        (with_port, "kvajT1Ptam85bY51eRf/AJRuM3w=", true),
        (with_port, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", true),
        (plain, "0ZXoZLH/DfblKGATFgpif+LLRf4=", true),
        (
            "http://mycompany.com:80/myapp.php?foo=1&bar=2",
            "0ZXoZLH/DfblKGATFgpif+LLRf4=",
            true,
        ),
        (
            "http://mycompany.com:1234/myapp.php?foo=1&bar=2",
            "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=",
            true,
        ),
        (plain, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=", false),
        (plain, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", false),
        (
            "https://mycompany.com/myapp.php?foo=1&bar=3",
            "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
            false,
        ),
        (
            "https://mycompany.com/myapp.php?bar=2&foo=1",
            "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
            false,
        ),
        (
            "mycompany.com/myapp.php?foo=1&bar=2",
            "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
            false,
        ),
        ("", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", false),
    ] {
        assert_eq!(verify(url, signature), right, "{url} {signature}");
    }
    let urls = |url: &str| -> Vec<String> { super::twilio::messages(url, None, b"").unwrap() };
    assert_eq!(
        urls("https://[::1]/a:1"),
        ["https://[::1]/a:1", "https://[::1]:443/a:1"]
    );
    assert_eq!(urls("https://[::1]:7/"), ["https://[::1]:7/", "https://[::1]/"]);
    assert_eq!(urls("http://h?a=b:1"), ["http://h?a=b:1", "http://h:80?a=b:1"]);
    assert_eq!(urls("wss://h"), ["wss://h"]);
}

#[test]
fn twilio_signs_a_form_by_its_parameters() {
    let case = twilio();
    case.body(
        "CallSid=CA1234567890ABCDE&Caller=%2b14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212",
    )
    .accepted();
    case.at(TWILIO_URL, "Application/X-WWW-Form-Urlencoded ; charset=UTF-8")
        .accepted();
    let several = case.with_signature("IK+Dwps556ElfBT0I3Rgjkr1wJU=");
    for body in [
        "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234",
        "SidAccount=AC123&Digits=1234&Digits=5678&Sid=CA123",
    ] {
        several.body(body).accepted();
    }
    several.body("Sid=CA123&SidAccount=AC123&Digits=1234").unfit();
    for body in [
        "CallSid=CA1234567890ABCDE&Digits=1234&From=+14158675309&To=%2B18005551212&Caller=%2B14158675309"
            .to_owned(),
        format!("{TWILIO_FORM}&Extra=1"),
        TWILIO_FORM.replace("1234&", "1235&"),
        TWILIO_FORM.to_lowercase(),
    ] {
        case.body(body).unfit();
    }
}

#[test]
fn twilio_leaves_no_body_unsigned() {
    let unsigned = |case: Case| assert_eq!(case.refusal(), Refusal::UnsignedBody, "{case:?}");
    // What was signed for the URL alone, such as a GET, signs nothing but an empty body.
    let signature = STANDARD.encode(mac1(b"12345", TWILIO_URL.as_bytes()));
    let bare = twilio().with_signature(signature).body("").at(TWILIO_URL, JSON);
    bare.accepted();
    bare.at(TWILIO_URL, FORM).accepted();
    for content_type in [
        JSON,
        FORM,
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded-not",
        "text/plain; application/x-www-form-urlencoded",
    ] {
        for body in ["&", "&&", r#"{"a":1}"#, "?foo=1"] {
            let case = bare.body(body).at(TWILIO_URL, content_type);
            if content_type == FORM && !body.starts_with('&') {
                assert!(case.verify().is_err());
            } else {
                unsigned(case);
            }
        }
    }
    // A form that says it is something else.
    unsigned(twilio().at(TWILIO_URL, JSON));
    unsigned(twilio().at(TWILIO_URL, "text/plain"));
    // The end of the URL that was signed comes as a parameter.
    unsigned(
        bare.body("%3Ffoo%3D1%26bar=%3D2")
            .at("https://mycompany.com/myapp.php", FORM),
    );
    // A body with a hash that is signed, in each kind that it may say it is.
    let case = twilio_json();
    let url = case.url.clone();
    case.at(&url, "text/plain").accepted();
    for content_type in [JSON, FORM, "text/plain"] {
        let refusal = case
            .body(r#"{"property": "other", "boolean": true}"#)
            .at(&url, content_type)
            .refusal();
        assert!(matches!(refusal, Refusal::BodyHash { .. }), "{refusal:?}");
    }
    unsigned(case.at(&url, FORM));
    case.at(
        &format!("{TWILIO_URL}&bodySHA256={}", TWILIO_HASH.to_uppercase()),
        JSON,
    )
    .unfit();
    let upper = format!("{TWILIO_URL}&bodySHA256={}", TWILIO_HASH.to_uppercase());
    let signature = STANDARD.encode(mac1(b"12345", upper.as_bytes()));
    case.at(&upper, JSON).with_signature(signature).accepted();
    unsigned(case.at(TWILIO_URL, JSON));
    unsigned(case.at(&format!("{TWILIO_URL}#bodySHA256={TWILIO_HASH}"), JSON));
    for hash in ["", "0a", &TWILIO_HASH[1..], &format!("{TWILIO_HASH}00"), "x"] {
        let url = format!("{TWILIO_URL}&bodySHA256={hash}");
        let signature = STANDARD.encode(mac1(b"12345", url.as_bytes()));
        let refusal = case.at(&url, JSON).with_signature(signature).refusal();
        assert!(matches!(refusal, Refusal::BodyHash { .. }), "{refusal:?}");
    }
    // Of two hashes the first counts.
    let url = format!(
        "{TWILIO_URL}&bodySHA256={}&bodySHA256={TWILIO_HASH}",
        "0".repeat(64)
    );
    let signature = STANDARD.encode(mac1(b"12345", url.as_bytes()));
    assert!(matches!(
        case.at(&url, JSON).with_signature(signature).refusal(),
        Refusal::BodyHash { .. }
    ));
}

#[test]
fn twilio_must_name_the_shared_key() {
    let case = twilio_shared_key();
    let name = "X-Twilio-Webhooks-Signature-Settings";
    case.header(name, "algorithm=HMAC_SHA256, key=KY1").accepted();
    for settings in [
        "key=KY2,algorithm=HMAC_SHA256",
        "key=KY1,algorithm=HMAC_SHA1",
        "key=KY1,algorithm=none",
        "key=KY1",
        "algorithm=HMAC_SHA256",
        "key=KY2,key=KY1,algorithm=HMAC_SHA256",
        "KY1",
    ] {
        let refusal = case.header(name, settings).refusal();
        assert_eq!(
            refusal.to_string(),
            "the header x-twilio-webhooks-signature-settings must be key=KY1,algorithm=HMAC_SHA256"
        );
    }
    assert!(matches!(
        case.header(name, *b"\xff").refusal(),
        Refusal::SharedKey { .. }
    ));
    let sha1 = Case {
        scheme: parse(json!({ "scheme": "twilio", "sharedKeyId": "KY1", "sharedKeyAlgorithm": "sha1" }))
            .unwrap(),
        ..case.header(name, "key=KY1,algorithm=HMAC_SHA1")
    };
    sha1.formless();
    sha1.with_signature("RSOYDt4T1cUTdK1PDd93/VVr8B8=").accepted();
}

/// A token of `header` and `claims`, signed by HS256.
fn token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(mac256(secret, signed.as_bytes()))
    )
}

fn hs256() -> Value {
    json!({ "alg": "HS256", "typ": "JWT" })
}

fn claims() -> Value {
    let sha256 = STANDARD.encode(Sha256::digest(LIVEKIT_BODY));
    json!({ "iss": "abcdefg", "nbf": 1_700_000_000, "exp": 1_700_000_300, "sha256": sha256 })
}

#[test]
fn livekits_token_is_read_from_three_places() {
    let case = livekit();
    let verified = case.accepted();
    assert_eq!(verified.timestamp_ms(), Some(1_700_000_000_000));
    case.with_signature(format!("Bearer {LIVEKIT_TOKEN}")).accepted();
    for flipped in case.with_signature(format!("Bearer {LIVEKIT_TOKEN}")).flipped() {
        assert!(flipped.verify().is_err(), "{flipped:?}");
    }
    case.with_signature(format!("bearer {LIVEKIT_TOKEN}")).formless();
    let mut older = case.clone();
    older.headers = vec![("Authorize", LIVEKIT_TOKEN.into())];
    older.accepted();
    older.headers.push(("Authorization", b"Basic x".to_vec()));
    older.formless();
    older.headers[1].1.clear();
    assert_eq!(
        older.refusal(),
        Refusal::MissingHeader {
            header: "authorization".to_owned(),
            wanted: "authorization".to_owned(),
        }
    );
    let anyone = Case {
        scheme: Scheme::Livekit(Livekit::default()),
        ..case
    };
    anyone.accepted();
}

#[test]
fn livekits_token_is_by_hs256_and_nothing_else() {
    let case = livekit();
    let with = |header: Value| case.with_signature(token(&header, &claims(), b"abababa"));
    with(hs256()).accepted();
    with(json!({ "alg": "HS256" })).accepted();
    for header in [
        json!({ "alg": "none" }),
        json!({ "alg": "None" }),
        json!({ "alg": "hs256" }),
        json!({ "alg": "HS512" }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "" }),
        json!({ "alg": null }),
        json!({ "alg": ["HS256"] }),
        json!({ "typ": "JWT" }),
        json!({ "alg": "HS256", "crit": ["exp"] }),
        json!("HS256"),
    ] {
        with(header).formless();
    }
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"HS256"}"#);
    let rest = LIVEKIT_TOKEN.split_once('.').unwrap().1;
    case.with_signature(format!("{twice}.{rest}")).formless();
    // Without the signature, in a form that libraries have taken.
    let (signed, signature) = LIVEKIT_TOKEN.rsplit_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let claims = signed.split_once('.').unwrap().1;
    for odd in [
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{signed}."),
        signed.to_owned(),
        format!("{signed}.{signature}="),
        format!("{signed}.{signature}.{signature}"),
        format!(".{signed}.{signature}"),
        "..".to_owned(),
        ".".to_owned(),
    ] {
        case.with_signature(odd).formless();
    }
    case.with_signature(token(&hs256(), &self::claims(), b"other"))
        .unfit();
}

#[test]
fn livekits_claims_count() {
    let case = livekit();
    let with = |claim: &str, value: Value| {
        let mut claims = claims();
        claims[claim] = value;
        case.with_signature(token(&hs256(), &claims, b"abababa"))
    };
    for offset in [0, 360_000, -60_000] {
        case.now(case.now_ms + offset).accepted();
    }
    assert!(matches!(
        case.now(case.now_ms + 360_001).refusal(),
        Refusal::TooOld { age_ms: 60_001, .. }
    ));
    assert!(matches!(
        case.now(case.now_ms - 60_001).refusal(),
        Refusal::TooFarInFuture { ahead_ms: 60_001, .. }
    ));
    with("nbf", Value::Null).accepted();
    with("exp", json!(1_700_000_000.5)).accepted();
    with("exp", json!(1e300)).accepted();
    assert!(matches!(with("exp", json!(0)).refusal(), Refusal::TooOld { .. }));
    assert!(matches!(
        with("exp", json!(-1e300)).refusal(),
        Refusal::TooOld { .. }
    ));
    assert!(matches!(
        with("nbf", json!(1e300)).refusal(),
        Refusal::TooFarInFuture { .. }
    ));
    for (claim, value) in [
        ("exp", Value::Null),
        ("exp", json!("1700000300")),
        ("nbf", json!("1700000000")),
        ("iss", json!(7)),
        ("sha256", Value::Null),
        ("sha256", json!(7)),
    ] {
        let refusal = with(claim, value).refusal();
        assert!(matches!(refusal, Refusal::OddToken { .. }), "{refusal:?}");
    }
    for issuer in [Value::Null, json!(""), json!("abcdefgh"), json!("ABCDEFG")] {
        assert!(matches!(with("iss", issuer).refusal(), Refusal::Issuer { .. }));
    }
    let hash = Sha256::digest(LIVEKIT_BODY);
    for sha256 in [
        String::new(),
        hex(&hash),
        STANDARD.encode(hash).trim_end_matches('=').to_owned(),
        STANDARD.encode(&hash[..31]),
        STANDARD.encode(Sha256::digest("{}")),
    ] {
        let refusal = with("sha256", json!(sha256)).refusal();
        assert!(matches!(refusal, Refusal::BodyHash { .. }), "{refusal:?}");
    }
    assert!(matches!(case.body("{}").refusal(), Refusal::BodyHash { .. }));
    assert!(matches!(case.body("").refusal(), Refusal::BodyHash { .. }));
}

#[test]
fn the_first_of_two_equal_headers_counts_in_any_case() {
    let case = standard_webhooks();
    let profile = case.scheme.profile();
    let verify = |headers: &[(&str, &[u8])]| {
        Unverified::new("POST", URL, headers.iter().copied(), SW_BODY)
            .verify(&profile, &[SW_SECRET], SW_NOW_MS)
            .map(drop)
    };
    type Header = (&'static str, &'static [u8]);
    let (id, timestamp, signature): (Header, Header, Header) = (
        ("Webhook-Id", SW_ID.as_bytes()),
        ("WEBHOOK-TIMESTAMP", SW_TIMESTAMP.as_bytes()),
        ("webHook-signature", SW_SIGNATURE.as_bytes()),
    );
    let other: Header = ("webhook-id", b"other");
    assert_eq!(verify(&[id, timestamp, signature, other]), Ok(()));
    assert!(matches!(
        verify(&[other, id, timestamp, signature]),
        Err(Refusal::NoSignatureFits { .. })
    ));
    assert!(matches!(
        verify(&[("webhook-id", b""), id, timestamp, signature]),
        Err(Refusal::MissingHeader { .. })
    ));
    assert!(matches!(
        verify(&[id, timestamp, ("webhook-signature", b"\xff\xfe"), signature]),
        Err(Refusal::NoSignature { .. })
    ));
}

#[test]
fn unusable_settings_verify_nothing() {
    let mut case = bland();
    let mut profile = case.scheme.profile();
    profile.template = Some("fixed".to_owned());
    let signature = hex(&mac256(b"bland_test_secret", b"fixed"));
    case.scheme = Scheme::Custom(profile);
    let refusal = case.with_signature(signature).refusal();
    assert_eq!(
        refusal.to_string(),
        "this endpoint's signature settings are not usable: template must contain {body}: anybody could change what is \
         not signed"
    );
    // A timestamp that anybody could change.
    let mut profile = Scheme::Bland.profile();
    profile.timestamp = Some(TimestampRule::in_header("x-timestamp", TimestampUnit::Seconds));
    let mut case = bland();
    case.headers.insert(0, ("x-timestamp", b"0".to_vec()));
    case.accepted();
    case.scheme = Scheme::Custom(profile);
    assert!(matches!(case.refusal(), Refusal::Settings(_)));
}

#[test]
fn no_text_shows_what_is_secret() {
    for case in vectors() {
        let signature = case.signature();
        let longest = |text: &str| {
            text.split([',', '=', ' '])
                .max_by_key(|part| part.len())
                .unwrap()
                .to_owned()
        };
        // A public key is no secret, and a static secret is the signature too.
        let mut hidden = Vec::new();
        if case.scheme.profile().algorithm != Algorithm::Ed25519 {
            hidden.push(case.secret.trim_start_matches("whsec_").to_owned());
        }
        if !case.is_static() {
            hidden.push(longest(&signature));
        }
        let other = other_secret(&case);
        let refusals = [
            case.with_secrets(&[other.as_str()]).unwrap_err(),
            case.with_signature("x").refusal(),
            case.with_signature("").refusal(),
            case.body("{}")
                .at("https://h/?token=t", "text/plain")
                .now(i64::MAX)
                .verify()
                .err()
                .unwrap_or(Refusal::UnsignedBody),
        ];
        let shown = format!("{:?}", case.delivery());
        let verified = format!("{:?}", case.accepted());
        let texts = refusals
            .iter()
            .flat_map(|refusal| [refusal.to_string(), format!("{refusal:?}")]);
        for text in texts.chain([shown, verified]) {
            for hidden in &hidden {
                assert!(!text.contains(hidden), "{hidden} in {text}");
            }
            assert!(!text.contains("token=t"), "{text}");
        }
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let case = standard_webhooks();
    for (refusal, text) in [
        (
            case.with_signature("").refusal(),
            "the header webhook-signature is missing or empty: send webhook-id, webhook-timestamp and webhook-signature",
        ),
        (
            case.with_signature("x").refusal(),
            "the header webhook-signature holds no signature: send at least one in the form of `v1,` followed by the base64 \
             of an HMAC-SHA256 (32 bytes), and separate several by a space, 32 at the most",
        ),
        (
            case.body("{}").refusal(),
            "no signature in the header webhook-signature fits: sign `{id}.{timestamp}.{body}` with the headers' texts and \
             the very bytes of the body as it is sent, by HMAC-SHA256 with the secret's base64 decoded after `whsec_` as \
             the key; check that the secret is one of this endpoint",
        ),
        (
            case.now(SW_NOW_MS + 300_001).refusal(),
            "the header webhook-timestamp is 300001 ms in the past and 300000 ms are allowed: take the present time in \
             seconds for each attempt and sign anew, and check the sender's clock",
        ),
        (
            retell().with_signature("x").refusal(),
            "the header x-retell-signature holds no signature: send `v=<timestamp>,d=` followed by the lower-case hexadecimal of an \
             HMAC-SHA256 (32 bytes) and nothing else",
        ),
        (
            retell().now(0).refusal(),
            "`v` in the header x-retell-signature is 1700000000000 ms in the future and 300000 ms are allowed: send \
             milliseconds, and check the sender's clock",
        ),
        (
            github().with_signature("x").refusal(),
            "the header x-hub-signature-256 holds no signature: send `sha256=` followed by the lower-case hexadecimal of an \
             HMAC-SHA256 (32 bytes) and nothing else",
        ),
        (
            telnyx().body("").refusal(),
            "no signature in the header telnyx-signature-ed25519 fits: sign `{timestamp}|{body}` with the headers' texts and \
             the very bytes of the body as it is sent, by Ed25519 with the private key to this endpoint's public key; check \
             that the secret is one of this endpoint",
        ),
        (
            twilio().body("a=b").refusal(),
            "no signature in the header x-twilio-signature fits: sign the URL as it was called \
             (https://mycompany.com/myapp.php and its query) and the form's parameters by HMAC-SHA1 with the secret's text as \
             the key; check that the secret is one of this endpoint",
        ),
        (
            vapi_secret().with_signature("x").refusal(),
            "no signature in the header x-vapi-secret fits: send the secret itself; check that the secret is one of this \
             endpoint",
        ),
    ] {
        assert_eq!(refusal.to_string(), text);
    }
}

#[test]
fn secrets_are_checked_by_their_scheme() {
    let key24 = STANDARD.encode([1; 24]);
    let key65 = STANDARD.encode([1; 65]);
    let base64 = vapi(json!({ "secretIsBase64": true }));
    let hexadecimal: Scheme = parse(json!({
        "scheme": "custom", "signatureHeader": "x", "algorithm": "hmac-sha1", "keyEncoding": "hex", "template": "{body}",
    }))
    .unwrap();
    let public_hex: Scheme = parse(json!({
        "scheme": "custom", "signatureHeader": "x", "algorithm": "ed25519", "keyEncoding": "hex", "template": "{body}",
    }))
    .unwrap();
    let long = "x".repeat(MAX_SECRET);
    for (scheme, good, bad, error) in [
        (
            Scheme::StandardWebhooks,
            vec![
                SW_SECRET.to_owned(),
                format!("whsec_{key24}"),
                format!("whsec_{}", key24.trim_end_matches('=')),
            ],
            vec![
                "whsec_".to_owned(),
                key24.clone(),
                format!("WHSEC_{key24}"),
                format!(" whsec_{key24}"),
                format!("whsec_{key24}\n"),
                format!("whsec_{key65}"),
                format!("whsec_{}", STANDARD.encode([1; 23])),
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS_".to_owned(),
                format!("whpk_{PUBLIC_KEY}"),
            ],
            SecretError::Whsec,
        ),
        (
            Scheme::Svix,
            vec![SW_SECRET.to_owned()],
            vec!["x".to_owned()],
            SecretError::Whsec,
        ),
        (
            Scheme::StandardWebhooksEd25519,
            vec![format!("whpk_{PUBLIC_KEY}"), PUBLIC_KEY.to_owned()],
            vec![
                format!("whsk_{PUBLIC_KEY}"),
                key24.clone(),
                format!("{PUBLIC_KEY}A"),
                "whpk_".to_owned(),
                SW_SECRET.to_owned(),
            ],
            SecretError::PublicKey,
        ),
        (
            Scheme::Telnyx,
            vec![PUBLIC_KEY.to_owned()],
            vec!["KEY".to_owned()],
            SecretError::PublicKey,
        ),
        (
            public_hex,
            vec!["Ab".repeat(32)],
            vec!["ab".repeat(31), PUBLIC_KEY.to_owned()],
            SecretError::PublicKeyHex,
        ),
        (
            Scheme::VapiSecret,
            vec!["a".to_owned(), "a b".to_owned(), long.clone()],
            vec![
                " a".to_owned(),
                "a ".to_owned(),
                "ä".to_owned(),
                "a\nb".to_owned(),
                format!("{long}x"),
            ],
            SecretError::Header,
        ),
        (
            Scheme::Github,
            vec!["It's ä".to_owned(), "ä".repeat(MAX_SECRET / 2)],
            vec![
                " ".to_owned(),
                "\n".to_owned(),
                "a\n".to_owned(),
                "a\0b".to_owned(),
                format!("{long}x"),
            ],
            SecretError::Text,
        ),
        (
            base64,
            vec!["YQ==".to_owned(), "YQ".to_owned()],
            vec![
                "=".to_owned(),
                "YR==".to_owned(),
                "a b=".to_owned(),
                "A".repeat(4004),
            ],
            SecretError::Base64,
        ),
        (
            hexadecimal,
            vec!["0a".to_owned(), "0A".to_owned()],
            vec![
                "0".to_owned(),
                "0g".to_owned(),
                "0x0a".to_owned(),
                "00".repeat(2001),
            ],
            SecretError::Hex,
        ),
        (
            Scheme::Stripe,
            vec!["whsec_test_secret".to_owned()],
            vec![],
            SecretError::Text,
        ),
        (
            Scheme::Livekit(Livekit::default()),
            vec!["abababa".to_owned()],
            vec![],
            SecretError::Text,
        ),
    ] {
        for text in good {
            assert_eq!(scheme.check_secret(&text), Ok(()), "{scheme:?} {text}");
        }
        for text in bad.into_iter().chain([String::new()]) {
            assert_eq!(scheme.check_secret(&text), Err(error), "{scheme:?} {text:?}");
        }
    }
}

#[test]
fn secrets_are_made_where_the_sender_takes_them() {
    for case in vectors() {
        let scheme = case.scheme;
        let made = scheme.generate().map(Result::unwrap);
        let taken = matches!(
            scheme,
            Scheme::StandardWebhooks
                | Scheme::Svix
                | Scheme::VapiSecret
                | Scheme::VapiBearer(_)
                | Scheme::VapiHmac(_)
                | Scheme::Github
                | Scheme::Custom(_)
        );
        assert_eq!(made.is_some(), taken, "{scheme:?}");
        if let Some(secret) = made {
            assert_eq!(scheme.check_secret(&secret), Ok(()), "{scheme:?}");
            assert!(scheme.profile().key(&secret).unwrap().len() >= 32);
            assert_ne!(scheme.generate().unwrap().unwrap(), secret);
        }
    }
    for algorithm in [Algorithm::Ed25519, Algorithm::JwtHs256] {
        assert!(Scheme::Custom(Profile::new("x", algorithm)).generate().is_none());
    }
}

/// Every scheme, with settings where it has any.
fn schemes() -> Vec<Scheme> {
    let mut schemes: Vec<_> = vectors().into_iter().map(|case| case.scheme).collect();
    schemes.push(Scheme::Livekit(Livekit::default()));
    // The built-in ones as custom ones.
    schemes.extend(
        schemes
            .clone()
            .iter()
            .map(|scheme| Scheme::Custom(scheme.profile())),
    );
    schemes
}

#[test]
fn a_scheme_survives_json_and_fits_its_schema() {
    let schema = serde_json::to_value(schemars::schema_for!(Scheme)).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for scheme in schemes() {
        let mut value = serde_json::to_value(&scheme).unwrap();
        names.insert(value["scheme"].as_str().unwrap().to_owned());
        assert_eq!(parse::<Scheme>(value.clone()).unwrap(), scheme);
        assert!(validator.is_valid(&value), "{value}");
        value["secret"] = json!("x");
        assert!(!validator.is_valid(&value), "{value}");
        let refusal = parse::<Scheme>(value).unwrap_err().to_string();
        assert!(refusal.contains("unknown field `secret`"), "{refusal}");
    }
    assert_eq!(names.len(), 16);
    assert_eq!(
        parse::<Scheme>(json!({ "scheme": "standard-webhooks" })).unwrap(),
        Scheme::default()
    );
    assert_eq!(
        serde_json::to_value(vapi(json!({}))).unwrap(),
        json!({
            "scheme": "vapi-hmac",
            "algorithm": "sha256",
            "signatureHeader": "x-signature",
            "timestampHeader": "x-timestamp",
            "includeTimestamp": true,
            "signatureEncoding": "hex",
            "secretIsBase64": false,
            "timestampUnit": "either",
            "toleranceSeconds": 300,
        })
    );
    let minimal = json!({ "scheme": "custom", "signatureHeader": "x", "algorithm": "hmac-sha256", "template": "{body}" });
    assert!(validator.is_valid(&minimal));
    let Scheme::Custom(profile) = parse(minimal).unwrap() else {
        panic!("not custom");
    };
    assert_eq!(
        profile,
        Profile {
            signature_header: "x".to_owned(),
            ..Scheme::Bland.profile()
        }
    );
}

#[test]
fn faults_name_the_field() {
    let custom = |changes: Value| {
        let mut profile = json!({
            "scheme": "custom",
            "signatureHeader": "x-sig",
            "algorithm": "hmac-sha256",
            "template": "{timestamp}.{body}",
            "timestamp": { "header": "x-ts" },
        });
        let object = profile.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        object.retain(|_, value| !value.is_null());
        profile
    };
    let hmac = |settings: Value| {
        let mut scheme = json!({ "scheme": "vapi-hmac", "algorithm": "sha256" });
        scheme
            .as_object_mut()
            .unwrap()
            .extend(settings.as_object().unwrap().clone());
        scheme
    };
    parse::<Scheme>(custom(json!({}))).unwrap();
    for (value, begins) in [
        (json!({}), "scheme must be one of"),
        (json!({ "scheme": 7 }), "scheme must be one of"),
        (json!({ "scheme": "Slack" }), "scheme must be one of"),
        (json!("slack"), "invalid type"),
        (json!({ "scheme": "slack", "a": 1 }), "unknown field `a`"),
        (
            json!({ "scheme": "vapi-bearer", "headerName": "a b" }),
            "headerName must be",
        ),
        (
            json!({ "scheme": "vapi-bearer", "token": "x" }),
            "token: unknown field",
        ),
        (json!({ "scheme": "vapi-hmac" }), "missing field `algorithm`"),
        (hmac(json!({ "algorithm": "md5" })), "algorithm: unknown variant"),
        (hmac(json!({ "secretKey": "x" })), "secretKey: unknown field"),
        (hmac(json!({ "signatureHeader": "" })), "signatureHeader must be"),
        (hmac(json!({ "timestampHeader": "" })), "timestampHeader must be"),
        (
            hmac(json!({ "messageIdHeader": "a:b" })),
            "messageIdHeader must be",
        ),
        (
            hmac(json!({ "signaturePrefix": "a\n" })),
            "signaturePrefix must be",
        ),
        (
            hmac(json!({ "payloadFormat": "{body}" })),
            "payloadFormat must contain {timestamp}",
        ),
        (
            hmac(json!({ "payloadFormat": "{timestamp}" })),
            "payloadFormat must contain {body}",
        ),
        (
            hmac(json!({ "payloadFormat": "{twilio}" })),
            "payloadFormat must not contain {twilio}",
        ),
        (
            hmac(json!({ "payloadFormat": "{timestamp}{body}", "includeTimestamp": false })),
            "payloadFormat must not contain {timestamp}",
        ),
        (
            hmac(json!({ "payloadFormat": "{timestamp}.{body}.{nonce}" })),
            "payloadFormat must have no other braces",
        ),
        (hmac(json!({ "toleranceSeconds": 0 })), "toleranceSeconds must be"),
        (
            hmac(json!({ "toleranceSeconds": 86_401 })),
            "toleranceSeconds must be",
        ),
        (
            json!({ "scheme": "twilio", "sharedKeyId": "" }),
            "sharedKeyId must be",
        ),
        (
            json!({ "scheme": "twilio", "sharedKeyAlgorithm": "sha512" }),
            "sharedKeyAlgorithm: unknown variant",
        ),
        (json!({ "scheme": "livekit", "apiKey": "" }), "apiKey must be"),
        (
            custom(json!({ "algorithm": "md5" })),
            "algorithm: unknown variant",
        ),
        (
            custom(json!({ "signatureHeader": "x sig" })),
            "signatureHeader must be",
        ),
        (
            custom(json!({ "signatureHeader": "x".repeat(101) })),
            "signatureHeader must be",
        ),
        (
            custom(json!({ "otherSignatureHeader": "" })),
            "otherSignatureHeader must be",
        ),
        (custom(json!({ "template": null })), "template is missing"),
        (
            custom(json!({ "template": "" })),
            "template must be between 1 and 200",
        ),
        (
            custom(json!({ "template": "{timestamp}" })),
            "template must contain {body}",
        ),
        (
            custom(json!({ "template": "{body}" })),
            "timestamp must be absent unless the template signs it",
        ),
        (
            custom(json!({ "timestamp": null })),
            "timestamp is missing: the template signs it",
        ),
        (
            custom(json!({ "template": "{timestamp}{body}{body}" })),
            "template must have each placeholder once",
        ),
        (
            custom(json!({ "template": "{id}{svix-id}{timestamp}{body}" })),
            "template must have each placeholder once",
        ),
        (
            custom(json!({ "template": "{timestamp}.{body" })),
            "template must have no other braces",
        ),
        (
            custom(json!({ "template": "{timestamp}.{body}}" })),
            "template must have no other braces",
        ),
        (
            custom(json!({ "template": "{{timestamp}.{body}" })),
            "template must have no other braces",
        ),
        (
            custom(json!({ "template": "{twilio}{timestamp}" })),
            "template must be nothing but {twilio}",
        ),
        (
            custom(
                json!({ "template": "{twilio}", "algorithm": "ed25519", "keyEncoding": "hex", "timestamp": null }),
            ),
            "algorithm must be hmac",
        ),
        (
            custom(json!({ "idHeader": "x-id" })),
            "idHeader must be absent unless the template signs it",
        ),
        (
            custom(json!({ "template": "{id}.{timestamp}.{body}" })),
            "idHeader is missing",
        ),
        (custom(json!({ "prefix": "" })), "prefix must be"),
        (custom(json!({ "prefix": "ä" })), "prefix must be"),
        (
            custom(json!({ "prefixOptional": true })),
            "prefixOptional needs a prefix",
        ),
        (
            custom(json!({ "prefix": "v1,", "entries": { "form": "list", "separator": "comma" } })),
            "prefix must not hold what separates",
        ),
        (
            custom(json!({ "entries": { "form": "whole", "x": 1 } })),
            "entries: unknown field",
        ),
        (
            custom(json!({ "entries": { "form": "list" } })),
            "entries: missing field",
        ),
        (
            custom(json!({ "entries": { "form": "pairs", "signatureKey": "a=b" } })),
            "entries.signatureKey must be",
        ),
        (
            custom(json!({ "timestamp": { "key": "t" } })),
            "timestamp.key needs entries of the form pairs",
        ),
        (
            custom(
                json!({ "timestamp": { "key": "s" }, "entries": { "form": "pairs", "signatureKey": "s" } }),
            ),
            "timestamp.key must be another",
        ),
        (
            custom(json!({ "timestamp": {} })),
            "timestamp must have either header or key",
        ),
        (
            custom(json!({ "timestamp": { "header": "x", "key": "t" } })),
            "timestamp must have either",
        ),
        (
            custom(json!({ "timestamp": { "header": "x", "pastMs": 86_400_001 } })),
            "timestamp.pastMs must not be",
        ),
        (
            custom(json!({ "timestamp": { "header": "x", "unit": "min" } })),
            "timestamp.unit: unknown variant",
        ),
        (custom(json!({ "issuer": "x" })), "issuer must be absent"),
        (
            custom(json!({ "sharedKeyId": "x" })),
            "sharedKeyId must be absent",
        ),
        (
            custom(json!({ "algorithm": "ed25519" })),
            "keyEncoding must be base64 or hex",
        ),
        (
            custom(json!({ "algorithm": "static" })),
            "template must be absent for static",
        ),
        (
            json!({ "scheme": "custom", "signatureHeader": "x", "algorithm": "static", "keyEncoding": "hex" }),
            "keyEncoding must be utf8",
        ),
        (
            json!({
                "scheme": "custom", "signatureHeader": "x", "algorithm": "jwt-hs256",
                "entries": { "form": "list", "separator": "space" },
            }),
            "entries must be of the form whole",
        ),
    ] {
        let refusal = parse::<Scheme>(value.clone()).unwrap_err().to_string();
        assert!(refusal.starts_with(begins), "{value}: {refusal}");
    }
    let mut faults = Vec::new();
    Scheme::Custom(Profile::new("", Algorithm::HmacSha1)).validate("signature", &mut faults);
    assert!(
        faults.iter().all(|fault| fault.starts_with("signature.")),
        "{faults:?}"
    );
    let open = custom(json!({ "timestamp": { "header": "x", "pastMs": null } }));
    let Scheme::Custom(profile) = parse(open).unwrap() else {
        panic!("not custom");
    };
    let rule = profile.timestamp.unwrap();
    assert_eq!((rule.past_ms, rule.future_ms), (None, Some(TOLERANCE_MS)));
}

fn mac1(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mac = <Hmac<Sha1> as KeyInit>::new_from_slice(key).unwrap();
    mac.chain_update(message).finalize().into_bytes().to_vec()
}

fn mac256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
    mac.chain_update(message).finalize().into_bytes().to_vec()
}

fn mac512(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mac = <Hmac<Sha512> as KeyInit>::new_from_slice(key).unwrap();
    mac.chain_update(message).finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keys(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).unwrap()
}

#[test]
fn the_seed_makes_the_public_key() {
    assert_eq!(STANDARD.encode(keys(&SEED).public_key()), PUBLIC_KEY);
}

/// What the senders do, each by its own formula: `body` signed at `seconds` with a secret from `key`, by every scheme.
fn sign_all(key: &[u8; 32], seconds: i64, body: &[u8]) -> Vec<Case> {
    let text = hex(key);
    let pair = keys(key);
    let with = |parts: &[&[u8]]| parts.concat();
    let (s, ms) = (seconds.to_string(), format!("{seconds}123"));
    let dotted = with(&[s.as_bytes(), b".", body]);
    let whole = with(&[b"msg_1.", s.as_bytes(), b".", body]);
    let case = |scheme: Scheme, secret: &str, headers: &[(&'static str, &str)]| Case {
        body: body.to_vec(),
        ..Case::new(scheme, secret, headers, "", seconds * 1000)
    };
    let keyed = |message: &[u8]| hex(&mac256(text.as_bytes(), message));
    let whsec = format!("whsec_{}", STANDARD.encode(key));
    let standard = format!("v1,{}", STANDARD.encode(mac256(key, &whole)));
    let asymmetric = format!("v1a,{}", STANDARD.encode(pair.sign(&whole)));
    let url = format!(
        "https://h.example/hooks/x?bodySHA256={}",
        hex(&Sha256::digest(body))
    );
    let jwt = json!({ "exp": seconds + 300, "nbf": seconds, "iss": "k", "sha256": STANDARD.encode(Sha256::digest(body)) });
    let custom: Scheme = parse(json!({
        "scheme": "custom",
        "signatureHeader": "x-sig",
        "algorithm": "hmac-sha512",
        "keyEncoding": "hex",
        "encoding": "base64",
        "template": "{method}:{id}:{timestamp}:{body}",
        "entries": { "form": "pairs", "signatureKey": "sig" },
        "timestamp": { "key": "ts", "unit": "ms" },
        "idHeader": "x-id",
    }))
    .unwrap();
    let custom_code = mac512(key, &with(&[b"POST:7:", ms.as_bytes(), b":", body]));
    vec![
        case(
            Scheme::StandardWebhooks,
            &whsec,
            &[
                ("webhook-id", "msg_1"),
                ("webhook-timestamp", &s),
                ("webhook-signature", &standard),
            ],
        ),
        case(
            Scheme::Svix,
            &whsec,
            &[
                ("svix-id", "msg_1"),
                ("svix-timestamp", &s),
                ("svix-signature", &standard),
            ],
        ),
        case(
            Scheme::StandardWebhooksEd25519,
            &format!("whpk_{}", STANDARD.encode(pair.public_key())),
            &[
                ("webhook-id", "msg_1"),
                ("webhook-timestamp", &s),
                ("webhook-signature", &asymmetric),
            ],
        ),
        case(
            Scheme::Telnyx,
            &STANDARD.encode(pair.public_key()),
            &[
                ("telnyx-timestamp", &s),
                (
                    "telnyx-signature-ed25519",
                    &STANDARD.encode(pair.sign(&with(&[s.as_bytes(), b"|", body]))),
                ),
            ],
        ),
        case(Scheme::VapiSecret, &text, &[("x-vapi-secret", &text)]),
        case(
            Scheme::VapiBearer(VapiBearer::default()),
            &text,
            &[("authorization", &format!("Bearer {text}"))],
        ),
        case(
            vapi(json!({})),
            &text,
            &[("x-timestamp", &s), ("x-signature", &keyed(&dotted))],
        ),
        case(
            vapi(json!({
                "algorithm": "sha512", "secretIsBase64": true, "signatureEncoding": "base64",
                "payloadFormat": "{svix-id}.{timestamp}.{body}", "messageIdHeader": "x-id", "signaturePrefix": "v1,",
            })),
            &STANDARD.encode(key),
            &[
                ("x-id", "msg_1"),
                ("x-timestamp", &s),
                (
                    "x-signature",
                    &format!("v1,{}", STANDARD.encode(mac512(key, &whole))),
                ),
            ],
        ),
        case(
            Scheme::Retell,
            &text,
            &[(
                "x-retell-signature",
                &format!("v={ms},d={}", keyed(&with(&[body, ms.as_bytes()]))),
            )],
        ),
        case(
            Scheme::Elevenlabs,
            &text,
            &[("elevenlabs-signature", &format!("t={s},v0={}", keyed(&dotted)))],
        ),
        case(Scheme::Bland, &text, &[("x-webhook-signature", &keyed(body))]),
        case(
            Scheme::Twilio(Twilio::default()),
            &text,
            &[(
                "x-twilio-signature",
                &STANDARD.encode(mac1(text.as_bytes(), url.as_bytes())),
            )],
        )
        .at(&url, JSON),
        case(
            Scheme::Livekit(Livekit {
                api_key: Some("k".to_owned()),
            }),
            &text,
            &[("authorization", &token(&hs256(), &jwt, text.as_bytes()))],
        ),
        case(
            Scheme::Github,
            &text,
            &[("x-hub-signature-256", &format!("sha256={}", keyed(body)))],
        ),
        case(
            Scheme::Slack,
            &text,
            &[
                ("x-slack-request-timestamp", &s),
                (
                    "x-slack-signature",
                    &format!("v0={}", keyed(&with(&[b"v0:", s.as_bytes(), b":", body]))),
                ),
            ],
        ),
        case(
            Scheme::Stripe,
            &text,
            &[("stripe-signature", &format!("t={s},v1={}", keyed(&dotted)))],
        ),
        case(
            custom,
            &text,
            &[
                ("x-id", "7"),
                ("x-sig", &format!("ts={ms},sig={}", STANDARD.encode(custom_code))),
            ],
        ),
    ]
}

#[test]
fn the_test_signer_knows_every_scheme() {
    let names: std::collections::BTreeSet<_> = sign_all(&SEED, 1_700_000_000, b"{}")
        .iter()
        .map(|case| serde_json::to_value(&case.scheme).unwrap()["scheme"].to_string())
        .collect();
    assert_eq!(names.len(), 16);
}

/// A form with a parameter or more, and what Twilio signs of it.
fn form(parameters: &[(String, String)]) -> (Vec<u8>, String) {
    let mut sorted = parameters.to_vec();
    sorted.sort();
    sorted.dedup();
    let signed = sorted
        .iter()
        .map(|(name, value)| format!("{name}{value}"))
        .collect();
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    (body.into_bytes(), signed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_signed_verifies_and_nothing_with_a_flipped_bit(
        key: [u8; 32],
        seconds in 1_000_000_000_i64..=4_102_444_800,
        body in prop::collection::vec(any::<u8>(), 0..300),
        flips in prop::collection::vec((any::<Index>(), 0..8_u8), 8),
    ) {
        for case in sign_all(&key, seconds, &body) {
            let verified = case.verify();
            prop_assert!(verified.is_ok(), "{:?}: {:?}", case, verified);
            let verified = verified.unwrap();
            prop_assert_eq!(verified.body(), &body[..]);
            for (byte, bit) in &flips {
                for place in 0..case.headers.len() {
                    let mut flipped = case.clone();
                    *byte.get_mut(&mut flipped.headers[place].1) ^= 1 << bit;
                    prop_assert!(flipped.verify().is_err(), "{:?}", flipped);
                }
                if !case.is_static() && !body.is_empty() {
                    let mut flipped = case.clone();
                    *byte.get_mut(&mut flipped.body) ^= 1 << bit;
                    prop_assert!(flipped.verify().is_err(), "{:?}", flipped);
                }
            }
        }
    }

    #[test]
    fn no_secret_fits_another_schemes_delivery(key: [u8; 32], other: [u8; 32]) {
        prop_assume!(key != other);
        for (case, another) in sign_all(&key, 1_700_000_000, b"{}").into_iter().zip(sign_all(&other, 1_700_000_000, b"{}")) {
            let refusal = case.with_secrets(&[&another.secret]).unwrap_err();
            prop_assert!(matches!(refusal, Refusal::NoSignatureFits { .. }), "{:?}", refusal);
        }
    }

    #[test]
    fn a_form_verifies_and_only_with_its_parameters(
        parameters in prop::collection::vec(("[A-Za-z0-9_][A-Za-z]{0,9}", ".{0,12}"), 1..8),
        key in "[!-~]{1,40}",
        byte: Index,
        bit in 0..8_u8,
    ) {
        let (body, signed) = form(&parameters);
        let url = "https://h.example/hooks/x?a=b";
        let signature = STANDARD.encode(mac1(key.as_bytes(), format!("{url}{signed}").as_bytes()));
        let case = Case {
            secret: key,
            ..twilio().at(url, FORM).with_signature(signature).body(body)
        };
        prop_assert!(case.verify().is_ok(), "{:?}", case);
        let mut flipped = case.clone();
        *byte.get_mut(&mut flipped.body) ^= 1 << bit;
        if flipped.verify().is_ok() {
            let read = |body: &[u8]| form(&form_urlencoded::parse(body).into_owned().collect::<Vec<_>>()).1;
            prop_assert_eq!(read(&flipped.body), read(&case.body));
        }
        let json = case.at(url, JSON);
        prop_assert_eq!(json.refusal(), Refusal::UnsignedBody);
    }

    #[test]
    fn nothing_from_outside_panics(
        values in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                "(v1,|v1a,|t=|v=|d=|v0=|sha256=|Bearer |[0-9]{10}|[a-f0-9]{64}|[A-Za-z0-9+/=]{88}|[,. =]|.){0,6}".prop_map(String::into_bytes),
            ],
            4,
        ),
        url in "(https?://)?[a-z:@\\[\\]/?#&=0-9.]{0,40}|.*",
        body in prop::collection::vec(any::<u8>(), 0..80),
        secret in ".*",
        now_ms: i64,
    ) {
        for case in vectors() {
            let mut odd = case.at(&url, case.content_type).body(body.clone()).now(now_ms);
            for ((_, value), other) in odd.headers.iter_mut().zip(&values) {
                value.clone_from(other);
            }
            prop_assert!(odd.verify().is_err());
            let _ = odd.with_secrets(&[&secret]);
            let _ = case.scheme.check_secret(&secret);
        }
    }

    #[test]
    fn no_template_panics(template in "(\\{|\\}|\\{body\\}|\\{timestamp\\}|\\{id\\}|.){0,20}") {
        let profile = Profile { template: Some(template), ..Profile::new("x", Algorithm::HmacSha1) };
        profile.validate("", &mut Vec::new());
        let _ = Unverified::new("POST", URL, [("x", "00")], "").verify(&profile, &["k"], 0);
    }
}
