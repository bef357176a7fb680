//! `kvasir.v1.Inference` by asking others: coordinators that serve the same model, with retry and resume.

use futures::StreamExt as _;
use kvasir_client::{Client, ClientError, Target, Update};
use kvasir_proto::v1::{self, inference_server::Inference};
use kvasir_runtime::access::Principal;
use tonic::{Request, Response, Status};

use crate::answers::Responses;

/// Answers go on at another coordinator when theirs dies; whoever reads them sees a pause.
#[derive(Clone, Debug)]
pub struct RemoteInference {
    client: Client,
}

impl RemoteInference {
    /// Errors if there is no target.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Result<Self, ClientError> {
        Ok(Self {
            client: Client::new(targets)?,
        })
    }
}

#[tonic::async_trait]
impl Inference for RemoteInference {
    type GenerateStream = Responses;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Responses>, Status> {
        let owner = request.extensions().get::<Principal>().cloned();
        let mut request = request.into_inner();
        if let Some(owner) = owner {
            // The coordinator knows this process alone.
            request.tenant = owner.tenant(&request.tenant);
        }
        let updates = self.client.generate(request).await?;
        let responses = updates.filter_map(|update| async {
            match update {
                Ok(Update::Response(response)) => Some(Ok(*response)),
                Ok(_) => None,
                Err(error) => Some(Err(error.into())),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        let asked = self.client.ask(|mut one| {
            let request = request.clone();
            async move { one.tokenize(request).await }
        });
        Ok(Response::new(asked.await?))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let request = request.into_inner();
        let asked = self.client.ask(|mut one| {
            let request = request.clone();
            async move { one.detokenize(request).await }
        });
        Ok(Response::new(asked.await?))
    }

    /// Wherever it runs.
    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let request = request.into_inner();
        let asked = self.client.ask_all(|mut one| {
            let request = request.clone();
            async move { one.abort(request).await }
        });
        let mut asked = std::pin::pin!(asked);
        let mut found = false;
        while let Some(aborted) = asked.next().await {
            found |= aborted.is_ok_and(|aborted| aborted.found);
        }
        Ok(Response::new(v1::AbortResponse { found }))
    }

    /// Of the first coordinator that says it can answer, else of any. Errors if none can be reached.
    async fn get_model(&self, _: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let asked = self
            .client
            .ask_all(|mut one| async move { one.get_model(v1::GetModelRequest {}).await });
        let mut asked = std::pin::pin!(asked);
        let mut best = Err(ClientError::NoEndpoint);
        while let Some(model) = asked.next().await {
            match model {
                Ok(model) if model.ready => return Ok(Response::new(model)),
                model if best.is_err() => best = model,
                _ => {}
            }
        }
        Ok(Response::new(best?))
    }
}
