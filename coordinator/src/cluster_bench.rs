//! A cluster by hand, for tests: workers say what the test says, and time passes when it says so.

use std::time::Duration;

use kvasir_kv::{
    CellLayout, Epoch, FromWorker, HeadLayout, KvDtype, LoadReport, ModelShape, NumericsId, Progress, PromptLogprob,
    Request, RequestId, SampledToken, Sampling, ScoredPrompt, SequenceId, StepOutput, StepPlan, StepTimes, TenantId,
    ToWorker, TokenId, UnitBytes, UnitLayout, WorkerId, WorkerInfo,
};

use crate::{Cluster, ClusterConfig, Effect, Event, LossCause, Now, SessionId, status::GroupPhase};

pub struct Bench {
    pub cluster: Cluster,
    pub now: Duration,
}

impl Bench {
    pub fn new(workers_wanted: u32) -> Self {
        Self::with(workers_wanted, |_| {})
    }

    pub fn with(workers_wanted: u32, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let cell = CellLayout::new(1, 16, 16, KvDtype::F16).unwrap();
        let mut config = ClusterConfig::new(workers_wanted, cell);
        config.numerics_id = Some(NumericsId([1; 16]));
        config.num_blocks_max = Some(8);
        change(&mut config);
        let shape = ModelShape {
            num_layers: 1,
            hidden_size: 96,
            heads: HeadLayout::new(6, 3, 16).unwrap(),
            intermediate_size: 256,
            vocab_size: 256,
            context_len: 100,
        };
        let bytes = UnitBytes {
            attention: 1000,
            ffn_per_column: 10,
            vocab_per_row: 2,
            embedding_per_row: 0,
            replicated: 100,
        };
        Self {
            cluster: Cluster::new(config, UnitLayout::new(shape, bytes)),
            now: Duration::ZERO,
        }
    }

    /// One worker, a group of its own, running.
    pub fn alone_with(change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let mut bench = Self::with(1, change);
        let effects = bench.join(1);
        bench.connect(&effects);
        bench
    }

    /// Two ranks, running.
    pub fn running(workers: u64) -> Self {
        let mut bench = Self::new(workers as u32);
        let effects = (1..=workers)
            .flat_map(|session| bench.join(session))
            .collect::<Vec<_>>();
        bench.connect(&effects);
        assert_eq!(bench.cluster.status().groups[0].phase, GroupPhase::Running);
        bench
    }

    pub fn on(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.cluster.on(event, Now(self.now));
        self.cluster.check_invariants();
        effects
    }

    pub fn join(&mut self, session: u64) -> Vec<Effect> {
        let info = info(session);
        let session = SessionId(session);
        self.on(Event::WorkerJoined { session, info })
    }

    pub fn say(&mut self, session: u64, message: FromWorker) -> Vec<Effect> {
        let session = SessionId(session);
        self.on(Event::FromWorker { session, message })
    }

    /// Every rank that was told to form an epoch answers.
    pub fn connect(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let formed: Vec<(u64, Epoch)> = effects.iter().filter_map(formed).collect();
        for (session, epoch) in &formed {
            let endpoint = format!("endpoint {session}");
            self.say(
                *session,
                FromWorker::EndpointReady {
                    epoch: *epoch,
                    endpoint,
                },
            );
        }
        let ready = |(session, epoch): &(u64, Epoch)| {
            let load = LoadReport::default();
            self.say(*session, FromWorker::EpochReady { epoch: *epoch, load })
        };
        formed.iter().flat_map(ready).collect()
    }

    /// Time passes in ticks; the given sessions give signs of life.
    pub fn pass(&mut self, ticks: u32, alive: &[u64]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..ticks {
            self.now += Duration::from_millis(100);
            for session in alive {
                effects.extend(self.say(*session, FromWorker::Heartbeat(Progress::default())));
            }
            effects.extend(self.on(Event::Tick));
        }
        effects
    }

    /// Heartbeats of the first epoch: by session, the collectives entered.
    pub fn progress(&mut self, entered: &[(u64, u64)]) {
        for (session, collectives_entered) in entered {
            let progress = Progress {
                epoch: Epoch { term: 7, number: 1 },
                steps_done: 0,
                collectives_entered: *collectives_entered,
            };
            self.say(*session, FromWorker::Heartbeat(progress));
        }
    }

    pub fn submit(&mut self, sequence: u64, prompt_len: u32, max_tokens: u32) -> Vec<Effect> {
        self.submit_prompt(sequence, vec![TokenId(1); prompt_len as usize], max_tokens)
    }

