//! Ranks without a coordinator: real worker processes (`kvasir worker`), stepped over the session that they have with one.
//!
//! The driver here knows all plans ahead, and like a coordinator sends one while the one before it is computed, whatever
//! the number of streams. It chooses nothing, keeps no books, and serves no client: what it reaches, the ranks can do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvasir_kv::{Epoch, EpochSpec, FromWorker, GroupId, LoadReport, Rank, StepOutput, StepPlan, ToWorker};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    decode_plans::DecodePlans,
    group_shape::GroupShape,
    rank_door::{News, Outbox, RankDoor},
    token_window::{Receipts, Window},
};
use crate::{engine_options::EngineOptions, local_cluster::Workers, worker::WorkerSize};

/// By then all workers have opened the model and joined, and a rank has loaded its weights or computed a step.
const WORD_MAX: Duration = Duration::from_secs(120);
const STOP_GRACE: Duration = Duration::from_secs(3);
const NEWS_MAX: usize = 1024;
/// Steps sent before the one before them is done.
const LOOK_AHEAD: usize = 1;
const EPOCH: Epoch = Epoch { term: 1, number: 1 };
/// Keeps other epochs' connections out, of which there are none here.
const NONCE: u64 = 1;

/// To be stopped; ends its processes also when it is dropped.
pub struct RanksAlone {
    workers: Workers,
    news: mpsc::Receiver<News>,
    /// In rank order, which is that of joining.
    outboxes: Vec<Outbox>,
    plans: DecodePlans,
    /// In rank order, when the group has formed.
    loads: Vec<LoadReport>,
    serving: JoinHandle<Result<()>>,
    shutdown: CancellationToken,
}

