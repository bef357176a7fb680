//! The one task that owns the cluster's state machine: hands it events and the time, carries out its effects.
//!
//! Everyone else speaks to it through a [`ClusterHandle`], over a bounded channel.

mod leading;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvasir_kv::{
    FinishReason, FromWorker, GroupId, Request, RequestId, SequenceId, StepTimes, ToWorker, WorkerId, WorkerInfo,
};
use kvasir_proto::{convert, v1};
use opentelemetry::Context;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::{
    Cluster, ClusterStatus, Effect, Event, MigrationError, MigrationOutcome, MigrationReport, Now, OrderId,
    ReshardError, ReshardOutcome, ReshardReport, SessionId,
    telemetry::{EventMeter, StepMeter, Telemetry, telling},
    token_log::{Ending, TokenLog},
};

pub use leading::Leadership;

const COMMANDS_MAX: usize = 1024;

/// The way to one worker.
#[derive(Debug)]
pub struct WorkerLink {
    /// Bounded: a worker that does not read is given up.
    pub outbox: mpsc::Sender<Result<v1::ToWorker, Status>>,
    /// Cancelled when nothing that the worker says counts any more.
    pub closing: CancellationToken,
}

#[derive(Debug)]
enum Command {
    Join {
        session: SessionId,
        info: WorkerInfo,
        link: WorkerLink,
    },
    Submit {
        choices: Vec<(SequenceId, Arc<TokenLog>)>,
        request: Request,
        deadline: Option<Now>,
    },
    Event(Event),
    Migrate {
        request: RequestId,
        target: Option<GroupId>,
        reply: oneshot::Sender<OrderResult>,
    },
    Reshard {
        group: GroupId,
        ranks: u32,
        reply: oneshot::Sender<ReshardResult>,
    },
    LetGo {
        worker: WorkerId,
        reply: oneshot::Sender<bool>,
    },
    Status(oneshot::Sender<Snapshot>),
    SetLogFilter {
        filter: String,
        reply: oneshot::Sender<u32>,
    },
    Lead(Leadership),
    StepDown,
}

/// What the machine shows, and what the driver has seen beside it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub cluster: ClusterStatus,
    /// Of each group's last step.
    pub step_times: BTreeMap<GroupId, StepTimes>,
}

type OrderResult = Result<Vec<MigrationReport>, MigrationError>;

type ReshardResult = Result<ReshardReport, ReshardError>;

/// The coordinator goes away and takes no more work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct ShuttingDown;

/// What sessions, streams and operators may ask of the driver.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    commands: mpsc::Sender<Command>,
    last_id: Arc<AtomicU64>,
    started: Instant,
    ready: watch::Receiver<bool>,
    telemetry: Telemetry,
    terms: watch::Receiver<u64>,
}

impl ClusterHandle {
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub fn next_session(&self) -> SessionId {
        SessionId(self.next_id())
    }

