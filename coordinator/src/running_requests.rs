//! The requests whose streams are open, by the client's name for them and by choice.

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

/// The sequence of each choice.
type Choices = BTreeMap<u32, SequenceId>;

#[derive(Debug, Default)]
pub struct RunningRequests {
    /// None without choices.
    by_id: Mutex<HashMap<RequestId, Choices>>,
}

impl RunningRequests {
    /// Each choice runs until its part of what this returns is dropped.
    pub fn enter(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: RequestId,
        choices: Choices,
    ) -> Result<Vec<RunningChoice>, AlreadyRunning> {
        let mut by_id = self.lock();
        if by_id.contains_key(&request_id) {
            return Err(AlreadyRunning { request_id });
        }
        by_id.insert(request_id.clone(), choices.clone());
        drop(by_id);
        let running = |(choice, sequence)| self.running(cluster, &request_id, choice, sequence);
        Ok(choices.into_iter().map(running).collect())
    }

    /// As `enter`, but for a client that comes back: a stream that it lost, and we do not know it yet, gives way.
    pub fn take_over(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: RequestId,
        choice: u32,
        sequence: SequenceId,
    ) -> RunningChoice {
        let mut by_id = self.lock();
        let lost = by_id.entry(request_id.clone()).or_default().insert(choice, sequence);
        drop(by_id);
        if let Some(lost) = lost {
            cluster.cancel_soon(lost);
        }
        self.running(cluster, &request_id, choice, sequence)
    }

    /// All choices of a request.
    pub fn find(&self, request_id: &RequestId) -> Vec<SequenceId> {
        let by_id = self.lock();
        let choices = by_id.get(request_id).into_iter().flat_map(BTreeMap::values);
        choices.copied().collect()
    }

    fn running(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: &RequestId,
        choice: u32,
        sequence: SequenceId,
    ) -> RunningChoice {
        RunningChoice {
            requests: self.clone(),
            cluster: cluster.clone(),
            request_id: request_id.clone(),
            choice,
            sequence,
        }
    }

    /// Unless another stream has taken over.
    fn leave(&self, request_id: &RequestId, choice: u32, sequence: SequenceId) {
        let mut by_id = self.lock();
        let Some(choices) = by_id.get_mut(request_id) else {
            return;
        };
        if choices.get(&choice) == Some(&sequence) {
            choices.remove(&choice);
        }
        if choices.is_empty() {
            by_id.remove(request_id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Choices>> {
        // Nothing panics between the changes of one call.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping it frees the name and cancels the sequence if that has not ended.
#[derive(Debug)]
pub struct RunningChoice {
    requests: Arc<RunningRequests>,
    cluster: ClusterHandle,
    request_id: RequestId,
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
        self.requests.leave(&self.request_id, self.choice, self.sequence);
        self.cluster.cancel_soon(self.sequence);
    }
}
