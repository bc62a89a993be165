//! The target `proxy_header`; what it does is in `targets/proxy_header.rs`.
#![no_main]

#[path = "../targets/proxy_header.rs"]
mod proxy_header;

libfuzzer_sys::fuzz_target!(|input: &[u8]| proxy_header::run(input));
