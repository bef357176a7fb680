//! `kvasir chat`: a conversation, one question or many.

use std::io::{IsTerminal, Write, stderr, stdin};

use anyhow::Result;
use clap::Args;
use kvasir_proto::v1::{self, generate_request::Prompt};

use crate::ask::{AskOptions, Wanted};

/// Talks with the model, by the chat template of its file
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  kvasir chat \"What is a fjord?\"\n  kvasir chat --system \"You are terse.\"")]
pub struct ChatArgs {
    /// The question; without one, reads questions line by line until end of file
    prompt: Option<String>,
    /// How the model is to behave
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    ask: AskOptions,
}

pub async fn run(args: ChatArgs) -> Result<()> {
    let telemetry = args.ask.otlp.start()?;
    let talked = talk(&args).await;
    telemetry.end().await;
    talked
}

async fn talk(args: &ChatArgs) -> Result<()> {
    let mut messages: Vec<v1::ChatMessage> = args.system.iter().map(|text| message("system", text)).collect();
    if let Some(prompt) = &args.prompt {
        return turn(&args.ask, &mut messages, prompt).await;
    }
    while let Some(prompt) = read_line()? {
        if !prompt.is_empty() {
            turn(&args.ask, &mut messages, &prompt).await?;
        }
    }
    Ok(())
}

async fn turn(ask: &AskOptions, messages: &mut Vec<v1::ChatMessage>, prompt: &str) -> Result<()> {
    messages.push(message("user", prompt));
    let chat = v1::Chat {
        messages: messages.clone(),
        ..Default::default()
    };
    let answer = ask.ask(Prompt::Chat(chat), Wanted::default()).await?;
    messages.push(message("assistant", &answer));
    Ok(())
}

fn message(role: &str, content: &str) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        ..Default::default()
    }
}

/// `None` at the end of the input.
fn read_line() -> Result<Option<String>> {
    if stdin().is_terminal() {
        eprint!("> ");
        stderr().flush()?;
    }
    let mut line = String::new();
    let bytes = stdin().read_line(&mut line)?;
    Ok((bytes > 0).then(|| line.trim().to_owned()))
}
