//! The registry, against etcd and without a server: the same tests for both, and those of an etcd that goes away.

#![allow(clippy::unwrap_used)]

use std::{future::Future, time::Duration};

use etcd_client::{Client, PermissionType};
use kvasir_runtime::{
    registry::{
        Asserted, Campaign, EtcdConfig, KeptLease, LEASE_TTL, LeaseId, Password, Put, Registry, RegistryConfig,
        RegistryError, RegistryState, Revision, Transaction, View,
        records::{LEADER, LeaderRecord, TERM},
    },
    tls::{ClientTlsFiles, KeyPairFiles},
};
use kvasir_tests::{certs::Certs, etcd_server::EtcdServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// For what should take no time at all.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test against both.
async fn with_both<F: Future<Output = ()>>(test: impl Fn(Registry) -> F) {
    test(Registry::open(&RegistryConfig::Embedded).unwrap()).await;
    let etcd = EtcdServer::start();
    test(etcd.registry()).await;
}

async fn until<T>(receiver: &mut watch::Receiver<T>, is_so: impl FnMut(&T) -> bool) -> T
where
    T: Clone + std::fmt::Debug,
{
    let seen = tokio::time::timeout(DEADLINE, receiver.wait_for(is_so)).await;
    let seen = seen.map(|seen| seen.unwrap().clone());
    seen.unwrap_or_else(|_| panic!("waited in vain; the last one: {:?}", *receiver.borrow()))
}

async fn lease_of(lease: &KeptLease) -> LeaseId {
    until(&mut lease.id(), Option::is_some).await.unwrap()
}

fn value<'a>(view: &'a View, name: &str) -> Option<&'a str> {
    view.entries.get(name).map(|entry| entry.value.as_str())
}

fn put(name: &str, value: &str) -> Put {
    Put {
        name: name.to_owned(),
        value: value.to_owned(),
        lease: None,
    }
}

#[tokio::test]
async fn a_value_is_written_over_the_version_that_was_read_and_no_other() {
    with_both(async |registry: Registry| {
        assert_eq!(registry.get("a").await.unwrap(), None);
        let first = registry.put_if("a", "1", None).await.unwrap().unwrap();
        assert_eq!(registry.put_if("a", "2", None).await.unwrap(), None);
        let second = registry.put_if("a", "2", Some(first)).await.unwrap().unwrap();
        assert!(second > first);
        assert_eq!(registry.put_if("a", "3", Some(first)).await.unwrap(), None);
        let entry = registry.get("a").await.unwrap().unwrap();
        assert_eq!((entry.value.as_str(), entry.version), ("2", second));
    })
    .await;
}

#[tokio::test]
async fn a_transaction_is_written_whole_or_not_at_all() {
    with_both(async |registry: Registry| {
        let transaction = |expected: Option<Revision>| Transaction {
            expected: vec![("a".to_owned(), None), ("b".to_owned(), expected)],
            puts: vec![put("a", "1"), put("b", "1")],
        };
        assert_eq!(registry.transact(transaction(Some(Revision(1)))).await.unwrap(), None);
        assert!(registry.list("").await.unwrap().entries.is_empty());
        let written = registry.transact(transaction(None)).await.unwrap().unwrap();
        let listing = registry.list("").await.unwrap();
        assert_eq!(listing.entries.len(), 2);
        assert!(listing.entries.values().all(|entry| entry.version == written));
    })
    .await;
}

