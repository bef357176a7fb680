//! A simulated worker: the real rank-side books, around them a process that can be killed, stopped or hung.
//!
//! What a rank is told is done in order: steps, and what is to be sent or taken by transfers (`transfers`).
//!
//! A step has two sections, each ending in a collective that nobody leaves before all ranks of the epoch have entered:
//! the first writes cells, the second reads all cells of each sequence that samples.

use std::collections::{BTreeMap, VecDeque};

use kvasir_coordinator::{Event, SessionId};
use kvasir_kv::{
    Epoch, EpochSpec, FromWorker, LoadReport, NumericsId, Progress, Rank, SampledToken, SequenceId, StepId, StepOutput,
    StepRefused, StepTimes, ToWorker, TokenId, WorkerId, WorkerInfo,
};
use kvasir_worker::rank_books::{RankBooks, StepInput};

use super::{
    cells::{read_cells, reduce, score, write_cells},
    clients::poison_index,
    oracle,
    plant::Plant,
    scenario::{MS, NUMERICS},
    transfers::{SimTransfers, TransferNews},
    world::{Happening, World},
};

/// Sections of a step, hence collectives.
const SECTIONS: u32 = 2;

#[derive(Debug)]
pub(super) struct SimWorker {
    pub id: WorkerId,
    pub numerics: NumericsId,
    pub host: String,
    /// Counts its processes.
    pub life: u32,
    pub alive: bool,
    pub paused: bool,
    /// Its rank thread stands still, its connection lives.
    pub hung: bool,
    pub hung_at: u64,
    pub resumed_at: u64,
    pub died_at: u64,
    pub session: Option<SessionId>,
    pub refused: bool,
    /// Faults explain a loss until then.
    pub tainted_until: u64,
    pub deferred: Vec<Happening>,
    term_max: u64,
    epoch_max: Epoch,
    /// By KV head, cells by slot; they outlive epochs, as memory does.
    pub(super) cells: BTreeMap<u32, Vec<u64>>,
    /// What the rank is to do, as it came. Plans of an ended epoch are left to the books to refuse.
    queue: VecDeque<ToWorker>,
    pub(super) part: Option<Part>,
    pub(super) transfers: SimTransfers,
    /// Gets ready beside it; its cells are in `ahead`.
    pub(super) prepared: Option<Part>,
    /// By KV head, for the epoch that gets ready.
    pub(super) ahead: BTreeMap<u32, Vec<u64>>,
}

/// A worker's part in an epoch.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) spec: EpochSpec,
    /// The epoch beside which it was prepared.
    beside: Option<Epoch>,
    pub(super) books: RankBooks,
    connected: bool,
    /// When it got the last plan, came to its present place, or could have left it.
    moved_at: u64,
    progress: Progress,
    pub(super) run: Option<Run>,
}

/// A step being computed.
#[derive(Debug)]
pub(super) struct Run {
    id: u64,
    step: StepId,
    input: StepInput,
    section: u32,
    /// In a collective that not all have entered.
    waiting: bool,
}

/// Where the ranks of an epoch meet.
#[derive(Debug)]
pub(super) struct Meeting {
    /// Collectives entered, by rank.
    entered: Vec<u64>,
    /// What each rank read, for the samples of the current step; `None` without KV heads.
    digests: BTreeMap<u32, Option<Vec<u64>>>,
    waiting: Vec<(usize, u32, u64)>,
}

/// What happens inside a worker.
#[derive(Clone, Debug)]
pub(super) enum Inside {
    Join,
    Heartbeat,
    EndpointReady(Epoch),
    Connected(Epoch),
    SectionDone(u64),
    CollectiveDone(u64, Vec<u64>),
    CollectiveLate(u64, u32),
    Transfer(TransferNews),
}

impl Part {
    fn new(spec: EpochSpec, beside: Option<Epoch>, now: u64) -> Self {
        let epoch = spec.epoch;
        Self {
            books: RankBooks::new(&spec),
            beside,
            connected: false,
            moved_at: now,
            progress: Progress {
                epoch,
                ..Progress::default()
            },
            run: None,
            spec,
        }
    }
}

