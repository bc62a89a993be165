//! Generates the code; the compiler for `.proto` is a library, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "nymea/remoteproxy/bridge/v1/bridge.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["."])?;
    // Payloads are handed through without a copy.
    tonic_prost_build::configure().build_transport(false).bytes(".").compile_fds(descriptors)?;
    Ok(())
}
