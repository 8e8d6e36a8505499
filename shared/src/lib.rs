//! What every Ringback function stands on: models, life cycle, store, queues, conversation and evaluation.

pub mod admission;
pub mod batch;
pub mod call_record;
pub mod clock;
pub mod config;
pub mod context;
pub mod conversation;
pub mod costs;
pub mod evaluation;
pub mod hooks;
pub mod ids;
pub mod lifecycle;
pub mod llm;
pub mod models;
pub mod net;
pub mod progress;
pub mod provider;
pub mod queue;
pub mod receive;
pub mod secrets;
pub mod store;
pub mod telemetry;
pub mod tool;
pub mod trials;
pub mod webhook;
pub mod writing;
