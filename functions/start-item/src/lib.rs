//! start-item
