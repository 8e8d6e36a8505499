//! End-to-end tests: the real program (or its stack in this process) against a stand-in for every language model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and its helpers with it"
)]

mod api;
mod calls;
mod cancel;
mod carrier;
mod cekura;
mod chat;
mod crash;
mod docs;
mod evals;
mod everywhere;
mod fixtures;
mod hooks;
mod hostile;
mod large;
mod limits;
mod lists;
mod models;
mod notices;
mod numbers;
mod openapi;
mod orgs;
mod paging;
mod provider;
mod providers;
mod retell;
mod schedules;
mod server;
mod sigmamind;
mod slots;
mod squads;
mod stand_in;
mod store;
mod suites;
mod telemetry;
mod template;
mod trials;
mod vapi;
mod voice;
mod writers;
