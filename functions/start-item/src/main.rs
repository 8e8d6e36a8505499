//! start-item
fn main() {}
