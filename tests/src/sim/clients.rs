//! Clients: they submit, read, cancel twice, stop, give deadlines, and know the right answer beforehand.

use std::time::Duration;

use kvasir_coordinator::{Event, Now, OrderId, SequenceError, Usage};
use kvasir_kv::{
    FinishReason, GroupId, PromptLogprob, PromptLogprobs, Request, RequestId, Sampling, SequenceId, StepPlan, TenantId,
    TokenId,
};

use super::{
    dice::Dice,
    oracle::{self, VOCAB},
    plant::Plant,
    scenario::{MS, SECOND, Scenario},
    world::{Happening, World},
};

/// Seeds from here on poison the sum of one answer token: `u64::MAX - seed` is its index.
const POISON_SEEDS: u64 = u64::MAX - 1000;
/// Sequence ids of one coordinator's life.
const IDS_PER_LIFE: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Client {
    request: Request,
    /// The whole answer.
    expected: Vec<TokenId>,
    /// Of the prompt's tokens from position 1 on.
    expected_scores: Vec<f32>,
    /// Tokens of the answer that it has.
    received: u32,
    /// Logprobs of the prompt that it has.
    scored: u32,
    submitted: Option<u64>,
    /// Since when this coordinator has it and has sent no step of it.
    waits_since: Option<u64>,
    deadline: Option<u64>,
    cancelled: bool,
    stop_at: Option<u32>,
    /// It has seen a stop string, and told the coordinator after which token.
    stopped: Option<u32>,
    pub ended: bool,
}

/// Answer index at which a sum leaves its range, for the requests that want that.
pub(super) fn poison_index(sampling: &Sampling) -> Option<u32> {
    (sampling.seed >= POISON_SEEDS).then(|| (u64::MAX - sampling.seed) as u32)
}

fn draw_token(dice: &mut Dice) -> TokenId {
    TokenId(dice.between(0, VOCAB - 1) as u32)
}

fn draw_tenant(dice: &mut Dice, scenario: &Scenario) -> TenantId {
    match dice.between(1, scenario.num_tenants) {
        1 => TenantId::default(),
        number => TenantId(format!("tenant-{number}")),
    }
}

/// What many prompts begin with, whoever asks.
pub(super) fn draw_documents(dice: &mut Dice, scenario: &Scenario) -> Vec<Vec<TokenId>> {
    let mut document = || (0..scenario.prompt_len_max).map(|_| draw_token(dice)).collect();
    (0..3).map(|_| document()).collect()
}

impl Client {
    pub fn draw(dice: &mut Dice, scenario: &Scenario, documents: &[Vec<TokenId>], index: u32) -> Self {
        let prompt_len = dice.between(1, u64::from(scenario.prompt_len_max)) as usize;
        let mut prompt: Vec<TokenId> = (0..prompt_len).map(|_| draw_token(dice)).collect();
        if dice.chance(60) {
            let document = &documents[dice.between(0, documents.len() as u64 - 1) as usize];
            let common = dice.between(0, prompt_len as u64) as usize;
            prompt[..common].copy_from_slice(&document[..common]);
        }
        let mut max_tokens = dice.between_u32(1, scenario.answer_len_max);
        if dice.chance(3) {
            max_tokens = dice.between_u32(60, 220);
        }
        let poisoned = dice.chance(5);
        let mut request = Request {
            id: RequestId(format!("request-{index}")),
            prompt,
            generated: Vec::new(),
            sampling: Sampling {
                seed: if poisoned {
                    u64::MAX - dice.between(0, 10)
                } else {
                    dice.between(0, 1000)
                },
                ..Sampling::default()
            },
            max_tokens,
            prompt_logprobs: None,
            stop_tokens: if dice.chance(40) {
                vec![draw_token(dice)]
            } else {
                Vec::new()
            },
            tenant: draw_tenant(dice, scenario),
            priority: if dice.chance(75) { 0 } else { dice.pick(&[-1, 1, 5]) },
        };
        // No draw of its own.
        if request.sampling.seed.is_multiple_of(4) {
            request.prompt_logprobs = Some(PromptLogprobs { top: 0, received: 0 });
        }
        if !poisoned && request.sampling.seed.is_multiple_of(16) {
            request.max_tokens = 0;
        }
        let expected = oracle::answer(&request);
        if !poisoned && dice.chance(15) {
            // A stream that another coordinator began.
            let known = dice.between(0, expected.len() as u64) as usize;
            request.generated = expected[..known].to_vec();
        }
        let expected_scores = match request.prompt_logprobs {
            Some(_) => oracle::prompt_scores(&request.prompt),
            None => Vec::new(),
        };
        let mut client = Self {
            received: request.generated.len() as u32,
            expected,
            expected_scores,
            scored: 0,
            submitted: None,
            waits_since: None,
            deadline: None,
            cancelled: false,
            stop_at: dice.chance(10).then(|| dice.between_u32(0, 10)),
            stopped: None,
            ended: false,
            request,
        };
        if client.received > 0 {
            client.scored = client.expected_scores.len() as u32;
        }
        client.present_scores();
        client
    }

