//! Who forms a group, and how the model and the pool are cut for them. Pure: workers in, plan or numbers out.

use kvasir_kv::{
    CellLayout, PlanError, RankCapacity, RankShare, ShardPlan, Transport, UnitKind, UnitLayout, WorkerInfo,
};

use crate::{ClusterConfig, SessionId};

/// A group that can be formed.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Formation {
    /// In rank order.
    pub sessions: Vec<SessionId>,
    pub plan: ShardPlan,
    pub num_blocks: u32,
    pub transport: Transport,
    /// Sum of the ranks' weights.
    pub speed: f64,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum FormationError {
    #[error("no worker is free")]
    NoWorkers,
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(
        "worker {worker} has {kv_memory_bytes} bytes for KV cells; one block of its {kv_heads} KV heads needs {needed_bytes}"
    )]
    TooLittleKvMemory {
        worker: String,
        kv_memory_bytes: u64,
        kv_heads: u32,
        needed_bytes: u64,
        rank: usize,
    },
}

/// Takes candidates in order of preference, up to `size`. One that cannot hold its share is passed over.
pub(crate) fn form(
    config: &ClusterConfig,
    layout: &UnitLayout,
    size: u32,
    candidates: &[(SessionId, &WorkerInfo)],
) -> Result<Formation, FormationError> {
    let units: u32 = UnitKind::ALL.into_iter().map(|kind| layout.count(kind)).sum();
    let ranks_max = size.clamp(1, units.max(1)) as usize;
    let mut candidates = candidates.to_vec();
    let mut first_error = None;
    loop {
        let chosen = &candidates[..ranks_max.min(candidates.len())];
        if chosen.is_empty() {
            return Err(first_error.unwrap_or(FormationError::NoWorkers));
        }
        match form_of(config, layout, chosen) {
            Ok(formation) => return Ok(formation),
            Err(error) => {
                let unfit = error.rank().unwrap_or(chosen.len() - 1);
                first_error.get_or_insert(error);
                candidates.remove(unfit);
            }
        }
    }
}

impl FormationError {
    fn rank(&self) -> Option<usize> {
        match self {
            Self::Plan(PlanError::BadCapacity { rank, .. } | PlanError::TooLittleMemory { rank, .. }) => Some(*rank),
            Self::TooLittleKvMemory { rank, .. } => Some(*rank),
            _ => None,
        }
    }
}

fn form_of(
    config: &ClusterConfig,
    layout: &UnitLayout,
    chosen: &[(SessionId, &WorkerInfo)],
) -> Result<Formation, FormationError> {
    let capacities: Vec<RankCapacity> = chosen
        .iter()
        .map(|(_, info)| RankCapacity {
            weight: info.weight,
            memory_bytes: None,
        })
        .collect();
    let plan = ShardPlan::balance(layout, &capacities, 0)?;
    let num_blocks = blocks_that_fit(&config.cell, chosen, plan.shares())?;
    Ok(Formation {
        sessions: chosen.iter().map(|(session, _)| *session).collect(),
        num_blocks: config.num_blocks_max.map_or(num_blocks, |max| num_blocks.min(max)),
        transport: transport(config, chosen),
        speed: chosen.iter().map(|(_, info)| info.weight).sum(),
        plan,
    })
}

/// Every rank with KV heads must hold all blocks of the pool.
fn blocks_that_fit(
    cell: &CellLayout,
    chosen: &[(SessionId, &WorkerInfo)],
    shares: &[RankShare],
) -> Result<u32, FormationError> {
    let mut least = u32::MAX;
    for (rank, ((_, info), share)) in chosen.iter().zip(shares).enumerate() {
        let kv_heads = share.num_kv_heads();
        if kv_heads == 0 {
            continue;
        }
        let needed_bytes = u64::from(kv_heads) * cell.cell_bytes() as u64;
        let num_blocks = info.kv_memory_bytes / needed_bytes;
        if num_blocks == 0 {
            return Err(FormationError::TooLittleKvMemory {
                worker: info.id.0.clone(),
                kv_memory_bytes: info.kv_memory_bytes,
                kv_heads,
                needed_bytes,
                rank,
            });
        }
        least = least.min(u32::try_from(num_blocks).unwrap_or(u32::MAX));
    }
    Ok(least)
}

fn transport(config: &ClusterConfig, chosen: &[(SessionId, &WorkerInfo)]) -> Transport {
    let host = &chosen[0].1.host;
    if chosen.len() == 1 {
        Transport::Solo
    } else if !config.force_tcp && chosen.iter().all(|(_, info)| info.host == *host) {
        Transport::SharedMemory
    } else {
        Transport::Tcp
    }
}
