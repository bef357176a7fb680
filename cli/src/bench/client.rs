//! One client of a benchmark: what it asks, and over which connections.

use super::{channels::Channels, outcome::Outcome, workload::Workload};

#[derive(Debug)]
pub struct Client {
    pub channels: Channels,
    pub workload: Workload,
}

impl Client {
    pub async fn ask(&self, index: u32, on_tokens: impl FnMut(usize)) -> Outcome {
        let request = self.workload.request(index);
        match self.channels.lease().await {
            Ok(lease) => Outcome::of(lease.channel.clone(), request, on_tokens).await,
            Err(error) => Outcome::Failed {
                message: error.to_string(),
            },
        }
    }
}
