//! `kvasir.v1.Inference`.
//!
//! Where clients are known, a request's tenant begins with who asks: nobody gets another's share, or finds another's cached
//! prefixes.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Instant};

use futures::Stream;
use kvasir_kv::{RequestId, SequenceId};
use kvasir_proto::v1::{self, generate_request::Prompt, inference_server::Inference};
use kvasir_runtime::{access::Principal, telemetry::propagation};
use opentelemetry::{Context, trace::FutureExt as _};
use tonic::{Request, Response, Status};

use super::{ModelFacts, status};
use crate::{
    driver::ClusterHandle,
    generate::{self, unix_ms},
    intake::{Accepted, Intake},
    running_requests::{OwnRequest, RunningChoice, RunningRequests},
    telemetry::{RequestRecord, request_span},
};

pub(crate) type Responses = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[derive(Clone)]
pub struct InferenceService {
    cluster: ClusterHandle,
    intake: Arc<Intake>,
    model: ModelFacts,
    running: Arc<RunningRequests>,
    /// Read once: the wall clock and the one that counts uptime do not turn their seconds together.
    started_unix: u64,
}

impl InferenceService {
    pub fn new(cluster: ClusterHandle, intake: Arc<Intake>, model: ModelFacts) -> Self {
        Self {
            cluster,
            intake,
            model,
            running: Arc::default(),
            started_unix: unix_ms() / 1000,
        }
    }

    async fn begin(
        &self,
        request: Request<v1::GenerateRequest>,
        began: Instant,
        context: &Context,
    ) -> Result<Responses, Status> {
        let operation = request_span::operation(request.get_ref());
        let owner = owner_of(&request);
        let mut request = request.into_inner();
        if let Some(owner) = &owner {
            own(&mut request, owner)?;
        }
        let accepted = self.accept(request).await?;
        let cluster = &self.cluster;
        let running_request = OwnRequest {
            owner: owner.map(|owner| owner.name),
            id: accepted.request.id.clone(),
        };
        let choices: BTreeMap<u32, SequenceId> = accepted
            .choices()
            .map(|choice| (choice, cluster.next_sequence()))
            .collect();
        let running: Vec<RunningChoice> = if accepted.resumed {
            let take_over = |(choice, sequence)| {
                self.running
                    .take_over(cluster, running_request.clone(), choice, sequence)
            };
            choices.into_iter().map(take_over).collect()
        } else {
            let entered = self.running.enter(cluster, running_request, choices);
            entered.map_err(status::already_running)?
        };
        let meters = Arc::clone(&cluster.telemetry().requests);
        let answers = running.len() as u32;
        let record = RequestRecord::new(meters, operation, began, context.clone(), &accepted.request, answers);
        let tokenizer = self.intake.tokenizer();
        let stream = generate::stream(accepted, tokenizer, cluster.clone(), running, &record);
        Ok(Box::pin(stream))
    }

    /// Tokenizing a long prompt takes too long for a thread that serves others.
    async fn accept(&self, request: v1::GenerateRequest) -> Result<Accepted, Status> {
        let intake = self.intake.clone();
        let accepted = off_thread("checking the request", move || intake.accept(request, unix_ms())).await?;
        accepted.map_err(|error| status::request_error(&error))
    }
}

async fn off_thread<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| status::internal(&format!("{what} failed")))
}

impl fmt::Debug for InferenceService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InferenceService").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = Responses;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let began = Instant::now();
        let operation = request_span::operation(request.get_ref());
        let parent = propagation::of_metadata(request.metadata());
        let context = request_span::begin(&parent, self.model.served_name(), request.get_ref());
        let begun = self.begin(request, began, &context).with_context(context.clone()).await;
        match begun {
            Ok(responses) => Ok(Response::new(request_span::within(context, responses))),
            Err(status) => {
                let code = request_span::code_name(status.code());
                self.cluster.telemetry().requests.refused(operation, began, code);
                request_span::refused(&context, &status);
                Err(status)
            }
        }
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        let intake = self.intake.clone();
        let response = off_thread("tokenizing the text", move || intake.tokenize(&request)).await?;
        response
            .map(Response::new)
            .map_err(|error| status::request_error(&error))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let token_ids = request.into_inner().token_ids;
        let intake = self.intake.clone();
        let text = off_thread("detokenizing", move || intake.detokenize(&token_ids)).await?;
        let text = text.map_err(|error| status::request_error(&error))?;
        Ok(Response::new(v1::DetokenizeResponse { text }))
    }

    async fn get_model(&self, _: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let model = &self.model;
        Ok(Response::new(v1::GetModelResponse {
            name: model.name.clone(),
            numerics_id: model.numerics_id.0.to_vec(),
            context_len: model.context_len,
            vocab_size: model.vocab_size,
            started_unix: self.started_unix,
            ready: *self.cluster.ready().borrow(),
            served_names: model.served_names.clone(),
        }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let owner = owner_of(&request).map(|owner| owner.name);
        let id = RequestId(request.into_inner().request_id);
        let sequences = self.running.find(&OwnRequest { owner, id });
        for sequence in &sequences {
            self.cluster.cancel(*sequence).await.map_err(status::shutting_down)?;
        }
        Ok(Response::new(v1::AbortResponse {
            found: !sequences.is_empty(),
        }))
    }
}

fn owner_of<T>(request: &Request<T>) -> Option<Principal> {
    request.extensions().get::<Principal>().cloned()
}

/// Makes the tenant one of the owner's. Errors if a descriptor is of somebody else's answer.
fn own(request: &mut v1::GenerateRequest, owner: &Principal) -> Result<(), Status> {
    if let Some(Prompt::Resume(resume)) = &request.prompt {
        let tenant = resume.descriptor.as_ref().map_or("", |found| found.tenant.as_str());
        let rest = tenant.strip_prefix(owner.name.as_str());
        return match rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            true => Ok(()),
            false => Err(status::not_own(&owner.name)),
        };
    }
    request.tenant = owner.tenant(&request.tenant);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(name: &str) -> Principal {
        Principal {
            name: name.to_owned(),
            admin: false,
        }
    }

    fn tenant_of(owner: &str, tenant: &str) -> String {
        let mut request = v1::GenerateRequest {
            tenant: tenant.to_owned(),
            ..Default::default()
        };
        own(&mut request, &principal(owner)).unwrap();
        request.tenant
    }

    fn resumes(owner: &str, tenant: &str) -> bool {
        let descriptor = Some(v1::ResumeDescriptor {
            tenant: tenant.to_owned(),
            ..Default::default()
        });
        let mut request = v1::GenerateRequest {
            prompt: Some(Prompt::Resume(v1::Resume {
                descriptor,
                ..Default::default()
            })),
            ..Default::default()
        };
        own(&mut request, &principal(owner)).is_ok()
    }

    #[test]
    fn a_tenant_is_ones_own() {
        assert_eq!(tenant_of("ada", ""), "ada");
        assert_eq!(tenant_of("ada", "team"), "ada/team");
        assert_eq!(tenant_of("ada", "bob"), "ada/bob");
        assert!(resumes("ada", "ada") && resumes("ada", "ada/team"));
        for tenant in ["", "bob", "adam", "bob/ada"] {
            assert!(!resumes("ada", tenant), "{tenant}");
        }
    }
}
