//! The one way to turn the .proto files into Rust and a descriptor set: in pure Rust, without protoc.

use std::path::Path;

use prost::Message as _;

const FILES: [&str; 4] = [
    "kvasir/v1/inference.proto",
    "kvasir/v1/admin.proto",
    "kvasir/v1/cluster.proto",
    "inference/open_inference.proto",
];

/// Writes `kvasir.v1.rs`, `inference.rs` and `descriptors.bin`, which describes both, into `folder`.
pub fn into_folder(folder: &Path) -> anyhow::Result<()> {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR"))?;
    let files = protox::compile(FILES, ["."])?;
    std::fs::create_dir_all(folder)?;
    let mut descriptors = files.clone();
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(folder.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .out_dir(folder)
        .build_transport(true)
        .client_mod_attribute(".", "#[cfg(feature = \"services\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"services\")]")
        .compile_fds(files)?;
    Ok(())
}
