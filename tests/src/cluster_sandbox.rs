//! A cluster of real processes for one test: the built binary, ports that the system picks, and an end without
//! leftovers, also when the test panics.
//!
//! Processes are named by pid; nothing here waits by sleeping for a guessed time.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use kvasir_kv::{PromptLogprob, TokenId};
use kvasir_proto::v1::{self, generate_request::Prompt, generate_response::Event, inference_client::InferenceClient};
use kvasir_runtime::tls::ClientTls;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    certs::{Certs, dial},
    parity,
    rank_group::{Answer, Generation},
};

const STOP_DEADLINE: Duration = Duration::from_secs(10);
const WAIT_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// The binary under test: `KVASIR_BIN`, or what a build left beside the test. Panics if there is none.
pub fn kvasir_binary() -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().expect("a test knows its own path");
        let profile = test.ancestors().nth(2).expect("tests lie in deps, below the profile");
        profile.join("kvasir")
    };
    let path = std::env::var_os("KVASIR_BIN").map(PathBuf::from).unwrap_or_else(beside);
    assert!(
        path.is_file(),
        "no binary at {}: run cargo build -p kvasir",
        path.display()
    );
    path
}

/// Runs the binary to its end, with colours and the caller's settings out of the way.
pub fn kvasir<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    command(args).output().expect("the binary can be started")
}

fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(kvasir_binary());
    command.args(args).stdin(Stdio::null());
    for name in [
        "KVASIR_API_KEY",
        "KVASIR_COORDINATOR",
        "KVASIR_ENDPOINT",
        "KVASIR_ETCD",
        "KVASIR_ETCD_PASSWORD",
        "KVASIR_ETCD_USER",
        "KVASIR_LOG",
        "KVASIR_TLS_CA",
        "KVASIR_TLS_CERT",
        "KVASIR_TLS_KEY",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

/// A process of the binary that ends with this value. Its standard error is kept, and shown if the test panics.
#[derive(Debug)]
pub struct KvasirProcess {
    child: Child,
    log: PathBuf,
}

impl KvasirProcess {
    /// Starts it and returns its first line of output besides, or an empty one if it ends without.
    pub fn start_and_read_line(args: &[&str], log: PathBuf) -> (Self, String) {
        let mut process = Self::spawn(args, log, Stdio::piped());
        let out = process.child.stdout.take().expect("piped above");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("a line of text");
        (process, line)
    }

    pub fn start(args: &[&str], log: PathBuf) -> Self {
        Self::spawn(args, log, Stdio::null())
    }

    fn spawn(args: &[&str], log: PathBuf, out: Stdio) -> Self {
        let stderr = File::create(&log).expect("a folder of our own");
        let child = command(args)
            .env("KVASIR_LOG", "info")
            .stdout(out)
            .stderr(stderr)
            .spawn();
        Self {
            child: child.expect("the binary can be started"),
            log,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text));
        read.map(|_| text).unwrap_or_default()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end; kills it if it does not.
    pub fn stop(&mut self) {
        signal(self.pid(), Signal::TERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.kill();
    }
}

impl Drop for KvasirProcess {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.log());
        }
    }
}

/// A running cluster: `kvasir up`.
#[derive(Debug)]
pub struct ClusterSandbox {
    up: KvasirProcess,
    endpoint: String,
    worker_pids: Vec<u32>,
    folder: TempDir,
    /// What this test's clients show, as flags and as such.
    credentials: Vec<String>,
    tls: Option<ClientTls>,
}

impl ClusterSandbox {
    /// Waits until the cluster serves; `flags` go to `kvasir up`. Panics with its log if it does not come up.
    pub fn start(model: &Path, workers: u32, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (model, workers) = (model.to_str().expect("a plain path"), workers.to_string());
        let mut args = vec!["up", "--model", model, "--workers", &workers, "--json"];
        if !flags.contains(&"--grpc") {
            args.extend(["--grpc", "127.0.0.1:0"]);
        }
        args.extend(flags);
        let (up, line) = KvasirProcess::start_and_read_line(&args, folder.path().join("up.log"));
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no ready line: {}", up.log()));
        let pid = |worker: &Value| worker["pid"].as_u64().expect("a pid") as u32;
        Self {
            // Nobody is at an unspecified address.
            endpoint: ready["grpc"]
                .as_str()
                .expect("an address")
                .replace("0.0.0.0", "127.0.0.1"),
            worker_pids: ready["workers"].as_array().expect("a list").iter().map(pid).collect(),
            up,
            folder,
            credentials: Vec::new(),
            tls: None,
        }
    }

