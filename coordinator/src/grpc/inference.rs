//! `kvasir.v1.Inference`: Generate, Tokenize, Abort.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc};

use futures::Stream;
use kvasir_kv::{RequestId, SequenceId};
use kvasir_proto::v1::{self, inference_server::Inference};
use tonic::{Request, Response, Status};

use super::status;
use crate::{
    driver::ClusterHandle,
    generate::{self, unix_ms},
    intake::{Accepted, Intake},
    running_requests::RunningRequests,
};

pub struct InferenceService {
    cluster: ClusterHandle,
    intake: Arc<Intake>,
    running: Arc<RunningRequests>,
}

impl InferenceService {
    pub fn new(cluster: ClusterHandle, intake: Arc<Intake>) -> Self {
        Self {
            cluster,
            intake,
            running: Arc::default(),
        }
    }

    /// Tokenizing a long prompt takes too long for a thread that serves others.
    async fn accept(&self, request: v1::GenerateRequest) -> Result<Accepted, Status> {
        let intake = self.intake.clone();
        let accepted = tokio::task::spawn_blocking(move || intake.accept(request, unix_ms())).await;
        accepted
            .map_err(|_| status::internal("checking the request failed"))?
            .map_err(|error| status::request_error(&error))
    }
}

impl fmt::Debug for InferenceService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InferenceService").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let accepted = self.accept(request.into_inner()).await?;
        let cluster = &self.cluster;
        let request_id = accepted.request.id.clone();
        let choices: BTreeMap<u32, SequenceId> = accepted
            .choices()
            .map(|choice| (choice, cluster.next_sequence()))
            .collect();
        let running = if accepted.resumed {
            let take_over = |(choice, sequence)| self.running.take_over(cluster, request_id.clone(), choice, sequence);
            choices.into_iter().map(take_over).collect()
        } else {
            let entered = self.running.enter(cluster, request_id, choices);
            entered.map_err(status::already_running)?
        };
        let tokenizer = self.intake.tokenizer();
        let stream = generate::stream(accepted, tokenizer, cluster.clone(), running);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        let tokenizer = self.intake.tokenizer().clone();
        let encoded = tokio::task::spawn_blocking(move || tokenizer.encode(&request.text, !request.plain)).await;
        let tokens = encoded
            .map_err(|_| status::internal("tokenizing the text failed"))?
            .map_err(|error| status::request_error(&error.into()))?;
        let token_ids = tokens.into_iter().map(|token| token.0).collect();
        Ok(Response::new(v1::TokenizeResponse { token_ids }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let request_id = RequestId(request.into_inner().request_id);
        let sequences = self.running.find(&request_id);
        for sequence in &sequences {
            self.cluster.cancel(*sequence).await.map_err(status::shutting_down)?;
        }
        Ok(Response::new(v1::AbortResponse {
            found: !sequences.is_empty(),
        }))
    }
}