    pub fn next_sequence(&self) -> SequenceId {
        SequenceId(self.next_id())
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn now(&self) -> Now {
        Now(self.started.elapsed())
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// True while a group serves.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    pub async fn join(&self, session: SessionId, info: WorkerInfo, link: WorkerLink) -> Result<(), ShuttingDown> {
        self.send(Command::Join { session, info, link }).await
    }

    pub async fn worker_says(&self, session: SessionId, message: FromWorker) -> Result<(), ShuttingDown> {
        self.send(Command::Event(Event::FromWorker { session, message })).await
    }

    pub async fn worker_gone(&self, session: SessionId) -> Result<(), ShuttingDown> {
        self.send(Command::Event(Event::WorkerGone { session })).await
    }

    /// One sequence for each answer that is wanted, of the request's choice and the next ones.
    pub async fn submit(
        &self,
        choices: Vec<(SequenceId, Arc<TokenLog>)>,
        request: Request,
        deadline: Option<Now>,
    ) -> Result<(), ShuttingDown> {
        let command = Command::Submit {
            choices,
            request,
            deadline,
        };
        self.send(command).await
    }

    /// A stop string ended with the token of index `last_index`.
    pub async fn stop(&self, sequence: SequenceId, last_index: u32) -> Result<(), ShuttingDown> {
        self.send(Command::Event(Event::Stop { sequence, last_index })).await
    }

    pub async fn cancel(&self, sequence: SequenceId) -> Result<(), ShuttingDown> {
        self.send(Command::Event(cancel(sequence))).await
    }

    /// For `Drop`: does not wait, and does not lose the cancellation either.
    pub fn cancel_soon(&self, sequence: SequenceId) {
        if let Err(TrySendError::Full(command)) = self.commands.try_send(Command::Event(cancel(sequence))) {
            let commands = self.commands.clone();
            // Ends as soon as the driver has taken it, or is gone.
            tokio::spawn(async move { commands.send(command).await });
        }
    }

    /// Tells all workers which log lines to write. Returns how many have been told.
    pub async fn set_log_filter(&self, filter: String) -> Result<u32, ShuttingDown> {
        let (reply, told) = oneshot::channel();
        self.send(Command::SetLogFilter { filter, reply }).await?;
        told.await.map_err(|_| ShuttingDown)
    }

    pub async fn status(&self) -> Result<Snapshot, ShuttingDown> {
        let (reply, status) = oneshot::channel();
        self.send(Command::Status(reply)).await?;
        status.await.map_err(|_| ShuttingDown)
    }

    /// Moves the sequences of a request to another group; returns when all have gone, or have not.
    pub async fn migrate(&self, request: RequestId, target: Option<GroupId>) -> Result<OrderResult, ShuttingDown> {
        let (reply, result) = oneshot::channel();
        let command = Command::Migrate { request, target, reply };
        self.send(command).await?;
        result.await.map_err(|_| ShuttingDown)
    }

    /// Gives a group another number of ranks; returns when it goes on with them, or does not.
    pub async fn reshard(&self, group: GroupId, ranks: u32) -> Result<ReshardResult, ShuttingDown> {
        let (reply, result) = oneshot::channel();
        self.send(Command::Reshard { group, ranks, reply }).await?;
        result.await.map_err(|_| ShuttingDown)
    }

    /// Lets a worker go. False if there is no such worker.
    pub async fn let_go(&self, worker: WorkerId) -> Result<bool, ShuttingDown> {
        let (reply, known) = oneshot::channel();
        self.send(Command::LetGo { worker, reply }).await?;
        known.await.map_err(|_| ShuttingDown)
    }

    async fn send(&self, command: Command) -> Result<(), ShuttingDown> {
        self.commands.send(command).await.map_err(|_| ShuttingDown)
    }
}

fn cancel(sequence: SequenceId) -> Event {
    Event::Cancel {
        sequence,
        reason: FinishReason::Cancelled,
    }
}

/// Owns the machine, the ways to the workers and the logs of the answers.
#[derive(Debug)]
pub struct Driver {
    cluster: Cluster,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    links: HashMap<SessionId, WorkerLink>,
    logs: HashMap<SequenceId, Arc<TokenLog>>,
    /// Operators who wait for what they asked for.
    orders: HashMap<OrderId, oneshot::Sender<OrderResult>>,
    reshard_orders: HashMap<OrderId, oneshot::Sender<ReshardResult>>,
    orders_taken: u64,
    ready: watch::Sender<bool>,
    terms: watch::Sender<u64>,
    /// Otherwise it takes nobody and nothing.
    leads: bool,
    /// Came up while effects were carried out; delivered after them.
    pending: VecDeque<Event>,
    telemetry: Telemetry,
    steps: StepMeter,
    events: EventMeter,
    /// How long the machine took for what is being carried out.
    thinking: Duration,
}

impl Driver {
    pub fn new(cluster: Cluster, telemetry: Telemetry) -> (Self, ClusterHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (ready, ready_receiver) = watch::channel(false);
        let (terms, terms_receiver) = watch::channel(0);
        let started = Instant::now();
        let driver = Self {
            cluster,
            started,
            commands,
            links: HashMap::new(),
            logs: HashMap::new(),
            orders: HashMap::new(),
            reshard_orders: HashMap::new(),
            orders_taken: 0,
            ready,
            terms,
            leads: true,
            pending: VecDeque::new(),
            telemetry: telemetry.clone(),
            steps: StepMeter::default(),
            events: EventMeter::default(),
            thinking: Duration::ZERO,
        };
        let handle = ClusterHandle {
            commands: sender,
            last_id: Arc::default(),
            started,
            ready: ready_receiver,
            telemetry,
            terms: terms_receiver,
        };
        (driver, handle)
    }

