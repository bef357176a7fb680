//! When the measured requests are sent: as others end (closed loop), or at times of their own (open loop).

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{arrivals::Arrivals, client::Client, outcome::Outcome};

#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// At most `concurrency` at a time, each sent when another has ended.
    Closed { requests: u32, concurrency: NonZeroU16 },
    /// On average `per_s` in each second, however many are running.
    Open { per_s: f64, until: Until },
}

#[derive(Clone, Copy, Debug)]
pub enum Until {
    Requests(u32),
    /// Requests arrive so long; the last ones end later.
    Elapsed(Duration),
}

impl Load {
    /// Streams that are sure to run at once.
    pub fn streams(&self) -> usize {
        match self {
            Self::Closed { concurrency, .. } => usize::from(concurrency.get()),
            Self::Open { .. } => 1,
        }
    }

    /// Waits for the end of all requests. Returns their outcomes by index.
    pub async fn run(self, client: Arc<Client>) -> Vec<Outcome> {
        let mut outcomes = match self {
            Self::Closed { requests, concurrency } => closed(client, requests, concurrency).await,
            Self::Open { per_s, until } => open(client, per_s, until).await,
        };
        outcomes.sort_unstable_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

async fn closed(client: Arc<Client>, requests: u32, concurrency: NonZeroU16) -> Vec<(u32, Outcome)> {
    let room = Arc::new(Semaphore::new(usize::from(concurrency.get())));
    let mut tasks = JoinSet::new();
    for index in 0..requests {
        let permit = room.clone().acquire_owned().await.expect("nobody closes it");
        let client = client.clone();
        tasks.spawn(async move {
            let outcome = client.ask(index, |_| ()).await;
            drop(permit);
            (index, outcome)
        });
    }
    tasks.join_all().await
}

async fn open(client: Arc<Client>, per_s: f64, until: Until) -> Vec<(u32, Outcome)> {
    let arrivals = Arrivals::new(client.workload.arrivals_dice(), per_s);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, at) in (0..until.requests_max()).zip(arrivals) {
        if until.is_past(at) {
            break;
        }
        sleep_until(start + at).await;
        let client = client.clone();
        tasks.spawn(async move { (index, client.ask(index, |_| ()).await) });
    }
    tasks.join_all().await
}

impl Until {
    fn requests_max(self) -> u32 {
        match self {
            Self::Requests(requests) => requests,
            Self::Elapsed(_) => super::workload::Workload::REQUESTS_MAX,
        }
    }

    fn is_past(self, at: Duration) -> bool {
        matches!(self, Self::Elapsed(end) if at >= end)
    }
}
