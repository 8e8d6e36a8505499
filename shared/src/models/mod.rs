//! The wire models: what clients send and read, field by field.
//!
//! Every struct keeps the fields it does not know in `extra`, so that what a client stored comes back unchanged. Input is
//! read leniently (see [`lenient`]) and then checked by [`Validate`], which names every fault with its path.

pub mod assistant;
pub mod eval;
pub mod evaluation;
pub(crate) mod kinds;
pub mod lenient;
pub mod metric;
pub mod page;
pub mod run;
pub mod schedule;
pub mod simulation;
pub mod trials;
mod validate;

pub use validate::{Invalid, Validate, check, parse};

/// A JSON object whose content Ringback stores and passes on but does not model.
pub type Object = serde_json::Map<String, serde_json::Value>;