impl RanksAlone {
    /// Returns when they have formed the group. Called on the main thread, as all that starts workers.
    pub async fn start(engine: &EngineOptions, size: &WorkerSize, shape: &GroupShape) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (to_us, news) = mpsc::channel(NEWS_MAX);
        let shutdown = CancellationToken::new();
        let mut alone = Self {
            workers: Workers::new(engine, size, url)?,
            news,
            outboxes: Vec::new(),
            plans: DecodePlans::new(EPOCH, shape.block_size),
            loads: Vec::new(),
            serving: tokio::spawn(RankDoor::new(to_us).serve(listener, shutdown.clone())),
            shutdown,
        };
        alone.workers.start_all(shape.shares.len() as u32)?;
        let joining = tokio::time::timeout(WORD_MAX, alone.join(shape.shares.len())).await;
        joining.with_context(|| format!("the workers have not joined in {} s", WORD_MAX.as_secs()))??;
        alone.form(shape).await?;
        Ok(alone)
    }

    /// What each rank loaded, by its own word.
    pub fn loads(&self) -> &[LoadReport] {
        &self.loads
    }

    /// Runs so many streams of so many tokens to their end; returns the tokens a second after the first step.
    pub async fn decode(&mut self, streams: u32, tokens: u32) -> Result<f64> {
        let plans = self.plans.of_run(streams, tokens);
        let receipts = self.run(&plans).await?;
        let window = Window::of(&[receipts]).with_context(|| format!("{tokens} tokens are too few to tell a speed"))?;
        Ok(window.tokens_per_s)
    }

    pub async fn stop(self) -> Result<()> {
        for outbox in &self.outboxes {
            // Fails if the worker has ended; the others end all the same.
            let _ = outbox.send(ToWorker::Released);
        }
        self.workers.stop().await;
        self.shutdown.cancel();
        let served = tokio::time::timeout(STOP_GRACE, self.serving).await;
        let served = served.context("the door that workers join at does not close")?;
        served.context("the door that workers join at panicked")?
    }

    async fn join(&mut self, ranks: usize) -> Result<()> {
        while self.outboxes.len() < ranks {
            match self.news().await? {
                News::Joined(outbox) => self.outboxes.push(outbox),
                News::Gone { place, reason } => bail!("rank {place} is gone: {reason}"),
                News::Said { place, message } => return Err(unexpected(place, &message)),
            }
        }
        Ok(())
    }

    async fn form(&mut self, shape: &GroupShape) -> Result<()> {
        for (rank, outbox) in (0..).map(Rank).zip(&self.outboxes) {
            outbox.send(ToWorker::FormEpoch(EpochSpec {
                group: GroupId(0),
                epoch: EPOCH,
                rank,
                transport: shape.transport(),
                nonce: NONCE,
                shares: shape.shares.clone(),
                num_blocks: shape.num_blocks,
                block_size: shape.block_size,
                step_tokens_max: shape.step_tokens_max,
            }))?;
        }
        let mut endpoints = vec![String::new(); self.outboxes.len()];
        for _ in 0..self.outboxes.len() {
            match self.word().await? {
                (rank, FromWorker::EndpointReady { endpoint, .. }) => endpoints[rank] = endpoint,
                (rank, other) => return Err(unexpected(rank, &other)),
            }
        }
        let epoch = EPOCH;
        for outbox in &self.outboxes {
            let endpoints = endpoints.clone();
            outbox.send(ToWorker::ConnectEpoch { epoch, endpoints })?;
        }
        self.loads = vec![LoadReport::default(); self.outboxes.len()];
        for _ in 0..self.outboxes.len() {
            match self.word().await? {
                (rank, FromWorker::EpochReady { load, .. }) => self.loads[rank] = load,
                (rank, other) => return Err(unexpected(rank, &other)),
            }
        }
        Ok(())
    }

    /// When the tokens came.
    async fn run(&mut self, plans: &[StepPlan]) -> Result<Receipts> {
        let (begun, mut receipts) = (Instant::now(), Receipts::default());
        // Of each rank: rank 0 tells of each step, others may tell of several at once.
        let mut done = vec![0; self.outboxes.len()];
        let mut sent = 0;
        while done.iter().any(|done| *done < plans.len()) {
            while sent < plans.len() && sent <= done[0] + LOOK_AHEAD {
                self.send_step(&plans[sent])?;
                sent += 1;
            }
            match self.word().await? {
                (rank, FromWorker::StepDone { step, output, .. }) => {
                    if let Some(output) = output {
                        check(&output, &plans[done[rank]])?;
                        receipts.add(begun.elapsed(), output.sampled.len());
                    }
                    let place = plans[..sent].iter().position(|plan| plan.step == step);
                    done[rank] =
                        place.with_context(|| format!("rank {rank} did step {step}, which is none of these"))? + 1;
                }
                (rank, other) => return Err(unexpected(rank, &other)),
            }
        }
        Ok(receipts)
    }

    fn send_step(&self, plan: &StepPlan) -> Result<()> {
        let mut outboxes = self.outboxes.iter();
        outboxes.try_for_each(|outbox| outbox.send(ToWorker::Step(plan.clone())))
    }

    /// What a rank says next.
    async fn word(&mut self) -> Result<(usize, FromWorker)> {
        let news = tokio::time::timeout(WORD_MAX, self.news()).await;
        match news.with_context(|| format!("no rank has answered in {} s", WORD_MAX.as_secs()))?? {
            News::Said { place, message } => Ok((place, message)),
            News::Gone { place, reason } => bail!("rank {place} is gone: {reason}"),
            News::Joined(_) => bail!("a worker joined that nobody waits for"),
        }
    }

    async fn news(&mut self) -> Result<News> {
        tokio::select! {
            (id, pid, how) = self.workers.next_exit() => bail!("worker {id} (pid {pid}) ended: {how}"),
            news = self.news.recv() => news.context("the door that workers join at is closed"),
        }
    }
}

fn check(output: &StepOutput, plan: &StepPlan) -> Result<()> {
    let (sampled, wanted) = (output.sampled.len(), plan.work.len());
    ensure!(
        output.step == plan.step && sampled == wanted,
        "step {} sampled {sampled} tokens where {wanted} of step {} were to come",
        output.step,
        plan.step
    );
    Ok(())
}

fn unexpected(rank: usize, message: &FromWorker) -> anyhow::Error {
    match message {
        FromWorker::EpochFailed { reason, .. } => anyhow!("rank {rank} failed: {reason}"),
        other => anyhow!("rank {rank} said what nobody asked for: {other:?}"),
    }
}
