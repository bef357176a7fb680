//! The door that workers join at where there is no coordinator: the same service and messages, and nothing decided behind it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use kvasir_kv::{FromWorker, ToWorker};
use kvasir_proto::{
    convert::{self, Arrival},
    v1::{
        self,
        cluster_server::{Cluster, ClusterServer},
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

/// As a coordinator's: steps in flight and an epoch's few messages.
const OUTBOX_MAX: usize = 256;
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// What workers say, but for heartbeats; each has a place, in the order in which they joined.
#[derive(Debug)]
pub enum News {
    Joined(Outbox),
    Said { place: usize, message: FromWorker },
    Gone { place: usize, reason: String },
}

/// The way to one worker.
#[derive(Debug)]
pub struct Outbox(mpsc::Sender<Result<v1::ToWorker, Status>>);

impl Outbox {
    /// Errors if the worker is gone, or does not read.
    pub fn send(&self, message: ToWorker) -> Result<()> {
        let sent = self.0.try_send(Ok(convert::to_worker(message)));
        sent.context("a worker does not take what it is sent")
    }
}

#[derive(Debug)]
pub struct RankDoor {
    news: mpsc::Sender<News>,
    joined: AtomicUsize,
}

impl RankDoor {
    pub fn new(news: mpsc::Sender<News>) -> Self {
        Self {
            news,
            joined: AtomicUsize::new(0),
        }
    }

    /// Until `shutdown`; then every worker's stream ends.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .add_service(ClusterServer::new(self))
            .serve_with_incoming_shutdown(incoming, shutdown.cancelled());
        serving.await.context("the door that workers join at failed")
    }
}

#[tonic::async_trait]
impl Cluster for RankDoor {
    type JoinStream = ReceiverStream<Result<v1::ToWorker, Status>>;

    async fn join(&self, request: Request<Streaming<v1::FromWorker>>) -> Result<Response<Self::JoinStream>, Status> {
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_DEADLINE, inbound.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        match hello.map(convert::parse_from_worker) {
            Some(Ok(Arrival::Hello(_))) => {}
            _ => return Err(Status::invalid_argument("the first message must be a hello")),
        }
        let (outbox, outbound) = mpsc::channel(OUTBOX_MAX);
        let place = self.joined.fetch_add(1, Ordering::Relaxed);
        let joined = self.news.send(News::Joined(Outbox(outbox))).await;
        joined.map_err(|_| Status::unavailable("the measurement is over"))?;
        // Ends with the worker's stream, or when nobody listens any more.
        tokio::spawn(listen(self.news.clone(), place, inbound));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

async fn listen(news: mpsc::Sender<News>, place: usize, mut inbound: Streaming<v1::FromWorker>) {
    let reason = loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break "its stream ended".to_owned(),
            Err(status) => break status.message().to_owned(),
        };
        let message = match convert::parse_from_worker(message) {
            Ok(Arrival::Message(message)) => message,
            Ok(Arrival::Hello(_)) => break "it said hello twice".to_owned(),
            Ok(Arrival::Superseded(_)) => break "it left for another coordinator".to_owned(),
            Err(error) => break error.to_string(),
        };
        // Nobody here watches for signs of life.
        let is_heartbeat = matches!(message, FromWorker::Heartbeat(_));
        if !is_heartbeat && news.send(News::Said { place, message }).await.is_err() {
            return;
        }
    };
    // Nobody needs to know when the measurement is over.
    let _ = news.send(News::Gone { place, reason }).await;
}