#[tokio::test]
async fn a_view_is_whole_and_follows_its_prefix() {
    with_both(async |registry: Registry| {
        let stop = CancellationToken::new();
        registry.put_if("a/1", "x", None).await.unwrap();
        registry.put_if("b/1", "x", None).await.unwrap();
        let mut view = registry.watch("a/", stop.clone());
        let first = until(&mut view, |view| view.is_known).await;
        assert_eq!((first.entries.len(), value(&first, "a/1")), (1, Some("x")));
        registry.put_if("a/2", "y", None).await.unwrap();
        let second = until(&mut view, |view| view.entries.len() == 2).await;
        assert_eq!((value(&second, "a/2"), second.begun), (Some("y"), 1));
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn what_is_registered_goes_with_its_owner() {
    with_both(async |registry: Registry| {
        let stop = CancellationToken::new();
        let mut view = registry.watch("workers/", CancellationToken::new());
        let lease = registry.keep_lease(LEASE_TTL, stop.clone());
        let registration = registry.register("workers/a", "1".to_owned(), &lease);
        until(&mut view, |view| value(view, "workers/a") == Some("1")).await;
        registration.update("2".to_owned());
        until(&mut view, |view| value(view, "workers/a") == Some("2")).await;
        // Longer than the lease would last by itself.
        tokio::time::sleep(LEASE_TTL * 2).await;
        assert_eq!(value(&view.borrow(), "workers/a"), Some("2"));
        assert_eq!(registry.leases_lost(), 0);
        stop.cancel();
        until(&mut view, |view| view.entries.is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_registered_comes_back_when_its_lease_is_taken_away() {
    with_both(async |registry: Registry| {
        let stop = CancellationToken::new();
        let mut view = registry.watch("workers/", stop.clone());
        let lease = registry.keep_lease(LEASE_TTL, stop.clone());
        let _registration = registry.register("workers/a", "1".to_owned(), &lease);
        let first = until(&mut view, |view| view.entries.contains_key("workers/a")).await;
        let lost = first.entries["workers/a"].lease.unwrap();
        registry.revoke(lost).await.unwrap();
        let is_new = |view: &View| {
            let entry = view.entries.get("workers/a");
            entry.is_some_and(|entry| entry.lease.is_some_and(|lease| lease != lost))
        };
        until(&mut view, is_new).await;
        assert_eq!(registry.leases_lost(), 1);
        assert_eq!(registry.revoke(lost).await, Err(RegistryError::LeaseGone));
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn one_of_many_leads_and_no_term_is_given_twice() {
    with_both(async |registry: Registry| {
        let mut terms = Vec::new();
        for round in 0..3 {
            let stop = CancellationToken::new();
            let lease = registry.keep_lease(LEASE_TTL, stop.clone());
            let id = lease_of(&lease).await;
            let names = ["a", "b", "c"];
            let campaigns = names.map(|name| registry.campaign(name, "http://x:1", 0, id));
            let campaigns = futures::future::join_all(campaigns).await;
            let won = campaigns.into_iter().filter_map(|campaign| match campaign.unwrap() {
                Campaign::Won(record) => Some(record),
                Campaign::Lost => None,
            });
            let won: Vec<_> = won.collect();
            assert_eq!(won.len(), 1, "round {round}");
            terms.push(won[0].term);
            registry.revoke(id).await.unwrap();
            stop.cancel();
        }
        assert!(terms.is_sorted_by(|earlier, later| earlier < later), "{terms:?}");
        // What the candidate has seen elsewhere counts, too.
        let stop = CancellationToken::new();
        let lease = registry.keep_lease(LEASE_TTL, stop.clone());
        let id = lease_of(&lease).await;
        let Campaign::Won(record) = registry.campaign("d", "http://x:1", 1_000_000, id).await.unwrap() else {
            panic!("nobody else is there");
        };
        assert_eq!(record.term, 1_000_001);
        let term = registry.get(TERM).await.unwrap().unwrap();
        assert_eq!(term.value, "1000001");
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn a_leader_comes_back_with_its_old_term_unless_another_has_a_higher_one() {
    with_both(async |registry: Registry| {
        let stop = CancellationToken::new();
        let id = lease_of(&registry.keep_lease(LEASE_TTL, stop.clone())).await;
        let other = lease_of(&registry.keep_lease(LEASE_TTL, stop.clone())).await;
        let record = |name: &str, term| LeaderRecord {
            name: name.to_owned(),
            url: "http://x:1".to_owned(),
            term,
        };
        let mine = record("a", 40);
        assert_eq!(registry.assert_leader(&mine, id).await.unwrap(), Asserted::Stands);
        // A lower one is written over, whoever wrote it.
        let lower = record("b", 39);
        let higher = record("b", 41);
        assert_eq!(
            registry.assert_leader(&lower, other).await.unwrap(),
            Asserted::Superseded(mine.clone())
        );
        let version = registry.get(LEADER).await.unwrap().unwrap().version;
        let text = r#"{"name":"b","url":"http://x:1","term":39}"#;
        registry.put_if(LEADER, text, Some(version)).await.unwrap().unwrap();
        assert_eq!(registry.assert_leader(&mine, id).await.unwrap(), Asserted::Stands);
        let found = registry.get(LEADER).await.unwrap().unwrap();
        assert_eq!((found.lease, found.value.contains("\"a\"")), (Some(id), true));
        // A higher one is not.
        assert_eq!(registry.assert_leader(&higher, other).await.unwrap(), Asserted::Stands);
        assert_eq!(
            registry.assert_leader(&mine, id).await.unwrap(),
            Asserted::Superseded(higher)
        );
        assert_eq!(
            registry.campaign("c", "http://x:1", 0, id).await.unwrap(),
            Campaign::Lost
        );
        stop.cancel();
    })
    .await;
}

#[tokio::test]
async fn what_was_compacted_is_listed_anew() {
    let etcd = EtcdServer::start();
    let registry = etcd.registry();
    for value in ["1", "2", "3"] {
        registry.put_if(value, value, None).await.unwrap();
    }
    let revision = registry.list("").await.unwrap().revision;
    registry.compact(revision).await.unwrap();
    let mut changes = registry.changes("", Revision(1)).await.unwrap();
    assert_eq!(changes.next().await, Err(RegistryError::Compacted));
    // A view that begins now, or whose connection breaks, begins after it.
    let mut view = registry.watch("", CancellationToken::new());
    let whole = until(&mut view, |view| view.is_known).await;
    assert_eq!(whole.entries.len(), 3);
}

#[tokio::test]
async fn an_etcd_that_comes_later_or_comes_back_is_waited_for() {
    let mut etcd = EtcdServer::absent();
    let (registry, stop) = (etcd.registry(), CancellationToken::new());
    let mut state = registry.state();
    let mut view = registry.watch("", stop.clone());
    let lease = registry.keep_lease(LEASE_TTL, stop.clone());
    let _registration = registry.register("workers/a", "1".to_owned(), &lease);
    let url = etcd.url();
    let names_it = |state: &RegistryState| matches!(state, RegistryState::Away { reason, .. } if reason.contains(&url));
    until(&mut state, names_it).await;
    etcd.restart();
    until(&mut view, |view| view.entries.contains_key("workers/a")).await;
    until(&mut state, |state| !state.is_away()).await;

    // Away for longer than the lease lasts; the view stays.
    let before = view.borrow().clone();
    etcd.kill();
    until(&mut state, RegistryState::is_away).await;
    tokio::time::sleep(LEASE_TTL * 2).await;
    assert_eq!(view.borrow().entries, before.entries);
    // Empty, it learns everything anew.
    etcd.restart_empty();
    until(&mut view, |view| {
        view.begun > before.begun && view.entries.contains_key("workers/a")
    })
    .await;
    until(&mut state, |state| !state.is_away()).await;
    stop.cancel();
}

#[tokio::test]
async fn an_etcd_that_says_nothing_is_away_and_another_member_is_asked() {
    let (first, second) = (EtcdServer::start(), EtcdServer::start());
    let endpoints = format!("{},{}", first.url(), second.url());
    let config = EtcdConfig::parse(&endpoints, "kvasir", None).unwrap();
    let registry = Registry::open(&RegistryConfig::Etcd(config)).unwrap();
    let mut state = registry.state();
    let mut view = registry.watch("", CancellationToken::new());
    let _lease = registry.keep_lease(LEASE_TTL, CancellationToken::new());
    let connected_to =
        |url: String| move |state: &RegistryState| *state == RegistryState::Connected { url: url.clone() };
    until(&mut state, connected_to(first.url())).await;
    until(&mut view, |view| view.is_known).await;
    first.freeze();
    // They are two etcds, which shows who was asked.
    second.registry().put_if("second", "1", None).await.unwrap();
    until(&mut state, connected_to(second.url())).await;
    until(&mut view, |view| view.entries.contains_key("second")).await;
    first.wake();
}

#[tokio::test]
async fn a_wrong_password_is_told_and_waited_for() {
    let etcd = EtcdServer::start();
    let mut root = Client::connect([etcd.url()], None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_add("root", "secret", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("kvasir", "right", None).await.unwrap();
    root.role_add("kvasir").await.unwrap();
    let all = etcd_client::Permission::new(PermissionType::Readwrite, "/kvasir/").with_prefix();
    root.role_grant_permission("kvasir", all).await.unwrap();
    root.user_grant_role("kvasir", "kvasir").await.unwrap();
    root.auth_enable().await.unwrap();

    let registry_of = |user: Option<&str>, prefix: &str| {
        let password = |password: &str| ("kvasir".to_owned(), Password(password.to_owned()));
        let config = EtcdConfig {
            user: user.map(password),
            prefix: prefix.to_owned(),
            ..etcd.config()
        };
        Registry::open(&RegistryConfig::Etcd(config)).unwrap()
    };
    let told = async |registry: Registry| {
        let error = registry.list("").await.unwrap_err().to_string();
        assert!(registry.state().borrow().is_away());
        error
    };
    let wrong = told(registry_of(Some("wrong"), "kvasir")).await;
    assert!(
        wrong.contains("user `kvasir`") && wrong.contains("invalid user ID or password"),
        "{wrong}"
    );
    let nobody = told(registry_of(None, "kvasir")).await;
    assert!(
        nobody.contains("user name is empty") && nobody.contains("--etcd-user"),
        "{nobody}"
    );
    let elsewhere = told(registry_of(Some("right"), "other")).await;
    assert!(
        elsewhere.contains("permission denied") && elsewhere.contains("/other/"),
        "{elsewhere}"
    );
    let registry = registry_of(Some("right"), "kvasir");
    registry.put_if("a", "1", None).await.unwrap().unwrap();
    let stop = CancellationToken::new();
    let lease = registry.keep_lease(LEASE_TTL, stop.clone());
    let _registration = registry.register("workers/a", "1".to_owned(), &lease);
    let mut view = registry.watch("", stop.clone());
    until(&mut view, |view| view.entries.len() == 2).await;
    stop.cancel();
}

#[tokio::test]
async fn an_etcd_with_certificates_lets_in_whoever_shows_one() {
    let certs = Certs::make(&[]);
    let etcd = EtcdServer::start_encrypted(&certs);
    let registry_of = |pair: Option<KeyPairFiles>, authority: &Certs| {
        let authority = authority.path("ca.pem");
        let tls = Some(ClientTlsFiles { authority, pair });
        let config = EtcdConfig::parse(&etcd.url(), "kvasir", tls).unwrap();
        Registry::open(&RegistryConfig::Etcd(config)).unwrap()
    };
    let registry = registry_of(Some(certs.pair("worker-w0")), &certs);
    registry.put_if("a", "1", None).await.unwrap().unwrap();
    let others = Certs::make(&[]);
    for stranger in [
        registry_of(None, &certs),
        registry_of(Some(certs.pair("worker-w0")), &others),
    ] {
        let error = stranger.list("").await.unwrap_err();
        assert!(matches!(error, RegistryError::Away { .. }), "{error}");
        assert!(stranger.state().borrow().is_away());
    }
}
