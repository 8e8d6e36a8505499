//! What every Ringback function stands on: models, life cycle, store, queues, conversation and evaluation.

pub mod clock;
pub mod models;
