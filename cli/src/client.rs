//! The client's side: connecting, and streams that go on when their coordinator does not.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use kvasir_proto::v1::{
    self, admin_client::AdminClient, generate_request::Prompt, generate_response::Event,
    inference_client::InferenceClient,
};
use kvasir_runtime::tls::{ClientTls, ClientTlsFiles, KeyPairFiles};
use tonic::{Code, Status};

use crate::{
    answer::{Answer, Pace},
    target::{Channel, Target},
};

/// Attempts without a new token between them; with the pauses below they last about a minute.
const RESUMES_MAX: u32 = 35;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Metadata that the server's own errors carry.
const ERROR_NAME: &str = "kvasir-error";
pub const RETRY_AFTER: &str = "retry-after-ms";

/// Where the cluster is, for every command that asks it.
#[derive(Args, Clone, Debug)]
pub struct Server {
    /// Where the coordinator listens
    #[arg(
        long,
        env = "KVASIR_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL"
    )]
    pub endpoint: String,
    /// The authority that signed the coordinator's certificate, for https:// endpoints
    #[arg(long, env = "KVASIR_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// A certificate to show, kvasir://client/NAME or kvasir://admin/NAME
    #[arg(
        long,
        env = "KVASIR_TLS_CERT",
        value_name = "FILE",
        requires = "tls_ca",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "KVASIR_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A key to show; better in the variable, where other users of this machine do not see it
    #[arg(long, env = "KVASIR_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl Server {
    /// Errors if what is given does not fit together, or files cannot be used.
    pub fn target(&self) -> Result<Target> {
        let pair = self.tls_cert.clone().zip(self.tls_key.clone());
        let pair = pair.map(|(certificate, key)| KeyPairFiles { certificate, key });
        let files = self.tls_ca.clone().map(|authority| ClientTlsFiles { authority, pair });
        let tls = files.map(ClientTls::open).transpose()?;
        Target::new(&self.endpoint, tls, self.api_key.as_deref())
    }
}

pub async fn status(target: &Target) -> Result<v1::StatusResponse> {
    let mut admin = AdminClient::new(target.connect().await?);
    let response = admin.status(v1::StatusRequest {}).await;
    response
        .map(tonic::Response::into_inner)
        .map_err(|status| refused(&status))
}

/// Moves a running request to another group; returns how it went.
pub async fn migrate(target: &Target, request: v1::MigrateRequest) -> Result<Vec<v1::Migration>> {
    let mut admin = AdminClient::new(target.connect().await?);
    let response = admin.migrate(request).await;
    let migrated = response.map_err(|status| refused(&status))?;
    Ok(migrated.into_inner().migrations)
}

/// Gives a group another number of ranks; returns how it went.
pub async fn reshard(target: &Target, request: v1::ReshardRequest) -> Result<v1::ReshardResponse> {
    let mut admin = AdminClient::new(target.connect().await?);
    let response = admin.reshard(request).await;
    response
        .map(tonic::Response::into_inner)
        .map_err(|status| refused(&status))
}

/// Asks for a worker to be let go; it has gone when `status` does not list it any more.
pub async fn drain(target: &Target, worker: &str) -> Result<()> {
    let mut admin = AdminClient::new(target.connect().await?);
    let worker_id = worker.to_owned();
    let drained = admin.drain(v1::DrainRequest { worker_id }).await;
    drained.map(|_| ()).map_err(|status| refused(&status))
}

/// Streams the answers to a request, one for each of its choices from 0 on; `show` is called with each new piece of text,
/// the answer that it belongs to, and the pace so far. Goes on elsewhere, or later, when the connection breaks and
/// `resume` is set.
pub async fn generate(
    target: &Target,
    request: v1::GenerateRequest,
    resume: bool,
    mut show: impl FnMut(u32, &str, &Pace),
) -> Result<Vec<Answer>> {
    let channel = target.connect().await?;
    let mut answers: Vec<Answer> = (0..request.n.unwrap_or(1)).map(Answer::of_choice).collect();
    if let Err(broken) = stream(channel, request, &mut answers, &mut show).await {
        for answer in answers.iter_mut().filter(|answer| !answer.is_finished()) {
            go_on(target, answer, broken.clone(), resume, &mut show).await?;
        }
    }
    Ok(answers)
}