    /// Runs until `shutdown`; then every answer ends with `Ending::Shutdown` and every worker's stream ends.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut ticker = tokio::time::interval(self.cluster.config().tick_interval);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = ticker.tick() => self.tick(),
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
            }
        }
        self.end();
    }

    fn tick(&mut self) {
        self.deliver(Event::Tick);
        self.publish_readiness();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Lead(leadership) => self.lead(leadership),
            Command::StepDown => self.step_down(),
            // Who has gone this far while the leader changed is sent on.
            Command::Join { link, .. } if !self.leads => link.closing.cancel(),
            Command::Submit { choices, .. } if !self.leads => {
                choices.iter().for_each(|(_, log)| log.end(Ending::Shutdown));
            }
            Command::Join { session, info, link } => {
                info!(worker = %info.id, pid = info.pid, address = %info.address, "worker joined");
                self.telemetry.news.tell(v1::News {
                    kind: "worker_joined".to_owned(),
                    text: format!("worker {} has joined", info.id),
                    worker_id: info.id.0.clone(),
                    ..Default::default()
                });
                self.links.insert(session, link);
                self.deliver(Event::WorkerJoined { session, info });
            }
            Command::Submit {
                choices,
                request,
                deadline,
            } => {
                let sequences = choices.iter().map(|(sequence, _)| *sequence).collect();
                self.logs.extend(choices);
                self.deliver(Event::Submit {
                    sequences,
                    request,
                    deadline,
                });
            }
            Command::Migrate { request, target, reply } => {
                self.orders_taken += 1;
                let order = OrderId(self.orders_taken);
                self.orders.insert(order, reply);
                self.deliver(Event::Migrate { order, request, target });
            }
            Command::Reshard { group, ranks, reply } => {
                self.orders_taken += 1;
                let order = OrderId(self.orders_taken);
                self.reshard_orders.insert(order, reply);
                self.deliver(Event::Reshard { order, group, ranks });
            }
            Command::LetGo { worker, reply } => {
                let known = self.cluster.status().workers.iter().any(|known| known.worker == worker);
                let _ = reply.send(known);
                self.deliver(Event::LetGo { worker });
            }
            Command::Event(event) => self.deliver_if_known(event),
            Command::Status(reply) => {
                // Whoever asked may have gone away.
                let _ = reply.send(Snapshot {
                    cluster: self.cluster.status(),
                    step_times: self.steps.last_times(),
                });
            }
            Command::SetLogFilter { filter, reply } => {
                let _ = reply.send(self.set_log_filter(&filter));
            }
        }
    }

    /// Nothing is delivered for a session that was closed or a sequence that has ended.
    fn deliver_if_known(&mut self, event: Event) {
        let known = match &event {
            Event::FromWorker { session, .. } => self.links.contains_key(session),
            Event::WorkerGone { session } => self.links.remove(session).is_some(),
            Event::Cancel { sequence, .. } | Event::Stop { sequence, .. } => self.logs.contains_key(sequence),
            _ => true,
        };
        if known {
            self.deliver(event);
        }
    }

    fn deliver(&mut self, event: Event) {
        self.pending.push_back(event);
        while let Some(event) = self.pending.pop_front() {
            let now = self.now();
            self.note_done(&event);
            let effects = self.cluster.on(event, now);
            self.thinking = self.now().since(now);
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn now(&self) -> Now {
        Now(self.started.elapsed())
    }

    /// A step whose output comes is measured.
    fn note_done(&mut self, event: &Event) {
        if let Event::FromWorker {
            message:
                FromWorker::StepDone {
                    epoch,
                    step,
                    output: Some(output),
                },
            ..
        } = event
        {
            self.steps.done(*epoch, *step, output.times);
        }
    }

    fn set_log_filter(&self, filter: &str) -> u32 {
        let message = || v1::ToWorker {
            message: Some(v1::to_worker::Message::SetLogFilter(v1::SetLogFilter {
                filter: filter.to_owned(),
            })),
        };
        let told = self
            .links
            .values()
            .filter(|link| link.outbox.try_send(Ok(message())).is_ok());
        told.count() as u32
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { session, message } => self.send(session, message),
            Effect::CloseSession { session, reason } => self.close(session, &reason),
            Effect::Token { sequence, index, token } => {
                if let Some(log) = self.logs.get(&sequence) {
                    log.append(index, token);
                }
            }
            Effect::PromptLogprobs {
                sequence,
                position,
                logprobs,
            } => {
                if let Some(log) = self.logs.get(&sequence) {
                    log.append_scores(position, logprobs);
                }
            }
            Effect::Finished {
                sequence,
                reason,
                usage,
            } => self.end_log(sequence, Ending::Finished { reason, usage }),
            Effect::Failed { sequence, error } => self.end_log(sequence, Ending::Failed(error)),
            Effect::OrderEnded { order, result } => {
                if let Some(reply) = self.orders.remove(&order) {
                    // Whoever asked may have gone away.
                    let _ = reply.send(result);
                }
            }
            Effect::ReshardOrderEnded { order, result } => {
                if let Some(reply) = self.reshard_orders.remove(&order) {
                    let _ = reply.send(result);
                }
            }
            news => self.report(news),
        }
    }

    fn send(&mut self, session: SessionId, message: ToWorker) {
        let Some(link) = self.links.get(&session) else {
            return;
        };
        let traceparent = match &message {
            ToWorker::Step(plan) => {
                let log_of = |sequence| self.logs.get(&sequence);
                let admitted = plan.admitted.iter().filter_map(|admitted| log_of(admitted.sequence));
                admitted.for_each(|log| log.meter().dispatched());
                let traced = |sequence| log_of(sequence)?.meter().traced();
                self.steps.sent(plan, self.thinking, traced)
            }
            _ => String::new(),
        };
        let mut message = convert::to_worker(message);
        if let Some(v1::to_worker::Message::Step(step)) = &mut message.message {
            step.traceparent = traceparent;
        }
        if let Err(error) = link.outbox.try_send(Ok(message)) {
            match error {
                TrySendError::Full(_) => warn!(%session, "worker does not read what it is sent; giving it up"),
                TrySendError::Closed(_) => debug!(%session, "worker's stream is closed"),
            }
            self.close(session, "it does not read");
            self.pending.push_back(Event::WorkerGone { session });
        }
    }

    /// The worker's stream ends once what is in its outbox has been sent.
    fn close(&mut self, session: SessionId, reason: &str) {
        if let Some(link) = self.links.remove(&session) {
            debug!(%session, reason, "session closed");
            link.closing.cancel();
        }
    }

    fn end_log(&mut self, sequence: SequenceId, ending: Ending) {
        if let Some(log) = self.logs.remove(&sequence) {
            log.end(ending);
        }
    }

    fn report(&mut self, news: Effect) {
        match &news {
            Effect::EpochStarted { group, epoch, .. } | Effect::EpochSwitched { group, epoch, .. } => {
                self.steps.begin_epoch(*group, *epoch);
                self.events.know(*group);
            }
            Effect::RankLost { how, detection_ms, .. } => self.events.lost(*how, *detection_ms),
            Effect::Recovered { group, stall_ms, .. } => self.events.recovered(*group, *stall_ms),
            Effect::MigrationEnded(report) => {
                if let MigrationOutcome::Moved { pause } = report.outcome {
                    self.events.moved(report.reason, pause);
                }
                if let Some(log) = self.logs.get(&report.sequence) {
                    log.meter().moved(report);
                }
            }
            Effect::ReshardEnded(ReshardReport {
                group,
                outcome: ReshardOutcome::Switched { pause },
                ..
            }) => self.events.switched(*group, *pause),
            _ => {}
        }
        let of_request = match &news {
            Effect::MigrationBegan { sequence, .. } => self.logs.get(sequence),
            Effect::MigrationEnded(report) => self.logs.get(&report.sequence),
            _ => None,
        };
        // Its lines carry the trace of the request that they are about.
        let _within = of_request
            .and_then(|log| log.meter().context().cloned())
            .map(Context::attach);
        telling::log(&news);
        if let Some(news) = telling::news(&news) {
            self.telemetry.news.tell(news);
        }
        self.publish_readiness();
    }

    fn publish_readiness(&self) {
        self.publish_term();
        let ready = self.cluster.is_ready();
        self.ready
            .send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }

    fn end(&mut self) {
        self.ready.send_replace(false);
        for link in self.links.values() {
            link.closing.cancel();
        }
        self.links.clear();
        for log in self.logs.values() {
            log.end(Ending::Shutdown);
        }
        self.logs.clear();
        // Whoever waits for these hears that nobody is there.
        self.orders.clear();
        self.reshard_orders.clear();
        self.pending.clear();
    }
}
