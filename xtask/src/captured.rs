//! What a child writes, kept in memory: no pipe that could fill up and stop it, and no thread to drain one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};

const PIECE_BYTES: usize = 1 << 14;

#[derive(Debug)]
pub struct Captured {
    file: File,
}

impl Captured {
    pub fn new() -> Result<Self> {
        let file = memfd_create("captured", MemfdFlags::CLOEXEC).context("no memory file")?;
        Ok(Self { file: file.into() })
    }

    /// The end for the child to write to.
    pub fn stdio(&self) -> Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// Everything that it has written so far; the child may go on.
    pub fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    /// The last words, for an error.
    pub fn last_line(&self) -> String {
        let text = self.text().unwrap_or_default();
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        line.unwrap_or("it said nothing").trim().to_owned()
    }

    /// Reads by offset: the file's own position is shared with the child.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut piece = [0; PIECE_BYTES];
        loop {
            let len = self.file.read_at(&mut piece, bytes.len() as u64)?;
            if len == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&piece[..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn reading_does_not_move_where_the_child_writes() {
        let captured = Captured::new().unwrap();
        for word in ["one", "two"] {
            let status = Command::new("echo")
                .arg(word)
                .stdout(captured.stdio().unwrap())
                .status();
            assert!(status.unwrap().success());
            assert_eq!(captured.last_line(), word);
        }
        assert_eq!(captured.text().unwrap(), "one\ntwo\n");
    }
}
