//! How functions are linked: at a fixed address. A program that may be loaded anywhere has twenty thousand pointers to set right
//! before it begins, which is a tenth of the time until it is ready, and carries a list of them. What is lost is that its own code
//! and constants lie elsewhere in every process; stack, heap and libraries still do.

#[expect(clippy::disallowed_methods, reason = "cargo tells it in the environment")]
fn main() {
    println!("cargo::rerun-if-changed=../build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
