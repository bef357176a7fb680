//! What a coordinator that does not lead does with a request: it hands it on to the one that does, in the name of whoever
//! asked, and hands back what comes.

use std::time::Instant;

use kvasir_runtime::{
    access::{HandedOn, Presented, Principal},
    registry::records::LeaderRecord,
    status_metadata::{ERROR_NAME, NO_LEADER},
};
use tonic::{
    Code, Extensions, Request, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};

use super::status;
use crate::lead::{Answerer, Lead};

/// Answers a request: by `$own` where this coordinator leads, else by `$theirs`. While nobody leads, or the leader is gone,
/// it waits some seconds for the next one.
macro_rules! hand_on {
    ($lead:expr, $asked:expr, |$request:ident| $own:expr, |$channel:ident, $handed_on:ident| $theirs:expr) => {{
        let mut asked = $crate::grpc::hand_on::Asked::of($lead, $asked);
        loop {
            match asked.turn().await? {
                $crate::grpc::hand_on::Turn::Here($request) => break $own,
                $crate::grpc::hand_on::Turn::There($channel, $handed_on) => {
                    if let Some(answered) = asked.settle($theirs).await {
                        break answered;
                    }
                }
            }
        }
    }};
}
pub(super) use hand_on;

/// A request that may have to be put more than once.
pub(super) struct Asked<'a, Q> {
    lead: &'a Lead,
    since: Instant,
    metadata: MetadataMap,
    extensions: Extensions,
    message: Q,
    /// Who was asked last.
    leader: Option<LeaderRecord>,
}

pub(super) enum Turn<Q> {
    Here(Request<Q>),
    There(Channel, Request<Q>),
}

/// It leads no more, or the connection to it broke. What it says of the request itself is final.
fn is_gone(status: &Status) -> bool {
    let name = status.metadata().get(ERROR_NAME).and_then(|name| name.to_str().ok());
    match name {
        Some(name) => [NO_LEADER, "shutting_down"].contains(&name),
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
        ),
    }
}

impl<'a, Q: Clone> Asked<'a, Q> {
    pub fn of(lead: &'a Lead, request: Request<Q>) -> Self {
        let (metadata, extensions, message) = request.into_parts();
        Self {
            lead,
            since: Instant::now(),
            metadata,
            extensions,
            message,
            leader: None,
        }
    }

    /// Whom to ask. Errors when there is no more time.
    pub async fn turn(&mut self) -> Result<Turn<Q>, Status> {
        loop {
            let leader = match self.lead.answerer(self.since).await? {
                Answerer::Here => return Ok(Turn::Here(self.again())),
                Answerer::Leader(leader) => leader,
            };
            if self.was_handed_on() {
                // By one that takes this for the leader. It is not handed around: that one will soon know better.
                return Err(status::leads_not(&leader));
            }
            match self.lead.way().to(&leader).await {
                Ok(channel) => {
                    let request = self.in_its_name(self.lead.way().shows_certificate())?;
                    self.leader = Some(leader);
                    return Ok(Turn::There(channel, request));
                }
                Err(error) => {
                    if !self.lead.another(&leader, self.since).await {
                        return Err(status::leader_unreachable(&error));
                    }
                }
            }
        }
    }

    /// The answer, unless another leader is to be asked.
    pub async fn settle<A>(&self, answered: Result<A, Status>) -> Option<Result<A, Status>> {
        match (&answered, &self.leader) {
            (Err(status), Some(leader)) if is_gone(status) => {
                let goes_on = self.lead.another(leader, self.since).await;
                (!goes_on).then_some(answered)
            }
            _ => Some(answered),
        }
    }

    fn was_handed_on(&self) -> bool {
        self.metadata.contains_key(HandedOn::MARK)
    }

    /// As it came.
    fn again(&self) -> Request<Q> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), self.message.clone())
    }

    /// For the leader. It believes a coordinator's certificate who asked; without one it is shown what was shown here.
    fn in_its_name(&self, certified: bool) -> Result<Request<Q>, Status> {
        let mut metadata = self.metadata.clone();
        metadata.insert(HandedOn::MARK, MetadataValue::from_static("1"));
        if let Some(Presented(value)) = self.extensions.get::<Presented>()
            && let Ok(value) = MetadataValue::try_from(value.as_bytes())
        {
            metadata.insert("authorization", value);
        }
        if let Some(principal) = self.extensions.get::<Principal>().filter(|_| certified) {
            let name = MetadataValue::try_from(principal.name.as_str());
            let name = name.map_err(|_| status::internal("the name of whoever asks cannot be handed on, and that"))?;
            metadata.insert(HandedOn::NAME, name);
            if principal.admin {
                metadata.insert(HandedOn::ADMIN, MetadataValue::from_static("1"));
            }
        }
        Ok(Request::from_parts(
            metadata,
            Extensions::default(),
            self.message.clone(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvasir_runtime::door::DoorConfig;

    use super::*;
    use crate::lead::LeadConfig;

    #[test]
    fn what_a_leader_says_of_a_request_is_final() {
        assert!(is_gone(&Status::unavailable("connection refused")));
        assert!(is_gone(&status::no_leader(Duration::ZERO)));
        assert!(!is_gone(&status::internal("it")));
        assert!(!is_gone(&Status::invalid_argument("no")));
    }

    #[test]
    fn a_name_goes_with_a_certificate_alone() {
        let mut request = Request::new(());
        request.extensions_mut().insert(Principal {
            name: "ada".to_owned(),
            admin: true,
        });
        let (lead, _news) = Lead::open(&LeadConfig::default(), &DoorConfig::default()).unwrap();
        let asked = Asked::of(&lead, request);
        let (shown, not_shown) = (asked.in_its_name(true).unwrap(), asked.in_its_name(false).unwrap());
        assert_eq!(shown.metadata().get(HandedOn::NAME).unwrap(), "ada");
        assert!(shown.metadata().contains_key(HandedOn::ADMIN));
        assert!(!not_shown.metadata().contains_key(HandedOn::NAME));
        assert!(not_shown.metadata().contains_key(HandedOn::MARK));
    }
}
