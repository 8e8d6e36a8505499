"""Asks Ringback's verifier of webhooks with deliveries that the providers' own libraries signed: fresh random ones are
accepted, and every change of a single bit is refused. Run it with run.py.

Where a provider's library only verifies, or there is none, the deliveries are signed here. That this is done as the provider
does it is looked at first, by the library's verifier, by its signer where it has one, and by vectors that are known. With
`--offline` nothing else is done, and no server is needed. `--seed N` makes the same random deliveries again, but for their
times."""

import argparse
import base64
import collections
import concurrent.futures
import dataclasses
import datetime
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import random
import secrets
import sys
import threading
import time
import unittest.mock
import urllib.parse
import uuid
from typing import Callable

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--offline", action="store_true", help="look only at the signing itself, without a server")
parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="what the random deliveries are made from")
ARGUMENTS = parser.parse_args()
if ARGUMENTS.offline:
    for variable in ("RINGBACK_URL", "RINGBACK_API_KEY", "STAND_IN_URL"):
        os.environ.setdefault(variable, "")

import retell
import slack_sdk.signature
import standardwebhooks
import stripe
import svix
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from elevenlabs.client import ElevenLabs
from livekit.api import AccessToken, TokenVerifier, WebhookReceiver
from nacl.signing import VerifyKey
from retell.lib import webhook_auth
from telnyx.lib.webhook_verification import verify_webhook_signature
from twilio.request_validator import RequestValidator

from checks import URL, check, holds, http as ask, run_all, same, until

VECTORS = 20
# How many connections the changed deliveries share.
CONNECTIONS = 8
# How far from the edge of a window a time is that should be within it, or not, in seconds: a slow machine takes its time.
MARGIN = 25
# A deleted secret counts for a minute at the most.
FORGOTTEN_WITHIN = 75

chance = random.Random(ARGUMENTS.seed)


@dataclasses.dataclass
class Delivery:
    """A webhook: what is sent, to which URL, and when the provider says that it was."""

    url: str
    body: bytes
    at: float
    content_type: str = "application/json"
    id: str = dataclasses.field(default_factory=lambda: f"msg_{chance.randbytes(18).hex()}")
    headers: dict = dataclasses.field(default_factory=dict)

    @property
    def text(self):
        return self.body.decode()

    @property
    def seconds(self):
        return str(int(self.at))

    @property
    def milliseconds(self):
        return str(int(self.at * 1000))


@dataclasses.dataclass(frozen=True)
class Case:
    """A scheme with its settings, and how a delivery is signed by it."""

    name: str
    # What POST /endpoint takes as `signature`.
    scheme: dict
    # A new random key.
    key: Callable
    # The headers of a delivery, without the provider's library.
    own: Callable
    # The same with the library, if it signs.
    library: Callable | None = None
    # Whether the library believes a delivery: it gives False or raises if not.
    believes: Callable | None = None
    # What Ringback is told of a key.
    secret: Callable = lambda key: key
    # How far in the past and in the future a delivery may be, in seconds.
    window: tuple | None = None
    # Whether Ringback can make the secret.
    makes: bool = False
    # Whether the body is signed.
    body: bool = True
    # Whether the library gives the very headers that are made here.
    alike: bool = True
    # Twilio's forms; everything else gets the events of the generic contract.
    form: bool = False
    # What is signed that is not a header: the URL's query.
    query: bool = False
    # The header with a further signature before the right one, if the scheme knows lists.
    among: Callable | None = None

    @property
    def provider(self):
        return "twilio" if self.form else "generic"

    def signed(self, key, delivery, by=None):
        """`delivery` with its headers, by the library if it signs."""
        headers = (by or self.library or self.own)(key, delivery)
        return dataclasses.replace(delivery, headers={**headers})

    def new(self, url, at=None):
        """A random delivery, at a random time within the window unless `at` is given."""
        if at is None:
            past, future = self.window or (86400, 86400)
            at = time.time() + chance.uniform(MARGIN - past, future - MARGIN)
        body, content_type = (form(), "application/x-www-form-urlencoded") if self.form else (event(), "application/json")
        if self.query:
            url += f"?bodySHA256={hashlib.sha256(body).hexdigest()}"
        elif chance.random() < 0.25:
            url += f"?attempt={chance.randrange(100)}"
        return Delivery(url, body, at, content_type)

    def believed(self, key, delivery):
        try:
            return self.believes(key, delivery) is not False
        except Exception:
            return False


# What is sent.

SIGNS = (
    "aZ09 .,:;=|&+%/?#\"'\\{}\n\t"
    "\u00e4\u00df\u00e9\u0416\u05d0\u0645\u4e2d\u3042\ud55c\u2028\u200d\ufeff\U0001f4de\U0001f469\U0010fffd"
)


def words(least=1, most=40):
    return "".join(chance.choices(SIGNS, k=chance.randint(least, most)))


def event():
    """A call's end by the generic contract, written in one of the many ways that JSON can be."""
    said = {"type": "call.ended", "callId": str(uuid.UUID(bytes=chance.randbytes(16), version=4)), "endedReason": "hung-up"}
    said["transcript"] = f"User: {words()}"
    if chance.random() < 0.5:
        said["cost"] = chance.randrange(1000) / 100
    fields = list(said.items())
    chance.shuffle(fields)
    separators = chance.choice([(",", ":"), (", ", ": "), (" ,", " :")])
    text = json.dumps(dict(fields), ensure_ascii=chance.random() < 0.3, separators=separators)
    return (chance.choice(["", "", " ", "\r\n"]) + text + chance.choice(["", "", "\n", " "])).encode()


