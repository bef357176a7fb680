//! What a seed decides before anything happens: the cluster, its limits, its network and its weather.

use std::time::Duration;

use kvasir_coordinator::{ClusterConfig, GroupRole, PrefixCopying};
use kvasir_kv::{CellLayout, HeadLayout, KvDtype, ModelShape, NumericsId, UnitBytes, UnitLayout};

use super::dice::Dice;

pub(super) const MS: u64 = 1000;
pub(super) const SECOND: u64 = 1000 * MS;
pub(super) const NUMERICS: NumericsId = NumericsId([7; 16]);
/// Below it are the seeds of weather that was known before sequences moved.
pub const FIRST_SEED_WITH_MIGRATIONS: u64 = 4_000_000;
/// Below it are the seeds in which no sequence is moved by the cluster itself: groups have no roles and do not make room.
pub const FIRST_SEED_WITH_POLICIES: u64 = 5_000_000;
/// From here on groups copy cached blocks from each other, and even out their load.
pub const FIRST_SEED_WITH_PREFIX_COPIES: u64 = 6_000_000;
/// From here on groups may take in all workers that there are.
pub const FIRST_SEED_WITH_ELASTIC_GROUPS: u64 = 7_000_000;
/// Groups of a cluster, where it has several.
const GROUPS_MAX: u64 = 3;

#[derive(Debug)]
pub(super) struct Scenario {
    pub config: ClusterConfig,
    pub layout: UnitLayout,
    pub num_workers: u32,
    pub num_hosts: u64,
    pub num_requests: u32,
    pub num_tenants: u64,
    /// Requests come within this, in a burst or spread out.
    pub submit_within: u64,
    pub num_faults: u32,
    /// Asked for by an operator, where there are several groups.
    pub num_migrations: u32,
    /// Likewise.
    pub num_reshards: u32,
    /// Workers that are asked to end.
    pub num_leaves: u32,
    /// In a hundred, cells that are lost or damaged on their way.
    pub bad_cells: u64,
    /// Also a restart of the coordinator.
    pub coordinator_dies: bool,
    /// A worker of other numerics tries to join.
    pub misfit: bool,
    /// Requests and faults happen before this; then everything heals.
    pub calm_after: u64,
    pub prompt_len_max: u32,
    pub answer_len_max: u32,
    pub kv_memory_bytes: u64,
    /// One way, microseconds.
    pub delay_max: u64,
    /// Computation between two collectives.
    pub section_max: u64,
    pub collective_deadline: u64,
    pub heartbeat: u64,
}

