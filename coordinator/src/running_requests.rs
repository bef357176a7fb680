//! The requests whose streams are open, by the client's name for them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kvasir_kv::{RequestId, SequenceId};

use crate::driver::ClusterHandle;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("request {request_id:?} is running already")]
pub struct AlreadyRunning {
    pub request_id: RequestId,
}

#[derive(Debug, Default)]
pub struct RunningRequests {
    by_id: Mutex<HashMap<RequestId, SequenceId>>,
}

impl RunningRequests {
    /// The request runs until what this returns is dropped.
    pub fn enter(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: RequestId,
        sequence: SequenceId,
    ) -> Result<RunningRequest, AlreadyRunning> {
        match self.lock().entry(request_id.clone()) {
            Entry::Occupied(_) => return Err(AlreadyRunning { request_id }),
            Entry::Vacant(vacant) => vacant.insert(sequence),
        };
        Ok(self.running(cluster, request_id, sequence))
    }

    /// As `enter`, but for a client that comes back: a stream that it lost, and we do not know it yet, gives way.
    pub fn take_over(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: RequestId,
        sequence: SequenceId,
    ) -> RunningRequest {
        if let Some(lost) = self.lock().insert(request_id.clone(), sequence) {
            cluster.cancel_soon(lost);
        }
        self.running(cluster, request_id, sequence)
    }

    pub fn find(&self, request_id: &RequestId) -> Option<SequenceId> {
        self.lock().get(request_id).copied()
    }

    fn running(
        self: &Arc<Self>,
        cluster: &ClusterHandle,
        request_id: RequestId,
        sequence: SequenceId,
    ) -> RunningRequest {
        RunningRequest {
            requests: self.clone(),
            cluster: cluster.clone(),
            request_id,
            sequence,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, SequenceId>> {
        // Each change is one call on the map.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping it frees the name and cancels the sequence if that has not ended.
#[derive(Debug)]
pub struct RunningRequest {
    requests: Arc<RunningRequests>,
    cluster: ClusterHandle,
    request_id: RequestId,
    sequence: SequenceId,
}

impl RunningRequest {
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let mut by_id = self.requests.lock();
        if by_id.get(&self.request_id) == Some(&self.sequence) {
            by_id.remove(&self.request_id);
        }
        drop(by_id);
        self.cluster.cancel_soon(self.sequence);
    }
}
