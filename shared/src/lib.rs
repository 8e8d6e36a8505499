//! What every Ringback function stands on: models, life cycle, store, queues, conversation and evaluation.

pub mod batch;
pub mod clock;
pub mod config;
pub mod context;
pub mod conversation;
pub mod evaluation;
pub mod ids;
pub mod lifecycle;
pub mod llm;
pub mod models;
pub mod net;
pub mod progress;
pub mod queue;
pub mod store;
pub mod telemetry;
