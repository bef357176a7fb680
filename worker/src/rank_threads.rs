//! A group whose ranks are threads of this process, for measurements: their arithmetic, cells and collectives are those of
//! workers, but there is no coordinator, no books and no sampler. Whoever measures says what each rank computes.

use std::{
    net::{IpAddr, Ipv4Addr},
    panic::resume_unwind,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use kvasir_kv::{Epoch, EpochSpec, GroupId, Rank, RankShare, Transport};

use crate::{
    backend::{Backend, BackendError, ForwardOutput},
    collective::{Abort, Collective, CollectiveError, Endpoint, EpochNonce, Listening, Seat, Terms},
    rank_books::WorkInput,
};

/// So long a rank waits for another one, at the beginning and in a step.
const DEADLINE: Duration = Duration::from_secs(120);
const NONCE: u64 = 1;

/// What the ranks share.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// In rank order.
    pub shares: Vec<RankShare>,
    pub num_blocks: u32,
    pub block_size: u32,
    /// Rows of the largest step.
    pub step_tokens_max: u32,
}

/// Ends its threads when it is dropped.
#[derive(Debug)]
pub struct RankThreads {
    ranks: Vec<(mpsc::Sender<Job>, JoinHandle<()>)>,
    abort: Abort,
}

type Job = Box<dyn FnOnce(&mut RankThread) + Send>;

/// A rank, on its thread.
#[expect(missing_debug_implementations, reason = "a backend has none")]
pub struct RankThread {
    pub rank: Rank,
    pub share: RankShare,
    pub backend: Box<dyn Backend>,
    collective: Box<dyn Collective>,
    output: ForwardOutput,
}

impl RankThread {
    /// Computes a step; all ranks make the same call.
    pub fn step(&mut self, work: &[WorkInput]) -> Result<&ForwardOutput, BackendError> {
        self.backend.forward(work, self.collective.as_mut(), &mut self.output)?;
        Ok(&self.output)
    }
}

