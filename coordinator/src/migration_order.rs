//! What operators want moved: all sequences of a request, with one answer when all of it has ended.

use kvasir_kv::{GroupId, RequestId, SequenceId};

use crate::{
    Cluster, Effect,
    event::{MigrationError, MigrationReason, MigrationReport, OrderId},
    sequence::Sequence,
};

/// What an operator asked for, until all of it has ended.
#[derive(Debug, Default)]
pub(crate) struct Order {
    open: u32,
    reports: Vec<MigrationReport>,
}

impl Cluster {
    /// Moves all sequences of a request to `target`, or to the group with the most free blocks.
    pub(crate) fn migrate(&mut self, order: OrderId, request: &RequestId, target: Option<GroupId>) {
        match self.begin_order(order, request, target) {
            Ok(0) => self.end_order(order, Ok(Vec::new())),
            Ok(open) => {
                let reports = Vec::new();
                self.orders.insert(order, Order { open, reports });
            }
            Err(error) => self.end_order(order, Err(error)),
        }
    }

    fn begin_order(
        &mut self,
        order: OrderId,
        request: &RequestId,
        target: Option<GroupId>,
    ) -> Result<u32, MigrationError> {
        let of_request = |sequence: &&Sequence| sequence.request.id == *request;
        let found: Vec<(SequenceId, GroupId)> = self
            .groups
            .iter()
            .flat_map(|group| {
                group
                    .scheduler
                    .sequences()
                    .filter(of_request)
                    .map(|found| (found.id, group.id))
            })
            .collect();
        if found.is_empty() {
            return Err(MigrationError::UnknownRequest(request.clone()));
        }
        if let Some(target) = target {
            self.check_target(target)?;
        }
        let mut begun = 0;
        for (sequence, source) in found {
            let target = match target {
                Some(target) => target,
                None => self.roomiest_but(source).ok_or(MigrationError::NoOtherGroup)?,
            };
            if target != source {
                begun += u32::from(self.begin_migration(sequence, target, MigrationReason::Order(order))?);
            }
        }
        Ok(begun)
    }

    /// One of its sequences has moved, or not.
    pub(crate) fn add_to_order(&mut self, order: OrderId, report: MigrationReport) {
        let Some(open) = self.orders.get_mut(&order) else {
            return;
        };
        open.reports.push(report);
        open.open -= 1;
        if open.open == 0 {
            let done = self.orders.remove(&order).unwrap_or_default();
            self.end_order(order, Ok(done.reports));
        }
    }

    fn end_order(&mut self, order: OrderId, result: Result<Vec<MigrationReport>, MigrationError>) {
        self.effects.push(Effect::OrderEnded { order, result });
    }
}
