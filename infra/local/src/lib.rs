//! The local stack: the whole of Ringback in one process.
//!
//! [`serve::Local`] starts it: the [`emulator`]s of DynamoDB and SQS, the functions, and the [`drivers`] that call them as
//! AWS would. [`demo`] runs simulations on it against the [`sample`] agent, and [`endpoints`] makes voice providers known to a
//! server.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the process that keeps running, where a spawned task outlives the answer; the rule is for functions"
)]

/// Of everything that links the embedded stack: the AWS SDK and the embedded table ask for much memory in small pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod demo;
pub mod drivers;
pub mod emulator;
pub mod endpoints;
pub mod http;
mod in_process;
pub mod orgs;
pub mod sample;
pub mod serve;
