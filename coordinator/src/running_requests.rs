//! The requests whose streams are open, by the client's name for them and by choice. Names are a client's own: where
//! clients are known, none can take over or end what another one asked for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kvasir_kv::{RequestId, SequenceId};

use crate::driver::ClusterHandle;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("request {request_id:?} is running already")]
pub struct AlreadyRunning {
    pub request_id: RequestId,
}

/// A request by who asks, if that is known, and what they call it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OwnRequest {
    pub owner: Option<String>,
    pub id: RequestId,
}

/// The sequence of each choice.
type Choices = BTreeMap<u32, SequenceId>;

#[derive(Debug, Default)]
pub struct RunningRequests {
    /// None without choices.
    by_id: Mutex<HashMap<OwnRequest, Choices>>,
}

impl RunningRequests {
    /// Each choice runs until its part of what this returns is dropped.
    pub fn enter(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request: OwnRequest,
        choices: Choices,
    ) -> Result<Vec<RunningChoice>, AlreadyRunning> {
        let mut by_id = self.lock();
        if by_id.contains_key(&request) {
            return Err(AlreadyRunning { request_id: request.id });
        }
        by_id.insert(request.clone(), choices.clone());
        drop(by_id);
        let running = |(choice, sequence)| self.running(cluster, &request, choice, sequence);
        Ok(choices.into_iter().map(running).collect())
    }

    /// As `enter`, but for a client that comes back: a stream that it lost, and we do not know it yet, gives way.
    pub fn take_over(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request: OwnRequest,
        choice: u32,
        sequence: SequenceId,
    ) -> RunningChoice {
        let mut by_id = self.lock();
        let lost = by_id.entry(request.clone()).or_default().insert(choice, sequence);
        drop(by_id);
        if let Some(lost) = lost {
            cluster.cancel_soon(lost);
        }
        self.running(cluster, &request, choice, sequence)
    }

    /// All choices of a request.
    pub fn find(&self, request: &OwnRequest) -> Vec<SequenceId> {
        let by_id = self.lock();
        let choices = by_id.get(request).into_iter().flat_map(BTreeMap::values);
        choices.copied().collect()
    }

    fn running(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request: &OwnRequest,
        choice: u32,
        sequence: SequenceId,
    ) -> RunningChoice {
        RunningChoice {
            requests: self.clone(),
            cluster: cluster.clone(),
            request: request.clone(),
            choice,
            sequence,
        }
    }

    /// Unless another stream has taken over.
    fn leave(&self, request: &OwnRequest, choice: u32, sequence: SequenceId) {
        let mut by_id = self.lock();
        let Some(choices) = by_id.get_mut(request) else {
            return;
        };
        if choices.get(&choice) == Some(&sequence) {
            choices.remove(&choice);
        }
        if choices.is_empty() {
            by_id.remove(request);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnRequest, Choices>> {
        // Nothing panics between the changes of one call.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping it frees the name and cancels the sequence if that has not ended.
#[derive(Debug)]
pub struct RunningChoice {
    requests: Arc<RunningRequests>,
    cluster: ClusterHandle,
    request: OwnRequest,
    choice: u32,
    sequence: SequenceId,
}

impl RunningChoice {
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }
}

impl Drop for RunningChoice {
    fn drop(&mut self) {
        self.requests.leave(&self.request, self.choice, self.sequence);
        self.cluster.cancel_soon(self.sequence);
    }
}
