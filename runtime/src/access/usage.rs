//! What a key has used of its limits: requests a minute, and requests at a time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::key_file::KeyLimits;

const MINUTE: Duration = Duration::from_secs(60);
/// Some request ends within that time, one hopes.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// By key's name. Outlives changes of the file, so that writing it gives nobody a new minute.
#[derive(Debug, Default)]
pub(super) struct Usages {
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// Requests that may come at once; may hold a part of one.
    tokens: f64,
    filled: Instant,
    open: Arc<AtomicU32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OverLimit {
    pub limit: String,
    pub retry_after: Duration,
}

/// A request that counts until it is dropped.
#[derive(Debug)]
pub struct OpenUse(Arc<AtomicU32>);

impl Drop for OpenUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Usages {
    pub fn begin(&self, name: &str, limits: KeyLimits, now: Instant) -> Result<OpenUse, OverLimit> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(name.to_owned()).or_insert_with(|| Bucket {
            // As full as the limit allows, also one that comes later.
            tokens: f64::INFINITY,
            filled: now,
            open: Arc::default(),
        });
        if let Some(limit) = limits.concurrent_requests
            && bucket.open.load(Ordering::Relaxed) >= limit
        {
            return Err(OverLimit {
                limit: format!("{limit} requests at a time"),
                retry_after: CONCURRENT_RETRY,
            });
        }
        if let Some(limit) = limits.requests_per_minute {
            bucket.take(limit, now)?;
        }
        bucket.open.fetch_add(1, Ordering::Relaxed);
        Ok(OpenUse(Arc::clone(&bucket.open)))
    }
}

impl Bucket {
    fn take(&mut self, limit: u32, now: Instant) -> Result<(), OverLimit> {
        let per_second = f64::from(limit) / MINUTE.as_secs_f64();
        let gained = now.duration_since(self.filled).as_secs_f64() * per_second;
        self.tokens = (self.tokens + gained).min(f64::from(limit));
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(OverLimit {
                limit: format!("{limit} requests a minute"),
                retry_after: Duration::from_secs_f64((1.0 - self.tokens) / per_second),
            });
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_its_requests_and_says_when_the_next_may_come() {
        let usages = Usages::default();
        let limits = KeyLimits {
            requests_per_minute: Some(2),
            concurrent_requests: None,
        };
        let start = Instant::now();
        let begin = |seconds| usages.begin("ada", limits, start + Duration::from_secs(seconds));
        assert!(begin(0).is_ok() && begin(0).is_ok());
        assert_eq!(begin(0).unwrap_err().retry_after, Duration::from_secs(30));
        assert_eq!(begin(10).unwrap_err().retry_after, Duration::from_secs(20));
        assert!(begin(30).is_ok());
        assert!(begin(30).is_err());
        assert!(
            usages.begin("bob", limits, start).is_ok(),
            "each has a minute of its own"
        );
        // A long silence earns no more than a minute's.
        assert!(begin(3600).is_ok() && begin(3600).is_ok() && begin(3600).is_err());
    }

    #[test]
    fn a_request_counts_until_it_ends() {
        let usages = Usages::default();
        let limits = KeyLimits {
            requests_per_minute: None,
            concurrent_requests: Some(1),
        };
        let begin = || usages.begin("ada", limits, Instant::now());
        let first = begin().unwrap();
        assert_eq!(begin().unwrap_err().retry_after, CONCURRENT_RETRY);
        drop(first);
        assert!(begin().is_ok());
    }
}
