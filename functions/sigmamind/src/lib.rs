//! The API in the shape of SigmaMind. It is a function of its own, so that neither it nor `api` has to carry both.

pub use ringback_api::handle_sigmamind as handle;
