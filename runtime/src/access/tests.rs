//! The layer as gRPC and HTTP servers use it, without a network.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::*;
use crate::{
    door::{ConnInfo, DoorConfig},
    refusals::{Refusal, Refusals},
    tls::{Identity, KeyPairFiles, ServerTlsFiles},
};

/// Says who asks.
#[derive(Clone)]
struct WhoAsks;

impl<T> Service<Request<T>> for WhoAsks {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<T>) -> Self::Future {
        let principal = request.extensions().get::<Principal>();
        let who = principal.map_or_else(|| "nobody".to_owned(), |principal| principal.name.clone());
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert("who", who.parse().unwrap());
        ready(Ok(response))
    }
}

struct Bench {
    service: AccessService<WhoAsks>,
    refusals: Arc<Refusals>,
    _folder: tempfile::TempDir,
}

type Answer = Response<GuardedBody<Body>>;

impl Bench {
    fn new(certificates: bool, keys: &[(&str, &ApiKey, bool, KeyLimits)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let line = |(name, key, admin, limits): &(&str, &ApiKey, bool, KeyLimits)| {
            let entry = KeyEntry {
                name: (*name).to_owned(),
                sha256: key.hash().to_string(),
                admin: *admin,
                limits: *limits,
            };
            serde_json::to_string(&entry).unwrap() + "\n"
        };
        std::fs::write(&file, keys.iter().map(line).collect::<String>()).unwrap();
        let pair = KeyPairFiles {
            certificate: "unused".into(),
            key: "unused".into(),
        };
        let config = DoorConfig {
            tls: certificates.then(|| ServerTlsFiles {
                pair,
                authority: Some("unused".into()),
            }),
            api_keys: (!keys.is_empty()).then_some(file),
            ..DoorConfig::default()
        };
        let refusals = Arc::new(Refusals::default());
        let access = Access::open(&config, Arc::clone(&refusals)).unwrap();
        Self {
            service: AccessLayer::new(Arc::new(access)).layer(WhoAsks),
            refusals,
            _folder: folder,
        }
    }

    fn ask(&self, path: &str, grpc: bool, key: Option<&ApiKey>, identity: Option<Identity>) -> Answer {
        self.ask_from("127.0.0.1", path, grpc, key, identity)
    }

    fn ask_from(&self, ip: &str, path: &str, grpc: bool, key: Option<&ApiKey>, identity: Option<Identity>) -> Answer {
        self.ask_with(Request::builder(), ip, path, grpc, key, identity)
    }

    fn ask_with(
        &self,
        request: http::request::Builder,
        ip: &str,
        path: &str,
        grpc: bool,
        key: Option<&ApiKey>,
        identity: Option<Identity>,
    ) -> Answer {
        let mut request = request.uri(path);
        if grpc {
            request = request.header("content-type", "application/grpc+proto");
        }
        if let Some(key) = key {
            request = request.header("authorization", format!("bearer {}", key.text()));
        }
        let conn = ConnInfo {
            peer: format!("{ip}:9").parse().unwrap(),
            identity,
            encrypted: true,
            activity: Arc::default(),
        };
        let request = request.extension(conn).body(()).unwrap();
        let answering = self.service.clone().call(request);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(answering).unwrap()
    }
}

fn who(answer: &Answer) -> &str {
    answer.headers()["who"].to_str().unwrap()
}

/// The gRPC status, which must be in the headers: no trailers come behind an answer without a body.
fn grpc_status(answer: &Answer) -> i32 {
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert!(answer.body().is_end_stream());
    answer.headers()["grpc-status"].to_str().unwrap().parse().unwrap()
}

fn json(answer: Answer) -> serde_json::Value {
    let mut body = answer.into_body();
    let mut context = Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) else {
        panic!("no body");
    };
    let bytes: Bytes = frame.into_data().unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

const GENERATE: &str = "/kvasir.v1.Inference/Generate";
const STATUS: &str = "/kvasir.v1.Admin/Status";
const JOIN: &str = "/kvasir.v1.Cluster/Join";
const CHAT: &str = "/v1/chat/completions";
const NO_LIMITS: KeyLimits = KeyLimits {
    requests_per_minute: None,
    concurrent_requests: None,
};

#[test]
fn where_nothing_is_configured_everybody_may_do_everything() {
    let bench = Bench::new(false, &[]);
    for path in [GENERATE, STATUS, JOIN, CHAT] {
        assert_eq!(who(&bench.ask(path, true, None, None)), "nobody");
    }
}

#[test]
fn a_coordinator_asks_in_the_name_of_others_and_nobody_else_does() {
    let bench = Bench::new(true, &[]);
    let ask = |path: &str, identity: Identity, admin: bool| {
        let mut request = Request::builder().header(HandedOn::NAME, "ada");
        if admin {
            request = request.header(HandedOn::ADMIN, "1");
        }
        bench.ask_with(request, "127.0.0.1", path, true, None, Some(identity))
    };
    let denied = tonic::Code::PermissionDenied as i32;
    assert_eq!(who(&ask(GENERATE, Identity::Coordinator, false)), "ada");
    assert_eq!(grpc_status(&ask(STATUS, Identity::Coordinator, false)), denied);
    assert_eq!(who(&ask(STATUS, Identity::Coordinator, true)), "ada");
    // A client is who its certificate says, whatever else it says.
    assert_eq!(who(&ask(GENERATE, Identity::Client("bob".to_owned()), true)), "bob");
    assert_eq!(
        grpc_status(&ask(STATUS, Identity::Client("bob".to_owned()), true)),
        denied
    );
    assert_eq!(
        grpc_status(&ask(GENERATE, Identity::Worker("w".to_owned()), true)),
        denied
    );
    // In nobody's name it asks nothing.
    assert_eq!(
        grpc_status(&bench.ask(GENERATE, true, None, Some(Identity::Coordinator))),
        denied
    );
}

#[test]
fn a_refusal_is_a_grpc_status_to_grpc_and_openais_error_to_http() {
    let key = ApiKey::generate().unwrap();
    let bench = Bench::new(false, &[("ada", &key, false, NO_LIMITS)]);
    let refused = bench.ask(GENERATE, true, None, None);
    assert_eq!(grpc_status(&refused), tonic::Code::Unauthenticated as i32);
    let refused = bench.ask(CHAT, false, Some(&ApiKey::presented("kvasir-0")), None);
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["content-type"], "application/json");
    let error = &json(refused)["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["code"], "invalid_api_key");
    assert!(error["param"].is_null() && error["message"].is_string());
    for path in ["/health", "/ready", "/grpc.health.v1.Health/Check"] {
        assert_eq!(who(&bench.ask(path, false, None, None)), "nobody", "{path}");
    }
    // What only looks like an open door is none.
    for path in ["/health/x", "/ready.", "/grpc.health.v1.Healthy/Check"] {
        assert_eq!(
            bench.ask(path, false, None, None).status(),
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    assert_eq!(who(&bench.ask(CHAT, false, Some(&key), None)), "ada");
    assert_eq!(bench.refusals.count(Refusal::WrongKey), 1);
    assert_eq!(bench.refusals.count(Refusal::MissingKey), 4);
}

#[test]
fn a_limit_is_told_to_each_in_their_way_and_ends_with_the_body() {
    let key = ApiKey::generate().unwrap();
    let one = KeyLimits {
        concurrent_requests: Some(1),
        ..NO_LIMITS
    };
    let bench = Bench::new(false, &[("ada", &key, false, one)]);
    let first = bench.ask(GENERATE, true, Some(&key), None);
    let second = bench.ask(GENERATE, true, Some(&key), None);
    assert_eq!(grpc_status(&second), tonic::Code::ResourceExhausted as i32);
    assert_eq!(second.headers()["retry-after-ms"], "1000");
    let third = bench.ask(CHAT, false, Some(&key), None);
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(third.headers()["retry-after"], "1");
    drop(first);
    assert_eq!(who(&bench.ask(GENERATE, true, Some(&key), None)), "ada");
}

#[test]
fn each_service_takes_those_it_is_for() {
    let (plain, admin) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
    let bench = Bench::new(
        true,
        &[("ada", &plain, false, NO_LIMITS), ("ops", &admin, true, NO_LIMITS)],
    );
    let denied = tonic::Code::PermissionDenied as i32;
    let unknown = tonic::Code::Unauthenticated as i32;
    let client = || Some(Identity::Client("bob".to_owned()));
    let admin_cert = || Some(Identity::Admin("root".to_owned()));
    let worker = || Some(Identity::Worker("w0".to_owned()));
    for (path, key, identity, expected) in [
        (GENERATE, Some(&plain), None, Ok("ada")),
        (GENERATE, None, client(), Ok("bob")),
        (GENERATE, Some(&plain), client(), Ok("ada")),
        (GENERATE, None, admin_cert(), Ok("root")),
        (GENERATE, None, worker(), Err(denied)),
        (GENERATE, None, Some(Identity::Coordinator), Err(denied)),
        (GENERATE, None, None, Err(unknown)),
        (STATUS, Some(&admin), None, Ok("ops")),
        (STATUS, None, admin_cert(), Ok("root")),
        (STATUS, Some(&plain), None, Err(denied)),
        // Whoever shows a key is its holder, whatever else they have.
        (STATUS, Some(&plain), admin_cert(), Err(denied)),
        (STATUS, None, worker(), Err(denied)),
        (JOIN, None, worker(), Ok("nobody")),
        (JOIN, Some(&admin), None, Err(unknown)),
        (JOIN, Some(&admin), client(), Err(denied)),
        (JOIN, None, None, Err(unknown)),
    ] {
        let answer = bench.ask(path, true, key, identity.clone());
        match expected {
            Ok(name) => assert_eq!(who(&answer), name, "{path} {identity:?}"),
            Err(code) => assert_eq!(grpc_status(&answer), code, "{path} {identity:?}"),
        }
    }
}

#[test]
fn without_an_authority_workers_join_from_this_host_alone() {
    let key = ApiKey::generate().unwrap();
    let bench = Bench::new(false, &[("ada", &key, true, NO_LIMITS)]);
    assert_eq!(who(&bench.ask(JOIN, true, None, None)), "nobody");
    let far = bench.ask_from("10.0.0.7", JOIN, true, Some(&key), None);
    assert_eq!(grpc_status(&far), tonic::Code::PermissionDenied as i32);
}
