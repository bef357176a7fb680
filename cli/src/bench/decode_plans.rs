//! The plans of streams that decode side by side, all known ahead: each begins with one token, gets one more in each step,
//! and is forgotten at the end. They are the plans that a coordinator makes when nobody comes or goes.

use kvasir_kv::{
    AdmittedSequence, BlockId, BlockTag, Epoch, Sampling, SequenceId, SequenceWork, StepId, StepPlan, TaggedBlock,
    TokenId,
};

/// Of one epoch, run after run.
#[derive(Debug)]
pub struct DecodePlans {
    epoch: Epoch,
    block_size: u32,
    steps: u64,
    sequences: u64,
    /// Of the blocks: those of each run are newer.
    runs: u32,
}

impl DecodePlans {
    pub fn new(epoch: Epoch, block_size: u32) -> Self {
        Self {
            epoch,
            block_size,
            steps: 0,
            sequences: 0,
            runs: 0,
        }
    }

    /// Blocks that a run takes.
    pub fn num_blocks(streams: u32, tokens: u32, block_size: u32) -> u32 {
        streams * tokens.div_ceil(block_size)
    }

    /// One plan for each token, and one that forgets the streams.
    pub fn of_run(&mut self, streams: u32, tokens: u32) -> Vec<StepPlan> {
        self.runs += 1;
        let first = self.sequences;
        let ids: Vec<SequenceId> = (0..streams)
            .map(|stream| SequenceId(first + u64::from(stream)))
            .collect();
        self.sequences += u64::from(streams);
        let mut plans: Vec<StepPlan> = (0..tokens).map(|position| self.decode(&ids, position)).collect();
        let mut last = self.empty_plan();
        last.retired = ids;
        plans.push(last);
        plans
    }

    fn decode(&mut self, ids: &[SequenceId], position: u32) -> StepPlan {
        let mut plan = self.empty_plan();
        if position == 0 {
            plan.admitted = ids.iter().map(|sequence| admitted(*sequence)).collect();
        }
        let streams = ids.len() as u32;
        let work = |(stream, sequence): (u32, &SequenceId)| SequenceWork {
            sequence: *sequence,
            start: position,
            num_tokens: 1,
            new_blocks: self.new_block(stream, streams, position).into_iter().collect(),
            samples: true,
            scored: 0..0,
        };
        plan.work = (0..).zip(ids).map(work).collect();
        plan
    }

    /// Blocks of the streams alternate.
    fn new_block(&self, stream: u32, streams: u32, position: u32) -> Option<TaggedBlock> {
        position.is_multiple_of(self.block_size).then(|| TaggedBlock {
            id: BlockId(position / self.block_size * streams + stream),
            tag: BlockTag(self.runs),
        })
    }

    fn empty_plan(&mut self) -> StepPlan {
        let step = StepId(self.steps);
        self.steps += 1;
        StepPlan {
            epoch: self.epoch,
            step,
            admitted: Vec::new(),
            work: Vec::new(),
            retired: Vec::new(),
            adopted: Vec::new(),
        }
    }
}

/// Greedy, after a prompt of one token: any that every vocabulary has.
fn admitted(sequence: SequenceId) -> AdmittedSequence {
    AdmittedSequence {
        sequence,
        tokens: vec![TokenId((sequence.0 % 4) as u32)],
        prompt_len: 1,
        sampling: Sampling::default(),
        prompt_top_logprobs: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_stream_gets_every_token_and_blocks_of_its_own() {
        let mut plans = DecodePlans::new(Epoch { term: 1, number: 1 }, 16);
        let run = plans.of_run(3, 40);
        assert_eq!(run.len(), 41);
        assert_eq!(run[0].admitted.len(), 3);
        assert!(run[..40].iter().all(|plan| plan.work.len() == 3));
        assert!(run[1..].iter().all(|plan| plan.admitted.is_empty()));
        assert_eq!(run[40].retired.len(), 3);
        let work = run.iter().flat_map(|plan| &plan.work);
        let blocks: Vec<u32> = work.flat_map(|work| &work.new_blocks).map(|block| block.id.0).collect();
        let different: BTreeSet<u32> = blocks.iter().copied().collect();
        assert_eq!(blocks.len(), 9);
        assert_eq!(different, (0..DecodePlans::num_blocks(3, 40, 16)).collect());
    }

    #[test]
    fn runs_follow_each_other_with_new_sequences_and_newer_blocks() {
        let mut plans = DecodePlans::new(Epoch { term: 1, number: 1 }, 16);
        let (first, second) = (plans.of_run(2, 4), plans.of_run(1, 4));
        let steps: Vec<u64> = first.iter().chain(&second).map(|plan| plan.step.0).collect();
        assert_eq!(steps, (0..10).collect::<Vec<_>>());
        assert_eq!(second[0].admitted[0].sequence, SequenceId(2));
        assert_eq!(second[0].work[0].new_blocks[0].tag, BlockTag(2));
    }
}
