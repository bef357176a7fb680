//! The coordinators that a client knows, and the ways to them.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use crate::{Channel, ClientError, Target};

/// At least one.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Remembered>,
    /// Where the next request begins to ask: requests go around.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Remembered {
    target: Target,
    /// What was connected once connects itself again.
    channel: Mutex<Option<Channel>>,
}

impl Endpoints {
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Result<Self, ClientError> {
        let remembered = |target| Remembered {
            target,
            channel: Mutex::default(),
        };
        let all: Vec<_> = targets.into_iter().map(remembered).collect();
        match all.is_empty() {
            true => Err(ClientError::NoEndpoint),
            false => Ok(Self {
                all,
                turn: AtomicUsize::new(0),
            }),
        }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// `nth` goes around.
    pub async fn channel(&self, nth: usize) -> Result<Channel, ClientError> {
        let remembered = &self.all[nth % self.all.len()];
        if let Some(channel) = remembered.channel() {
            return Ok(channel);
        }
        let channel = remembered.target.connect().await?;
        *remembered.lock() = Some(channel.clone());
        Ok(channel)
    }
}

impl Remembered {
    fn channel(&self) -> Option<Channel> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Channel>> {
        // Nothing panics while it is held.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
