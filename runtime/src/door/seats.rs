//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnLimits {
    pub connections_max: u32,
    pub connections_per_client_max: u32,
    pub handshake_max: Duration,
    /// From the handshake to the first words of a protocol.
    pub first_words_max: Duration,
    /// Without a request.
    pub idle_max: Duration,
}

impl Default for ConnLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_client_max: 1024,
            handshake_max: Duration::from_secs(10),
            first_words_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(600),
        }
    }
}

#[derive(Debug)]
pub(super) struct Seats {
    limits: ConnLimits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    /// None of zero.
    by_client: HashMap<IpAddr, u32>,
}

impl Seats {
    pub fn new(limits: ConnLimits) -> Self {
        Self {
            limits,
            taken: Mutex::default(),
        }
    }

    /// Errors with the bound that is reached.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Result<Seat, String> {
        let client = network(client);
        let mut taken = self.lock();
        let of_client = taken.by_client.get(&client).copied().unwrap_or(0);
        if of_client >= self.limits.connections_per_client_max {
            return Err(format!("it has {of_client} connections, as many as a client may have"));
        }
        if taken.all >= self.limits.connections_max {
            return Err(format!("there are {} connections, as many as there may be", taken.all));
        }
        taken.all += 1;
        taken.by_client.insert(client, of_client + 1);
        Ok(Seat {
            seats: Arc::clone(self),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who counts as one client: of IPv6, a network of the size that a house gets.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_bound_all_have_theirs_and_seats_come_back() {
        let seats = Arc::new(Seats::new(ConnLimits {
            connections_max: 3,
            connections_per_client_max: 2,
            ..ConnLimits::default()
        }));
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let first = seats.take(one).unwrap();
        let second = seats.take(one).unwrap();
        assert!(seats.take(one).unwrap_err().contains("a client"));
        let third = seats.take(two).unwrap();
        assert!(seats.take(two).unwrap_err().contains("there may be"));
        drop(first);
        let fourth = seats.take(one).unwrap();
        drop((second, third, fourth));
        assert!(seats.lock().by_client.is_empty() && seats.lock().all == 0);
        let neighbours = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|ip| ip.parse().unwrap());
        let _two = [seats.take(neighbours[0]).unwrap(), seats.take(neighbours[1]).unwrap()];
        assert!(seats.take(neighbours[2]).is_err());
    }
}
