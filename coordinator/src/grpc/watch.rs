//! The stream of those who watch: the status as it changes, and news.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use futures::Stream;
use kvasir_proto::v1::{self, watch_response::Event};
use tokio::{sync::broadcast::error::RecvError, time::MissedTickBehavior};
use tonic::Status;

use super::AdminService;

/// What a watcher is told.
pub type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

const INTERVAL: Duration = Duration::from_millis(250);
/// So that whoever watches can tell a quiet coordinator from a dead one.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The status when it has changed, and news as they come.
pub fn watch(admin: AdminService) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send + 'static {
    let (past, mut news) = admin.telemetry().news.follow();
    let response = |event| v1::WatchResponse { event: Some(event) };
    async_stream::try_stream! {
        let mut last: Option<v1::StatusResponse> = None;
        let mut told = Instant::now();
        for one in past {
            yield response(Event::News(one));
        }
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let came = tokio::select! {
                biased;
                came = news.recv() => Some(came),
                _ = ticks.tick() => None,
            };
            match came {
                Some(Ok(one)) => yield response(Event::News(one)),
                // Too slow: what it missed is lost to it.
                Some(Err(RecvError::Lagged(_))) => {}
                Some(Err(RecvError::Closed)) => return,
                None => {
                    let status = admin.report().await?;
                    let is_new = last.as_ref().is_none_or(|last| differs(last, &status));
                    if is_new || told.elapsed() >= SILENCE_MAX {
                        told = Instant::now();
                        last = Some(status.clone());
                        yield response(Event::Status(status));
                    }
                }
            }
        }
    }
}

/// In more than the passing of time.
fn differs(last: &v1::StatusResponse, now: &v1::StatusResponse) -> bool {
    let timeless = |status: &v1::StatusResponse| {
        let mut status = status.clone();
        status.uptime_ms = 0;
        for group in &mut status.groups {
            for rank in &mut group.ranks {
                rank.worker.iter_mut().for_each(|worker| worker.silent_ms = 0);
            }
        }
        status.spares.iter_mut().for_each(|spare| spare.silent_ms = 0);
        status
    };
    timeless(last) != timeless(now)
}
