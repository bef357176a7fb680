//! Copy a cached prompt from another group, or compute it again: is what the cluster chooses what takes less time?
//!
//! For each link and each length: how long the first token takes with a copy, how long with computing, and what
//! `--prefix-copy auto` does. Needs root, for links that are slower than loopback: they are made in a network namespace.
//! `cargo run -p kvasir-tests --example prefix_cases` runs all; it prints a table and how often the choice was right.

use std::{
    env,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kvasir_kv::{Sampling, TokenId};
use kvasir_proto::v1::generate_response::Event;
use kvasir_tests::{
    cluster_sandbox::{ClusterSandbox, request_of},
    rank_group::Generation,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const BLOCK: usize = 16;
/// Blocks that are cached in the other group.
const BLOCKS: [usize; 10] = [2, 4, 8, 12, 16, 24, 32, 48, 64, 96];
const REPEAT: usize = 3;
/// Tokens after what is cached.
const SUFFIX: usize = 8;
/// Copies of each link before anything counts: it is to be known.
const WARM_UP: usize = 4;
const LINKS: [Link; 5] = [
    Link {
        name: "shared memory",
        mbit: None,
        tcp: false,
    },
    Link {
        name: "loopback TCP",
        mbit: None,
        tcp: true,
    },
    Link {
        name: "400 Mbit/s",
        mbit: Some(400),
        tcp: true,
    },
    Link {
        name: "200 Mbit/s",
        mbit: Some(200),
        tcp: true,
    },
    Link {
        name: "60 Mbit/s",
        mbit: Some(60),
        tcp: true,
    },
];

#[derive(Clone, Copy, Debug)]
struct Link {
    name: &'static str,
    mbit: Option<u32>,
    tcp: bool,
}

fn main() -> ExitCode {
    let done = match env::args().nth(1) {
        None => all_links(),
        Some(index) => one_link(&index),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prefix_cases: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Each link in a process of its own, in a namespace of its own if it is slow.
fn all_links() -> Result<()> {
    let (mut right, mut near, mut cases) = (0, 0, 0);
    println!("link, cached tokens: ms to the first token with a copy, with computing; what auto did");
    for (index, link) in LINKS.iter().enumerate() {
        for case in run_link(index, link)? {
            let ms = |name: &str| case[name].as_f64().unwrap_or(f64::NAN);
            let (copy, compute) = (ms("copy_ms"), ms("compute_ms"));
            let copied = case["copied"] == true;
            let is_right = copied == (copy < compute);
            // Neither is better: nobody could tell, or would mind.
            let is_near = (copy - compute).abs() <= 0.05 * copy.max(compute);
            right += u32::from(is_right);
            near += u32::from(is_right || is_near);
            cases += 1;
            let chose = if copied { "copied" } else { "computed" };
            let verdict = if is_right { "" } else { "  WRONG" };
            println!(
                "{}, {}: {copy:.1}, {compute:.1}; {chose}{verdict}",
                link.name, case["tokens"]
            );
        }
    }
    println!("{right} of {cases} right; {near} if a difference of 5 % counts for neither");
    Ok(())
}

fn run_link(index: usize, link: &Link) -> Result<Vec<Value>> {
    let namespace = link.mbit.map(Namespace::with_rate).transpose()?;
    let program = env::current_exe()?;
    let mut command = match &namespace {
        None => Command::new(program),
        Some(Namespace(name)) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
    };
    let output = command.arg(index.to_string()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the cases of {} failed", link.name);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A network namespace whose loopback is slow; it ends with this value.
struct Namespace(String);

impl Namespace {
    fn with_rate(mbit: u32) -> Result<Self> {
        let namespace = Self(format!("kvasir-cases-{}", std::process::id()));
        let rate = format!("{mbit}mbit");
        let name = namespace.0.as_str();
        ip(&["netns", "add", name])?;
        ip(&["-n", name, "link", "set", "lo", "mtu", "1500", "up"])?;
        let shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", &rate];
        let bounds = ["burst", "64kb", "latency", "200ms"];
        ip(&[&["netns", "exec", name], &shape[..], &bounds[..]].concat())?;
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing else is to be done about it.
        let _ = ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(args)
        .status()
        .context("`ip` of iproute2 is needed")?;
    ensure!(status.success(), "`ip {}` failed; it needs root", args.join(" "));
    Ok(())
}

#[tokio::main]
async fn one_link(index: &str) -> Result<()> {
    let index: usize = index.parse().context("the number of a link")?;
    let link = LINKS.get(index).with_context(|| format!("no link {index}"))?;
    let model = kvasir_tests::default_model();
    let both = Clusters {
        model: &model,
        tcp: link.tcp,
    };
    let sides = both.measure("always", true).await?;
    let chosen = both.measure("auto", false).await?;
    let case = |((blocks, side), chosen): ((usize, &Sides), &Sides)| {
        let copied = chosen.copied.iter().filter(|copied| **copied).count();
        json!({
            "tokens": blocks * BLOCK,
            "copy_ms": median(&side.asked),
            "compute_ms": median(&side.fresh),
            "copied": copied * 2 > REPEAT,
        })
    };
    let cases = BLOCKS.into_iter().zip(&sides).zip(&chosen).map(case);
    println!("{}", Value::Array(cases.collect()));
    Ok(())
}

/// Milliseconds to the first token, and whether it was copied, of each time.
#[derive(Default)]
struct Sides {
    asked: Vec<f64>,
    fresh: Vec<f64>,
    copied: Vec<bool>,
}

struct Clusters<'a> {
    model: &'a Path,
    tcp: bool,
}

impl Clusters<'_> {
    /// Prompts are cached in one group, whose only place is then taken; the other one is asked.
    async fn measure(&self, policy: &str, and_fresh: bool) -> Result<Vec<Sides>> {
        let transport = if self.tcp { "tcp" } else { "auto" };
        let flags = [
            "--groups",
            "1,1",
            "--threads",
            "1",
            "--sequences",
            "1",
            "--block-size",
            "16",
            "--prefix-copy",
            policy,
            "--transport",
            transport,
        ];
        let cluster = ClusterSandbox::start(self.model, 2, &flags);
        let warm_up = (0..WARM_UP).map(|time| (usize::MAX, 8 << time, time));
        let counted =
            (0..REPEAT).flat_map(|time| BLOCKS.into_iter().enumerate().map(move |(case, len)| (case, len, time)));
        let all: Vec<_> = warm_up.chain(counted).collect();
        for (case, blocks, time) in &all {
            ask(&cluster, &prompt(salt(*case, *time), blocks * BLOCK)).await?;
        }
        let holder = hold(&cluster).await?;
        let mut sides: Vec<Sides> = BLOCKS.iter().map(|_| Sides::default()).collect();
        for (case, blocks, time) in &all {
            let mut cached = prompt(salt(*case, *time), blocks * BLOCK);
            cached.extend(prompt(7 + *time as u32, SUFFIX));
            let (ms, cached_tokens) = ask(&cluster, &cached).await?;
            let fresh = match and_fresh {
                true => Some(ask(&cluster, &prompt(1000 + salt(*case, *time), cached.len())).await?),
                false => None,
            };
            let Some(side) = sides.get_mut(*case) else { continue };
            side.asked.push(ms);
            side.copied.push(cached_tokens > 0);
            if let Some((ms, cached_tokens)) = fresh {
                ensure!(cached_tokens == 0, "what nobody has was cached");
                side.fresh.push(ms);
            }
        }
        ensure!(
            !holder.is_finished(),
            "the group that has the prompts came free: nothing was measured"
        );
        holder.abort();
        if policy == "always" && sides.iter().any(|side| side.copied.contains(&false)) {
            bail!("some prompts were not copied");
        }
        Ok(sides)
    }
}

/// Takes the only place of the group that has the prompts, until it is aborted.
async fn hold(cluster: &ClusterSandbox) -> Result<JoinHandle<()>> {
    let mut request = request_of(&generation(&prompt(99_999, 16)));
    request.max_tokens = Some(8000);
    let mut stream = cluster.open_stream(request).await?;
    while !matches!(
        stream.message().await?.context("an answer")?.event,
        Some(Event::Chunk(_))
    ) {}
    Ok(tokio::spawn(async move {
        while let Ok(Some(_)) = stream.message().await {}
    }))
}

/// Milliseconds to the first token, and the tokens that were not computed.
async fn ask(cluster: &ClusterSandbox, tokens: &[TokenId]) -> Result<(f64, u32)> {
    let mut request = request_of(&generation(tokens));
    request.max_tokens = Some(1);
    let mut client = cluster.inference().await;
    let begun = Instant::now();
    let mut stream = client.generate(request).await?.into_inner();
    let mut first = Duration::ZERO;
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(Event::Chunk(_)) if first.is_zero() => first = begun.elapsed(),
            Some(Event::Finished(finished)) => {
                let usage = finished.usage.unwrap_or_default();
                return Ok((first.as_secs_f64() * 1e3, usage.cached_tokens));
            }
            _ => {}
        }
    }
    bail!("the answer did not end")
}

fn generation(tokens: &[TokenId]) -> Generation {
    Generation {
        prompt: tokens.to_vec(),
        max_tokens: 1,
        sampling: Sampling::default(),
        prompt_logprobs: None,
    }
}

fn salt(case: usize, time: usize) -> u32 {
    (case.min(BLOCKS.len()) * 16 + time) as u32
}

/// Another one for each salt, from the first token on.
fn prompt(salt: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32)
        .map(|position| TokenId(100 + (salt * 7919 + position * 31) % 40_000))
        .collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
