//! The target `slip`; what it does is in `targets/slip.rs`.
#![no_main]

#[path = "../targets/slip.rs"]
mod slip;

libfuzzer_sys::fuzz_target!(|input: &[u8]| slip::run(input));
