//! Streams an answer, and goes on with it wherever a coordinator is left:
//!
//! ```text
//! cargo run -p kvasir-client --example stream_answer -- "Once upon a time" http://127.0.0.1:50051 [URL...]
//! ```

use std::io::{Write as _, stdout};

use futures::StreamExt as _;
use kvasir_client::{Client, ClientError, Target, Update};
use kvasir_proto::v1::{GenerateRequest, SamplingParams, generate_request::Prompt, generate_response::Event};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let prompt = arguments.next().ok_or("usage: stream_answer PROMPT URL...")?;
    let targets: Result<Vec<Target>, ClientError> = arguments.map(|url| Target::plain(&url)).collect();
    let client = Client::new(targets?)?;
    let request = GenerateRequest {
        prompt: Some(Prompt::Text(prompt)),
        max_tokens: Some(32),
        sampling: Some(SamplingParams {
            temperature: Some(0.8),
            seed: Some(7),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut answer = client.generate(request).await?;
    while let Some(update) = answer.next().await {
        match update? {
            Update::Response(response) => match response.event {
                Some(Event::Chunk(chunk)) => print!("{}", chunk.text),
                Some(Event::Finished(finished)) => println!("{}", finished.text),
                _ => {}
            },
            // What comes next goes on where the answer broke off.
            Update::Resuming { .. } => eprint!("..."),
            _ => {}
        }
        stdout().flush()?;
    }
    Ok(())
}
