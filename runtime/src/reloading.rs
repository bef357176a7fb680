//! A value made from files, made anew when one of them changes: certificates and keys are replaced without a restart.
//!
//! It looks when somebody asks, so nothing runs in between. Files that cannot be used leave the last good value in place,
//! and are tried again only when they change once more: half of a pair that is being replaced is no reason to end.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{info, warn};

type Make<T, E> = Box<dyn Fn() -> Result<T, E> + Send + Sync>;

pub(crate) struct Reloading<T, E> {
    files: Vec<PathBuf>,
    make: Make<T, E>,
    state: Mutex<State<T>>,
}

struct State<T> {
    stamps: Vec<Option<Stamp>>,
    value: Arc<T>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl<T, E: fmt::Display> Reloading<T, E> {
    /// Errors if the files cannot be used now: later, that is a warning.
    pub fn open(files: Vec<PathBuf>, make: impl Fn() -> Result<T, E> + Send + Sync + 'static) -> Result<Self, E> {
        // Before the files are read: what is written meanwhile is read again.
        let stamps = stamps(&files);
        let value = Arc::new(make()?);
        Ok(Self {
            files,
            make: Box::new(make),
            state: Mutex::new(State { stamps, value }),
        })
    }

    /// The value of the files as they are now, or as they last were good.
    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != state.stamps {
            state.stamps = stamps;
            match (self.make)() {
                Ok(value) => {
                    info!(files = ?self.files, "read anew");
                    state.value = Arc::new(value);
                }
                Err(error) => warn!(%error, "changed files cannot be used; what was read before stays"),
            }
        }
        Arc::clone(&state.value)
    }
}

impl<T, E> fmt::Debug for Reloading<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        Some(Stamp {
            inode: found.ino(),
            len: found.len(),
            modified_ns: (found.mtime(), found.mtime_nsec()),
            changed_ns: (found.ctime(), found.ctime_nsec()),
        })
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        std::fs::write(&file, "1").unwrap();
        let path = file.clone();
        let read = move || std::fs::read_to_string(&path).unwrap_or_default().parse::<u32>();
        let number = Reloading::open(vec![file.clone()], read).unwrap();
        assert_eq!(*number.get(), 1);
        for (text, expected) in [("22", 22), ("no number", 22), ("33", 33)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(*number.get(), expected, "{text}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(*number.get(), 33);
    }
}
