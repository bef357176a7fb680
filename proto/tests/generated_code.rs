//! The checked-in generated code is what the .proto files say.

mod generate;

#[test]
fn generated_code_is_current() {
    let fresh = std::env::temp_dir().join(format!("kvasir-codegen-{}", std::process::id()));
    generate::into_folder(&fresh).unwrap();
    let checked_in = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    for name in ["kvasir.v1.rs", "inference.rs", "descriptors.bin"] {
        let same = std::fs::read(fresh.join(name)).unwrap() == std::fs::read(checked_in.join(name)).unwrap();
        assert!(same, "{name} is out of date; run `cargo xtask codegen`");
    }
    std::fs::remove_dir_all(&fresh).unwrap();
}
