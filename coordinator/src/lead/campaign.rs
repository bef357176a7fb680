//! The task that stands by, campaigns, leads, and steps down.

use std::time::{Duration, Instant};

use kvasir_runtime::registry::{
    Asserted, Campaign, KeptLease, LEASE_TTL, View,
    records::{CoordinatorRecord, GroupsRecord, LEADER, LeaderRecord, coordinator, to_json},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Lead, Role, groups, way::Probe};
use crate::driver::{ClusterHandle, Leadership};

/// A leader that lost its record and answers is given so long to write it again.
const HOLD_BACK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Campaigner {
    lead: Lead,
    cluster: ClusterHandle,
    news: mpsc::Receiver<LeaderRecord>,
    /// As the flags say.
    groups: GroupsRecord,
    /// The last that led, this coordinator excepted.
    last: Option<LeaderRecord>,
    /// The highest that was seen anywhere.
    term_seen: u64,
}

impl Campaigner {
    pub fn new(lead: Lead, cluster: ClusterHandle, news: mpsc::Receiver<LeaderRecord>, groups: GroupsRecord) -> Self {
        Self {
            lead,
            cluster,
            news,
            groups,
            last: None,
            term_seen: 0,
        }
    }

    /// Until `stop`; then whoever stands by leads at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let registry = self.lead.0.registry.clone();
        let own_end = CancellationToken::new();
        let lease = registry.keep_lease(LEASE_TTL, own_end.clone());
        let record = CoordinatorRecord::of_here(&self.lead.0.url);
        let name = coordinator(&self.lead.0.name);
        let _registration = registry.register(&name, to_json(&record), &lease);
        let view = registry.watch("", own_end.clone());
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.take_turns(&lease, view) => {}
        }
        // It answers for a moment yet, and leads no more.
        set_role(&self.lead, Role::Standby { leader: None });
        own_end.cancel();
        lease.ended().await;
    }

    async fn take_turns(&mut self, lease: &KeptLease, mut view: watch::Receiver<View>) {
        // Alone, it leads already.
        let mut record = self.lead.leads().then(|| self.lead.own_record(1));
        loop {
            let own = match record.take() {
                Some(record) => record,
                None => {
                    let won = self.stand_by(lease, &mut view).await;
                    self.begin(&won, &view).await;
                    won
                }
            };
            let (flags, shared) = (self.groups.clone(), self.lead.0.clone());
            let (cluster, wanted) = (self.cluster.clone(), view.clone());
            let by = tokio::select! {
                by = self.hold(own, lease, &mut view) => by,
                () = groups::follow(&shared.registry, &cluster, &flags, &shared.reached, wanted) => return,
            };
            self.step_down(by).await;
        }
    }

    /// Returns when this coordinator has won.
    async fn stand_by(&mut self, lease: &KeptLease, view: &mut watch::Receiver<View>) -> LeaderRecord {
        let mut missing_since = None;
        loop {
            let seen = view.borrow_and_update().clone();
            self.term_seen = self.term_seen.max(seen.term_max());
            let own = self.lead.own_record(0);
            // A record of a lower term is an old one, or was never a leader's.
            let leader = seen.leader().filter(|leader| leader.term >= self.term_seen);
            match leader.filter(|leader| !leader.is_same(&own)) {
                Some(leader) => {
                    missing_since = None;
                    self.follow(leader);
                }
                None if seen.is_known => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if let Some(won) = self.try_to_lead(lease, since).await {
                        return won;
                    }
                }
                None => {}
            }
            let again = async {
                match missing_since {
                    Some(_) => tokio::time::sleep(RETRY).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // It ends with this task.
                _ = view.changed() => {}
                // Workers that came here by mistake, and have left.
                _ = self.news.recv() => {}
                () = again => {}
            }
        }
    }

    fn follow(&mut self, leader: LeaderRecord) {
        if self.last.as_ref() != Some(&leader) {
            info!(leader = leader.name, url = leader.url, term = leader.term, "stands by");
        }
        self.last = Some(leader.clone());
        set_role(&self.lead, Role::Standby { leader: Some(leader) });
    }

    /// Nobody leads, says the registry. Where the last leader says otherwise, it is given time to write its record again.
    async fn try_to_lead(&mut self, lease: &KeptLease, missing_since: Instant) -> Option<LeaderRecord> {
        let id = (*lease.id().borrow())?;
        if let Some(last) = self.last.clone() {
            let probe = self.lead.way().probe(&last).await;
            if probe == Probe::Leads && missing_since.elapsed() < HOLD_BACK {
                debug!(
                    leader = last.name,
                    "the leader's record is gone, and it answers; holding back"
                );
                return None;
            }
            info!(leader = last.name, ?probe, "the leader is gone; campaigning");
        }
        let Lead(shared) = &self.lead;
        let registry = &shared.registry;
        match registry.campaign(&shared.name, &shared.url, self.term_seen, id).await {
            Ok(Campaign::Won(won)) => Some(won),
            Ok(Campaign::Lost) => None,
            Err(error) => {
                debug!(%error, "no campaign");
                None
            }
        }
    }

    /// Serves by its own machine from here on.
    async fn begin(&mut self, won: &LeaderRecord, view: &watch::Receiver<View>) {
        let leadership = Leadership {
            term: won.term,
            group_sizes: groups::sizes_wanted(&view.borrow(), &self.groups),
            takes_over: self.last.is_some(),
        };
        self.term_seen = self.term_seen.max(won.term);
        // Errors if the coordinator goes away.
        let _ = self.cluster.lead(leadership).await;
        set_role(&self.lead, Role::Leader { term: won.term });
        info!(coordinator = won.name, url = won.url, term = won.term, "leads");
    }

    /// Leads until somebody does by a higher term; returns who. Nothing else ends it: not a lease, and not an etcd that is
    /// away.
    async fn hold(
        &mut self,
        mut own: LeaderRecord,
        lease: &KeptLease,
        view: &mut watch::Receiver<View>,
    ) -> LeaderRecord {
        let registry = self.lead.0.registry.clone();
        let (mut leases, mut terms) = (lease.id(), self.cluster.terms());
        loop {
            // Epochs may need a higher one than the leader was given: a worker that joined had obeyed it.
            own.term = own.term.max(*terms.borrow_and_update());
            let id = *leases.borrow_and_update();
            let seen = view.borrow_and_update().clone();
            let entry = seen.entries.get(LEADER);
            let mut stands = seen.leader().as_ref() == Some(&own) && entry.is_some_and(|entry| entry.lease == id);
            if let Some(id) = id.filter(|_| !stands && seen.is_known) {
                match registry.assert_leader(&own, id).await {
                    Ok(Asserted::Superseded(by)) => return by,
                    Ok(Asserted::Stands) => stands = true,
                    Err(error) => debug!(%error, "the leader's record is not written yet"),
                }
            }
            let obeyed = seen.workers_term_max();
            if stands && obeyed > own.term {
                info!(term = own.term, obeyed, "workers have obeyed a higher term; raising");
                own.term = obeyed.saturating_add(1);
                // Errors if the coordinator goes away.
                let _ = self.cluster.raise_term(own.term).await;
                continue;
            }
            self.term_seen = self.term_seen.max(own.term);
            set_role(&self.lead, Role::Leader { term: own.term });
            let again = async {
                match stands {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                _ = view.changed() => {}
                _ = leases.changed() => {}
                _ = terms.changed() => {}
                Some(by) = self.news.recv() => {
                    if by.term > own.term && !by.is_same(&own) {
                        return by;
                    }
                }
                () = again => {}
            }
        }
    }

    async fn step_down(&mut self, by: LeaderRecord) {
        warn!(
            leader = by.name,
            url = by.url,
            term = by.term,
            "another coordinator leads by a higher term; stepping down"
        );
        self.term_seen = self.term_seen.max(by.term);
        self.follow(by);
        // Errors if the coordinator goes away.
        let _ = self.cluster.step_down().await;
    }
}

fn set_role(lead: &Lead, role: Role) {
    lead.0.role.send_if_modified(|known| {
        let is_new = *known != role;
        *known = role;
        is_new
    });
}
