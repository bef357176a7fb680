//! `kvasir.v1.Inference` where several coordinators could lead: answers come from the one that does.
//!
//! What needs the model's files alone is answered here, whoever leads.

use kvasir_proto::v1::{self, inference_client::InferenceClient, inference_server::Inference};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{InferenceService, hand_on::hand_on, inference::Responses};
use crate::lead::Lead;

/// The scores of a long prompt.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Debug)]
pub struct LedInference {
    own: InferenceService,
    lead: Lead,
    /// Whether answers come, from here or from the leader.
    answers: watch::Receiver<bool>,
}

impl LedInference {
    pub fn new(own: InferenceService, lead: Lead, answers: watch::Receiver<bool>) -> Self {
        Self { own, lead, answers }
    }
}

#[tonic::async_trait]
impl Inference for LedInference {
    type GenerateStream = Responses;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Responses>, Status> {
        if self.lead.leads() {
            return self.own.generate(request).await;
        }
        hand_on!(
            &self.lead,
            request,
            |request| self.own.generate(request).await,
            |channel, request| {
                let mut leader = InferenceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
                let response = leader.generate(request).await;
                response.map(|response| response.map(|stream| Box::pin(stream) as Responses))
            }
        )
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        self.own.tokenize(request).await
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        self.own.detokenize(request).await
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let mut response = self.own.get_model(request).await?;
        if !self.lead.leads() {
            response.get_mut().ready = *self.answers.borrow();
        }
        Ok(response)
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.own.abort(request).await,
            |channel, request| InferenceClient::new(channel).abort(request).await
        )
    }
}
