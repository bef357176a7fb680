//! Whether answers come from here: as the own group serves, or as the leader says of its.

use std::time::Duration;

use kvasir_proto::v1::inference_server::SERVICE_NAME as INFERENCE;
use kvasir_runtime::registry::records::LeaderRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Lead, Role};

/// The service of `grpc.health.v1` that serves where a coordinator leads.
pub(crate) const LEADER_SERVICE: &str = "kvasir.leader";
const AGAIN: Duration = Duration::from_millis(300);

/// Keeps `answers` true while requests that come here are answered.
pub(crate) async fn keep_readiness(
    lead: Lead,
    own: watch::Receiver<bool>,
    answers: watch::Sender<bool>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(&lead, own, &answers) => {}
    }
    answers.send_replace(false);
}

async fn follow(lead: &Lead, own: watch::Receiver<bool>, answers: &watch::Sender<bool>) {
    let mut role = lead.role();
    loop {
        let current = role.borrow_and_update().clone();
        tokio::select! {
            changed = role.changed() => if changed.is_err() { return },
            () = follow_role(lead, &current, own.clone(), answers) => {}
        }
    }
}

async fn follow_role(lead: &Lead, role: &Role, mut own: watch::Receiver<bool>, answers: &watch::Sender<bool>) {
    match role {
        Role::Leader { .. } => loop {
            set(answers, *own.borrow_and_update());
            if own.changed().await.is_err() {
                return std::future::pending().await;
            }
        },
        Role::Standby { leader: Some(leader) } => loop {
            follow_leader(lead, leader, answers).await;
            set(answers, false);
            tokio::time::sleep(AGAIN).await;
        },
        Role::Standby { leader: None } => {
            set(answers, false);
            std::future::pending().await
        }
    }
}

/// Ends when the leader says no more.
async fn follow_leader(lead: &Lead, leader: &LeaderRecord, answers: &watch::Sender<bool>) {
    let Ok(channel) = lead.way().to(leader).await else {
        return;
    };
    let service = INFERENCE.to_owned();
    let watched = HealthClient::new(channel).watch(HealthCheckRequest { service }).await;
    let Ok(watched) = watched else { return };
    let mut watched = watched.into_inner();
    while let Ok(Some(health)) = watched.message().await {
        set(answers, health.status() == ServingStatus::Serving);
    }
}

fn set(answers: &watch::Sender<bool>, is_so: bool) {
    answers.send_if_modified(|was| std::mem::replace(was, is_so) != is_so);
}