impl RankThreads {
    /// Returns when all have loaded their shares and met. `open` makes the backend of a rank, on its thread.
    pub fn start<F>(plan: &GroupPlan, open: F) -> Result<Self, BackendError>
    where
        F: Fn() -> Result<Box<dyn Backend>, BackendError> + Send + Sync + 'static,
    {
        let abort = Abort::new();
        let members = members(plan)?;
        let (open, (ready, begun)) = (Arc::new(open), mpsc::channel());
        let mut threads = Self {
            ranks: Vec::new(),
            abort: abort.clone(),
        };
        for member in members {
            let (inbox, jobs) = mpsc::channel::<Job>();
            let (open, ready, abort) = (Arc::clone(&open), ready.clone(), abort.clone());
            let serve = move || {
                let rank = member.begin(&*open, &abort);
                if rank.is_err() {
                    // The others wait for this one.
                    abort.abort();
                }
                let (rank, word) = match rank {
                    Ok(rank) => (Some(rank), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                // Fails only if the one who waits is gone, and then there are no jobs.
                let _ = ready.send(word);
                drop(ready);
                if let Some(mut rank) = rank {
                    jobs.iter().for_each(|job| job(&mut rank));
                }
            };
            let spawned = thread::Builder::new().name("kvasir-rank".to_owned()).spawn(serve);
            let thread = spawned.map_err(|error| BackendError::Load {
                what: "a rank's thread".to_owned(),
                reason: error.to_string(),
            })?;
            threads.ranks.push((inbox, thread));
        }
        drop(ready);
        first_cause(begun.iter().collect())?;
        Ok(threads)
    }

    /// Runs `job` on each rank's thread, all at once, and returns what each says, in rank order. After an error nothing else
    /// can be run. Panics if a job does.
    pub fn run<T, F>(&mut self, job: F) -> Result<Vec<T>, BackendError>
    where
        T: Send + 'static,
        F: Fn(&mut RankThread) -> Result<T, BackendError> + Send + Sync + 'static,
    {
        let job = Arc::new(job);
        let mut answers = Vec::new();
        for (inbox, _) in &self.ranks {
            let (answer, answered) = mpsc::channel();
            let (job, abort) = (Arc::clone(&job), self.abort.clone());
            let run: Job = Box::new(move |rank| {
                let said = job(rank);
                if said.is_err() {
                    abort.abort();
                }
                let _ = answer.send(said);
            });
            // A rank that has ended does not answer, which is noticed below.
            let _ = inbox.send(run);
            answers.push(answered);
        }
        let said: Option<Vec<_>> = answers.iter().map(|answered| answered.recv().ok()).collect();
        match said {
            Some(said) => first_cause(said),
            None => self.propagate_panic(),
        }
    }

    fn propagate_panic(&mut self) -> ! {
        self.abort.abort();
        for (inbox, thread) in self.ranks.drain(..) {
            drop(inbox);
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
        panic!("a rank's thread has ended");
    }
}

impl Drop for RankThreads {
    fn drop(&mut self) {
        self.abort.abort();
        for (inbox, thread) in self.ranks.drain(..) {
            drop(inbox);
            // A rank's panic has been told where it was waited for.
            let _ = thread.join();
        }
    }
}

/// The error that the others' come from, if there is one.
fn first_cause<T>(said: Vec<Result<T, BackendError>>) -> Result<Vec<T>, BackendError> {
    let is_effect = |error: &BackendError| matches!(error, BackendError::Collective(CollectiveError::Aborted));
    let (mut values, mut failure) = (Vec::new(), None);
    for said in said {
        match said {
            Ok(value) => values.push(value),
            Err(error) if failure.as_ref().is_none_or(is_effect) => failure = Some(error),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(values), Err)
}

struct Member {
    spec: EpochSpec,
    listening: Listening,
    endpoints: Vec<Endpoint>,
}

fn members(plan: &GroupPlan) -> Result<Vec<Member>, BackendError> {
    let ranks = plan.shares.len();
    let transport = match ranks {
        1 => Transport::Solo,
        _ => Transport::SharedMemory,
    };
    let seat = |rank| Seat {
        nonce: EpochNonce(NONCE),
        rank,
        world_size: ranks,
        listen_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let prepared: Result<Vec<_>, _> = (0..ranks)
        .map(|rank| Listening::prepare(transport, seat(rank)))
        .collect();
    let (listening, endpoints): (Vec<Listening>, Vec<Endpoint>) = prepared?.into_iter().unzip();
    let member = |(rank, listening)| Member {
        spec: EpochSpec {
            group: GroupId(0),
            epoch: Epoch { term: 1, number: 1 },
            rank: Rank(rank),
            transport,
            nonce: NONCE,
            shares: plan.shares.clone(),
            num_blocks: plan.num_blocks,
            block_size: plan.block_size,
            step_tokens_max: plan.step_tokens_max,
        },
        listening,
        endpoints: endpoints.clone(),
    };
    Ok((0..).zip(listening).map(member).collect())
}

impl Member {
    fn begin(
        self,
        open: &dyn Fn() -> Result<Box<dyn Backend>, BackendError>,
        abort: &Abort,
    ) -> Result<RankThread, BackendError> {
        let mut backend = open()?;
        backend.begin_epoch(&self.spec)?;
        let terms = Terms {
            connect_deadline: DEADLINE,
            call_deadline: DEADLINE,
            abort: abort.clone(),
            entered: Arc::default(),
        };
        let rank = self.spec.rank;
        Ok(RankThread {
            rank,
            share: self.spec.shares[rank.0 as usize].clone(),
            backend,
            collective: self.listening.connect(&self.endpoints, terms)?,
            output: ForwardOutput::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use kvasir_kv::{RankCapacity, ShardPlan};

    use super::*;
    use crate::rank::tests::OneCell;

    fn start(ranks: usize) -> RankThreads {
        let open = || -> Result<Box<dyn Backend>, BackendError> { Ok(Box::new(OneCell::holding(&Arc::default()))) };
        let layout = open().unwrap().layout().clone();
        let plan = GroupPlan {
            shares: ShardPlan::balance(&layout, &vec![RankCapacity::default(); ranks], 0)
                .unwrap()
                .shares()
                .to_vec(),
            num_blocks: 1,
            block_size: 16,
            step_tokens_max: 1,
        };
        RankThreads::start(&plan, open).unwrap()
    }

    /// So many ranks add up their ones.
    fn add(rank: &mut RankThread) -> Result<f32, BackendError> {
        let mut sum = [0.0];
        rank.collective.all_reduce(&[1 << 30], &mut sum)?;
        Ok(sum[0])
    }

    #[test]
    fn all_ranks_run_at_once_and_answer_in_order() {
        let mut ranks = start(3);
        for _ in 0..2 {
            let answers = ranks.run(|rank| Ok((rank.rank.0, add(rank)?))).unwrap();
            assert_eq!(answers, [(0, 3.0), (1, 3.0), (2, 3.0)]);
        }
    }

    #[test]
    fn what_one_rank_fails_with_is_told_and_nobody_waits_for_it() {
        let no_memory = |bytes| BackendError::OutOfMemory { what: "cells", bytes };
        let error = start(3).run(move |rank| match rank.rank.0 {
            1 => Err(no_memory(7)),
            _ => add(rank),
        });
        assert_eq!(error.unwrap_err().to_string(), "no memory for 7 bytes of cells");
        let plan = GroupPlan {
            shares: vec![RankShare::default(); 2],
            num_blocks: 1,
            block_size: 16,
            step_tokens_max: 1,
        };
        let error = RankThreads::start(&plan, move || Err(no_memory(8))).unwrap_err();
        assert_eq!(error.to_string(), "no memory for 8 bytes of cells");
    }

    #[test]
    fn a_panic_comes_out_where_the_job_was_given() {
        let mut ranks = start(2);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            ranks.run(|rank| {
                assert!(rank.rank.0 == 0, "rank 1 does not like this");
                add(rank)
            })
        }));
        let said = panic.unwrap_err().downcast::<&str>().unwrap();
        assert_eq!(*said, "rank 1 does not like this");
    }
}