def form():
    """A status callback of Twilio's, with a parameter that is there three times, once with the same value."""
    fields = [
        ("CallSid", f"CA{chance.randbytes(16).hex()}"),
        ("AccountSid", f"AC{chance.randbytes(16).hex()}"),
        ("CallStatus", "completed"),
        ("CallDuration", str(chance.randrange(600))),
        ("From", f"+1555{chance.randrange(10**7):07}"),
        ("CallerName", words()),
        ("Forwarded", ""),
    ]
    tag = words()
    fields += [("Tag", tag), ("Tag", words()), ("Tag", tag)]
    chance.shuffle(fields)
    return urllib.parse.urlencode(fields).encode()


class Form(dict):
    """A form as Twilio's library takes one."""

    def __init__(self, body):
        super().__init__()
        for name, value in urllib.parse.parse_qsl(body.decode(errors="replace"), keep_blank_values=True):
            self.setdefault(name, []).append(value)

    def getall(self, name):
        return self[name]


# How it is signed.


def mac(key, message, algorithm="sha256"):
    return hmac.digest(key, message, algorithm)


def b64(data):
    return base64.b64encode(data).decode()


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(length=32):
    """A secret of visible characters."""
    return b64url(chance.randbytes(length))


def whsec():
    return f"whsec_{b64(chance.randbytes(chance.randint(24, 64)))}"


def seed():
    return chance.randbytes(32)


def public(key):
    return b64(Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw())


def ed25519(key, message):
    return b64(Ed25519PrivateKey.from_private_bytes(key).sign(message))


def utc(delivery):
    return datetime.datetime.fromtimestamp(int(delivery.at), datetime.timezone.utc)


def by_standard(names, sign):
    """A signer of Standard Webhooks, with headers that begin with `names`."""

    def headers(key, delivery):
        return {
            f"{names}-id": delivery.id,
            f"{names}-timestamp": delivery.seconds,
            f"{names}-signature": sign(key, delivery),
        }

    return headers


def v1(key, delivery):
    code = mac(base64.b64decode(key.removeprefix("whsec_")), f"{delivery.id}.{delivery.seconds}.".encode() + delivery.body)
    return f"v1,{b64(code)}"


def v1a(key, delivery):
    return f"v1a,{ed25519(key, f'{delivery.id}.{delivery.seconds}.'.encode() + delivery.body)}"


def v1a_is_right(key, delivery):
    """By another implementation of Ed25519: no library of a provider knows this scheme."""
    version, _, signature = delivery.headers["webhook-signature"].partition(",")
    message = f"{delivery.headers['webhook-id']}.{delivery.headers['webhook-timestamp']}.".encode() + delivery.body
    VerifyKey(base64.b64decode(public(key))).verify(message, base64.b64decode(signature))
    return version == "v1a"


def header(name, value):
    """A signer with one header, whose value is made by `value`."""
    return lambda key, delivery: {name: value(key, delivery)}


def of_body(key, delivery):
    return mac(key.encode(), delivery.body).hex()


def of_time_and_body(key, delivery):
    return mac(key.encode(), f"{delivery.seconds}.".encode() + delivery.body).hex()


def with_stripe(key, delivery):
    return stripe.WebhookSignature.generate_signature_header(delivery.text, key, int(delivery.at))


def with_retell(key, delivery):
    return webhook_auth.symmetric["sign"](delivery.text, key, int(delivery.milliseconds))


def by_slack(sign):
    return lambda key, delivery: {
        "X-Slack-Request-Timestamp": delivery.seconds,
        "X-Slack-Signature": sign(key, delivery),
    }


def by_telnyx(key, delivery):
    return {
        "telnyx-timestamp": delivery.seconds,
        "telnyx-signature-ed25519": ed25519(key, f"{delivery.seconds}|".encode() + delivery.body),
    }


def twilio_signs(delivery):
    """The text that Twilio signs."""
    text = delivery.url
    if "form" in delivery.content_type:
        parameters = Form(delivery.body)
        text += "".join(name + value for name in sorted(parameters) for value in sorted(set(parameters[name])))
    return text


def by_twilio(algorithm="sha1", more=None):
    def headers(key, delivery):
        return {**(more or {}), "X-Twilio-Signature": b64(mac(key.encode(), twilio_signs(delivery).encode(), algorithm))}

    return headers


def with_twilio(algorithm=None, more=None):
    def headers(key, delivery):
        parameters = Form(delivery.body) if "form" in delivery.content_type else {}
        signature = RequestValidator(key).compute_signature(delivery.url, parameters, algorithm)
        return {**(more or {}), "X-Twilio-Signature": signature}

    return headers


def twilio_believes(algorithm=None):
    def believes(key, delivery):
        parameters = Form(delivery.body) if "form" in delivery.content_type else delivery.text
        validator = RequestValidator(key)
        return validator.validate(delivery.url, parameters, delivery.headers["X-Twilio-Signature"], algorithm)

    return believes


ISSUER = f"API{token(9)}"
# How long the tokens that are made here are good, in seconds, and how far the clocks may be apart.
GOOD, LEEWAY = 300, 60