impl Meeting {
    fn of(spec: &EpochSpec) -> Self {
        Self {
            entered: vec![0; spec.shares.len()],
            digests: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }
}

impl SimWorker {
    pub fn new(index: usize, host: u64) -> Self {
        Self {
            id: WorkerId(format!("worker-{index}")),
            numerics: NUMERICS,
            host: format!("host-{host}"),
            life: 0,
            alive: true,
            paused: false,
            hung: false,
            hung_at: 0,
            resumed_at: 0,
            died_at: 0,
            session: None,
            refused: false,
            tainted_until: 0,
            deferred: Vec::new(),
            term_max: 0,
            epoch_max: Epoch::default(),
            cells: BTreeMap::new(),
            queue: VecDeque::new(),
            part: None,
            transfers: SimTransfers::default(),
            prepared: None,
            ahead: BTreeMap::new(),
        }
    }

    /// The process ends; all that it held is gone.
    pub fn die(&mut self) {
        self.life += 1;
        self.alive = false;
        self.paused = false;
        self.hung = false;
        self.session = None;
        self.deferred.clear();
        self.term_max = 0;
        self.epoch_max = Epoch::default();
        self.cells.clear();
        self.queue.clear();
        self.part = None;
        self.transfers = SimTransfers::default();
        self.prepared = None;
        self.ahead.clear();
    }

    fn is_prepared_for(&self, epoch: Epoch) -> bool {
        self.prepared.as_ref().is_some_and(|part| part.spec.epoch == epoch)
    }

    pub fn epoch(&self) -> Option<Epoch> {
        self.part.as_ref().map(|part| part.spec.epoch)
    }

    /// Since when it hangs with a step to do, if it does. While it waits for others, they are the ones to be noticed.
    pub fn waits_since(&self) -> Option<u64> {
        // A stopped process cannot have heard that it was given up.
        let part = self.part.as_ref().filter(|part| part.connected && !self.paused)?;
        if part.run.as_ref().is_some_and(|run| run.waiting) {
            return None;
        }
        let is_its = |message: &ToWorker| matches!(message, ToWorker::Step(plan) if plan.epoch == part.spec.epoch);
        let has_work = part.run.is_some() || self.queue.iter().any(is_its);
        has_work.then_some(part.moved_at.max(self.hung_at))
    }

    /// When it moved last, as a rank of this epoch; a stopped process could not say so until it went on.
    pub fn moved_in(&self, epoch: Option<Epoch>) -> Option<u64> {
        let part = self.part.as_ref().filter(|part| Some(part.spec.epoch) == epoch)?;
        Some(part.moved_at.max(self.resumed_at))
    }

    /// All have entered the collective in which it waits.
    fn release(&mut self, id: u64, now: u64) {
        if let Some(run) = self.run(id) {
            run.waiting = false;
            self.part.as_mut().expect("it has a run").moved_at = now;
        }
    }

    fn run(&mut self, id: u64) -> Option<&mut Run> {
        self.part.as_mut()?.run.as_mut().filter(|run| run.id == id)
    }
}

impl World {
    pub(super) fn worker_receives(&mut self, w: usize, session: SessionId, message: Option<ToWorker>) {
        if self.workers[w].session != Some(session) {
            return;
        }
        match message {
            None => self.disconnected(w),
            Some(ToWorker::FormEpoch(spec)) => self.form(w, spec),
            Some(ToWorker::ConnectEpoch { epoch, .. }) => {
                let wait = self.dice.between(1, 20) * MS;
                self.inside(w, wait, Inside::Connected(epoch));
            }
            Some(ToWorker::Step(plan)) => {
                if self.plant == Some(Plant::EarlyAcknowledge) && self.part_rank(w).is_some_and(|rank| rank.0 > 0) {
                    let (epoch, step) = (plan.epoch, plan.step);
                    self.report(
                        Some(session),
                        FromWorker::StepDone {
                            epoch,
                            step,
                            output: None,
                        },
                    );
                }
                let now = self.now;
                let worker = &mut self.workers[w];
                worker.queue.push_back(ToWorker::Step(plan));
                if let Some(part) = worker.part.as_mut() {
                    part.moved_at = now;
                }
                self.start_step(w);
            }
            Some(ToWorker::AbortEpoch { epoch }) => {
                let worker = &mut self.workers[w];
                if worker.part.take_if(|part| part.spec.epoch == epoch).is_some() {
                    worker.transfers = SimTransfers::default();
                }
            }
            Some(
                message @ (ToWorker::SwitchEpoch { .. }
                | ToWorker::SendCells(_)
                | ToWorker::ReceiveCells(_)
                | ToWorker::EndTransfer { .. }),
            ) => {
                self.workers[w].queue.push_back(message);
                self.start_step(w);
            }
            Some(message @ (ToWorker::PrepareEpoch(_) | ToWorker::DropEpoch { .. })) => {
                // It stays behind the switch to the epoch before.
                let queue = &mut self.workers[w].queue;
                let waits =
                    |message: &ToWorker| matches!(message, ToWorker::SwitchEpoch { .. } | ToWorker::PrepareEpoch(_));
                match queue.iter().any(waits) {
                    true => queue.push_back(message),
                    false => self.transfer_order(w, message),
                }
            }
            Some(ToWorker::Released) => self.leave(w),
            Some(ToWorker::Refuse { .. }) => self.workers[w].refused = true,
        }
    }

