//! Who leads: a record under a lease, and a term that only grows.
//!
//! A term is given once. It is above the registry's own revision, above every term that was ever given here or that a worker
//! says it has obeyed, and above what the candidate has seen itself: a registry that was emptied, or is an old copy of
//! itself, cannot make anybody go back. What a leader does not lose with its lease is its term; see [`Asserted`].

use super::{
    Entry, LeaseId, Put, Registry, RegistryError, Revision, Transaction, View,
    records::{LEADER, LeaderRecord, TERM, given, parse, to_json},
};

/// What came of one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Campaign {
    Won(LeaderRecord),
    /// Somebody else leads, or was quicker.
    Lost,
}

/// What a leader finds when it says again that it leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asserted {
    Stands,
    /// By a higher term.
    Superseded(LeaderRecord),
}

impl Registry {
    /// One attempt. A record of the candidate's own, from an earlier life, is replaced.
    pub async fn campaign(
        &self,
        name: &str,
        url: &str,
        term_seen: u64,
        lease: LeaseId,
    ) -> Result<Campaign, RegistryError> {
        let view = self.all().await?;
        let candidate = |term| LeaderRecord {
            name: name.to_owned(),
            url: url.to_owned(),
            term,
        };
        let found = view.leader();
        if found.is_some_and(|found| !found.is_same(&candidate(0))) {
            return Ok(Campaign::Lost);
        }
        let above = view.term_max().max(term_seen).max(view.revision.0);
        let record = candidate(above.saturating_add(1));
        let written = self.write(&view, &record, lease).await?;
        Ok(match written {
            Some(_) => Campaign::Won(record),
            None => Campaign::Lost,
        })
    }

    /// Writes a leader's record where it is not, or is another one of a lower term.
    pub async fn assert_leader(&self, record: &LeaderRecord, lease: LeaseId) -> Result<Asserted, RegistryError> {
        loop {
            let view = self.all().await?;
            let entry = view.entries.get(LEADER);
            if let Some(found) = parse::<LeaderRecord>(entry) {
                if !found.is_same(record) && found.term >= record.term {
                    return Ok(Asserted::Superseded(found));
                }
                if found == *record && entry.is_some_and(|entry| entry.lease == Some(lease)) {
                    return Ok(Asserted::Stands);
                }
            }
            if self.write(&view, record, lease).await?.is_some() {
                return Ok(Asserted::Stands);
            }
        }
    }

    async fn all(&self) -> Result<View, RegistryError> {
        let listing = self.list("").await?;
        Ok(View {
            entries: listing.entries,
            revision: listing.revision,
            is_known: true,
            begun: 0,
        })
    }

    /// `None` if the leader or the term given is not what `view` says any more.
    async fn write(
        &self,
        view: &View,
        record: &LeaderRecord,
        lease: LeaseId,
    ) -> Result<Option<Revision>, RegistryError> {
        let version = |name: &str| view.entries.get(name).map(|entry: &Entry| entry.version);
        let expected = [LEADER, TERM].map(|name| (name.to_owned(), version(name)));
        let leader = Put {
            name: LEADER.to_owned(),
            value: to_json(record),
            lease: Some(lease),
        };
        let term = Put {
            name: TERM.to_owned(),
            value: record.term.max(given(view.entries.get(TERM))).to_string(),
            lease: None,
        };
        self.transact(Transaction {
            expected: expected.into(),
            puts: vec![leader, term],
        })
        .await
    }
}
