//! The groups that the registry wants: written by whoever leads, and followed when somebody else changes their sizes.
//!
//! Sizes alone are followed. How many groups there are, and what each is for, is said by the flags: what differs in that is
//! told of and ignored.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kvasir_kv::GroupId;
use kvasir_runtime::registry::{
    Registry, RegistryError, Revision, View,
    records::{GROUPS, GroupRecord, GroupsRecord, parse, to_json},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{GroupRole, ReshardOutcome, driver::ClusterHandle, status::GroupStatus};

/// A group that could not be given its size is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What this leader brought the groups to last, by the registry's wish or by an operator's order: only what differs from it
/// is a new wish. Orders have to be in it, for the registry may show an order and a wish that undoes it as one change.
#[derive(Debug, Default)]
pub(crate) struct Reached(Mutex<Option<GroupsRecord>>);

impl Reached {
    fn lock(&self) -> MutexGuard<'_, Option<GroupsRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, sizes: Option<GroupsRecord>) {
        *self.lock() = sizes;
    }

    fn set_one(&self, group: GroupId, size: u32) {
        let mut sizes = self.lock();
        let known = sizes.as_mut().and_then(|sizes| sizes.groups.get_mut(group.0 as usize));
        if let Some(known) = known {
            known.size = size;
        }
    }

    fn is(&self, group: GroupId, wanted: &GroupRecord) -> bool {
        let sizes = self.lock();
        sizes.as_ref().and_then(|sizes| sizes.groups.get(group.0 as usize)) == Some(wanted)
    }
}

/// As the flags say.
pub(crate) fn of_flags(sizes: &[u32], roles: &[GroupRole]) -> GroupsRecord {
    let role = |index: usize| roles.get(index).copied().unwrap_or_default().name().to_owned();
    let group = |(index, size): (usize, &u32)| GroupRecord {
        size: *size,
        role: role(index),
    };
    GroupsRecord {
        groups: sizes.iter().enumerate().map(group).collect(),
    }
}

/// The sizes to begin with: those wanted before, where they fit the flags.
pub(crate) fn sizes_wanted(view: &View, flags: &GroupsRecord) -> Vec<u32> {
    let sizes = |record: &GroupsRecord| record.groups.iter().map(|group| group.size).collect();
    match view.groups() {
        Some(wanted) if fits(&wanted, flags) => sizes(&wanted),
        Some(wanted) => {
            warn!(
                ?wanted,
                ?flags,
                "the registry wants other groups than the flags say; the flags count"
            );
            sizes(flags)
        }
        None => sizes(flags),
    }
}

fn fits(wanted: &GroupsRecord, flags: &GroupsRecord) -> bool {
    let roles = |record: &GroupsRecord| record.groups.iter().map(|group| group.role.clone()).collect::<Vec<_>>();
    roles(wanted) == roles(flags) && wanted.groups.iter().all(|group| group.size > 0)
}

/// Follows what is wanted for as long as this coordinator leads. Does not return. Where nobody else sees the registry, there
/// is nothing to follow.
pub(crate) async fn follow(
    registry: &Registry,
    cluster: &ClusterHandle,
    flags: &GroupsRecord,
    reached: &Reached,
    mut view: watch::Receiver<View>,
) {
    if !registry.is_shared() {
        return std::future::pending().await;
    }
    reached.set(None);
    let mut known: Option<Revision> = None;
    loop {
        let (wanted, version) = {
            let view = view.borrow_and_update();
            let version = view.entries.get(GROUPS).map(|entry| entry.version);
            (view.groups(), version)
        };
        let done = match (wanted, version) {
            (None, None) if view.borrow().is_known => write_first(registry, cluster, flags).await.is_ok(),
            (Some(wanted), Some(version)) if known != Some(version) => {
                if !fits(&wanted, flags) {
                    warn!(
                        ?wanted,
                        "the groups that the registry wants are not those of the flags; ignored"
                    );
                    known = Some(version);
                    continue;
                }
                let done = reach(cluster, &wanted, reached).await;
                if done {
                    known = Some(version);
                    reached.set(Some(wanted));
                }
                done
            }
            _ => true,
        };
        let again = async {
            match done {
                true => std::future::pending().await,
                false => tokio::time::sleep(AGAIN).await,
            }
        };
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return std::future::pending().await },
            () = again => {}
        }
    }
}

