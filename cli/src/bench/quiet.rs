//! What is measured alone waits until nothing else runs.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kvasir_client::Target;

use crate::client;

const QUIET_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// A request of which nobody wants to hear any more takes a moment to end. Errors if others run on.
pub async fn wait_until_quiet(target: &Target) -> Result<()> {
    let deadline = Instant::now() + QUIET_MAX;
    loop {
        match client::status(target).await?.sequences.len() {
            0 => return Ok(()),
            running if Instant::now() > deadline => {
                bail!("{running} requests run already; what is measured here is measured alone");
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
