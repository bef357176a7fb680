//! An epoch that gets ready while another one works: a thread loads its units and meets its peers, and room for its cells
//! is there already, so that cells can come ahead.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use kvasir_kv::{Epoch, EpochSpec, LoadReport};

use crate::{
    backend::{BackendError, Preload, Preloaded},
    collective::{Collective, CollectiveError, Endpoint, Listening, Terms},
    rank::RankInput,
    rank_books::RankBooks,
    transfer::Side,
};

/// Puts something into a rank's inbox.
pub(crate) type Notify = Arc<dyn Fn(RankInput) + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// What the thread that prepares an epoch comes to.
#[derive(Debug)]
pub struct PreparedOutcome {
    pub(crate) epoch: Epoch,
    result: Result<Ready, PrepareError>,
}

#[derive(Debug)]
pub(crate) struct Ready {
    pub collective: Box<dyn Collective>,
    pub preloaded: Option<Preloaded>,
    load: LoadReport,
}

pub(crate) struct PreparedEpoch {
    pub spec: EpochSpec,
    /// The epoch that worked when this one was prepared: cells of it are to live on.
    pub beside: Option<Epoch>,
    pub books: RankBooks,
    pub terms: Terms,
    endpoints: SyncSender<Vec<Endpoint>>,
    ready: Option<Ready>,
}

impl PreparedEpoch {
    /// Errors if the system gives no thread.
    pub fn start(
        spec: EpochSpec,
        beside: Option<Epoch>,
        listening: Listening,
        terms: Terms,
        preload: Option<Preload>,
        notify: Notify,
    ) -> std::io::Result<Self> {
        // One message, once: the sender never waits.
        let (endpoints, inbox) = sync_channel(1);
        let (epoch, thread_terms) = (spec.epoch, terms.clone());
        let prepare = move || {
            if let Some(result) = get_ready(preload, listening, &inbox, thread_terms) {
                notify(RankInput::Prepared(Box::new(PreparedOutcome { epoch, result })));
            }
        };
        thread::Builder::new()
            .name("kvasir-prepare".to_owned())
            .spawn(prepare)?;
        Ok(Self {
            books: RankBooks::new(&spec),
            spec,
            beside,
            terms,
            endpoints,
            ready: None,
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.spec.epoch
    }

    /// The peers can be met now.
    pub fn connect(&mut self, endpoints: Vec<String>) {
        // Told twice, or the thread has failed and said so.
        let _ = self.endpoints.try_send(endpoints.into_iter().map(Endpoint).collect());
    }

    pub fn take(&mut self, outcome: PreparedOutcome) -> Result<LoadReport, PrepareError> {
        let ready = outcome.result?;
        let load = ready.load;
        self.ready = Some(ready);
        Ok(load)
    }

    pub fn into_ready(mut self) -> Option<(Self, Ready)> {
        let ready = self.ready.take()?;
        Some((self, ready))
    }

    pub fn side(&mut self) -> Side<'_> {
        Side {
            epoch: self.spec.epoch,
            rank: self.spec.rank,
            heads: self.spec.shares[self.spec.rank.0 as usize].attention.clone(),
            books: &mut self.books,
            seals: None,
        }
    }
}

/// `None` if the epoch was dropped before its peers could be met.
fn get_ready(
    preload: Option<Preload>,
    listening: Listening,
    endpoints: &Receiver<Vec<Endpoint>>,
    terms: Terms,
) -> Option<Result<Ready, PrepareError>> {
    let begun = Instant::now();
    let preloaded = match preload.map(|load| load()).transpose() {
        Ok(preloaded) => preloaded,
        Err(error) => return Some(Err(error.into())),
    };
    let load = LoadReport {
        units_loaded: preloaded.as_ref().map_or(0, Preloaded::num_units),
        load_ms: begun.elapsed().as_millis() as u32,
        ..LoadReport::default()
    };
    let endpoints = endpoints.recv().ok()?;
    let connected = listening.connect(&endpoints, terms);
    Some(connected.map_err(PrepareError::from).map(|collective| Ready {
        collective,
        preloaded,
        load,
    }))
}
