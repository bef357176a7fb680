//! The handle that ends waiting calls from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends the waiting calls of the collectives it was given to, from any thread, for good.
///
/// A waiting call looks at it at least every ten milliseconds, also while it sleeps. Clones are the same handle.
#[derive(Debug, Clone, Default)]
pub struct Abort {
    requested: Arc<AtomicBool>,
}

impl Abort {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every present and later call fail with `Aborted`.
    pub fn abort(&self) {
        self.requested.store(true, Ordering::Release);
    }

    pub fn is_aborted(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}