    /// As `start`, with TLS everywhere; whoever asks through this is the admin.
    pub fn start_encrypted(model: &Path, workers: u32, flags: &[&str], certs: &Certs) -> Self {
        let mut sandbox = Self::start(model, workers, &[&["--tls-dir", certs.dir()], flags].concat());
        sandbox.credentials = certs.flags_of("admin");
        sandbox.tls = Some(certs.tls(Some("admin")));
        sandbox
    }

    /// Whoever asks by commands is the holder of this key.
    pub fn show_key(&mut self, key: &str) {
        self.credentials.extend(["--api-key".to_owned(), key.to_owned()]);
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Of the process that runs the coordinator.
    pub fn pid(&self) -> u32 {
        self.up.pid()
    }

    pub fn worker_pids(&self) -> &[u32] {
        &self.worker_pids
    }

    /// One more worker, beside those that `up` started. Ends with what this returns.
    pub fn add_worker(&self, model: &Path, id: &str) -> KvasirProcess {
        self.add_worker_with(model, id, &[])
    }

    /// As `add_worker`; `flags` go to `kvasir worker`.
    pub fn add_worker_with(&self, model: &Path, id: &str, flags: &[&str]) -> KvasirProcess {
        let model = model.to_str().expect("a plain path");
        let mut args = vec!["worker", "--model", model, "--coordinator", &self.endpoint, "--id", id];
        args.extend(flags);
        KvasirProcess::start(&args, self.folder.path().join(format!("{id}.log")))
    }

    /// What the coordinator has written to standard error.
    pub fn log(&self) -> String {
        self.up.log()
    }

    /// Ends the process that runs the coordinator as a crash would.
    pub fn kill_up(&mut self) {
        self.up.kill();
    }

    /// Runs a client command of the binary against this cluster.
    pub fn kvasir(&self, args: &[&str]) -> Output {
        let credentials = self.credentials.iter().map(String::as_str);
        kvasir(
            args.iter()
                .copied()
                .chain(["--endpoint", &self.endpoint])
                .chain(credentials),
        )
    }

    /// What `kvasir status --json` prints.
    pub fn status(&self) -> Value {
        let output = self.kvasir(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).expect("status prints JSON")
    }

    /// Waits until `status` is as wanted. Panics with the last one if that takes too long.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT_DEADLINE;
        loop {
            if let Some(status) = self.status_if(what, &wanted, deadline) {
                return status;
            }
            std::thread::sleep(POLL);
        }
    }

    /// As `wait_for`, for a test that goes on with something else meanwhile.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT_DEADLINE;
        loop {
            if let Some(status) = self.status_if(what, &wanted, deadline) {
                return status;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn status_if(&self, what: &str, wanted: impl Fn(&Value) -> bool, deadline: Instant) -> Option<Value> {
        let status = self.status();
        if wanted(&status) {
            return Some(status);
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}: {status:#}");
        None
    }

    pub async fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel().await)
    }

    /// Of whoever this sandbox's clients are.
    pub async fn channel(&self) -> Channel {
        let channel = dial(&self.endpoint, self.tls.as_ref()).await;
        channel.expect("the cluster accepts connections")
    }

    /// For a test that reads the messages itself.
    pub async fn open_stream(&self, request: v1::GenerateRequest) -> Result<Streaming<v1::GenerateResponse>, Status> {
        Ok(self.inference().await.generate(request).await?.into_inner())
    }

    /// The choices of a request with `n`, by choice.
    pub async fn generate_choices(&self, request: v1::GenerateRequest) -> Result<BTreeMap<u32, GrpcAnswer>, Status> {
        let mut stream = self.open_stream(request).await?;
        let mut answers: BTreeMap<u32, GrpcAnswer> = BTreeMap::new();
        while let Some(response) = stream.message().await? {
            answers.entry(response.choice).or_default().add(response);
        }
        Ok(answers)
    }

    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<GrpcAnswer, Status> {
        let mut stream = self.open_stream(request).await?;
        let mut answer = GrpcAnswer::default();
        while let Some(response) = stream.message().await? {
            answer.add(response);
        }
        Ok(answer)
    }

    /// Asks all together. Panics if one of them gets no answer.
    pub async fn digests_of(&self, generations: &[Generation]) -> Vec<String> {
        let asked = generations
            .iter()
            .map(|generation| self.generate(request_of(generation)));
        let answers = futures::future::join_all(asked).await.into_iter();
        let digest = |answer: Result<GrpcAnswer, Status>| parity::digest(&answer.expect("an answer").to_parity());
        answers.map(digest).collect()
    }
}

impl Drop for ClusterSandbox {
    fn drop(&mut self) {
        self.up.stop();
        for &pid in &self.worker_pids {
            // They end with `up`; this is for the ones that do not, so that no test disturbs the next.
            if !wait_gone(pid) {
                signal(pid, Signal::KILL);
            }
        }
    }
}

/// The same question over gRPC.
pub fn request_of(generation: &Generation) -> v1::GenerateRequest {
    let sampling = &generation.sampling;
    v1::GenerateRequest {
        prompt: Some(Prompt::TokenIds(v1::TokenIds {
            ids: generation.prompt.iter().map(|token| token.0).collect(),
        })),
        sampling: Some(v1::SamplingParams {
            temperature: Some(sampling.temperature),
            top_k: Some(sampling.top_k),
            top_p: Some(sampling.top_p),
            seed: Some(sampling.seed),
            choice: sampling.choice,
            top_logprobs: sampling.top_logprobs,
            min_p: Some(sampling.min_p),
            repetition_penalty: Some(sampling.repetition_penalty),
            presence_penalty: Some(sampling.presence_penalty),
            frequency_penalty: Some(sampling.frequency_penalty),
            logit_bias: sampling
                .logit_bias
                .iter()
                .map(|(token, bias)| v1::LogitBias {
                    id: token.0,
                    bias: *bias,
                })
                .collect(),
            stop_token_ids: Vec::new(),
        }),
        max_tokens: Some(generation.max_tokens as u32),
        ignore_eos: true,
        prompt_logprobs: generation.prompt_logprobs,
        ..Default::default()
    }
}

/// An answer as gRPC messages brought it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GrpcAnswer {
    pub descriptor: v1::ResumeDescriptor,
    /// Position of the first of `prompt_scores`.
    pub scored_from: Option<u32>,
    pub prompt_scores: Vec<v1::PromptToken>,
    pub tokens: Vec<v1::Token>,
    pub text: String,
    pub finished: Option<v1::Finished>,
}

