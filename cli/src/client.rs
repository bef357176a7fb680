//! The client's side: connecting, and streams that go on when their coordinator does not.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use futures::StreamExt as _;
pub use kvasir_client::retry_after;
use kvasir_client::{Client, ClientError, Target, Update};
use kvasir_proto::v1::{self, admin_client::AdminClient, generate_response::Event};
use kvasir_runtime::tls::{ClientTls, ClientTlsFiles, KeyPairFiles};
use tonic::{Code, Status};

use crate::answer::{Answer, Pace};

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
        let pair = KeyPairFiles::of(self.tls_cert.as_ref(), self.tls_key.as_ref());
        let files = self.tls_ca.clone().map(|authority| ClientTlsFiles { authority, pair });
        let tls = files.map(ClientTls::open).transpose()?;
        Ok(Target::new(&self.endpoint, tls, self.api_key.as_deref())?)
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

/// Which log lines the cluster writes from now on; returns how many workers were told.
pub async fn set_log_filter(target: &Target, filter: &str) -> Result<v1::SetLogFilterResponse> {
    let mut admin = AdminClient::new(target.connect().await?);
    let filter = filter.to_owned();
    let set = admin.set_log_filter(v1::SetLogFilterRequest { filter }).await;
    set.map(tonic::Response::into_inner).map_err(|status| refused(&status))
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
    let client = Client::new([target.clone()])?.with_resume(resume);
    let mut answers: Vec<Answer> = (0..request.n.unwrap_or(1)).map(Answer::of_choice).collect();
    let mut updates = client.generate(request).await.map_err(explained)?;
    while let Some(update) = updates.next().await {
        match update.map_err(explained)? {
            Update::Response(response) => take(&mut answers, *response, &mut show)?,
            Update::Resuming { choice } => answer_of(&mut answers, choice)?.resumes += 1,
            _ => {}
        }
    }
    Ok(answers)
}

fn take(answers: &mut [Answer], response: v1::GenerateResponse, show: &mut impl FnMut(u32, &str, &Pace)) -> Result<()> {
    let choice = response.choice;
    let answer = answer_of(answers, choice)?;
    match response.event {
        Some(Event::Started(started)) => answer.descriptor = started.descriptor,
        Some(Event::PromptScores(scores)) => answer.add_scores(scores),
        Some(Event::Chunk(chunk)) => {
            let text = chunk.text.clone();
            answer.add(chunk);
            show(choice, &text, &answer.pace);
        }
        Some(Event::Finished(finished)) => {
            show(choice, &finished.text, &answer.pace);
            answer.finish(finished);
        }
        None => {}
    }
    Ok(())
}

fn answer_of(answers: &mut [Answer], choice: u32) -> Result<&mut Answer> {
    let mut all = answers.iter_mut();
    let found = all.find(|answer| answer.choice == choice);
    found.with_context(|| format!("choice {choice} came, which nobody asked for"))
}

/// An error as one line for people.
fn explained(error: ClientError) -> anyhow::Error {
    match &error {
        ClientError::Refused(status) => refused(status),
        ClientError::GaveUp { attempts, last } => {
            explained((**last).clone()).context(format!("gave up after {attempts} attempts to resume"))
        }
        _ => error.into(),
    }
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
