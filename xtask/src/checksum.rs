//! SHA-256 of files: what was fetched is what was pinned, or an error tells both sums.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const PIECE_BYTES: usize = 1 << 18;

/// Errors if the file's checksum is not `expected`, 64 hexadecimal digits.
pub fn verify(path: &Path, expected: &str) -> Result<()> {
    let found = sha256(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found != expected {
        bail!(
            "{} has the wrong checksum (sha256 {found}, expected {expected})",
            path.display()
        );
    }
    Ok(())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&piece[..len]);
    }
}

/// The checksum of a text, in hexadecimal digits.
pub fn of_text(text: &str) -> String {
    hex(&Sha256::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_passes_only_with_its_own_checksum() {
        let path = std::env::temp_dir().join(format!("kvasir-checksum-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        let right = verify(&path, OF_ABC);
        let wrong = verify(&path, &of_text("abd"));
        std::fs::remove_file(&path).unwrap();
        right.unwrap();
        let message = wrong.unwrap_err().to_string();
        assert!(
            message.contains(OF_ABC) && message.contains("wrong checksum"),
            "{message}"
        );
    }
}
