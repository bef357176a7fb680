//! Connections to one endpoint, a few streams on each: one connection alone would be the bottleneck that is measured.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use kvasir_client::{Channel, Target};

const STREAMS_PER_CHANNEL: usize = 16;
/// When all of these are full, they get more streams each.
const CHANNELS_MAX: usize = 256;

#[derive(Debug)]
pub struct Channels {
    target: Target,
    open: Mutex<Vec<Lane>>,
}

/// A channel, and as many clones of `streams` as it has streams.
#[derive(Debug)]
struct Lane {
    channel: Channel,
    streams: Arc<()>,
}

/// The right to one stream on a channel, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    pub channel: Channel,
    _stream: Arc<()>,
}

impl Channels {
    /// Opens as many as `streams` streams need, so that no measured request waits for it. Errors if the endpoint does
    /// not answer.
    pub async fn connect(target: &Target, streams: usize) -> Result<Self> {
        let mut open = Vec::new();
        for _ in 0..streams.div_ceil(STREAMS_PER_CHANNEL).clamp(1, CHANNELS_MAX) {
            open.push(Lane::connect(target).await?);
        }
        Ok(Self {
            target: target.clone(),
            open: Mutex::new(open),
        })
    }

    /// Of the channel with the fewest streams, or of a new one if all are full.
    pub async fn lease(&self) -> Result<Lease> {
        if let Some(lease) = self.lease_open() {
            return Ok(lease);
        }
        let lane = Lane::connect(&self.target).await?;
        let lease = lane.lease();
        self.lock().push(lane);
        Ok(lease)
    }

    fn lease_open(&self) -> Option<Lease> {
        let open = self.lock();
        let emptiest = open.iter().min_by_key(|lane| lane.num_streams())?;
        let has_room = emptiest.num_streams() < STREAMS_PER_CHANNEL || open.len() >= CHANNELS_MAX;
        has_room.then(|| emptiest.lease())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Lane>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    async fn connect(target: &Target) -> Result<Self> {
        Ok(Self {
            channel: target.connect().await?,
            streams: Arc::default(),
        })
    }

    fn num_streams(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }

    fn lease(&self) -> Lease {
        Lease {
            channel: self.channel.clone(),
            _stream: self.streams.clone(),
        }
    }
}