    /// Its request says what it has of the prompt's logprobs.
    fn present_scores(&mut self) {
        if let Some(wanted) = &mut self.request.prompt_logprobs {
            wanted.received = self.scored;
        }
    }

    fn has_all_scores(&self) -> bool {
        self.scored as usize == self.expected_scores.len()
    }

    /// Prompt tokens that the prefix cache may have saved.
    fn cached_max(&self) -> u32 {
        let received = self.request.prompt_logprobs.map(|wanted| wanted.received);
        match received.filter(|received| (*received as usize) < self.expected_scores.len()) {
            Some(received) => received,
            None => self.request.prompt.len() as u32,
        }
    }

    /// Of its prompt, and of its answer as far as it has it.
    fn known_tokens(&self) -> u64 {
        self.request.prompt.len() as u64 + u64::from(self.received)
    }
}

fn client_of(sequence: SequenceId) -> usize {
    (sequence.0 % IDS_PER_LIFE) as usize
}

pub(super) fn tenant_of(clients: &[Client], sequence: SequenceId) -> TenantId {
    clients[client_of(sequence)].request.tenant.clone()
}

impl World {
    fn sequence_of(&self, client: usize) -> SequenceId {
        SequenceId(u64::from(self.coordinator_life) * IDS_PER_LIFE + client as u64)
    }

    pub(super) fn submit(&mut self, client: usize) {
        let deadline = self
            .dice
            .chance(10)
            .then(|| self.now + self.dice.between(10 * MS, 20 * SECOND));
        let sequence = self.sequence_of(client);
        let submitted = &mut self.clients[client];
        submitted.submitted = Some(self.now);
        submitted.waits_since = Some(self.now);
        submitted.deadline = deadline;
        let mut request = submitted.request.clone();
        if self.plant == Some(Plant::TenantShared) {
            request.tenant = TenantId::default();
        }
        let event = Event::Submit {
            sequences: vec![sequence],
            request,
            deadline: deadline.map(|deadline| Now(Duration::from_micros(deadline))),
        };
        self.coordinate(event);
        if self.dice.chance(15) {
            let at = self.now + self.dice.between(0, 3 * SECOND);
            for again in 0..self.dice.between(1, 3) {
                self.schedule(at + again, Happening::Cancel(client));
            }
        }
    }

    pub(super) fn cancel(&mut self, client: usize) {
        self.clients[client].cancelled = true;
        let sequence = self.sequence_of(client);
        let reason = FinishReason::Cancelled;
        self.coordinate(Event::Cancel { sequence, reason });
    }

    /// An operator moves a request, whatever it is doing.
    pub(super) fn migrate(&mut self) {
        let live = |client: &&Client| client.submitted.is_some() && !client.ended;
        let requests: Vec<RequestId> = self
            .clients
            .iter()
            .filter(live)
            .map(|client| client.request.id.clone())
            .collect();
        if requests.is_empty() {
            return;
        }
        let request = requests[self.dice.between(0, requests.len() as u64 - 1) as usize].clone();
        let num_groups = self.scenario.config.group_sizes.len() as u64;
        let target = GroupId(self.dice.between(0, num_groups - 1) as u32);
        let named = self.dice.chance(70);
        self.coordinate(Event::Migrate {
            order: OrderId(self.now),
            request,
            target: named.then_some(target),
        });
    }

