//! The target `json_stream`; what it does is in `targets/json_stream.rs`.
#![no_main]

#[path = "../targets/json_stream.rs"]
mod json_stream;

libfuzzer_sys::fuzz_target!(|input: &[u8]| json_stream::run(input));