/// Whether all groups have, or are to have, the size that is wanted.
async fn reach(cluster: &ClusterHandle, wanted: &GroupsRecord, reached: &Reached) -> bool {
    let Ok(status) = cluster.status().await else {
        return false;
    };
    let mut all = true;
    for (group, wanted) in status.cluster.groups.iter().zip(&wanted.groups) {
        let id = group.id;
        // A group that has fewer ranks by now for other reasons is left alone.
        if group.workers_wanted == wanted.size || reached.is(id, wanted) {
            continue;
        }
        info!(group = %id, ranks = wanted.size, "the registry wants another size");
        match cluster.reshard(id, wanted.size).await {
            Ok(Ok(report)) if matches!(report.outcome, ReshardOutcome::Switched { .. }) => {}
            Ok(Ok(report)) => {
                warn!(group = %id, outcome = %report.outcome, "the size that the registry wants was not reached");
                all = false;
            }
            Ok(Err(error)) => {
                warn!(group = %id, %error, "the size that the registry wants cannot be reached");
                all = false;
            }
            Err(_) => return false,
        }
    }
    all
}

async fn write_first(registry: &Registry, cluster: &ClusterHandle, flags: &GroupsRecord) -> Result<(), RegistryError> {
    let sizes = cluster.status().await.map(|status| sizes_of(&status.cluster.groups));
    let record = with_sizes(flags, &sizes.unwrap_or_default());
    registry.put_if(GROUPS, &to_json(&record), None).await.map(drop)
}

fn sizes_of(groups: &[GroupStatus]) -> Vec<u32> {
    groups.iter().map(|group| group.workers_wanted).collect()
}

fn with_sizes(flags: &GroupsRecord, sizes: &[u32]) -> GroupsRecord {
    let mut record = flags.clone();
    for (group, size) in record.groups.iter_mut().zip(sizes) {
        group.size = *size;
    }
    record
}

/// A group was resharded by an operator: from now on that is what is wanted. Written over whatever was there, as often as
/// somebody else is quicker.
pub(crate) async fn note(
    registry: &Registry,
    reached: &Reached,
    group: GroupId,
    ranks: u32,
) -> Result<(), RegistryError> {
    reached.set_one(group, ranks);
    loop {
        let entry = registry.get(GROUPS).await?;
        let Some(mut record) = parse::<GroupsRecord>(entry.as_ref()) else {
            return Ok(());
        };
        let Some(known) = record.groups.get_mut(group.0 as usize) else {
            return Ok(());
        };
        known.size = ranks;
        let version = entry.map(|entry| entry.version);
        if registry.put_if(GROUPS, &to_json(&record), version).await?.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_known_before_the_registry_shows_it() {
        let (reached, flags) = (Reached::default(), of_flags(&[3, 1], &[]));
        reached.set_one(GroupId(0), 2);
        assert!(!reached.is(GroupId(0), &with_sizes(&flags, &[2, 1]).groups[0]));
        reached.set(Some(flags.clone()));
        reached.set_one(GroupId(0), 2);
        // A wish that undoes the order differs from what was reached, though it is what was wished before.
        assert!(!reached.is(GroupId(0), &flags.groups[0]));
        assert!(reached.is(GroupId(1), &flags.groups[1]));
    }

    #[test]
    fn sizes_are_followed_and_nothing_else() {
        let flags = of_flags(&[2, 1], &[]);
        let bigger = with_sizes(&flags, &[3, 1]);
        assert!(fits(&bigger, &flags));
        let mut prefill = bigger.clone();
        prefill.groups[0].role = "prefill".to_owned();
        assert!(!fits(&prefill, &flags));
        assert!(!fits(&of_flags(&[2], &[]), &flags));
        assert!(!fits(&with_sizes(&flags, &[0, 1]), &flags));
    }
}