impl Scenario {
    pub fn draw(dice: &mut Dice) -> Self {
        let block_size = 16;
        let cell = CellLayout::new(1, 16, block_size, KvDtype::F16).expect("16 is a block size");
        let heads = HeadLayout::new(6, 3, 16).expect("6 heads divide among 3");
        let shape = ModelShape {
            num_layers: 1,
            hidden_size: 96,
            heads,
            intermediate_size: 256,
            vocab_size: 256,
            context_len: 200,
        };
        let bytes = UnitBytes {
            attention: 1000,
            ffn_per_column: 10,
            vocab_per_row: 2,
            embedding_per_row: 0,
            replicated: 100,
        };
        let group_sizes = draw_group_sizes(dice);
        let ranks: u32 = group_sizes.iter().sum();
        let spares = if dice.chance(40) { dice.between_u32(1, 2) } else { 0 };
        let mut config = ClusterConfig::new(ranks, cell);
        config.group_sizes = group_sizes;
        config.numerics_id = dice.chance(50).then_some(NUMERICS);
        config.force_tcp = dice.chance(30);
        config.step_tokens_max = dice.pick(&[8, 16, 40, 100]);
        config.chunk_tokens_max = dice.pick(&[1, 5, 16, 64]);
        config.mixed_prefill_tokens_max = dice.pick(&[1, 8, 32, 128]);
        config.sequences_max = dice.pick(&[1, 3, 8, 16]);
        config.queue_max = dice.pick(&[2, 8, 64, 64, 64, 64]);
        config.queue_tokens_max = dice.pick(&[60, 400, 1 << 20, 1 << 20, 1 << 20, 1 << 20]);
        config.queue_wait_max = Duration::from_millis(dice.pick(&[200, 2000, 300_000, 300_000, 300_000, 300_000]));
        config.look_ahead = dice.pick(&[0, 1, 1, 1, 2, 3]);
        config.look_ahead_tokens_max = dice.pick(&[1, 8, 64, 1000]);
        config.endpoint_deadline = Duration::from_secs(3);
        config.ready_deadline = Duration::from_secs(5);
        config.unavailable_wait_max = Duration::from_secs(dice.pick(&[3, 60, 60]));
        // From a pool that holds one request to one that holds all.
        let pool = dice.pick(&[7, 9, 12, 20, 80]);
        config.num_blocks_max = dice.chance(50).then_some(pool);
        // Two cells a worker: one alone cannot hold the three heads.
        let tiny = config.group_sizes.len() == 1 && ranks > 1 && dice.chance(5);
        let calm_after = dice.between(3, 12) * SECOND;
        let quiet = dice.chance(15);
        Self {
            num_workers: ranks + spares,
            num_hosts: dice.pick(&[1, 1, 2]),
            num_requests: dice.pick(&[5, 20, 60]),
            num_tenants: dice.between(1, 4),
            submit_within: dice.pick(&[SECOND / 2, 3 * SECOND, calm_after]),
            num_faults: if quiet { 0 } else { dice.between_u32(1, 8) },
            num_migrations: 0,
            num_reshards: 0,
            num_leaves: 0,
            bad_cells: 0,
            coordinator_dies: !quiet && dice.chance(15),
            misfit: config.numerics_id.is_some() && dice.chance(20),
            calm_after,
            prompt_len_max: if tiny { 8 } else { dice.pick(&[8, 40, 100]) },
            answer_len_max: if tiny { 8 } else { dice.pick(&[3, 20, 60]) },
            // Per rank, so that one with three heads has a third of the blocks of one with one.
            kv_memory_bytes: cell.cell_bytes() as u64 * if tiny { 2 } else { u64::from(pool) * dice.between(1, 3) },
            delay_max: dice.pick(&[200, 2 * MS, 20 * MS]),
            section_max: dice.pick(&[500, 3 * MS, 15 * MS]),
            collective_deadline: dice.pick(&[SECOND, 4 * SECOND, 30 * SECOND]),
            heartbeat: 200 * MS,
            config,
            layout: UnitLayout::new(shape, bytes),
        }
    }
}

impl Scenario {
    /// Sequences are moved, where there are several groups; by dice of their own, so that seeds without it stay what they
    /// were.
    pub fn with_migrations(mut self, seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x6d69_6772_6174_6521);
        self.config.grow = false;
        self.config.rebalance = false;
        self.config.prefix_copying = PrefixCopying::Never;
        self.config.even_load = false;
        if seed >= FIRST_SEED_WITH_MIGRATIONS {
            if self.config.group_sizes.len() > 1 {
                self.num_migrations = dice.pick(&[10, 60, 200, 200]);
            }
            self.num_reshards = dice.pick(&[0, 3, 20, 60]);
            self.config.grow = dice.chance(50);
            self.num_leaves = dice.pick(&[0, 0, 3, 10]);
            if seed >= FIRST_SEED_WITH_POLICIES {
                self.config.rebalance = dice.chance(70);
                self.config.group_roles = self.config.group_sizes.iter().map(|_| draw_role(&mut dice)).collect();
            }
            if seed >= FIRST_SEED_WITH_PREFIX_COPIES {
                let all = [PrefixCopying::Auto, PrefixCopying::Always, PrefixCopying::Always];
                self.config.prefix_copying = dice.pick(&all);
                self.config.even_load = dice.chance(70);
            }
            if seed >= FIRST_SEED_WITH_ELASTIC_GROUPS {
                self.config.elastic = dice.chance(50);
                self.num_workers += dice.between_u32(0, 2);
            }
            self.bad_cells = if self.num_faults == 0 {
                0
            } else {
                dice.pick(&[0, 0, 1, 10])
            };
        }
        self
    }
}

fn draw_role(dice: &mut Dice) -> GroupRole {
    dice.pick(&[GroupRole::Both, GroupRole::Prefill, GroupRole::Decode])
}

/// One group in half of the clusters, otherwise several small ones.
fn draw_group_sizes(dice: &mut Dice) -> Vec<u32> {
    if dice.chance(50) {
        return vec![dice.between_u32(1, 5)];
    }
    let num_groups = dice.between(2, GROUPS_MAX);
    (0..num_groups).map(|_| dice.between_u32(1, 3)).collect()
}
