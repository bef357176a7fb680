//! Whether anybody still uses a connection: requests that are open on it, and when the last one ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    open: AtomicU32,
    last_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            open: AtomicU32::new(0),
            last_ms: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// A request that is open until this is dropped.
    pub fn request(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(Arc::clone(self))
    }

    /// Whether several requests are open.
    pub(super) fn is_shared(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 1
    }

    /// Since the last request; zero while one is open.
    pub(super) fn idle(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }
}

#[derive(Debug)]
pub struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let now_ms = self.0.begun.elapsed().as_millis() as u64;
        self.0.last_ms.store(now_ms, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