    fn disconnected(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        worker.session = None;
        worker.part = None;
        worker.prepared = None;
        worker.transfers = SimTransfers::default();
        let wait = self.dice.between(50, 500) * MS;
        self.inside(w, wait, Inside::Join);
    }

    fn form(&mut self, w: usize, spec: EpochSpec) {
        let worker = &mut self.workers[w];
        if spec.epoch <= worker.epoch_max {
            let what = format!(
                "{} is told to form {} after {}",
                worker.id, spec.epoch, worker.epoch_max
            );
            return self.violation(what);
        }
        if let Some(epoch) = worker.epoch() {
            let what = format!("{} is told to form {} while it is in {epoch}", worker.id, spec.epoch);
            return self.violation(what);
        }
        worker.epoch_max = spec.epoch;
        worker.term_max = worker.term_max.max(spec.epoch.term);
        let slots = (spec.num_blocks * spec.block_size) as usize;
        for head in spec.shares[spec.rank.0 as usize].attention.clone() {
            let cells = worker.cells.entry(head).or_default();
            let len = cells.len().max(slots);
            cells.resize(len, 0);
        }
        worker.prepared = None;
        let place = (spec.epoch, spec.nonce);
        self.meetings.entry(place).or_insert_with(|| Meeting::of(&spec));
        let epoch = spec.epoch;
        worker.part = Some(Part::new(spec, None, self.now));
        let wait = self.dice.between(1, 50) * MS;
        self.inside(w, wait, Inside::EndpointReady(epoch));
    }

    pub(super) fn prepare(&mut self, w: usize, spec: EpochSpec) {
        let worker = &mut self.workers[w];
        if spec.epoch <= worker.epoch_max {
            let what = format!(
                "{} is told to prepare {} after {}",
                worker.id, spec.epoch, worker.epoch_max
            );
            return self.violation(what);
        }
        let slots = (spec.num_blocks * spec.block_size) as usize;
        let heads = spec.shares[spec.rank.0 as usize].attention.clone();
        let here = worker
            .part
            .as_ref()
            .map(|part| part.spec.shares[part.spec.rank.0 as usize].attention.clone());
        worker.ahead.clear();
        for head in heads {
            // Those of heads that stay are where they are.
            if here.as_ref().is_some_and(|here| here.contains(&head)) {
                let cells = worker.cells.entry(head).or_default();
                let len = cells.len().max(slots);
                cells.resize(len, 0);
            } else {
                worker.ahead.insert(head, vec![0; slots]);
            }
        }
        let place = (spec.epoch, spec.nonce);
        self.meetings.entry(place).or_insert_with(|| Meeting::of(&spec));
        let epoch = spec.epoch;
        let beside = worker.epoch();
        worker.prepared = Some(Part::new(spec, beside, self.now));
        let wait = self.dice.between(1, 50) * MS;
        self.inside(w, wait, Inside::EndpointReady(epoch));
    }

