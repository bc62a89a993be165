//! The target `state_machines`; what it does is in `targets/state_machines.rs`.
#![no_main]

#[path = "../targets/state_machines.rs"]
mod state_machines;

libfuzzer_sys::fuzz_target!(|input: &[u8]| state_machines::run(input));
