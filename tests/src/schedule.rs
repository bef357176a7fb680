//! A schedule: in which order requests come, how many at a time, and when which client goes away.
//!
//! It is drawn from a seed and tied to tokens, never to time: the same seed asks the same.

use kvasir_kv::{Request, SequenceId};

use crate::{engine_cluster::EngineCluster, sim::dice::Dice};

/// When a client goes away, if its answer is not complete by then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Leaves {
    Never,
    /// Once it has asked; mostly it waits then.
    AtOnce,
    /// When its first plan has been sent, and no token is there.
    Admitted,
    /// With this many tokens.
    After(u32),
    /// When it has been preempted amid its answer, and waits again.
    Preempted,
}

#[derive(Clone, Debug)]
pub struct Asked {
    pub sequence: SequenceId,
    /// In its set.
    pub index: usize,
    pub request: Request,
    pub leaves: Leaves,
    /// Tokens that all others get between the one before it and this one.
    pub pause_tokens: u64,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    /// In order of arrival.
    pub asked: Vec<Asked>,
    pub live_max: usize,
}

impl Schedule {
    /// All at once in the order given, and nobody leaves.
    pub fn burst(requests: &[Request]) -> Self {
        let asked = requests.iter().enumerate().map(|(index, request)| Asked {
            sequence: SequenceId(1 + index as u64),
            index,
            request: request.clone(),
            leaves: Leaves::Never,
            pause_tokens: 0,
        });
        Self {
            asked: asked.collect(),
            live_max: requests.len(),
        }
    }

    /// In drawn order, at drawn times. `percent_leaving` of the clients do not wait for their answer. Of the others, if any
    /// leave at all, some wait only as long as it goes on.
    pub fn draw(requests: &[Request], live_max: usize, percent_leaving: u64, dice: &mut Dice) -> Self {
        let mut schedule = Self::burst(requests);
        schedule.live_max = live_max;
        let pause_max = dice.pick(&[0, 3, 10]);
        for index in 0..schedule.asked.len() {
            let other = dice.between(0, index as u64) as usize;
            schedule.asked.swap(index, other);
        }
        for asked in &mut schedule.asked {
            asked.pause_tokens = dice.between(0, pause_max);
            if dice.chance(percent_leaving) {
                asked.leaves = Leaves::draw(asked.request.max_tokens, dice);
            } else if percent_leaving > 0 && dice.chance(30) {
                asked.leaves = Leaves::Preempted;
            }
        }
        schedule
    }

    /// Returns when every request has its ending and every rank is idle.
    pub fn play(&self, cluster: &mut EngineCluster) {
        let mut coming = self.asked.iter();
        let mut next = coming.next();
        let mut live: Vec<&Asked> = Vec::new();
        let mut last_arrival = 0;
        while next.is_some() || !live.is_empty() {
            let has_room = live.len() < self.live_max;
            let is_due = |asked: &&Asked| has_room && cluster.tokens() >= last_arrival + asked.pause_tokens;
            match next.filter(|asked| live.is_empty() || is_due(asked)) {
                Some(asked) => {
                    last_arrival = cluster.tokens();
                    cluster.submit(asked.sequence, asked.request.clone());
                    live.push(asked);
                    next = coming.next();
                }
                None => cluster.wait(),
            }
            live.retain(|asked| asked.is_live(cluster));
            for asked in &live {
                if asked.leaves_now(cluster) {
                    cluster.cancel(asked.sequence);
                }
            }
            live.retain(|asked| asked.is_live(cluster));
        }
        cluster.settle();
    }
}

impl Asked {
    fn is_live(&self, cluster: &EngineCluster) -> bool {
        cluster.served(self.sequence).ending.is_none()
    }

    fn leaves_now(&self, cluster: &EngineCluster) -> bool {
        let served = cluster.served(self.sequence);
        let num_tokens = served.answer.tokens.len() as u32;
        match self.leaves {
            Leaves::Never => false,
            Leaves::AtOnce => true,
            Leaves::Admitted => served.admissions > 0,
            Leaves::After(wanted) => num_tokens >= wanted,
            Leaves::Preempted => num_tokens > 0 && cluster.is_waiting(self.sequence),
        }
    }
}

impl Leaves {
    /// Before the answer is complete, unless a stop token comes sooner.
    fn draw(max_tokens: u32, dice: &mut Dice) -> Self {
        let after = Self::After(dice.between_u32(1, max_tokens.max(2) - 1));
        dice.pick(&[Self::AtOnce, Self::Admitted, after])
    }
}