    pub(super) fn switch(&mut self, w: usize, epoch: Epoch) {
        let worker = &mut self.workers[w];
        let Some(mut part) = worker
            .prepared
            .take_if(|part| part.spec.epoch == epoch && part.connected)
        else {
            // Another one may have begun since.
            let what = format!("{} is told to switch to {epoch}, which it did not prepare", worker.id);
            if epoch > worker.epoch_max {
                self.violation(what);
            }
            return;
        };
        if part.beside.is_some() && worker.epoch() != part.beside {
            let failed = FromWorker::EpochFailed {
                epoch,
                reason: "the epoch before has failed here".to_owned(),
                missing: Vec::new(),
            };
            return self.report(self.workers[w].session, failed);
        }
        if let Some(before) = worker.part.take() {
            let heads = |spec: &EpochSpec| spec.shares[spec.rank.0 as usize].attention.clone();
            let (mut old, new) = (heads(&before.spec), heads(&part.spec));
            let kept = old.by_ref().filter(|head| new.contains(head)).count();
            part.books.inherit(&before.books, kept as u32);
        }
        let ahead = std::mem::take(&mut worker.ahead);
        worker.cells.extend(ahead);
        worker.epoch_max = epoch;
        worker.term_max = worker.term_max.max(epoch.term);
        part.moved_at = self.now;
        worker.part = Some(part);
        worker.transfers.close();
    }

    pub(super) fn inside_worker(&mut self, w: usize, what: Inside) {
        match what {
            Inside::Join => self.join(w),
            Inside::Heartbeat => self.heartbeat(w),
            // A hung rank thread does none of what follows.
            _ if self.workers[w].hung => {}
            Inside::EndpointReady(epoch) if self.workers[w].epoch() == Some(epoch) => {
                let endpoint = format!("{}/{epoch}", self.workers[w].id);
                self.report(self.workers[w].session, FromWorker::EndpointReady { epoch, endpoint });
            }
            Inside::Connected(epoch) if self.workers[w].epoch() == Some(epoch) => {
                let part = self.workers[w].part.as_mut().expect("it has an epoch");
                part.connected = true;
                let load = LoadReport::default();
                self.report(self.workers[w].session, FromWorker::EpochReady { epoch, load });
                self.start_step(w);
            }
            Inside::SectionDone(run) => self.section_done(w, run),
            Inside::CollectiveDone(run, outcome) => self.collective_done(w, run, &outcome),
            Inside::CollectiveLate(run, section) => self.collective_late(w, run, section),
            Inside::Transfer(news) => self.transfer_news(w, news),
            Inside::EndpointReady(epoch) if self.workers[w].is_prepared_for(epoch) => {
                let endpoint = format!("{}/{epoch}", self.workers[w].id);
                self.report(self.workers[w].session, FromWorker::EndpointReady { epoch, endpoint });
            }
            Inside::Connected(epoch) if self.workers[w].is_prepared_for(epoch) => {
                let part = self.workers[w].prepared.as_mut().expect("it is prepared");
                part.connected = true;
                let load = LoadReport::default();
                self.report(self.workers[w].session, FromWorker::EpochReady { epoch, load });
            }
            Inside::EndpointReady(_) | Inside::Connected(_) => {}
        }
    }

    fn join(&mut self, w: usize) {
        if self.workers[w].session.is_some() || self.workers[w].refused {
            return;
        }
        let session = self.open_link(w);
        let worker = &mut self.workers[w];
        worker.session = Some(session);
        let info = WorkerInfo {
            id: worker.id.clone(),
            pid: worker.life,
            address: worker.host.clone(),
            host: worker.host.clone(),
            numerics_id: worker.numerics,
            term_max: worker.term_max,
            weight: 1.0,
            threads: 1,
            backend: "simulated".to_owned(),
            kv_memory_bytes: self.scenario.kv_memory_bytes,
            block_size: self.scenario.config.cell.block_size(),
            kv_dtype: self.scenario.config.cell.dtype(),
            transfer_address: format!("worker-{w}:1"),
        };
        self.send_up(session, Event::WorkerJoined { session, info });
    }

    fn heartbeat(&mut self, w: usize) {
        let worker = &self.workers[w];
        let progress = worker.part.as_ref().map(|part| part.progress).unwrap_or_default();
        self.report(worker.session, FromWorker::Heartbeat(progress));
        self.inside(w, self.scenario.heartbeat, Inside::Heartbeat);
    }

    /// What comes before the next plan, if the rank computes nothing.
    fn obey_orders(&mut self, w: usize) {
        let computes = |worker: &SimWorker| worker.part.as_ref().is_some_and(|part| part.run.is_some());
        while !computes(&self.workers[w]) {
            // A plan of an epoch that is over here stands in nobody's way.
            let is_over = self.workers[w].part.is_none();
            let is_order = |next: &mut ToWorker| is_over || !matches!(next, ToWorker::Step(_));
            match self.workers[w].queue.pop_front_if(is_order) {
                None => return,
                Some(ToWorker::Step(_)) => self.report.stale_steps += 1,
                Some(order) => self.transfer_order(w, order),
            }
        }
    }

