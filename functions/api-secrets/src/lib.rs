//! The part of the HTTP API that asks models or changes secrets, and schedules, which bring the world's time zones. The function `api` has neither a model's key nor the right to change a
//! secret, and is the smaller for it.

pub use ringback_api::handle_with_secrets as handle;
