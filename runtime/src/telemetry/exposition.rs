//! The metrics as Prometheus reads them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{Encoder as _, Registry, TextEncoder, proto::MetricFamily};

use super::aliases;

/// Brings what is read at a scrape up to date.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Clone)]
pub struct Exposition {
    registry: Registry,
    vllm_names: bool,
    refresh: Arc<Mutex<Option<Refresh>>>,
}

impl Exposition {
    pub(super) fn new(registry: Registry, vllm_names: bool) -> Self {
        Self {
            registry,
            vllm_names,
            refresh: Arc::default(),
        }
    }

    /// To be done before each scrape.
    pub fn refresh_with(&self, refresh: Refresh) {
        *self.refresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(refresh);
    }

    /// The text format 0.0.4.
    pub async fn text(&self) -> String {
        let refresh = self.refresh.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(refresh) = refresh {
            refresh().await;
        }
        // Where metrics also go to a collector, callbacks for one reader leave series of what has gone in the other's hands
        // for one more time.
        drop(self.registry.gather());
        let mut families = self.registry.gather();
        if self.vllm_names {
            families.extend(aliases::of(&families));
        }
        encode(&families)
    }
}

fn encode(families: &[MetricFamily]) -> String {
    let mut text = Vec::new();
    // Errors on families without samples, which are none.
    let _ = TextEncoder::new().encode(families, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}