    /// Takes the next plan that the books accept, if the rank has nothing to do.
    fn start_step(&mut self, w: usize) {
        let skip_check = self.plant == Some(Plant::EpochCheckSkipped);
        self.obey_orders(w);
        let worker = &mut self.workers[w];
        let Some(part) = worker.part.as_mut().filter(|part| part.connected && part.run.is_none()) else {
            return;
        };
        while let Some(ToWorker::Step(mut plan)) = worker.queue.pop_front_if(|next| matches!(next, ToWorker::Step(_))) {
            if skip_check {
                plan.epoch = part.spec.epoch;
            }
            match part.books.apply(&plan) {
                Ok(input) => {
                    self.runs += 1;
                    let section = 0;
                    part.run = Some(Run {
                        id: self.runs,
                        step: plan.step,
                        input,
                        section,
                        waiting: false,
                    });
                    return self.begin_section(w);
                }
                Err(StepRefused::WrongEpoch { expected, found }) if found < expected => self.report.stale_steps += 1,
                Err(refusal) => {
                    let what = format!("{} refuses step {} of its own epoch: {refusal}", worker.id, plan.step);
                    return self.violation(what);
                }
            }
        }
    }

    fn begin_section(&mut self, w: usize) {
        let Some(run) = self.workers[w].part.as_ref().and_then(|part| part.run.as_ref()) else {
            return;
        };
        let (id, num_tokens) = (run.id, run.input.num_tokens() as u64);
        let wait = self.dice.between(50, self.scenario.section_max) + 10 * num_tokens;
        self.inside(w, wait, Inside::SectionDone(id));
    }

    fn section_done(&mut self, w: usize, id: u64) {
        let lose_write = self.plant == Some(Plant::WriteLost) && self.take_plant(20);
        let worker = &mut self.workers[w];
        let Some(section) = worker.run(id).map(|run| run.section) else {
            return;
        };
        let part = worker.part.as_ref().expect("it has a run");
        let run = part.run.as_ref().expect("it has a run");
        let has_heads = part.spec.shares[part.spec.rank.0 as usize].num_kv_heads() > 0;
        let block_size = part.spec.block_size;
        let mut digests = None;
        if has_heads && section == 0 {
            let heads = part.spec.shares[part.spec.rank.0 as usize].attention.clone();
            for (_, cells) in worker.cells.range_mut(heads) {
                for work in &run.input.work {
                    write_cells(cells, block_size, work, lose_write);
                }
            }
        } else if has_heads {
            let heads = part.spec.shares[part.spec.rank.0 as usize].attention.clone();
            let of_head = |cells: &Vec<u64>| {
                let work = run.input.work.iter();
                Some(work.flat_map(|work| read_cells(cells, block_size, work)).collect())
            };
            let read = worker.cells.range(heads).map(|(head, cells)| (*head, of_head(cells)));
            digests = Some(reduce(&read.collect()));
        }
        self.enter_collective(w, id, digests);
    }

    fn enter_collective(&mut self, w: usize, id: u64, digests: Option<Vec<u64>>) {
        let life = self.workers[w].life;
        let Some(part) = self.workers[w].part.as_mut() else {
            return;
        };
        let (place, rank) = ((part.spec.epoch, part.spec.nonce), part.spec.rank);
        part.progress.collectives_entered += 1;
        part.moved_at = self.now;
        let run = part.run.as_mut().expect("a section of it is done");
        run.waiting = true;
        let section = run.section;
        let meeting = self.meetings.get_mut(&place).expect("made when the epoch was formed");
        meeting.entered[rank.0 as usize] += 1;
        let here = meeting.entered[rank.0 as usize];
        meeting.digests.insert(rank.0, digests);
        meeting.waiting.push((w, life, id));
        if meeting.entered.iter().all(|entered| *entered >= here) {
            let outcome = reduce(&std::mem::take(&mut meeting.digests));
            for (w, life, id) in std::mem::take(&mut meeting.waiting) {
                self.workers[w].release(id, self.now);
                // A rank that is not scheduled at once leaves late.
                let late = if self.dice.chance(15) {
                    self.scenario.section_max
                } else {
                    200
                };
                let wait = self.dice.between(5, late);
                let done = Inside::CollectiveDone(id, outcome.clone());
                self.inside_life(w, life, wait, done);
            }
        } else {
            self.inside(
                w,
                self.scenario.collective_deadline,
                Inside::CollectiveLate(id, section),
            );
        }
    }