def livekit_token(key, delivery):
    at = int(delivery.at)
    claims = {"iss": ISSUER, "nbf": at, "exp": at + GOOD, "sha256": b64(hashlib.sha256(delivery.body).digest())}
    parts = [b64url(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = ".".join(parts)
    return f"{signed}.{b64url(mac(key.encode(), signed.encode()))}"


def with_livekit(key, delivery):
    """The library takes the present time, whatever the delivery's is."""
    made = AccessToken(ISSUER, key).with_sha256(b64(hashlib.sha256(delivery.body).digest()))
    return made.with_ttl(datetime.timedelta(seconds=chance.randint(60, 600))).to_jwt()


def livekit_believes(key, delivery):
    WebhookReceiver(TokenVerifier(ISSUER, key)).receive(delivery.text, delivery.headers["Authorization"])


def by_vapi(settings):
    """A signer by the settings of Vapi's HMAC credential."""

    def headers(key, delivery):
        names, taken = {"{timestamp}": delivery.milliseconds, "{svix-id}": delivery.id, "{method}": "POST"}, {}
        names["{url}"] = delivery.url
        message = (settings.get("payloadFormat") or "{timestamp}.{body}").encode()
        before, _, after = message.partition(b"{body}")
        pieces = []
        for piece in (before, after):
            for name, value in names.items():
                piece = piece.replace(name.encode(), value.encode())
            pieces.append(piece)
        if settings.get("includeTimestamp", True):
            taken[settings.get("timestampHeader", "x-timestamp")] = delivery.milliseconds
        if "messageIdHeader" in settings:
            taken[settings["messageIdHeader"]] = delivery.id
        secret = base64.b64decode(key) if settings.get("secretIsBase64") else key.encode()
        code = mac(secret, pieces[0] + delivery.body + pieces[1], settings["algorithm"])
        written = b64(code) if settings.get("signatureEncoding") == "base64" else code.hex()
        return {**taken, settings.get("signatureHeader", "x-signature"): settings.get("signaturePrefix", "") + written}

    return headers


FIVE_MINUTES = (300, 300)
calls = retell.Retell(api_key="none")
elevenlabs = ElevenLabs(api_key="none").webhooks
slack = slack_sdk.signature.SignatureVerifier

BODY_ONLY = {
    "algorithm": "sha256",
    "signatureHeader": "x-vapi-signature",
    "signaturePrefix": "sha256=",
    "includeTimestamp": False,
    "payloadFormat": "{body}",
}
LIKE_SVIX = {
    "algorithm": "sha256",
    "signatureHeader": "svix-signature",
    "timestampHeader": "svix-timestamp",
    "messageIdHeader": "svix-id",
    "signaturePrefix": "v1,",
    "payloadFormat": "{svix-id}.{timestamp}.{body}",
    "signatureEncoding": "base64",
    "secretIsBase64": True,
}
SHA512 = {
    "algorithm": "sha512",
    "signatureHeader": "x-code",
    "timestampHeader": "x-time",
    "messageIdHeader": "x-message",
    "payloadFormat": "{svix-id}/{timestamp}/{body}/{method}/{url}",
    "signatureEncoding": "base64",
}
SHA1 = {"algorithm": "sha1", "payloadFormat": "{body}{timestamp}", "signaturePrefix": "sha1="}
SHARED_KEY = f"webhooks_sharedkey_{token(12)}"


def shared_key(algorithm):
    """Twilio with a shared key, on the generic contract's events."""
    name = f"HMAC_{algorithm.upper()}"
    more = {"X-Twilio-Webhooks-Signature-Settings": f"key={SHARED_KEY},algorithm={name}"}
    return Case(
        f"twilio, shared key by {algorithm}",
        {"scheme": "twilio", "sharedKeyId": SHARED_KEY, "sharedKeyAlgorithm": algorithm},
        token,
        by_twilio(algorithm, more),
        with_twilio(name, more),
        twilio_believes(name),
        query=True,
    )


CASES = [
    Case(
        "standard-webhooks",
        {"scheme": "standard-webhooks"},
        whsec,
        by_standard("webhook", v1),
        by_standard("webhook", lambda key, d: standardwebhooks.Webhook(key).sign(d.id, utc(d), d.text)),
        lambda key, d: standardwebhooks.Webhook(key).verify(d.body, d.headers, json_parse=False),
        window=FIVE_MINUTES,
        makes=True,
        among=lambda other, right: f"v1a,{other.partition(',')[2]} {other} {right}",
    ),
    Case(
        "standard-webhooks-ed25519",
        {"scheme": "standard-webhooks-ed25519"},
        seed,
        by_standard("webhook", v1a),
        believes=v1a_is_right,
        secret=lambda key: f"whpk_{public(key)}",
        window=FIVE_MINUTES,
        among=lambda other, right: f"{other} {right}",
    ),
    Case(
        "svix",
        {"scheme": "svix"},
        whsec,
        by_standard("svix", v1),
        by_standard("svix", lambda key, d: svix.Webhook(key).sign(d.id, utc(d), d.text)),
        lambda key, d: svix.Webhook(key).verify(d.body, d.headers),
        window=FIVE_MINUTES,
        makes=True,
        among=lambda other, right: f"{other} {right}",
    ),
    Case(
        "vapi-secret",
        {"scheme": "vapi-secret"},
        token,
        header("X-Vapi-Secret", lambda key, _: key),
        makes=True,
        body=False,
    ),
    Case(
        "vapi-bearer",
        {"scheme": "vapi-bearer"},
        token,
        header("Authorization", lambda key, _: f"Bearer {key}"),
        makes=True,
        body=False,
    ),
    Case(
        "vapi-bearer, bare",
        {"scheme": "vapi-bearer", "headerName": "X-Calls-Token", "bearerPrefixEnabled": False},
        token,
        header("X-Calls-Token", lambda key, _: key),
        makes=True,
        body=False,
    ),
    Case(
        "vapi-hmac",
        {"scheme": "vapi-hmac", "algorithm": "sha256"},
        token,
        lambda key, d: {"x-timestamp": d.seconds, "x-signature": of_time_and_body(key, d)},
        # The same code as Stripe's, in other headers.
        lambda key, d: {"x-timestamp": d.seconds, "x-signature": with_stripe(key, d).partition("v1=")[2]},
        lambda key, d: stripe.WebhookSignature.verify_header(
            d.body, f"t={d.headers['x-timestamp']},v1={d.headers['x-signature']}", key, 300
        ),
        window=FIVE_MINUTES,
        makes=True,
    ),
    Case(
        "vapi-hmac, body only",
        {"scheme": "vapi-hmac", **BODY_ONLY},
        token,
        by_vapi(BODY_ONLY),
        makes=True,
    ),
    Case(
        "vapi-hmac, set like Svix",
        {"scheme": "vapi-hmac", **LIKE_SVIX},
        lambda: b64(chance.randbytes(32)),
        by_standard("svix", v1),
        by_standard("svix", lambda key, d: svix.Webhook(key).sign(d.id, utc(d), d.text)),
        lambda key, d: svix.Webhook(key).verify(d.body, d.headers),
        window=FIVE_MINUTES,
        makes=True,
    ),
    Case(
        "vapi-hmac by sha512",
        {"scheme": "vapi-hmac", **SHA512},
        token,
        by_vapi(SHA512),
        window=FIVE_MINUTES,
        makes=True,
    ),
    Case(
        "vapi-hmac by sha1",
        {"scheme": "vapi-hmac", **SHA1},
        token,
        by_vapi(SHA1),
        window=FIVE_MINUTES,
        makes=True,
    ),
    Case(
        "retell",
        {"scheme": "retell"},
        lambda: f"key_{chance.randbytes(14).hex()}",
        header(
            "X-Retell-Signature",
            lambda key, d: f"v={d.milliseconds},d={mac(key.encode(), d.body + d.milliseconds.encode()).hex()}",
        ),
        header("X-Retell-Signature", with_retell),
        lambda key, d: calls.verify(d.text, key, d.headers["X-Retell-Signature"]),
        window=FIVE_MINUTES,
    ),
    Case(
        "elevenlabs",
        {"scheme": "elevenlabs"},
        lambda: f"wsec_{chance.randbytes(32).hex()}",
        header("ElevenLabs-Signature", lambda key, d: f"t={d.seconds},v0={of_time_and_body(key, d)}"),
        believes=lambda key, d: elevenlabs.construct_event(d.text, d.headers["ElevenLabs-Signature"], key),
        window=(1800, 1800),
    ),
    Case("bland", {"scheme": "bland"}, token, header("X-Webhook-Signature", of_body)),
    Case(
        "twilio, forms",
        {"scheme": "twilio"},
        lambda: chance.randbytes(16).hex(),
        by_twilio(),
        with_twilio(),
        twilio_believes(),
        form=True,
    ),
    Case(
        "twilio, JSON",
        {"scheme": "twilio"},
        lambda: chance.randbytes(16).hex(),
        by_twilio(),
        with_twilio(),
        twilio_believes(),
        query=True,
    ),
    shared_key("sha256"),
    shared_key("sha1"),
    Case(
        "livekit",
        {"scheme": "livekit", "apiKey": ISSUER},
        token,
        header("Authorization", livekit_token),
        header("Authorization", with_livekit),
        livekit_believes,
        window=(GOOD + LEEWAY, LEEWAY),
        alike=False,
    ),
    Case(
        "telnyx",
        {"scheme": "telnyx"},
        seed,
        by_telnyx,
        believes=lambda key, d: verify_webhook_signature(d.body, d.headers, public(key)),
        secret=public,
        window=FIVE_MINUTES,
    ),
    Case(
        # The provider's library is one of Node: signatures.mjs.
        "github",
        {"scheme": "github"},
        token,
        header("X-Hub-Signature-256", lambda key, d: f"sha256={of_body(key, d)}"),
        makes=True,
    ),
    Case(
        "slack",
        {"scheme": "slack"},
        lambda: chance.randbytes(16).hex(),
        by_slack(lambda key, d: f"v0={mac(key.encode(), f'v0:{d.seconds}:'.encode() + d.body).hex()}"),
        by_slack(lambda key, d: slack(key).generate_signature(timestamp=d.seconds, body=d.body)),
        lambda key, d: slack(key).is_valid_request(d.body, d.headers),
        window=FIVE_MINUTES,
    ),
    Case(
        "stripe",
        {"scheme": "stripe"},
        lambda: f"whsec_{token(24)}",
        header("Stripe-Signature", lambda key, d: f"t={d.seconds},v1={of_time_and_body(key, d)}"),
        header("Stripe-Signature", with_stripe),
        lambda key, d: stripe.WebhookSignature.verify_header(d.body, d.headers["Stripe-Signature"], key, 300),
        window=FIVE_MINUTES,
        among=lambda other, right: f"{other},{right.partition(',')[2]},v0={'0' * 64}",
    ),
]


# Vectors that are known: those of the providers' documentation and of their libraries' tests, and some that were made with the
# libraries. Each with the case, its key, the delivery and the header that comes of it.

RFC8032 = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
HANGUP = b'{"data":{"event_type":"call.hangup","id":"0ccc7b54-4df3-4bca-a65a-3da1ecc777f0"}}'
SHOP = "https://mycompany.com/myapp.php?foo=1&bar=2"
DIGITS = b"CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309"
FORM = "application/x-www-form-urlencoded"
SLASH = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121."
    b"803a0bc887a14d10d2c447fce8b6703c"
)
KNOWN = [
    (
        "standard-webhooks",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        Delivery("", b'{"test": 2432232314}', 1614265330, id="msg_p5jXN8AQM9LWM0D4loKWxJek"),
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "standard-webhooks-ed25519",
        RFC8032,
        Delivery("", HANGUP, 1674087231, id="msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"),
        "v1a,IuW+dAbdAJorJQiiJIgiwl0mHCf2emjeHxPf6dTY3Bq4vPEKMP2aTT+d+d5YeH2Cxrig75RvxMAP3fSjajMgBQ==",
    ),
    (
        "vapi-hmac",
        "vapi_test_secret",
        Delivery("", b'{"message":{"type":"status-update","status":"ended"}}', 1700000000),
        "242d1dfb67dba287b71dfa4cfe0c7572f3bc9437d9cf3d789f5ae490b70c4dd5",
    ),
    (
        "vapi-hmac, body only",
        "vapi_test_secret",
        Delivery("", b'{"message":{"type":"status-update","status":"ended"}}', 1700000000),
        "sha256=2307b27f9a770dd30e0b4c81dd3a04919fa6ead6abd6fd17ef921138ede061da",
    ),
    (
        "retell",
        "test-api-key",
        Delivery("", b'{"event":"call_ended"}', 1700000000),
        "v=1700000000000,d=07024cabe7dd8f6d1c6e4a8324ca92c812e6ad4a7ee506c04f7e462e3321823e",
    ),
    (
        "elevenlabs",
        "wsec_test",
        Delivery(
            "",
            b'{"type":"post_call_transcription","event_timestamp":1739537297,'
            b'"data":{"agent_id":"xyz","conversation_id":"abc","status":"done"}}',
            1739537297,
        ),
        "t=1739537297,v0=5eb63acd01c5101979af63ea7612dcac75400f49ba1cc1834a555723e0973c84",
    ),
    (
        "bland",
        "bland_test_secret",
        Delivery("", b'{"call_id":"c1","completed":true}', 0),
        "7b2bba8207deb21f7b90704137adb9992c1e9c5699d4438497cc124f2d8a52e7",
    ),
    ("twilio, forms", "12345", Delivery(SHOP, DIGITS, 0, FORM), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    (
        "twilio, forms",
        "12345",
        Delivery(SHOP.replace(".com", ".com:443"), DIGITS, 0, FORM),
        "kvajT1Ptam85bY51eRf/AJRuM3w=",
    ),
    (
        "twilio, forms",
        "12345",
        Delivery(SHOP.replace("https", "http").replace(".com", ".com:80"), DIGITS, 0, FORM),
        "0ZXoZLH/DfblKGATFgpif+LLRf4=",
    ),
    (
        "twilio, forms",
        "12345",
        Delivery(SHOP, b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234", 0, FORM),
        "IK+Dwps556ElfBT0I3Rgjkr1wJU=",
    ),
    (
        "twilio, JSON",
        "12345",
        Delivery(
            f"{SHOP}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620",
            b'{"property": "value", "boolean": true}',
            0,
        ),
        "a9nBmqA0ju/hNViExpshrM61xv4=",
    ),
    (
        "twilio, shared key by sha256",
        "12345",
        Delivery(SHOP, DIGITS, 0, FORM),
        "033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s=",
    ),
    (
        "telnyx",
        RFC8032,
        Delivery("", HANGUP, 1700000000),
        "RmHAa1XgoWQoXUq+UulYKVrfjsxIasWWFupfTB8oXOb7Vx4+abrmL6sacp+LpWglWJ1gsZxl7zCufwt0ZRl1AQ==",
    ),
    (
        "github",
        "It's a Secret to Everybody",
        Delivery("", b"Hello, World!", 0),
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
    ),
    (
        "slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        Delivery("", SLASH, 1531420618),
        "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    ),
    (
        "stripe",
        "whsec_test_secret",
        Delivery("", b'{"id":"evt_test_webhook","object":"event"}', 1492774577),
        "t=1492774577,v1=88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a",
    ),
]


@check
def known_vectors_come_out():
    cases = {case.name: case for case in CASES}
    for name, key, delivery, wanted in KNOWN:
        case = cases[name]
        for by in filter(None, (case.own, case.library)):
            headers = by(key, delivery)
            same(headers[list(headers)[-1]], wanted, name)


@check
def livekit_s_known_vector_comes_out():
    body = (
        b'{"event":"room_started", "room":{"sid":"RM_TkVjUvAqgzKz", "name":"mytestroom", "emptyTimeout":300, '
        b'"creationTime":"1628545903", "turnPassword":"ICkSr2rEeslkN6e9bXL4Ji5zzMD5Z7zzr6ulOaxMj6N", '
        b'"enabledCodecs":[{"mime":"audio/opus"}, {"mime":"video/VP8"}]}}'
    )
    same(b64(hashlib.sha256(body).digest()), "CoEQz1chqJ9bnZRcORddjplkvpjmPujmLTR42DbefYI=", "the claim")
    known = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJhYmNkZWZnIiwibmJmIjoxNzAwMDAwMDAwLCJleHAiOjE3MDAwMDAzMDAsInNoYTI1"
        "NiI6IkNvRVF6MWNocUo5Ym5aUmNPUmRkanBsa3Zwam1QdWptTFRSNDJEYmVmWUk9In0"
    )
    same(b64url(mac(b"abababa", known.encode())), "QLlQ-5xMtFLk_JfRbssfOlqXMkhStbUKIwDTMCaicfw", "its signature")


@check
def what_the_stand_ins_sign_is_believed():
    """The providers that tests/it puts in Vapi's, Retell's and everybody's place sign so, as a test there says."""
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "signed.json"
    signed = json.loads(path.read_text(encoding="utf-8"))

    def by_retell(one, body):
        signature = one["headers"]["x-retell-signature"]
        return webhook_auth.symmetric["verify"](body, one["key"], signature, {"timestamp": one["at"]})

    def by_stripe(one, body):
        # Vapi has no library that verifies; what its HMAC credential signs is what Stripe does.
        headers = one["headers"]
        header = f"t={headers['x-timestamp']},v1={headers['x-signature']}"
        return stripe.WebhookSignature.verify_header(body, header, one["key"])

    def by_standard_webhooks(one, body):
        class Then(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromtimestamp(one["at"] / 1000, tz)

        with unittest.mock.patch("standardwebhooks.webhooks.datetime", Then):
            standardwebhooks.Webhook(one["key"]).verify(body, one["headers"], json_parse=False)
        return True

    def believed(verify, one, body):
        try:
            return verify(one, body)
        except (stripe.SignatureVerificationError, standardwebhooks.WebhookVerificationError):
            return False

    schemes = {"retell": by_retell, "vapi-hmac": by_stripe, "standard-webhooks": by_standard_webhooks}
    same(sorted(signed), sorted(schemes), "the schemes")
    for scheme, deliveries in signed.items():
        holds(deliveries, scheme)
        for one in deliveries:
            holds(believed(schemes[scheme], one, one["body"]), f"{scheme}: not believed: {one}")
            holds(not believed(schemes[scheme], one, one["body"] + " "), f"{scheme}: another body is believed")


def offline(case):
    """What is signed here is what the provider signs."""
    skipped = 0
    for turn in range(VECTORS):
        key, other = case.key(), case.key()
        delivery = case.new("https://ringback.example.com/hooks/0193e6a4-0000-7000-8000-000000000000/call-ended")
        own = case.signed(key, delivery, case.own)
        if case.library:
            by_library = case.signed(key, delivery)
            if case.alike:
                same(by_library.headers, own.headers, "what the library signs")
            holds(case.believed(key, by_library), "the library does not believe itself")
        holds(case.believed(key, own), f"the library does not believe what is signed here: {own}")
        holds(not case.believed(other, own), "the library believes another key")
        if turn == 0:
            for _, _, body in flips(own.body):
                changed = dataclasses.replace(own, body=body)
                if case.form and twilio_signs(changed) == twilio_signs(own):
                    skipped += 1
                    holds(case.believed(key, changed), "the library sees a change in what is not signed")
                else:
                    holds(not case.believed(key, changed), f"the library believes a changed body: {body}")
    return skipped


# What Ringback makes of it.

counts = collections.Counter()
lock = threading.Lock()
own_connection = threading.local()


def post(delivery):
    """Sends a delivery as it is. Gives the status and what the answer says."""
    where = urllib.parse.urlsplit(delivery.url)
    target = where.path + (f"?{where.query}" if where.query else "")
    for attempt in (1, 2):
        connection = getattr(own_connection, "it", None)
        if connection is None:
            # Where the server is, not where the URL says: its port may be left out there.
            here = urllib.parse.urlsplit(URL)
            connection = own_connection.it = http.client.HTTPConnection(here.hostname, here.port, timeout=60)
        try:
            connection.putrequest("POST", target, skip_accept_encoding=True)
            connection.putheader("Content-Type", delivery.content_type)
            connection.putheader("Content-Length", str(len(delivery.body)))
            for name, value in delivery.headers.items():
                connection.putheader(name, value)
            connection.endheaders(delivery.body)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            break
        except (OSError, http.client.HTTPException):
            connection.close()
            own_connection.it = None
            if attempt == 2:
                raise
    with lock:
        counts[answer.status] += 1
    return answer.status, text


def accepted(delivery, what):
    status, text = post(delivery)
    holds(status == 200, f"{what}: {status} {text} for {delivery}")


def refused(delivery, what):
    status, text = post(delivery)
    holds(status == 401, f"{what}: {status} {text} for {delivery}")
    holds(isinstance(json.loads(text).get("message"), str), f"{what}: {text} does not say why")


made = {}


def endpoint(case):
    """The case's endpoint and the key that its webhooks are signed with."""
    if case.name not in made:
        key = case.key()
        secret = case.secret(key)
        wanted = {"provider": case.provider, "url": "http://127.0.0.1:9/calls", "name": case.name, "signature": case.scheme}
        status, answer = ask("POST", "/endpoint", {**wanted, "secret": secret})
        same(status, 201, f"an endpoint: {answer}")
        same(len(answer["secrets"]), 1, "its secrets")
        holds(secret not in json.dumps(answer), f"who gave the secret has it: {answer}")
        holds(answer["webhooks"]["callEnded"].startswith(URL), f"the server knows its URL: {answer['webhooks']}")
        for name, value in case.scheme.items():
            same(answer["signature"].get(name), value, f"signature.{name}")
        made[case.name] = (answer["id"], answer["webhooks"]["callEnded"], key, answer["secrets"][0]["id"])
    return made[case.name]


def vectors(case):
    """Fresh random deliveries are accepted, whoever signed them, and their headers' names may be in any case."""
    _, url, key, _ = endpoint(case)
    for _ in range(VECTORS):
        for by in filter(None, (case.library, case.own)):
            delivery = case.signed(key, case.new(url), by)
            spelled = chance.choice([str.lower, str.upper, str.title, str])
            delivery.headers = {spelled(name): value for name, value in delivery.headers.items()}
            accepted(delivery, by.__name__)


def flips(value):
    """All that is one bit away."""
    for place in range(len(value)):
        for bit in range(8):
            changed = bytearray(value)
            changed[place] ^= 1 << bit
            yield place, bit, bytes(changed)


def sendable(value):
    """Whether a header can have this value and loses nothing of it on the way."""
    visible = all(byte == 9 or 32 <= byte <= 126 or byte >= 128 for byte in value)
    return visible and value == value.strip(b" \t")


def bits(case):
    """Every change of one bit is refused: in each header, in the body and in the query, if they are signed."""
    _, url, key, _ = endpoint(case)
    # Small, and as late as can be: a change must be refused because it is one.
    candidates = [case.new(url, time.time()) for _ in range(VECTORS)]
    right = case.signed(key, min(candidates, key=lambda one: (one.body.isascii(), len(one.body))))
    accepted(right, "the one that is changed next")
    changed, skipped = [], collections.Counter()
    for name, value in right.headers.items():
        for place, bit, other in flips(value.encode()):
            if sendable(other):
                delivery = dataclasses.replace(right, headers={**right.headers, name: other})
                changed.append((f"{name}, byte {place}, bit {bit}", delivery))
            else:
                skipped["no header's value"] += 1
    for place, bit, other in flips(right.body if case.body else b""):
        delivery = dataclasses.replace(right, body=other)
        if case.form and twilio_signs(delivery) == twilio_signs(right):
            skipped["the same form"] += 1
        else:
            changed.append((f"body, byte {place}, bit {bit}", delivery))
    if case.query:
        base, query = right.url.split("?")
        for place, bit, other in flips(query.encode()):
            if other.replace(b"=", b"").isalnum():
                delivery = dataclasses.replace(right, url=f"{base}?{other.decode()}")
                changed.append((f"query, byte {place}, bit {bit}", delivery))
            else:
                skipped["no query"] += 1
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(post, [delivery for _, delivery in changed]))
    wrong = [
        f"{where}: {status} {text} for {delivery}"
        for (where, delivery), (status, text) in zip(changed, answers)
        if status != 401
    ]
    accepted(right, "the one that was changed is still right")
    holds(not wrong, f"{len(wrong)} of {len(changed)} changes were not refused: {'; '.join(wrong[:5])}")
    left_out = ", ".join(f"{number} are {why}" for why, number in skipped.items())
    print(f"        {case.name}: {len(changed)} changes refused" + (f"; not sent: {left_out}" if left_out else ""))


def lacking(case):
    """Without one of the headers, or with nothing in it, nothing is believed."""
    _, url, key, _ = endpoint(case)
    right = case.signed(key, case.new(url))
    for name in right.headers:
        rest = {other: value for other, value in right.headers.items() if other != name}
        refused(dataclasses.replace(right, headers=rest), f"without {name}")
        refused(dataclasses.replace(right, headers={**rest, name: ""}), f"with an empty {name}")
    refused(dataclasses.replace(right, headers={}), "without any")
    accepted(right, "with all of them")


def times(case):
    """What is too old or too far ahead is refused, although it is signed, and what is nearly so is not."""
    _, url, key, _ = endpoint(case)
    past, future = case.window
    # A library that takes the present time is of no use here.
    by = case.library if case.alike else case.own
    for offset, good in [
        (MARGIN - past, True),
        (future - MARGIN, True),
        (-MARGIN - past, False),
        (future + MARGIN, False),
        (-86400 * 365, False),
        (86400 * 365, False),
    ]:
        delivery = case.signed(key, case.new(url, time.time() + offset), by)
        (accepted if good else refused)(delivery, f"{offset} s from now")


def several(case):
    """A right signature counts after one that is not."""
    _, url, key, _ = endpoint(case)
    delivery = case.signed(key, case.new(url))
    other = case.signed(case.key(), delivery)
    name = list(delivery.headers)[-1]
    both = case.among(other.headers[name], delivery.headers[name])
    accepted(dataclasses.replace(delivery, headers={**delivery.headers, name: both}), both)
    neither = case.among(other.headers[name], other.headers[name])
    refused(dataclasses.replace(delivery, headers={**delivery.headers, name: neither}), neither)


def makes(case):
    """A secret is made where the receiver may choose it, and asked for where it may not."""
    wanted = {"provider": case.provider, "url": "http://127.0.0.1:9/calls", "name": case.name, "signature": case.scheme}
    status, answer = ask("POST", "/endpoint", wanted)
    if not case.makes:
        same(status, 400, f"without a secret: {answer}")
        holds("secret" in str(answer["message"]), f"it says what is missing: {answer}")
        return
    same(status, 201, f"without a secret: {answer}")
    key = answer["secrets"][0]["secret"]
    accepted(case.signed(key, case.new(answer["webhooks"]["callEnded"])), "signed with the secret that was made")
    _, shown = ask("GET", f"/endpoint/{answer['id']}")
    holds(key not in json.dumps(shown), f"it is shown once: {shown}")


old = []


def rotates(case):
    """Another key's word is not taken; after it was added both are, until the first is deleted."""
    id_, url, key, secret_id = endpoint(case)
    new = case.key()

    def by(signer):
        return case.signed(signer, case.new(url))

    refused(by(new), "signed with another key")
    status, answer = ask("POST", f"/endpoint/{id_}/secret", {"secret": case.secret(new)})
    same(status, 201, f"a second secret: {answer}")
    same(len(answer["secrets"]), 2, "the secrets")
    until("the second secret to count", lambda: post(by(new))[0] == 200, within=15)
    accepted(by(key), "signed with the first")
    status, answer = ask("DELETE", f"/endpoint/{id_}/secret/{secret_id}")
    same(status, 200, f"the first is deleted: {answer}")
    same(len(answer["secrets"]), 1, "the secrets")
    accepted(by(new), "signed with the second")
    old.append((case, key, new, url))


def deleted_secrets_do_not_count():
    """All of them at once, because that takes its time."""
    end = time.monotonic() + FORGOTTEN_WITHIN
    for case, key, new, url in old:
        within = max(end - time.monotonic(), 1)
        until(f"{case.name} to be refused", lambda: post(case.signed(key, case.new(url)))[0] == 401, within)
        accepted(case.signed(new, case.new(url)), f"{case.name}, signed with the second secret")
    same(len(old), len(CASES), "how many were deleted")


def no_scheme_takes_another_s_word():
    """What one scheme accepts is nothing to another endpoint, whose scheme and key are others."""
    for case in CASES:
        _, url, _, _ = endpoint(case)
        for other in CASES:
            if other is not case:
                refused(other.signed(other.key(), other.new(url)), f"{other.name} at {case.name}")


def the_port_may_be_left_out_of_the_signed_url():
    """Twilio is not consistent about it."""
    here = urllib.parse.urlsplit(URL)
    for case in CASES:
        if case.form or case.query:
            _, url, key, _ = endpoint(case)
            delivery = case.new(url)
            bare = dataclasses.replace(delivery, url=delivery.url.replace(here.netloc, here.hostname, 1))
            holds(bare.url != delivery.url, f"the URL has a port: {delivery.url}")
            headers = case.signed(key, bare).headers
            accepted(dataclasses.replace(delivery, headers=headers), f"{case.name}, without the port")
            elsewhere = dataclasses.replace(delivery, url=delivery.url.replace(here.netloc, "127.0.0.1:1", 1))
            headers = case.signed(key, elsewhere).headers
            refused(dataclasses.replace(delivery, headers=headers), f"{case.name}, with another port")


def livekit_s_token_may_be_a_bearer_s():
    """And in the header that LiveKit used before."""
    case = next(case for case in CASES if case.name == "livekit")
    _, url, key, _ = endpoint(case)
    right = case.signed(key, case.new(url))
    value = right.headers["Authorization"]
    for headers in ({"Authorization": f"Bearer {value}"}, {"Authorize": value}, {"authorize": f"Bearer {value}"}):
        accepted(dataclasses.replace(right, headers=headers), f"{list(headers)}")
    stranger = AccessToken("APIstranger", key).with_sha256(b64(hashlib.sha256(right.body).digest())).to_jwt()
    refused(dataclasses.replace(right, headers={"Authorization": stranger}), "another issuer")
    refused(dataclasses.replace(right, headers={"Authorization": AccessToken(ISSUER, key).to_jwt()}), "without a hash")


def nothing_was_answered_but_these():
    """Neither a failure nor anything else that was not asked for."""
    print(f"        answers: {dict(sorted(counts.items()))}")
    same(sorted(counts), [200, 401], "the statuses")


def named(what, case, function):
    """A check of one case."""

    def run():
        return function(case)

    run.__name__ = f"{case.name}: {what}"
    return check(run)


for one in CASES:
    if one.believes:
        named("signed here as its provider does", one, offline)
if not ARGUMENTS.offline:
    for one in CASES:
        named("fresh deliveries are accepted", one, vectors)
        named("every change of a bit is refused", one, bits)
        named("no header may be lacking", one, lacking)
        if one.window:
            named("its window", one, times)
        if one.among:
            named("one right signature among several", one, several)
        named("who makes the secret", one, makes)
    check(the_port_may_be_left_out_of_the_signed_url)
    check(livekit_s_token_may_be_a_bearer_s)
    check(no_scheme_takes_another_s_word)
    for one in CASES:
        named("its secret is changed", one, rotates)
    check(deleted_secrets_do_not_count)
    check(nothing_was_answered_but_these)


if __name__ == "__main__":
    print(f"        --seed {ARGUMENTS.seed}")
    sys.exit(1 if run_all() else 0)
