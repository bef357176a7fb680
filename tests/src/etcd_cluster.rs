//! Coordinators and workers of real processes that find each other through a real etcd.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use kvasir_client::{Answers, Client, Target, Update};
use kvasir_proto::v1::generate_response::Event;
use kvasir_runtime::registry::{Registry, View};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cluster_sandbox::{GrpcAnswer, KvasirProcess, kvasir, request_of},
    etcd_server::EtcdServer,
    parity,
    rank_group::Generation,
};

const WAIT_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct EtcdCluster {
    pub coordinators: Vec<CoordinatorProcess>,
    pub workers: Vec<KvasirProcess>,
    pub etcd: EtcdServer,
    folder: TempDir,
}

#[derive(Debug)]
pub struct CoordinatorProcess {
    pub process: KvasirProcess,
    pub name: String,
    pub url: String,
}

impl EtcdCluster {
    /// Waits until it serves, by one group of all workers; `flags` go to the coordinators.
    pub fn start(model: &Path, coordinators: u32, workers: u32, flags: &[&str]) -> Self {
        Self::start_in(EtcdServer::start(), model, coordinators, workers, flags)
    }

    /// As `start`, in an etcd that runs.
    pub fn start_in(etcd: EtcdServer, model: &Path, coordinators: u32, workers: u32, flags: &[&str]) -> Self {
        let mut cluster = Self {
            coordinators: Vec::new(),
            workers: Vec::new(),
            etcd,
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        for index in 0..coordinators {
            let name = format!("c{index}");
            let started = coordinator(model, &cluster.etcd.url(), &name, workers, flags, cluster.folder.path());
            cluster.coordinators.push(started);
        }
        for index in 0..workers {
            cluster.add_worker(model, &format!("w{index}"));
        }
        cluster.wait_for(0, "a group that serves", |status| status["ready"] == true);
        cluster
    }

    pub fn add_worker(&mut self, model: &Path, id: &str) {
        let (model, url) = (model.to_str().expect("a plain path"), self.etcd.url());
        let args = ["worker", "--model", model, "--etcd", &url, "--id", id];
        let log = self.folder.path().join(format!("{id}.log"));
        self.workers.push(KvasirProcess::start(&args, log));
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn registry(&self) -> Registry {
        self.etcd.registry()
    }

    /// Everything that is in the registry.
    pub async fn view(&self) -> View {
        let listing = self.registry().list("").await.expect("etcd answers");
        View {
            entries: listing.entries,
            revision: listing.revision,
            is_known: true,
            begun: 1,
        }
    }

    /// What `kvasir status --json` prints of a coordinator.
    pub fn status(&self, coordinator: usize) -> Value {
        status_of(&self.coordinators[coordinator].url)
    }

    /// Panics with the last status if that takes too long.
    pub fn wait_for(&self, coordinator: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT_DEADLINE;
        loop {
            let status = self.status(coordinator);
            if wanted(&status) {
                return status;
            }
            if Instant::now() >= deadline {
                let logs = self
                    .workers
                    .iter()
                    .map(KvasirProcess::log)
                    .collect::<Vec<_>>()
                    .join("\n");
                panic!("waited in vain for {what}: {status:#}\n{logs}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// The one that says so.
    pub fn leader(&self) -> usize {
        let leads = |index: &usize| self.status(*index)["leader"] == true;
        let leaders: Vec<_> = (0..self.coordinators.len()).filter(leads).collect();
        assert_eq!(leaders.len(), 1, "one leads");
        leaders[0]
    }

    /// Of coordinators and workers: nobody was started anew while these are the same.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.workers.iter().map(KvasirProcess::pid).collect()
    }

    /// One that knows all coordinators.
    pub fn client(&self) -> Client {
        let target = |coordinator: &CoordinatorProcess| Target::plain(&coordinator.url).expect("a plain address");
        Client::new(self.coordinators.iter().map(target)).expect("there are coordinators")
    }

    /// A stream that goes on at whichever coordinator leads.
    pub async fn begin(&self, generation: &Generation) -> Telling {
        Telling::begin(&self.client(), generation).await
    }
}

/// One more process that could lead; `flags` go to it.
pub fn coordinator(
    model: &Path,
    etcd: &str,
    name: &str,
    workers: u32,
    flags: &[&str],
    folder: &Path,
) -> CoordinatorProcess {
    let (model, workers) = (model.to_str().expect("a plain path"), workers.to_string());
    let mut args = vec!["coordinator", "--json", "--model", model, "--workers", &workers];
    args.extend(["--grpc", "127.0.0.1:0", "--etcd", etcd, "--name", name]);
    args.extend(flags);
    let (process, line) = KvasirProcess::start_and_read_line(&args, folder.join(format!("{name}.log")));
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no line: {}", process.log()));
    CoordinatorProcess {
        process,
        name: name.to_owned(),
        url: line["grpc"].as_str().expect("an address").to_owned(),
    }
}

/// Null while it does not answer.
pub fn status_of(url: &str) -> Value {
    let output = kvasir(["status", "--json", "--endpoint", url]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// An answer that is being told.
#[expect(missing_debug_implementations, reason = "a stream shows nothing")]
pub struct Telling {
    answers: Answers,
    pub answer: GrpcAnswer,
    pub resumes: u32,
}

impl Telling {
    /// Panics if nobody takes it.
    pub async fn begin(client: &Client, generation: &Generation) -> Self {
        let answers = client.generate(request_of(generation)).await;
        Self {
            answers: answers.expect("somebody takes it"),
            answer: GrpcAnswer::default(),
            resumes: 0,
        }
    }

    /// Until a token has come by another connection than now. Panics if the answer ends before.
    pub async fn until_resumed(&mut self) {
        let resumes = self.resumes;
        while self.resumes == resumes {
            assert!(self.next().await, "it ended early");
        }
        self.until(self.answer.tokens.len() + 1).await;
    }

    /// Until so many tokens have come. Panics if the answer ends before, or with an error.
    pub async fn until(&mut self, tokens: usize) {
        while self.answer.tokens.len() < tokens {
            assert!(self.next().await, "it ended early");
        }
    }

    /// Reads to the end; returns the digest.
    pub async fn finish(&mut self) -> String {
        while self.next().await {}
        parity::digest(&self.answer.to_parity())
    }

    async fn next(&mut self) -> bool {
        match self.answers.next().await {
            None => false,
            Some(Ok(Update::Response(response))) => {
                if let Some(Event::Finished(_)) = response.event {
                    self.answer.add(*response);
                    return false;
                }
                // What was told before is not told again.
                self.answer.add(*response);
                true
            }
            Some(Ok(_)) => {
                self.resumes += 1;
                true
            }
            Some(Err(error)) => panic!("the answer broke: {error}"),
        }
    }
}
