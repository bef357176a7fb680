//! `kvasir.v1.Cluster`: a worker's stream. It begins with a hello; its end is the end of the worker's lease.

use std::{sync::Arc, time::Duration};

use kvasir_kv::WorkerInfo;
use kvasir_proto::{
    convert::{self, Arrival},
    v1::{self, cluster_server::Cluster},
};
use kvasir_runtime::{
    door::ConnInfo,
    refusals::{Refusal, Refusals},
    registry::records::LeaderRecord,
    tls::Identity,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::status;
use crate::{
    SessionId,
    driver::{ClusterHandle, WorkerLink},
    lead::Lead,
};

/// A worker that reads is never behind by more than its steps in flight and an epoch's few messages.
const OUTBOX_MAX: usize = 256;
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct ClusterService {
    cluster: ClusterHandle,
    sessions: TaskTracker,
    refusals: Arc<Refusals>,
    lead: Lead,
}

impl ClusterService {
    /// `sessions` tracks one task per worker.
    pub fn new(cluster: ClusterHandle, sessions: TaskTracker, refusals: Arc<Refusals>, lead: Lead) -> Self {
        Self {
            cluster,
            sessions,
            refusals,
            lead,
        }
    }

    /// Workers obey whoever leads.
    fn check_leads(&self) -> Result<(), Status> {
        match self.lead.leads() {
            true => Ok(()),
            false => Err(status::not_leader(self.lead.leader().as_ref())),
        }
    }

    /// A certificate is for one worker: another's name is not to be had with it.
    fn check_identity(&self, info: &WorkerInfo, conn: Option<&ConnInfo>) -> Result<(), Status> {
        let Some((conn, identity)) = conn.and_then(|conn| Some((conn, conn.identity.as_ref()?))) else {
            // Nobody asked for certificates, or the request would not have come this far.
            return Ok(());
        };
        if *identity == Identity::Worker(info.id.0.clone()) {
            return Ok(());
        }
        let error = status::other_identity(&info.id, identity);
        self.refusals.refuse(Refusal::OtherIdentity, conn.peer, error.message());
        Err(error)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    type JoinStream = ReceiverStream<Result<v1::ToWorker, Status>>;

    async fn join(&self, request: Request<Streaming<v1::FromWorker>>) -> Result<Response<Self::JoinStream>, Status> {
        let conn = request.extensions().get::<ConnInfo>().cloned();
        self.check_leads()?;
        let mut inbound = request.into_inner();
        let info = tokio::time::timeout(HELLO_DEADLINE, read_hello(&mut inbound))
            .await
            .map_err(|_| status::no_hello(HELLO_DEADLINE))??;
        self.check_identity(&info, conn.as_ref())?;
        let session = self.cluster.next_session();
        let (outbox, outbound) = mpsc::channel(OUTBOX_MAX);
        let closing = CancellationToken::new();
        let link = WorkerLink {
            outbox,
            closing: closing.clone(),
        };
        let joined = self.cluster.join(session, info, link).await;
        joined.map_err(status::shutting_down)?;
        self.sessions.spawn(listen(
            self.cluster.clone(),
            self.lead.clone(),
            session,
            inbound,
            closing,
        ));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

async fn read_hello(inbound: &mut Streaming<v1::FromWorker>) -> Result<WorkerInfo, Status> {
    let first = inbound.message().await?;
    let first = first.ok_or_else(|| status::bad_hello("the stream ended before a hello".to_owned()))?;
    match convert::parse_from_worker(first) {
        Ok(Arrival::Hello(info)) => Ok(info),
        Ok(Arrival::Message(_) | Arrival::Superseded(_)) => {
            Err(status::bad_hello("the first message must be a hello".to_owned()))
        }
        Err(error) => Err(status::bad_hello(error.to_string())),
    }
}

/// Delivers what a worker says until its stream ends, it talks nonsense, or nobody listens any more.
async fn listen(
    cluster: ClusterHandle,
    lead: Lead,
    session: SessionId,
    mut inbound: Streaming<v1::FromWorker>,
    closing: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            message = inbound.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                debug!(%session, %error, "worker's stream broke");
                break;
            }
        };
        match convert::parse_from_worker(message) {
            Ok(Arrival::Message(message)) => {
                if cluster.worker_says(session, message).await.is_err() {
                    break;
                }
            }
            Ok(Arrival::Superseded(by)) => {
                let v1::Superseded { term, name, url } = by;
                lead.tell_of(LeaderRecord { name, url, term });
                break;
            }
            Ok(Arrival::Hello(info)) => {
                warn!(%session, worker = %info.id, "second hello on one stream");
                break;
            }
            Err(error) => {
                warn!(%session, %error, "message that cannot be read");
                break;
            }
        }
    }
    // Nobody needs to know if the driver is gone.
    let _ = cluster.worker_gone(session).await;
}