/// Goes on with one answer whose stream broke.
async fn go_on(
    target: &Target,
    answer: &mut Answer,
    mut broken: Status,
    resume: bool,
    show: &mut impl FnMut(u32, &str, &Pace),
) -> Result<()> {
    let (mut attempts, mut known) = (0, answer.token_ids.len());
    loop {
        // An answer that has begun waits for room, a new one does not.
        let begun = attempts > 0 || !answer.token_ids.is_empty() || !answer.prompt_logprobs.is_empty();
        let goes_on = is_resumable(&broken) || begun && retry_after(&broken).is_some();
        let Some(descriptor) = answer.descriptor.clone().filter(|_| resume && goes_on) else {
            return Err(refused(&broken));
        };
        if answer.token_ids.len() > known {
            (attempts, known) = (0, answer.token_ids.len());
        }
        if attempts == RESUMES_MAX {
            return Err(refused(&broken)).with_context(|| format!("gave up after {RESUMES_MAX} attempts to resume"));
        }
        let pause = PAUSE_MAX.min(PAUSE_FIRST * 2u32.pow(attempts.min(10)));
        tokio::time::sleep(retry_after(&broken).unwrap_or(pause)).await;
        attempts += 1;
        answer.resumes += 1;
        // The endpoint may still be down: that is what the attempts are for.
        let Ok(channel) = target.connect().await else {
            continue;
        };
        let request = v1::GenerateRequest {
            prompt: Some(Prompt::Resume(v1::Resume {
                descriptor: Some(descriptor),
                received_token_ids: answer.token_ids.clone(),
                received_prompt_logprobs: answer.prompt_logprobs.len() as u32,
            })),
            ..Default::default()
        };
        match stream(channel, request, std::slice::from_mut(answer), show).await {
            Ok(()) => return Ok(()),
            Err(again) => broken = again,
        }
    }
}

/// Until all of these answers are finished.
async fn stream(
    channel: Channel,
    request: v1::GenerateRequest,
    answers: &mut [Answer],
    show: &mut impl FnMut(u32, &str, &Pace),
) -> Result<(), Status> {
    let mut responses = InferenceClient::new(channel).generate(request).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let choice = response.choice;
        let mut wanted = answers.iter_mut();
        let Some(answer) = wanted.find(|answer| answer.choice == choice) else {
            return Err(Status::data_loss(format!(
                "choice {choice} came, which nobody asked for"
            )));
        };
        match response.event {
            Some(Event::Started(started)) => answer.descriptor = started.descriptor,
            Some(Event::PromptScores(scores)) => answer.add_scores(scores)?,
            Some(Event::Chunk(chunk)) => {
                let text = chunk.text.clone();
                answer.add(chunk)?;
                show(choice, &text, &answer.pace);
            }
            Some(Event::Finished(finished)) => {
                show(choice, &finished.text, &answer.pace);
                answer.finish(finished);
                if answers.iter().all(Answer::is_finished) {
                    return Ok(());
                }
            }
            None => {}
        }
    }
    Err(Status::unavailable("the stream ended before the answer did"))
}

/// True if the connection broke or the coordinator went away. What a server says about the request itself is final.
fn is_resumable(status: &Status) -> bool {
    match status.metadata().get(ERROR_NAME) {
        Some(name) => name == "shutting_down",
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
        ),
    }
}

/// When the server says that it is worth trying again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let hint = status.metadata().get(RETRY_AFTER)?.to_str().ok()?;
    hint.parse().ok().map(Duration::from_millis)
}

/// A status as one line for people.
pub fn refused(status: &Status) -> anyhow::Error {
    let name = match status.code() {
        Code::InvalidArgument => "refused",
        Code::Unauthenticated | Code::PermissionDenied => "refused",
        Code::ResourceExhausted => "no room",
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded => "too late",
        Code::FailedPrecondition => "refused",
        Code::AlreadyExists => "refused",
        _ => return anyhow!("{:?}: {}", status.code(), status.message()),
    };
    match retry_after(status) {
        Some(wait) => anyhow!("{name}: {}; try again in {:.1} s", status.message(), wait.as_secs_f64()),
        None => anyhow!("{name}: {}", status.message()),
    }
}

/// Token ids from `1,2,3`.
pub fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let parse = |id: &str| {
        id.trim()
            .parse::<u32>()
            .map_err(|_| anyhow!("`{id}` is not a token id"))
    };
    let ids: Vec<u32> = text.split(',').map(parse).collect::<Result<_>>()?;
    if ids.is_empty() {
        bail!("no token ids");
    }
    Ok(ids)
}
