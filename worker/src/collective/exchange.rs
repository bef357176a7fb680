//! One frame to each peer and one from each, on one thread.

use rustix::event::{PollFd, Timespec};

use super::CollectiveError;
use super::content::Content;
use super::frame::FrameHead;
use super::link::{Expected, Link, LinkError};
use super::patience::Patience;

/// Times the core is offered to others before sleeping in `poll`. More of them collapse when something else wants the
/// cores: three ranks on two busy cores took a millisecond instead of 50 us with 400.
const YIELDS: u32 = 20;

/// Sends `payload_of(peer)` to each peer and receives a frame from each, whose payload is then in its link. All
/// links move together and none blocks, so any sizes may cross.
pub(super) fn exchange<'a>(
    links: &mut [Link],
    content: Content,
    sequence: u64,
    payload_of: impl Fn(usize) -> &'a [u8],
    expected_of: impl Fn(usize) -> Expected,
    patience: &mut Patience<'_>,
) -> Result<(), CollectiveError> {
    for link in links.iter_mut() {
        let payload_bytes = payload_of(link.peer()).len() as u64;
        link.begin(
            FrameHead {
                content,
                sequence,
                payload_bytes,
            },
            expected_of(link.peer()),
        );
    }
    let mut idle = 0;
    loop {
        let moved = advance_all(links, &payload_of, patience)?;
        if links.iter().all(Link::is_done) {
            return Ok(());
        }
        idle = if moved { 0 } else { idle + 1 };
        match idle {
            0 => {}
            1..=YIELDS => rustix::thread::sched_yield(),
            _ => sleep(links, patience)?,
        }
    }
}

fn advance_all<'a>(
    links: &mut [Link],
    payload_of: &impl Fn(usize) -> &'a [u8],
    patience: &Patience<'_>,
) -> Result<bool, CollectiveError> {
    let mut moved = false;
    for link in links {
        moved |= link.advance(payload_of(link.peer())).map_err(|error| match error {
            LinkError::Closed => patience.peer_gone(link.peer()),
            LinkError::Wrong(error) => error,
        })?;
    }
    Ok(moved)
}

/// Sleeps until a link can move, for the length of a nap at most.
fn sleep(links: &[Link], patience: &mut Patience<'_>) -> Result<(), CollectiveError> {
    let nap = patience.nap(|| links.iter().filter(|link| !link.is_done()).map(Link::peer).collect())?;
    let mut waiting: Vec<PollFd<'_>> = links.iter().filter_map(Link::poll_fd).collect();
    poll(&mut waiting, nap)
}

/// Sleeps until one is ready or the nap is over.
pub(super) fn poll(waiting: &mut [PollFd<'_>], nap: std::time::Duration) -> Result<(), CollectiveError> {
    let nap = Timespec {
        tv_sec: nap.as_secs() as i64,
        tv_nsec: nap.subsec_nanos().into(),
    };
    match rustix::event::poll(waiting, Some(&nap)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(CollectiveError::errno("cannot poll connections")(errno)),
    }
}
