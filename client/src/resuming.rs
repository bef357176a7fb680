//! Streams of answers that outlive their connections.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{FuturesUnordered, select_all},
};
use kvasir_proto::v1::{self, inference_client::InferenceClient};
use tonic::{Status, Streaming};

use crate::{Channel, ClientError, Target, endpoints::Endpoints, progress::Progress, request_span::RequestSpan};

/// Attempts without anything new between them; with the pauses below they last about a minute.
const RESUMES_MAX: u32 = 35;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What comes of a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    Response(Box<v1::GenerateResponse>),
    /// The stream of this choice broke, and is about to be asked for again.
    Resuming {
        choice: u32,
    },
}

/// Text that was held back by a server that went away is not lost: the next one is shown the same tokens and stands where
/// the first one stood. Ends after the last choice has finished, or with an error.
pub type Answers = Pin<Box<dyn Stream<Item = Result<Update, ClientError>> + Send>>;

/// Asks one coordinator or several that serve the same model. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoints: Arc<Endpoints>,
    resumes: bool,
}

impl Client {
    /// Nothing is connected yet. Errors if there is no target.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Result<Self, ClientError> {
        Ok(Self {
            endpoints: Arc::new(Endpoints::new(targets)?),
            resumes: true,
        })
    }

    /// Whether a broken stream is gone on with (it is, unless this says no).
    pub fn with_resume(self, resumes: bool) -> Self {
        Self { resumes, ..self }
    }

    /// One question with one answer, put to the coordinators one after the other until one answers.
    pub async fn ask<T, F>(&self, ask: impl Fn(InferenceClient<Channel>) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let first = self.endpoints.next_turn();
        let mut last = ClientError::NoEndpoint;
        for nth in 0..self.endpoints.len() {
            let asked = match self.endpoints.channel(first + nth).await {
                Ok(channel) => ask(InferenceClient::new(channel)).await.map_err(ClientError::Refused),
                Err(error) => Err(error),
            };
            match asked {
                Ok(response) => return Ok(response.into_inner()),
                Err(error) if error.is_broken_stream() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The same question to all of them; what each says, as it comes.
    pub fn ask_all<'a, T, F>(
        &'a self,
        ask: impl Fn(InferenceClient<Channel>) -> F + Send + Sync + 'a,
    ) -> impl Stream<Item = Result<T, ClientError>> + Send + 'a
    where
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send + 'a,
        T: Send + 'a,
    {
        let ask = Arc::new(ask);
        let asked = (0..self.endpoints.len()).map(move |nth| {
            let ask = Arc::clone(&ask);
            async move {
                let channel = self.endpoints.channel(nth).await?;
                let response = ask(InferenceClient::new(channel)).await;
                response.map(tonic::Response::into_inner).map_err(ClientError::Refused)
            }
        });
        asked.collect::<FuturesUnordered<_>>()
    }

    /// Asks the coordinators one after the other until one takes the request. An answer that has begun goes on at any of
    /// them when its connection breaks, for about a minute without a new token. Errors if none can be reached, or with
    /// what is wrong with the request.
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<Answers, ClientError> {
        let choices = Progress::of_request(&request);
        let span = RequestSpan::begin();
        let first = self.endpoints.next_turn();
        let mut nth = 0;
        loop {
            match self.begin(first + nth, request.clone(), &span).await {
                Ok(begun) => return Ok(self.answers(first + nth, begun, choices, span)),
                Err(error) => {
                    nth += 1;
                    let goes_on = error.is_broken_stream() || error.is_lack_of_room();
                    if !goes_on || nth == self.endpoints.len() {
                        span.failed(&error);
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn begin(
        &self,
        endpoint: usize,
        request: v1::GenerateRequest,
        span: &RequestSpan,
    ) -> Result<Begun, ClientError> {
        let channel = self.endpoints.channel(endpoint).await?;
        let response = InferenceClient::new(channel).generate(span.request(request)).await;
        let mut rest = response.map_err(ClientError::Refused)?.into_inner();
        // It comes at once; without it nothing could be resumed.
        let first = rest.message().await.map_err(ClientError::Refused)?;
        Ok(Begun {
            first: Some(first.ok_or_else(ended_early)?),
            rest,
        })
    }

    fn answers(&self, endpoint: usize, mut begun: Begun, mut choices: Vec<Progress>, span: RequestSpan) -> Answers {
        let client = self.clone();
        Box::pin(async_stream::try_stream! {
            let broken = loop {
                if choices.iter().all(|choice| choice.is_finished) {
                    return;
                }
                match begun.next(&mut choices).await {
                    Ok(Some(response)) => yield Update::Response(Box::new(response)),
                    Ok(None) => {}
                    Err(error) => break error,
                }
            };
            let left = choices.into_iter().filter(|choice| !choice.is_finished);
            let resumed = left.map(|choice| client.resumed(endpoint, choice, broken.clone(), span.clone()));
            let mut resumed = select_all(resumed);
            while let Some(update) = resumed.next().await {
                yield update?;
            }
        })
    }

    /// The rest of one answer whose stream broke at this endpoint.
    fn resumed(&self, endpoint: usize, mut choice: Progress, mut broken: ClientError, span: RequestSpan) -> Answers {
        let client = self.clone();
        Box::pin(async_stream::try_stream! {
            let (mut attempts, mut known) = (0, choice.mark());
            let was_taken = broken.is_broken_stream();
            loop {
                // An answer that was taken waits for room. A new one does not, but may try every coordinator.
                let waits = was_taken || choice.has_begun() || (attempts as usize) + 1 < client.endpoints.len();
                let goes_on = broken.is_broken_stream() || broken.is_lack_of_room() && waits;
                let Some(rest) = choice.rest().filter(|_| client.resumes && goes_on) else {
                    span.failed(&broken);
                    Err(broken)?;
                    return;
                };
                if choice.mark() != known {
                    (attempts, known) = (0, choice.mark());
                }
                if attempts == RESUMES_MAX {
                    let last = Box::new(broken);
                    Err(ClientError::GaveUp { attempts, last })?;
                    return;
                }
                tokio::time::sleep(pause(&broken, attempts, client.endpoints.len())).await;
                attempts += 1;
                yield Update::Resuming { choice: choice.choice };
                span.resuming();
                broken = match client.begin(endpoint + attempts as usize, rest, &span).await {
                    Ok(mut begun) => loop {
                        if choice.is_finished {
                            return;
                        }
                        match begun.next(std::slice::from_mut(&mut choice)).await {
                            Ok(Some(response)) => yield Update::Response(Box::new(response)),
                            Ok(None) => {}
                            Err(error) => break error,
                        }
                    },
                    // The endpoint may still be down: that is what the attempts are for.
                    Err(error) => error,
                };
            }
        })
    }
}

/// Another coordinator is asked at once; whoever was asked before is given time.
fn pause(broken: &ClientError, attempts: u32, num_endpoints: usize) -> Duration {
    let rounds = attempts / num_endpoints as u32;
    if (attempts as usize) + 1 < num_endpoints {
        return Duration::ZERO;
    }
    let pause = PAUSE_MAX.min(PAUSE_FIRST * 2u32.pow(rounds.min(10)));
    broken.retry_after().unwrap_or(pause)
}

/// A stream that has said that it begins.
struct Begun {
    first: Option<v1::GenerateResponse>,
    rest: Streaming<v1::GenerateResponse>,
}

impl Begun {
    /// What comes next for one of these answers; `None` for what their client knows.
    async fn next(&mut self, choices: &mut [Progress]) -> Result<Option<v1::GenerateResponse>, ClientError> {
        let response = match self.first.take() {
            Some(first) => first,
            None => {
                let message = self.rest.message().await.map_err(ClientError::Refused)?;
                message.ok_or_else(ended_early)?
            }
        };
        let number = response.choice;
        let mut wanted = choices.iter_mut();
        let Some(choice) = wanted.find(|choice| choice.choice == number) else {
            let message = format!("choice {number} came, which nobody asked for");
            return Err(ClientError::Refused(Status::data_loss(message)));
        };
        let Some(event) = &response.event else {
            return Ok(None);
        };
        let is_new = choice.take(event).map_err(ClientError::Refused)?;
        Ok(is_new.then_some(response))
    }
}

fn ended_early() -> ClientError {
    ClientError::Refused(Status::unavailable("the stream ended before the answer did"))
}
