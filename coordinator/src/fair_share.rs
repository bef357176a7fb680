//! What each tenant has been served: the virtual token counter of "Fairness in Serving Large Language Models" (Sheng et
//! al., OSDI 2024), with one token for each position computed for the first time.
//!
//! Whoever has been served least is next. A tenant that comes back from a pause starts where the least served one is:
//! time in which it asked for nothing cannot be saved up. It decides nothing; the planner asks.

use std::collections::BTreeMap;

use kvasir_kv::TenantId;

#[derive(Debug, Default)]
pub(crate) struct FairShare {
    accounts: BTreeMap<TenantId, Account>,
    /// Where a tenant starts while nobody else is there.
    floor: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    served: u64,
    /// Its sequences that have not ended.
    live: u32,
}

impl FairShare {
    /// A sequence of the tenant has come.
    pub fn enter(&mut self, tenant: &TenantId) {
        let floor = self.least_served().unwrap_or(self.floor);
        let account = self.accounts.entry(tenant.clone()).or_default();
        if account.live == 0 {
            account.served = account.served.max(floor);
        }
        account.live += 1;
    }

    /// A sequence of the tenant has ended, or gone to another group.
    ///
    /// # Panics
    /// If it has none.
    pub fn leave(&mut self, tenant: &TenantId) {
        let account = self.accounts.get_mut(tenant).expect("whoever leaves has come");
        account.live = account.live.checked_sub(1).expect("whoever leaves has come");
        let served = account.served;
        // A tenant without sequences that would start no lower anyway is forgotten; with all of them, if none is left.
        match self.least_served() {
            Some(least) => self
                .accounts
                .retain(|_, account| account.live > 0 || account.served > least),
            None => {
                self.floor = served;
                self.accounts.clear();
            }
        }
    }

    pub fn charge(&mut self, tenant: &TenantId, tokens: u32) {
        let account = self.accounts.get_mut(tenant).expect("only those who came are served");
        account.served += u64::from(tokens);
    }

    pub fn served(&self, tenant: &TenantId) -> u64 {
        self.accounts.get(tenant).map_or(self.floor, |account| account.served)
    }

    /// Tenants with sequences.
    pub fn num_active(&self) -> u32 {
        self.active().count() as u32
    }

    fn least_served(&self) -> Option<u64> {
        self.active().map(|account| account.served).min()
    }

    fn active(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values().filter(|account| account.live > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId(name.to_owned())
    }

    #[test]
    fn a_pause_saves_nothing_up() {
        let mut share = FairShare::default();
        share.enter(&tenant("busy"));
        share.charge(&tenant("busy"), 1000);
        share.enter(&tenant("late"));
        assert_eq!(share.served(&tenant("late")), 1000);
        share.charge(&tenant("late"), 10);
        share.leave(&tenant("late"));
        share.charge(&tenant("busy"), 5);
        share.enter(&tenant("late"));
        assert_eq!(
            share.served(&tenant("late")),
            1010,
            "what it was served is not forgotten"
        );
    }

    #[test]
    fn those_who_left_are_forgotten_when_it_makes_no_difference() {
        let mut share = FairShare::default();
        share.enter(&tenant("stays"));
        for index in 0..1000 {
            let passing = tenant(&format!("passing-{index}"));
            share.enter(&passing);
            share.charge(&passing, 3);
            share.leave(&passing);
            share.charge(&tenant("stays"), 4);
        }
        assert!(share.accounts.len() <= 2, "{} accounts", share.accounts.len());
        share.leave(&tenant("stays"));
        assert!(share.accounts.is_empty());
        assert_eq!(share.served(&tenant("anybody")), 4000);
    }
}
