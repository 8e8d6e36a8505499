//! Signed webhooks of every sender: one verifier, told by a [`Profile`] what the sender does.
//!
//! A [`Scheme`] is what an endpoint is configured with; its [`Scheme::profile`] is all that [`Unverified::verify`] goes
//! by. A delivery that came in keeps its body to itself until it is [`Verified`].
//!
//! - The raw bytes are verified, before any parsing. Of a header that is there twice the first counts.
//! - Each signature is compared with each secret in constant time, whichever fits. Without a usable secret nothing is
//!   believed, and an empty secret is not usable.
//! - A signature has one form only: hexadecimal in lower case, or standard base64 without bits beyond the last byte (its
//!   padding may be absent), of exactly the algorithm's length.
//! - A timestamp or an id counts only where it is signed. Static secrets sign nothing, not even the body.

mod jwt;
mod profile;
mod scheme;
#[cfg(test)]
mod tests;
mod twilio;
mod verify;

pub use profile::{
    Algorithm, Encoding, Entries, KeyEncoding, MAX_HEADER_NAME, MAX_SECRET, MAX_TEMPLATE, MAX_WINDOW_MS,
    Profile, SecretError, Separator, TOLERANCE_MS, TimestampRule, TimestampUnit,
};
pub use scheme::{HmacAlgorithm, Livekit, Scheme, SharedKeyAlgorithm, Twilio, VapiBearer, VapiHmac};
pub use verify::{MAX_ED25519, MAX_HEADER, MAX_ID, MAX_SIGNATURES, Refusal, Unverified, Verified};
