//! What fits on GPUs of one kind: the longest request alone, and how many of a length at a time.
//!
//! Weights are taken to divide evenly among the ranks, as FFN and vocab units make up for uneven heads; the KV cache is
//! what the rank that holds most of it has to hold.

use serde::Serialize;

use super::{gpus::MemoryClass, kv_cost::KvCost, model_sizes::ModelSizes};

/// More GPUs than this are not looked at.
const GPUS_MAX: u32 = 1024;

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Fit {
    /// Empty of a memory that was given.
    pub gpus: Vec<&'static str>,
    #[serde(skip)]
    pub label: String,
    pub memory_bytes: u64,
    /// Without the reserve.
    pub usable_bytes: u64,
    /// One GPU each.
    pub ranks: u32,
    /// No fewer GPUs hold the weights and a block of the KV cache.
    pub fewest: bool,
    pub rank_weight_bytes: u64,
    /// Of one request; 0 if nothing fits.
    pub context_max_tokens: u64,
    /// What ends it: `memory`, or what the model was `trained` for.
    pub context_limited_by: &'static str,
    pub concurrent: Vec<Concurrency>,
}

/// Requests of one length at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Concurrency {
    pub context_tokens: u32,
    pub requests: u64,
}

/// What is asked of each kind of GPU.
#[derive(Debug)]
pub struct FitQuestion<'a> {
    pub model: &'a ModelSizes,
    pub cost: KvCost,
    pub reserve_percent: f64,
    pub contexts: &'a [u32],
}

impl FitQuestion<'_> {
    /// On the fewest GPUs that hold the model; `None` if no number that is looked at does.
    pub fn on_fewest(&self, class: &MemoryClass) -> Option<Fit> {
        let usable_bytes = class.usable_bytes(self.reserve_percent);
        let ranks = (1..=GPUS_MAX).find(|&ranks| self.room(usable_bytes, ranks) >= self.block_bytes(ranks))?;
        Some(Fit {
            fewest: true,
            ..self.on(class, ranks)
        })
    }

    pub fn on(&self, class: &MemoryClass, ranks: u32) -> Fit {
        let usable_bytes = class.usable_bytes(self.reserve_percent);
        let blocks = self.room(usable_bytes, ranks) / self.block_bytes(ranks);
        let longest = blocks * self.cost.allocated_tokens(1);
        let trained = u64::from(self.model.context_len);
        let concurrency = |&context_tokens: &u32| Concurrency {
            context_tokens,
            requests: longest / self.cost.allocated_tokens(context_tokens),
        };
        Fit {
            gpus: class.names.clone(),
            label: class.label.clone(),
            memory_bytes: class.memory_bytes,
            usable_bytes,
            ranks,
            fewest: false,
            rank_weight_bytes: self.rank_weight_bytes(ranks),
            context_max_tokens: longest.min(trained),
            context_limited_by: if longest < trained { "memory" } else { "trained" },
            concurrent: self.contexts.iter().map(concurrency).collect(),
        }
    }

    fn rank_weight_bytes(&self, ranks: u32) -> u64 {
        self.model.weights.bytes.div_ceil(u64::from(ranks))
    }

    fn room(&self, usable_bytes: u64, ranks: u32) -> u64 {
        usable_bytes.saturating_sub(self.rank_weight_bytes(ranks))
    }

    /// Of one block on the rank that holds most.
    fn block_bytes(&self, ranks: u32) -> u64 {
        self.cost.allocated_tokens(1) * self.cost.largest_rank_token_bytes(ranks)
    }
}

#[cfg(test)]
mod tests {
    use kvasir_kv::KvDtype;
    use kvasir_runtime::ByteSize;

    use super::*;
    use crate::lab::memory::presets;

    /// Llama 3.1 8B: 16,060,522,496 bytes of weights; a block of 64 tokens has 8 MiB, or 1 MiB of each head.
    fn fits(memory_bytes: u64, ranks: u32, contexts: &[u32]) -> (Option<Fit>, Fit) {
        let model = &presets::models(&["llama-3.1-8b".to_owned()], None).unwrap()[0];
        let question = FitQuestion {
            model,
            cost: KvCost::new(model.attention, model.num_layers, 64, KvDtype::F16).unwrap(),
            reserve_percent: 0.0,
            contexts,
        };
        let class = MemoryClass::given(ByteSize(memory_bytes));
        (question.on_fewest(&class), question.on(&class, ranks))
    }

    #[test]
    fn a_byte_less_than_weights_and_a_block_needs_another_gpu() {
        let needed = 16_060_522_496 + (8 << 20);
        let (fewest, one) = fits(needed, 1, &[64, 65]);
        assert_eq!(fewest.unwrap().ranks, 1);
        assert_eq!((one.context_max_tokens, one.context_limited_by), (64, "memory"));
        let requests: Vec<u64> = one.concurrent.iter().map(|at| at.requests).collect();
        assert_eq!(requests, [1, 0], "the second block of 65 tokens does not fit");
        let (_, three_blocks) = fits(16_060_522_496 + 3 * (8 << 20), 1, &[64, 65, 128]);
        let requests: Vec<u64> = three_blocks.concurrent.iter().map(|at| at.requests).collect();
        assert_eq!(requests, [3, 1, 1], "65 tokens take two blocks");
        let (fewest, one) = fits(needed - 1, 1, &[64]);
        assert_eq!(fewest.unwrap().ranks, 2);
        assert_eq!(one.context_max_tokens, 0);
    }

    #[test]
    fn ranks_share_weights_evenly_and_heads_one_by_one() {
        let (_, three) = fits((16_060_522_496u64.div_ceil(3)) + 10 * (3 << 20), 3, &[64]);
        assert_eq!(three.context_max_tokens, 640, "ten blocks of three heads");
        let (_, many) = fits(16_060_522_496 / 16 + 10 * (1 << 20), 16, &[64]);
        assert_eq!(
            many.context_max_tokens, 640,
            "beyond eight ranks, one head each is the most"
        );
    }

    #[test]
    fn no_request_is_longer_than_what_the_model_was_trained_for() {
        let (_, one) = fits(1 << 40, 1, &[131_072]);
        assert_eq!((one.context_max_tokens, one.context_limited_by), (131_072, "trained"));
        assert_eq!(
            one.concurrent[0].requests,
            ((1 << 40) - 16_060_522_496u64) / (2048 * (8 << 20))
        );
    }

    #[test]
    fn what_never_fits_is_said() {
        assert!(fits(1 << 20, 1, &[64]).0.is_none());
    }
}