    pub fn submit_prompt(&mut self, sequence: u64, prompt: Vec<TokenId>, max_tokens: u32) -> Vec<Effect> {
        self.submit_request(&[sequence], request(prompt, max_tokens))
    }

    pub fn submit_request(&mut self, sequences: &[u64], request: Request) -> Vec<Effect> {
        self.on(Event::Submit {
            sequences: sequences.iter().copied().map(SequenceId).collect(),
            request,
            deadline: None,
        })
    }

    /// All ranks have done a step; rank 0, session 1, brings its output.
    pub fn done(&mut self, plan: &StepPlan, ranks: u64) -> Vec<Effect> {
        self.done_by(plan, &(1..=ranks).collect::<Vec<_>>())
    }

    /// The ranks of these sessions, in rank order, have done a step.
    pub fn done_by(&mut self, plan: &StepPlan, sessions: &[u64]) -> Vec<Effect> {
        let sampled = plan.work.iter().filter(|work| work.samples).map(|work| SampledToken {
            sequence: work.sequence,
            token: TokenId(9),
            logprob: 0.0,
            top_logprobs: Vec::new(),
        });
        let output = StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            sampled: sampled.collect(),
            scored: scored_by(plan),
            poisoned: Vec::new(),
            times: StepTimes::default(),
        };
        let message = |output| FromWorker::StepDone {
            epoch: plan.epoch,
            step: plan.step,
            output,
        };
        let mut effects = self.say(sessions[0], message(Some(output)));
        for session in &sessions[1..] {
            effects.extend(self.say(*session, message(None)));
        }
        effects
    }
}

pub fn info(worker: u64) -> WorkerInfo {
    WorkerInfo {
        id: WorkerId(format!("w{worker}")),
        pid: 1,
        address: "here".to_owned(),
        host: "here".to_owned(),
        numerics_id: NumericsId([1; 16]),
        term_max: 6,
        weight: 1.0,
        threads: 1,
        backend: "test".to_owned(),
        kv_memory_bytes: 1 << 20,
        block_size: 16,
        kv_dtype: KvDtype::F16,
        transfer_address: "here:1".to_owned(),
    }
}

pub fn formed(effect: &Effect) -> Option<(u64, Epoch)> {
    match effect {
        Effect::Send {
            session,
            message: ToWorker::FormEpoch(spec),
        } => Some((session.0, spec.epoch)),
        _ => None,
    }
}

pub fn aborted(effects: &[Effect]) -> Vec<u64> {
    let abort = |effect: &Effect| match effect {
        Effect::Send {
            session,
            message: ToWorker::AbortEpoch { .. },
        } => Some(session.0),
        _ => None,
    };
    effects.iter().filter_map(abort).collect()
}

/// The plans sent to session 1.
pub fn plans(effects: &[Effect]) -> Vec<StepPlan> {
    plans_to(1, effects)
}

pub fn plans_to(whom: u64, effects: &[Effect]) -> Vec<StepPlan> {
    let plan = |effect: &Effect| match effect {
        Effect::Send {
            session,
            message: ToWorker::Step(plan),
        } if session.0 == whom => Some(plan.clone()),
        _ => None,
    };
    effects.iter().filter_map(plan).collect()
}

pub fn lost(effects: &[Effect]) -> Vec<(&str, LossCause)> {
    let lost = |effect| match effect {
        &Effect::RankLost { ref worker, how, .. } => Some((worker.0.as_str(), how)),
        _ => None,
    };
    effects.iter().filter_map(lost).collect()
}

pub fn request(prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        id: RequestId("r".to_owned()),
        prompt,
        generated: Vec::new(),
        sampling: Sampling::default(),
        max_tokens,
        prompt_logprobs: None,
        stop_tokens: Vec::new(),
        tenant: TenantId::default(),
        priority: 0,
    }
}

/// What a step that went well has scored.
pub fn scored_by(plan: &StepPlan) -> Vec<ScoredPrompt> {
    let score = |position| PromptLogprob {
        logprob: -f64::from(position) as f32,
        top_logprobs: Vec::new(),
    };
    let scoring = plan.work.iter().filter(|work| !work.scored.is_empty());
    let scored = scoring.map(|work| ScoredPrompt {
        sequence: work.sequence,
        start: work.scored.start,
        logprobs: work.scored.clone().map(score).collect(),
    });
    scored.collect()
}
