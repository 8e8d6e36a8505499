//! The local stack: the whole of Ringback in one process.
//!
//! [`serve::Local`] starts it: the [`emulator`]s of DynamoDB and SQS, the functions, and the [`drivers`] that call them as
//! AWS would. [`demo`] runs simulations on it against the [`sample`] agent.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the process that keeps running, where a spawned task outlives the answer; the rule is for functions"
)]

pub mod demo;
pub mod drivers;
pub mod emulator;
pub mod http;
pub mod sample;
pub mod serve;