    /// An operator gives a group another number of ranks.
    pub(super) fn reshard(&mut self) {
        let num_groups = self.scenario.config.group_sizes.len() as u64;
        let group = GroupId(self.dice.between(0, num_groups - 1) as u32);
        let ranks = self.dice.between_u32(1, self.scenario.num_workers.min(5));
        let order = OrderId(self.now);
        self.coordinate(Event::Reshard { order, group, ranks });
    }

    pub(super) fn stop(&mut self, client: usize, last_index: u32) {
        let sequence = self.sequence_of(client);
        self.clients[client].stopped.get_or_insert(last_index);
        self.coordinate(Event::Stop { sequence, last_index });
    }

    /// Clients whose stream broke present what they have to the next coordinator.
    pub(super) fn resubmit_all(&mut self) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.submitted.is_some() && !client.ended {
                client.waits_since = None;
                client.request.generated = client.expected[..client.received as usize].to_vec();
                client.present_scores();
                // A stop that the dead coordinator was told of is not remembered; it is found again.
                client.stopped = None;
                client.stop_at = None;
                let at = self.now + self.dice.between(0, SECOND);
                self.schedule(at, Happening::Submit(index));
            }
        }
    }

    /// Who is in a plan waits no more. Nobody samples after the last token, so nobody computes it.
    pub(super) fn check_work(&mut self, plan: &StepPlan) {
        for work in &plan.work {
            let client = &mut self.clients[client_of(work.sequence)];
            client.waits_since = None;
            let total = client.request.total_len_max();
            if work.start + work.num_tokens >= total {
                self.violation(format!("{} is computed up to its end, {total}", work.sequence));
            }
        }
    }

    /// Whether it waits for its first step for longer than the queue allows.
    pub(super) fn waits_too_long(&self, sequence: SequenceId) -> bool {
        // A coordinator that was stopped hears of it when it goes on.
        let awake_since = self.now - self.awake_for();
        let waits_since = self.clients[client_of(sequence)].waits_since;
        let wait_max = self.scenario.config.queue_wait_max.as_micros() as u64;
        waits_since.is_some_and(|since| self.now - since.max(awake_since) >= wait_max)
    }

    pub(super) fn client_scores(&mut self, sequence: SequenceId, position: u32, logprobs: &[PromptLogprob]) {
        let life = self.coordinator_life;
        let client = &mut self.clients[client_of(sequence)];
        let known = client.scored as usize;
        let is_late = client.ended || client.received > client.request.generated.len() as u32;
        if sequence.0 / IDS_PER_LIFE != u64::from(life) || is_late {
            return self.violation(format!("{sequence} is scored after its first token or its end"));
        }
        if position as usize != known + 1 {
            return self.violation(format!("position {position} of {sequence} is scored after {known}"));
        }
        let expected = client.expected_scores.get(known..known + logprobs.len());
        let found: Vec<f32> = logprobs.iter().map(|scored| scored.logprob).collect();
        if expected != Some(&found[..]) {
            let what = format!("{sequence} is scored {found:?} from position {position}, right is {expected:?}");
            return self.violation(what);
        }
        client.scored += found.len() as u32;
        self.report.scores += found.len() as u64;
    }

    pub(super) fn client_token(&mut self, sequence: SequenceId, index: u32, token: TokenId) {
        let life = self.coordinator_life;
        let client_index = client_of(sequence);
        let client = &mut self.clients[client_index];
        let (received, ended) = (client.received, client.ended);
        let expected = client.expected.get(index as usize).copied();
        if sequence.0 / IDS_PER_LIFE != u64::from(life) || ended {
            return self.violation(format!("a token of {sequence} after its end"));
        }
        if !client.has_all_scores() {
            return self.violation(format!("a token of {sequence} before its prompt is scored"));
        }
        if index != received {
            return self.violation(format!("token {index} of {sequence} where {received} is next"));
        }
        if expected != Some(token) {
            return self.violation(format!("token {index} of {sequence} is {token}, right is {expected:?}"));
        }
        self.report.tokens += 1;
        client.received += 1;
        if client.stop_at.is_some_and(|stop_at| index == stop_at) {
            let at = self.now + self.dice.between(0, 50 * MS);
            self.schedule(at, Happening::Stop(client_index, index));
        }
    }

    pub(super) fn client_finished(&mut self, sequence: SequenceId, reason: FinishReason, usage: Usage) {
        let now = self.now;
        let client_index = client_of(sequence);
        let client = &mut self.clients[client_index];
        if std::mem::replace(&mut client.ended, true) {
            return self.violation(format!("{sequence} ends twice"));
        }
        let complete = client.received as usize == client.expected.len();
        let at_stop_token = client
            .expected
            .last()
            .is_some_and(|last| client.request.stop_tokens.contains(last));
        let legal = match reason {
            FinishReason::Stop => complete && at_stop_token || client.stopped.is_some(),
            FinishReason::Length => complete && client.received == client.request.max_tokens && client.has_all_scores(),
            FinishReason::Cancelled => client.cancelled,
            FinishReason::Deadline => client.deadline.is_some_and(|deadline| now >= deadline),
            FinishReason::Numerical => false,
        };
        // What a stop string cut off is not counted, unless the answer had ended before the stop was heard.
        let kept = client.stopped.filter(|_| reason == FinishReason::Stop);
        let kept = kept.map_or(client.received, |last_index| client.received.min(last_index + 1));
        let counted = usage.prompt_tokens as usize == client.request.prompt.len()
            && usage.cached_tokens <= client.cached_max()
            && (usage.completion_tokens == kept || complete && usage.completion_tokens == client.received);
        if !legal || !counted {
            let what = format!("{sequence} finished: {reason:?}, {usage:?}, with {client:?}");
            self.violation(what);
        }
    }

    pub(super) fn client_failed(&mut self, sequence: SequenceId, error: &SequenceError) {
        let now = self.now;
        let config = &self.scenario.config;
        let live = || {
            let clients = self.clients.iter();
            clients.filter(|client| client.submitted.is_some() && !client.ended)
        };
        let live_tokens: u64 = live().map(Client::known_tokens).sum();
        let client_index = client_of(sequence);
        let client = &self.clients[client_index];
        let total = client.request.total_len_max();
        let needed_blocks = (total - 1).div_ceil(config.cell.block_size());
        let unserved_since = self.lives.unserved_since(needed_blocks);
        let legal = match error {
            SequenceError::Numerical { index } => {
                poison_index(&client.request.sampling) == Some(*index) && client.received == *index
            }
            SequenceError::TooLong { .. } => total > self.scenario.layout.shape().context_len,
            SequenceError::TooFewBlocks {
                needed_blocks: needed,
                num_blocks,
                ..
            } => {
                let mut serving = self.lives.serving().map(|life| life.num_blocks);
                *needed == needed_blocks && unserved_since.is_some() && serving.any(|blocks| blocks == *num_blocks)
            }
            SequenceError::QueueFull {
                waiting,
                queue_max,
                num_choices: 1,
            } => waiting >= queue_max && live().count() as u32 > *waiting,
            SequenceError::QueueFull { .. } => false,
            SequenceError::QueueTokens {
                waiting_tokens,
                tokens,
                queue_tokens_max,
            } => {
                *queue_tokens_max == config.queue_tokens_max
                    && *tokens == client.known_tokens()
                    && (1..=live_tokens - tokens).contains(waiting_tokens)
                    && waiting_tokens + tokens > *queue_tokens_max
            }
            SequenceError::QueueWait {
                waited_ms,
                queue_wait_ms_max,
            } => {
                let waited = client.waits_since.map(|since| now - since);
                *queue_wait_ms_max == config.queue_wait_max.as_millis() as u64
                    && waited.is_some_and(|waited| (*queue_wait_ms_max..=waited / MS).contains(waited_ms))
            }
            SequenceError::Unavailable { waited_ms, .. } => {
                let waited = now - client.submitted.unwrap_or(now);
                let wait_max = config.unavailable_wait_max.as_micros() as u64;
                let overdue = client.deadline.is_some_and(|deadline| now >= deadline);
                *waited_ms <= waited / MS && unserved_since.is_some_and(|since| overdue || now - since >= wait_max)
            }
            SequenceError::Duplicate(_) | SequenceError::Empty { .. } => false,
        };
        if !legal || client.ended {
            let what = format!("{sequence} failed: {error}, with {client:?}");
            self.violation(what);
        }
        self.clients[client_index].ended = true;
    }
}