impl GrpcAnswer {
    pub fn add(&mut self, response: v1::GenerateResponse) {
        match response.event {
            Some(Event::Started(started)) => self.descriptor = started.descriptor.unwrap_or_default(),
            Some(Event::PromptScores(scores)) => {
                assert!(self.tokens.is_empty(), "logprobs of the prompt after a token");
                let from = *self.scored_from.get_or_insert(scores.position);
                let next = from + self.prompt_scores.len() as u32;
                assert_eq!(scores.position, next, "a gap in the logprobs of the prompt");
                self.prompt_scores.extend(scores.tokens);
            }
            Some(Event::Chunk(chunk)) => {
                self.text += &chunk.text;
                self.tokens.extend(chunk.tokens);
            }
            Some(Event::Finished(finished)) => {
                self.text += &finished.text;
                self.finished = Some(finished);
            }
            None => {}
        }
    }

    /// For a digest.
    pub fn to_parity(&self) -> Answer {
        let pairs = |top: &[v1::TopLogprob]| top.iter().map(|top| (TokenId(top.id), top.logprob)).collect();
        let top = |token: &v1::Token| pairs(&token.top_logprobs);
        let score = |token: &v1::PromptToken| PromptLogprob {
            logprob: token.logprob,
            top_logprobs: pairs(&token.top_logprobs),
        };
        Answer {
            tokens: self.tokens.iter().map(|token| TokenId(token.id)).collect(),
            logprobs: self.tokens.iter().map(|token| token.logprob).collect(),
            top_logprobs: self.tokens.iter().map(top).collect(),
            prompt_logprobs: self.prompt_scores.iter().map(score).collect(),
            poisoned: false,
        }
    }

    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    pub fn reason(&self) -> v1::FinishReason {
        self.finished.as_ref().expect("the stream came to its end").reason()
    }
}
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Asks a process to end.
pub fn terminate(pid: u32) {
    signal(pid, Signal::TERM);
}

/// Freezes a process until `resume`.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
}

pub fn resume(pid: u32) {
    signal(pid, Signal::CONT);
}

/// True if the process ended within a few seconds.
pub fn wait_gone(pid: u32) -> bool {
    let deadline = Instant::now() + STOP_DEADLINE;
    while is_running(pid) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// A process that has ended and is not yet waited for does not run.
fn is_running(pid: u32) -> bool {
    let exists = Pid::from_raw(pid as i32).is_some_and(|pid| test_kill_process(pid).is_ok());
    exists && state(format!("/proc/{pid}/stat").as_ref()) != Some('Z')
}

/// None of its threads runs: they have been told to stand still, or have ended.
pub fn is_frozen(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = threads.into_iter().flatten().flatten();
    threads.all(|thread| !matches!(state(&thread.path().join("stat")), Some('R' | 'S' | 'D')))
}

/// The letter for what a process or thread does.
fn state(stat: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}
