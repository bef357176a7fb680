//! How far one answer has come: what it takes to ask for the rest of it.

use kvasir_proto::v1::{self, generate_request::Prompt, generate_response::Event};
use tonic::Status;

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub choice: u32,
    descriptor: Option<v1::ResumeDescriptor>,
    token_ids: Vec<u32>,
    prompt_logprobs: u32,
    token_bytes: bool,
    pub is_finished: bool,
}

impl Progress {
    /// One for each answer that is asked for.
    pub fn of_request(request: &v1::GenerateRequest) -> Vec<Self> {
        let begun = match &request.prompt {
            Some(Prompt::Resume(resume)) => Some(resume),
            _ => None,
        };
        let descriptor = begun.and_then(|resume| resume.descriptor.as_ref());
        let sampling = request.sampling.as_ref();
        let first = descriptor.map_or_else(
            || sampling.map_or(0, |sampling| sampling.choice),
            |descriptor| descriptor.choice,
        );
        let progress = |nth| Self {
            choice: first.saturating_add(nth),
            descriptor: None,
            token_ids: begun.map_or_else(Vec::new, |resume| resume.received_token_ids.clone()),
            prompt_logprobs: begun.map_or(0, |resume| resume.received_prompt_logprobs),
            token_bytes: request.token_bytes,
            is_finished: false,
        };
        (0..request.n.unwrap_or(1)).map(progress).collect()
    }

    pub fn has_begun(&self) -> bool {
        !self.token_ids.is_empty() || self.prompt_logprobs > 0
    }

    /// Grows with all that comes.
    pub fn mark(&self) -> (usize, u32) {
        (self.token_ids.len(), self.prompt_logprobs)
    }

    /// The request for the rest. `None` if the stream had not begun.
    pub fn rest(&self) -> Option<v1::GenerateRequest> {
        Some(v1::GenerateRequest {
            prompt: Some(Prompt::Resume(v1::Resume {
                descriptor: Some(self.descriptor.clone()?),
                received_token_ids: self.token_ids.clone(),
                received_prompt_logprobs: self.prompt_logprobs,
            })),
            token_bytes: self.token_bytes,
            ..Default::default()
        })
    }

    /// Takes note of what came. Returns false of what its client has had already. Errors if something is missing or comes
    /// twice: then the server is not one of ours.
    pub fn take(&mut self, event: &Event) -> Result<bool, Status> {
        match event {
            Event::Started(started) => {
                let is_first = self.descriptor.is_none();
                self.descriptor = started.descriptor.clone();
                return Ok(is_first);
            }
            Event::PromptScores(scores) => {
                let expected = self.prompt_logprobs + 1;
                if scores.position != expected {
                    return Err(out_of_order("prompt position", scores.position, expected));
                }
                self.prompt_logprobs += scores.tokens.len() as u32;
            }
            Event::Chunk(chunk) => {
                for token in &chunk.tokens {
                    let expected = self.token_ids.len() as u32;
                    if token.index != expected {
                        return Err(out_of_order("token", token.index, expected));
                    }
                    self.token_ids.push(token.id);
                }
            }
            Event::Finished(_) => self.is_finished = true,
        }
        Ok(true)
    }
}

fn out_of_order(what: &str, found: u32, expected: u32) -> Status {
    Status::data_loss(format!("{what} {found} came where {expected} is next"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress::of_request(&v1::GenerateRequest::default()).remove(0)
    }

    fn chunk(index: u32) -> Event {
        let token = v1::Token {
            index,
            id: 7,
            ..Default::default()
        };
        Event::Chunk(v1::Chunk {
            tokens: vec![token],
            text: String::new(),
        })
    }

    fn scores(position: u32) -> Event {
        Event::PromptScores(v1::PromptScores {
            position,
            tokens: vec![v1::PromptToken::default(); 2],
        })
    }

    #[test]
    fn a_repeated_or_missing_token_is_refused() {
        let mut progress = progress();
        assert!(progress.take(&chunk(0)).unwrap());
        assert!(progress.take(&chunk(0)).is_err() && progress.take(&chunk(2)).is_err());
        assert!(progress.take(&chunk(1)).unwrap());
    }

    #[test]
    fn a_repeated_or_missing_position_is_refused() {
        let mut progress = progress();
        assert!(progress.take(&scores(0)).is_err());
        progress.take(&scores(1)).unwrap();
        assert!(progress.take(&scores(2)).is_err() && progress.take(&scores(4)).is_err());
        progress.take(&scores(3)).unwrap();
    }

    #[test]
    fn the_rest_is_asked_for_by_what_came() {
        let mut progress = progress();
        assert!(progress.rest().is_none());
        let started = Event::Started(v1::Started {
            descriptor: Some(v1::ResumeDescriptor::default()),
            ..Default::default()
        });
        assert!(progress.take(&started).unwrap());
        progress.take(&chunk(0)).unwrap();
        // A client is told once that its answer begins.
        assert!(!progress.take(&started).unwrap());
        let Some(Prompt::Resume(rest)) = progress.rest().unwrap().prompt else {
            panic!("the rest is a resumed stream");
        };
        assert_eq!(rest.received_token_ids, [7]);
    }

    #[test]
    fn each_choice_has_a_progress_of_its_own() {
        let many = v1::GenerateRequest {
            n: Some(3),
            ..Default::default()
        };
        let choices: Vec<_> = Progress::of_request(&many).iter().map(|one| one.choice).collect();
        assert_eq!(choices, [0, 1, 2]);
    }
}
