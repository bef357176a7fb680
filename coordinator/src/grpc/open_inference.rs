//! `inference.GRPCInferenceService`: the Open Inference Protocol, over our own service.

use futures::{StreamExt as _, future::try_join_all};
use kvasir_proto::{
    inference::{
        ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
        ServerReadyRequest, ServerReadyResponse, grpc_inference_service_server::GrpcInferenceService,
        model_metadata_response::TensorMetadata,
    },
    v1::{self, generate_request::Prompt, generate_response::Event, inference_server::Inference},
};
use tonic::{Request, Response, Status};

use super::{
    LedInference, status,
    tensors::{BYTES, OUTPUTS, TEXT_INPUT, UINT32, infer_parameters, requested, text_input},
};

/// The version that every model has.
const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub struct OpenInferenceService {
    inference: LedInference,
}

/// What came of one prompt.
#[derive(Clone, Debug, Default)]
pub struct Inferred {
    pub text: String,
    pub finish_reason: &'static str,
    pub completion_tokens: u32,
}

impl OpenInferenceService {
    pub fn new(inference: LedInference) -> Self {
        Self { inference }
    }

    async fn model(&self) -> Result<v1::GetModelResponse, Status> {
        let model = self.inference.get_model(Request::new(v1::GetModelRequest {})).await?;
        Ok(model.into_inner())
    }

    /// Errors if that is not what is served.
    async fn check_model(&self, name: &str, version: &str) -> Result<v1::GetModelResponse, Status> {
        let model = self.model().await?;
        let is_served = model.served_names.iter().any(|served| served == name);
        match is_served && ["", VERSION].contains(&version) {
            true => Ok(model),
            false => Err(status::no_such_model(name, version, &model.served_names)),
        }
    }

    async fn infer(&self, request: v1::GenerateRequest, extensions: tonic::Extensions) -> Result<Inferred, Status> {
        let mut request = Request::new(request);
        *request.extensions_mut() = extensions;
        let mut responses = self.inference.generate(request).await?.into_inner();
        let mut inferred = Inferred::default();
        while let Some(response) = responses.next().await {
            match response?.event {
                Some(Event::Chunk(chunk)) => inferred.text += &chunk.text,
                Some(Event::Finished(finished)) => {
                    inferred.text += &finished.text;
                    inferred.finish_reason = match finished.reason() {
                        v1::FinishReason::Stop => "stop",
                        v1::FinishReason::Length => "length",
                        v1::FinishReason::Cancelled | v1::FinishReason::Unspecified => "cancelled",
                    };
                    inferred.completion_tokens = finished.usage.unwrap_or_default().completion_tokens;
                }
                Some(Event::Started(_) | Event::PromptScores(_)) | None => {}
            }
        }
        Ok(inferred)
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for OpenInferenceService {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.model().await?.ready;
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.check_model(&name, &version).await?.ready;
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "kvasir".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        self.check_model(&name, &version).await?;
        Ok(Response::new(ModelMetadataResponse {
            name,
            versions: vec![VERSION.to_owned()],
            platform: "kvasir".to_owned(),
            inputs: vec![metadata(TEXT_INPUT, BYTES)],
            outputs: OUTPUTS
                .iter()
                .map(|(name, datatype)| metadata(name, datatype))
                .collect(),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        self.check_model(&request.model_name, &request.model_version).await?;
        let wrong = |error| status::infer_error(&error);
        let outputs = requested(&request).map_err(wrong)?;
        let prompts = text_input(&request).map_err(wrong)?;
        let asked = infer_parameters(&request.parameters).map_err(wrong)?;
        let inferred = try_join_all(prompts.into_iter().enumerate().map(|(nth, text)| {
            let request_id = match (request.id.as_str(), nth) {
                ("", _) => String::new(),
                (id, 0) => id.to_owned(),
                (id, nth) => format!("{id}-{nth}"),
            };
            let request = v1::GenerateRequest {
                request_id,
                prompt: Some(Prompt::Text(text)),
                ..asked.clone()
            };
            self.infer(request, extensions.clone())
        }));
        let (contents, raw) = outputs.write(&inferred.await?, !request.raw_input_contents.is_empty());
        Ok(Response::new(ModelInferResponse {
            model_name: request.model_name,
            model_version: VERSION.to_owned(),
            id: request.id,
            outputs: contents,
            raw_output_contents: raw,
            ..Default::default()
        }))
    }
}

/// Of any number of prompts.
fn metadata(name: &str, datatype: &str) -> TensorMetadata {
    debug_assert!([BYTES, UINT32].contains(&datatype));
    TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![-1],
    }
}
