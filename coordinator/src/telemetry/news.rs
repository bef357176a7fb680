//! What happened last, for those who watch: numbered, kept for a while, lost to whoever does not read.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use kvasir_proto::v1;
use tokio::sync::broadcast;

use crate::generate::unix_ms;

/// Whoever begins to watch is told so much of the past.
const KEPT_MAX: usize = 100;
const QUEUE_MAX: usize = 256;

#[derive(Debug)]
pub struct News {
    told: Mutex<Told>,
    sender: broadcast::Sender<v1::News>,
}

#[derive(Debug, Default)]
struct Told {
    last_id: u64,
    kept: VecDeque<v1::News>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            told: Mutex::default(),
            sender: broadcast::channel(QUEUE_MAX).0,
        }
    }
}

/// The past, and what is to come.
pub type Follower = (Vec<v1::News>, broadcast::Receiver<v1::News>);

impl News {
    /// Number and time are given here.
    pub fn tell(&self, news: v1::News) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.last_id += 1;
        let news = v1::News {
            id: told.last_id,
            time_unix_ms: unix_ms(),
            ..news
        };
        if told.kept.len() == KEPT_MAX {
            told.kept.pop_front();
        }
        told.kept.push_back(news.clone());
        // There may be nobody who watches.
        let _ = self.sender.send(news);
    }

    pub fn follow(&self) -> Follower {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        (told.kept.iter().cloned().collect(), self.sender.subscribe())
    }
}
