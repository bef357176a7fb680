//! A second opinion on blocks: who holds which, who may write to it, and what may be shared.
//!
//! A block has one holder until it is full. Then it may be named by others, if every rank has done the step that filled
//! it, and nobody writes to it again; whoever names it is of the tenant that filled it. It is given away only when all
//! have let go and the ranks have done the last step that names it.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_kv::{BlockId, BlockTag, SequenceId, SequenceWork, StepId, StepPlan, TaggedBlock, TenantId};

#[derive(Debug, Default)]
pub(crate) struct BlockWatch {
    num_blocks: u32,
    block_size: u32,
    /// Each sequence's blocks, in token order.
    tables: BTreeMap<SequenceId, Vec<TaggedBlock>>,
    holders: BTreeMap<BlockId, BTreeSet<SequenceId>>,
    full: BTreeMap<BlockId, FullBlock>,
    /// The last step that names a block, of those who have let go.
    released: BTreeMap<BlockId, StepId>,
    /// Blocks named by a sequence that did not fill them.
    pub shared: u64,
}

#[derive(Debug)]
struct FullBlock {
    tag: BlockTag,
    /// The step that wrote its last position; `None` if it came from another group.
    step: Option<StepId>,
    /// For whom it was filled.
    tenant: TenantId,
}

impl BlockWatch {
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        Self {
            num_blocks,
            block_size,
            ..Self::default()
        }
    }

    /// A work entry that gets a block to write to, the place of that block, and a block that another sequence holds.
    pub fn block_to_steal(&self, plan: &StepPlan) -> Option<(usize, usize, TaggedBlock)> {
        let (index, place) = (0..plan.work.len()).find_map(|index| {
            let work = &plan.work[index];
            let place = self.num_shared(plan, work);
            (place < work.new_blocks.len()).then_some((index, place))
        })?;
        let thief = plan.work[index].sequence;
        let mut others = self.tables.iter().filter(|(sequence, _)| **sequence != thief);
        let stolen = others.find_map(|(_, blocks)| blocks.last())?;
        Some((index, place, *stolen))
    }

    /// An admitted sequence that could start after one block, and a block of another that is not full yet.
    pub fn block_to_share_early(&self, plan: &StepPlan) -> Option<(usize, TaggedBlock)> {
        let index = plan.work.iter().position(|work| {
            let is_new = plan.admitted.iter().any(|admitted| admitted.sequence == work.sequence);
            is_new && work.start == 0 && work.num_tokens > self.block_size
        })?;
        let held = self.tables.values().filter_map(|blocks| blocks.last());
        let mut part = held.filter(|block| !self.full.contains_key(&block.id));
        Some((index, *part.next()?))
    }

    /// A sequence's blocks are let go; `last` is the last step that names it.
    pub fn retire(&mut self, sequence: SequenceId, last: StepId) {
        for block in self.tables.remove(&sequence).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&block.id) {
                holders.remove(&sequence);
            }
            let released = self.released.entry(block.id).or_insert(last);
            *released = last.max(*released);
        }
    }

    /// `acknowledged` steps were done by every rank.
    pub fn take(
        &mut self,
        plan: &StepPlan,
        acknowledged: u64,
        tenant_of: impl Fn(SequenceId) -> TenantId,
    ) -> Result<(), String> {
        for work in &plan.work {
            let tenant = tenant_of(work.sequence);
            let num_shared = self.num_shared(plan, work);
            let came = |block: &TaggedBlock| plan.adopted.iter().find(|adopted| adopted.block == *block);
            for (index, block) in work.new_blocks.iter().enumerate() {
                if block.id.0 >= self.num_blocks {
                    return Err(format!("block {} of {}", block.id, self.num_blocks));
                }
                let is_here = self
                    .full
                    .get(&block.id)
                    .is_some_and(|full| full.tag == block.tag && full.tenant == tenant);
                if came(block).is_some() && is_here {
                    // Two sequences that share it come together.
                } else if let Some(adopted) = came(block) {
                    self.give(*block, work.sequence, acknowledged)?;
                    if adopted.written == self.block_size {
                        let (tag, step, tenant) = (block.tag, None, tenant.clone());
                        self.full.insert(block.id, FullBlock { tag, step, tenant });
                    }
                } else if index < num_shared {
                    self.share(*block, &tenant, acknowledged)?;
                } else {
                    self.give(*block, work.sequence, acknowledged)?;
                }
                self.holders.entry(block.id).or_default().insert(work.sequence);
                self.tables.entry(work.sequence).or_default().push(*block);
            }
            self.write(work, plan.step, &tenant)?;
        }
        Ok(())
    }

    /// Blocks of an entry that others have computed.
    fn num_shared(&self, plan: &StepPlan, work: &SequenceWork) -> usize {
        let is_new = plan.admitted.iter().any(|admitted| admitted.sequence == work.sequence);
        if is_new {
            (work.start / self.block_size) as usize
        } else {
            0
        }
    }

    fn share(&mut self, block: TaggedBlock, tenant: &TenantId, acknowledged: u64) -> Result<(), String> {
        self.shared += 1;
        let Some(full) = self.full.get(&block.id) else {
            return Err(format!("block {} is shared before it is full", block.id));
        };
        let (tag, step) = (full.tag, full.step);
        if tag != block.tag || step.is_some_and(|step| step.0 >= acknowledged) {
            return Err(format!(
                "block {} with tag {} is shared before it is full everywhere: tag {tag}, step {step:?}, {acknowledged} done",
                block.id, block.tag
            ));
        }
        if full.tenant != *tenant {
            return Err(format!(
                "block {} of tenant '{}' is shared with tenant '{tenant}'",
                block.id, full.tenant
            ));
        }
        Ok(())
    }

    fn give(&mut self, block: TaggedBlock, to: SequenceId, acknowledged: u64) -> Result<(), String> {
        if let Some(owner) = self.holders.get(&block.id).and_then(BTreeSet::first) {
            return Err(format!("block {} of {owner} is given to {to}", block.id));
        }
        if let Some(last) = self.released.remove(&block.id)
            && last.0 >= acknowledged
        {
            return Err(format!(
                "block {} is given away, a rank has not done step {last}",
                block.id
            ));
        }
        self.full.remove(&block.id);
        Ok(())
    }

    fn write(&mut self, work: &SequenceWork, step: StepId, tenant: &TenantId) -> Result<(), String> {
        let end = work.start + work.num_tokens;
        let table = self.tables.get(&work.sequence).map(Vec::as_slice).unwrap_or_default();
        for index in work.start / self.block_size..end.div_ceil(self.block_size) {
            let Some(block) = table.get(index as usize) else {
                return Err(format!("{} has no block for position {}", work.sequence, work.start));
            };
            if self.full.contains_key(&block.id) || self.holders[&block.id].len() != 1 {
                return Err(format!(
                    "{} writes to block {}, which is shared or full",
                    work.sequence, block.id
                ));
            }
            if end >= (index + 1) * self.block_size {
                let (tag, step, tenant) = (block.tag, Some(step), tenant.clone());
                self.full.insert(block.id, FullBlock { tag, step, tenant });
            }
        }
        Ok(())
    }
}