    fn collective_done(&mut self, w: usize, id: u64, outcome: &[u64]) {
        let Some(run) = self.workers[w].run(id) else { return };
        run.section += 1;
        if run.section < SECTIONS {
            self.begin_section(w);
        } else {
            self.finish_step(w, outcome);
        }
    }

    /// Nobody waits for ever in a collective: a rank that gives up names those who did not come.
    fn collective_late(&mut self, w: usize, id: u64, section: u32) {
        let waits = self.workers[w]
            .run(id)
            .is_some_and(|run| run.waiting && run.section == section);
        if !waits {
            return;
        }
        let part = self.workers[w].part.take().expect("it waits");
        self.workers[w].transfers = SimTransfers::default();
        let epoch = part.spec.epoch;
        let entered = &self.meetings[&(epoch, part.spec.nonce)].entered;
        let here = entered[part.spec.rank.0 as usize];
        let missing = (0..).zip(entered).filter(|(_, entered)| **entered < here);
        let missing = missing.map(|(rank, _)| Rank(rank)).collect();
        let reason = "collective deadline".to_owned();
        let failed = FromWorker::EpochFailed { epoch, reason, missing };
        self.report(self.workers[w].session, failed);
    }

    fn finish_step(&mut self, w: usize, outcome: &[u64]) {
        let session = self.workers[w].session;
        let part = self.workers[w].part.as_mut().expect("it has a run");
        let run = part.run.take().expect("it is done");
        let (epoch, step) = (part.spec.epoch, run.step);
        let mut output = StepOutput {
            epoch,
            step,
            sampled: Vec::new(),
            scored: Vec::new(),
            poisoned: Vec::new(),
            times: StepTimes::default(),
        };
        let mut committed: Vec<(SequenceId, TokenId)> = Vec::new();
        let mut digests = outcome.iter();
        for work in &run.input.work {
            output.scored.extend(score(work, &mut digests));
            let Some(digest) = work.samples.then(|| digests.next()).flatten() else {
                continue;
            };
            if poison_index(&work.sampling).is_some_and(|index| work.answer_index() >= index) {
                output.poisoned.push(work.sequence);
                committed.push((work.sequence, TokenId(0)));
                continue;
            }
            let token = oracle::sample(*digest, work.sampling.seed, work.answer_index());
            committed.push((work.sequence, token));
            output.sampled.push(SampledToken {
                sequence: work.sequence,
                token,
                logprob: 0.0,
                top_logprobs: Vec::new(),
            });
        }
        part.books.commit(&committed);
        part.progress.steps_done += 1;
        let is_first = part.spec.rank == Rank(0);
        let life = (epoch, part.spec.nonce);
        self.lives.see(part.spec.rank, life, part.progress.steps_done);
        // Others may tell of several steps at once.
        let next_is_step = matches!(self.workers[w].queue.front(), Some(ToWorker::Step(_)));
        let waits = !is_first && next_is_step && self.dice.chance(50);
        if is_first || (!waits && self.plant != Some(Plant::EarlyAcknowledge)) {
            let output = is_first.then_some(output);
            self.report(session, FromWorker::StepDone { epoch, step, output });
        }
        self.start_step(w);
    }

    pub(super) fn part_rank(&self, w: usize) -> Option<Rank> {
        self.workers[w].part.as_ref().map(|part| part.spec.rank)
    }

    /// Gives up its epoch without blaming anybody.
    pub(super) fn fail_by_itself(&mut self, w: usize) {
        if let Some(part) = self.workers[w].part.take() {
            self.workers[w].transfers = SimTransfers::default();
            let failed = FromWorker::EpochFailed {
                epoch: part.spec.epoch,
                reason: "a fault of its own".to_owned(),
                missing: Vec::new(),
            };
            self.report(self.workers[w].session, failed);
        }
    }

    pub(super) fn inside(&mut self, worker: usize, wait: u64, what: Inside) {
        self.inside_life(worker, self.workers[worker].life, wait, what);
    }

    fn inside_life(&mut self, worker: usize, life: u32, wait: u64, what: Inside) {
        self.schedule(self.now + wait, Happening::Inside { worker, life, what });
    }
}
