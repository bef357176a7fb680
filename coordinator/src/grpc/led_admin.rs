//! `kvasir.v1.Admin` where several coordinators could lead: orders go to the one that does, and its status is shown.

use futures::StreamExt as _;
use kvasir_kv::GroupId;
use kvasir_proto::v1::{self, admin_client::AdminClient, admin_server::Admin, watch_response::Event};
use tonic::{Request, Response, Status};

use super::{AdminService, hand_on::hand_on, watch::Watched};
use crate::lead::{Lead, Role};

#[derive(Clone, Debug)]
pub struct LedAdmin {
    own: AdminService,
    lead: Lead,
}

impl LedAdmin {
    pub fn new(own: AdminService, lead: Lead) -> Self {
        Self { own, lead }
    }

    async fn led_status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.own.status(request).await,
            |channel, request| AdminClient::new(channel).status(request).await
        )
    }

    /// From now on that is what the group is to have, whoever leads. Not worth failing an order that was carried out.
    async fn resharded(&self, request: v1::ReshardRequest) -> Result<Response<v1::ReshardResponse>, Status> {
        let response = self.own.reshard(Request::new(request)).await?;
        let done = response.get_ref();
        if done.outcome == "switched" {
            self.lead.note_size(GroupId(done.group), done.ranks).await;
        }
        Ok(response)
    }
}

#[tonic::async_trait]
impl Admin for LedAdmin {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let is_known = matches!(&*self.lead.role().borrow(), Role::Standby { leader: Some(_) });
        if !is_known {
            return self.own.status(request).await;
        }
        match self.led_status(request).await {
            Ok(mut response) => {
                self.lead.describe(response.get_mut());
                Ok(response)
            }
            // Better what is known here than nothing.
            Err(_) => self.own.report().await.map(Response::new),
        }
    }

    type WatchStream = Watched;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Watched>, Status> {
        let watched: Result<Response<Watched>, Status> = hand_on!(
            &self.lead,
            request,
            |request| self.own.watch(request).await,
            |channel, request| {
                let watched = AdminClient::new(channel).watch(request).await;
                watched.map(|watched| watched.map(|stream| -> Watched { Box::pin(stream) }))
            }
        );
        let lead = self.lead.clone();
        let described = move |watched: Result<v1::WatchResponse, Status>| {
            watched.map(|mut watched| {
                if let Some(Event::Status(status)) = &mut watched.event {
                    lead.describe(status);
                }
                watched
            })
        };
        Ok(watched?.map(|stream| -> Watched { Box::pin(stream.map(described)) }))
    }

    /// The leader's and its workers'; another coordinator is asked at its own address.
    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.own.set_log_filter(request).await,
            |channel, request| AdminClient::new(channel).set_log_filter(request).await
        )
    }

    async fn migrate(&self, request: Request<v1::MigrateRequest>) -> Result<Response<v1::MigrateResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.own.migrate(request).await,
            |channel, request| AdminClient::new(channel).migrate(request).await
        )
    }

    async fn reshard(&self, request: Request<v1::ReshardRequest>) -> Result<Response<v1::ReshardResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.resharded(request.into_inner()).await,
            |channel, request| AdminClient::new(channel).reshard(request).await
        )
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        hand_on!(
            &self.lead,
            request,
            |request| self.own.drain(request).await,
            |channel, request| AdminClient::new(channel).drain(request).await
        )
    }
}
