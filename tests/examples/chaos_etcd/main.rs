//! Coordinators, workers and an etcd of three members, each in a network of its own, while one after the other dies, sleeps,
//! is cut off or forgets: `cargo xtask chaos --etcd`.
//!
//! After each case the answers that were being told are the checked-in ones, to the bit; at no time did two coordinators lead
//! ranks; and no process was started anew but the one that the case killed. A line a case; the first failure ends the run.

mod processes;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use kvasir_client::{Client, Target};
use kvasir_proto::v1::{StatusRequest, StatusResponse, admin_client::AdminClient};
use kvasir_runtime::registry::{Registry, View};
use kvasir_tests::{etcd_cluster::Telling, moving, parity, rank_group::Generation};
use processes::Processes;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// A resuming client has its next token by then.
const NEXT_TOKEN: Duration = Duration::from_secs(5);
const MAJORITY_AWAY: Duration = Duration::from_secs(60);
const STREAMS: usize = 3;
/// Tokens of each stream when something happens, and of all of it.
const TOKENS: usize = 5;
const TOKENS_MAX: usize = 600;
const CASES: [&str; 8] = [
    "leader-killed",
    "etcd-leader-killed",
    "etcd-majority-away",
    "etcd-leader-stopped",
    "compaction",
    "lease-revoked",
    "etcd-restored",
    "etcd-wiped",
];

#[tokio::main]
async fn main() -> Result<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    for name in &named {
        ensure!(
            CASES.contains(&name.as_str()),
            "no case {name}; there are {}",
            CASES.join(", ")
        );
    }
    let mut chaos = Chaos::start().await?;
    for case in CASES {
        if named.is_empty() || named.iter().any(|name| name == case) {
            let begun = Instant::now();
            let told = chaos.run(case).await;
            let told = told.with_context(|| format!("{case} failed\n{}", chaos.processes.logs()))?;
            println!("{case:<20} ok  {told}  ({:.1} s)", begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

struct Chaos {
    processes: Processes,
    registry: Registry,
    admins: Vec<AdminClient<Channel>>,
    /// How often two coordinators led ranks at a time.
    splits: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
    stories: Vec<Story>,
}

/// An answer, and what is known of it: the checked-in digest of its beginning, and how it went on when nothing happened.
#[derive(Clone)]
struct Story {
    generation: Generation,
    checked_in_len: usize,
    checked_in: String,
    whole: String,
}

/// What must be as it was.
struct Before {
    pids: Vec<u32>,
    leader: usize,
    status: StatusResponse,
    looks: u64,
}

impl Chaos {
    async fn start() -> Result<Self> {
        let model = std::env::var_os("KVASIR_MODEL").map_or_else(kvasir_tests::default_model, PathBuf::from);
        let processes = Processes::start(&model)?;
        let admin = |url: &str| Ok(AdminClient::new(Endpoint::from_shared(url.to_owned())?.connect_lazy()));
        let admins: Result<Vec<_>> = processes.coordinators.iter().map(|one| admin(&one.url)).collect();
        let admins = admins?;
        let (splits, looks) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        tokio::spawn(watch_for_splits(
            admins.clone(),
            Arc::clone(&splits),
            Arc::clone(&looks),
        ));
        let mut chaos = Self {
            registry: processes.registry()?,
            processes,
            admins,
            splits,
            looks,
            stories: Vec::new(),
        };
        chaos
            .until("a cluster that serves", async |all| all.whole().await)
            .await?;
        chaos.learn().await?;
        Ok(chaos)
    }

    async fn run(&mut self, case: &str) -> Result<String> {
        self.until("a whole cluster", async |all| all.whole().await).await?;
        let (leader, status) = self.leader().await.context("nobody leads")?;
        let before = Before {
            pids: self.processes.pids(),
            leader,
            status,
            looks: self.looks.load(Ordering::Relaxed),
        };
        let told = match case {
            "leader-killed" => return self.leader_killed(before).await,
            "etcd-leader-killed" => self.etcd_leader_killed(&before).await?,
            "etcd-majority-away" => self.etcd_majority_away(&before).await?,
            "etcd-leader-stopped" => self.etcd_leader_stopped(&before).await?,
            "compaction" => self.compaction(&before).await?,
            "lease-revoked" => self.lease_revoked(&before).await?,
            "etcd-restored" => self.etcd_forgets(&before, Some("earlier")).await?,
            "etcd-wiped" => self.etcd_forgets(&before, None).await?,
            _ => bail!("no such case"),
        };
        self.nothing_changed(&before).await?;
        Ok(format!("{told}, {}", self.looked(&before)))
    }

    async fn leader_killed(&mut self, before: Before) -> Result<String> {
        let mut tellings = self.begin().await?;
        let killed = Instant::now();
        self.processes.coordinators[before.leader].process.kill();
        let next = tellings.iter_mut().map(|(telling, _)| async move {
            telling.until_resumed().await;
            killed.elapsed()
        });
        let next = join_all(next).await.into_iter().max().unwrap_or_default();
        finish(tellings).await?;
        ensure!(next < NEXT_TOKEN, "the next token came after {next:?}");
        let (leader, status) = self.leader().await.context("nobody leads")?;
        ensure!(leader != before.leader, "the dead one leads");
        ensure!(status.leader_term > before.status.leader_term, "the term did not grow");
        let pid = self.processes.coordinators[before.leader].process.pid();
        self.processes.replace_coordinator(before.leader)?;
        let new = self.processes.coordinators[before.leader].process.pid();
        let pids: Vec<u32> = before
            .pids
            .iter()
            .map(|known| if *known == pid { new } else { *known })
            .collect();
        ensure!(self.processes.pids() == pids, "another process was started anew");
        self.processes.ensure_running()?;
        self.no_split(before.looks)?;
        Ok(format!(
            "next token after {} ms at most of {STREAMS} streams, term {} -> {}, {}",
            next.as_millis(),
            before.status.leader_term,
            status.leader_term,
            self.looked(&before)
        ))
    }

    async fn etcd_leader_killed(&mut self, before: &Before) -> Result<String> {
        let tellings = self.begin().await?;
        let member = self.processes.etcd_leader().context("no member leads")?;
        self.processes.members[member].process.kill();
        let died = Instant::now();
        self.until("another member that leads", async |all| {
            all.processes.etcd_leader().is_some_and(|leader| leader != member)
        })
        .await?;
        let elected = died.elapsed();
        self.until("connections", async |all| all.connected().await).await?;
        finish_undisturbed(tellings).await?;
        self.processes.members[member].restart()?;
        self.stands(before).await?;
        Ok(format!("another member led after {} ms", elected.as_millis()))
    }

    async fn etcd_majority_away(&mut self, before: &Before) -> Result<String> {
        let begun = Instant::now();
        self.processes.members[..2].iter().for_each(|member| member.node.cut());
        let mut answers = 0;
        let mut was_away = false;
        while begun.elapsed() < MAJORITY_AWAY {
            answers += finish_undisturbed(self.begin().await?).await?;
            let (_, status) = self.leader().await.context("nobody leads")?;
            was_away |= status.registry.contains("away");
        }
        ensure!(was_away, "the leader did not notice");
        self.processes.members[..2].iter().for_each(|member| member.node.mend());
        self.stands(before).await?;
        Ok(format!(
            "{answers} answers in {} s without etcd",
            MAJORITY_AWAY.as_secs()
        ))
    }

    async fn etcd_leader_stopped(&mut self, before: &Before) -> Result<String> {
        let tellings = self.begin().await?;
        let member = self.processes.etcd_leader().context("no member leads")?;
        self.processes.members[member].process.stop();
        let stopped = Instant::now();
        self.until("another member that leads", async |all| {
            all.processes.etcd_leader().is_some_and(|leader| leader != member)
        })
        .await?;
        self.stands(before).await?;
        let went_on = stopped.elapsed();
        self.processes.members[member].process.go_on();
        finish_undisturbed(tellings).await?;
        Ok(format!("all were registered again after {} ms", went_on.as_millis()))
    }

    async fn compaction(&mut self, before: &Before) -> Result<String> {
        let tellings = self.begin().await?;
        // Watches fall behind: their member sleeps while the others write and forget.
        let member = self.processes.etcd_leader().context("no member leads")?;
        let behind = (member + 1) % self.processes.members.len();
        self.processes.members[behind].process.stop();
        for _ in 0..50 {
            let version = self.registry.get("chaos").await?.map(|entry| entry.version);
            self.registry.put_if("chaos", "1", version).await?;
        }
        let revision = self.registry.list("").await?.revision;
        self.registry.compact(revision).await?;
        self.processes.members[behind].process.go_on();
        let written = self.registry.list("chaos").await?.revision;
        finish_undisturbed(tellings).await?;
        self.stands(before).await?;
        Ok(format!("compacted at revision {} of {}", revision.0, written.0))
    }

    async fn lease_revoked(&mut self, before: &Before) -> Result<String> {
        let tellings = self.begin().await?;
        let entry = self.registry.get("workers/w0").await?.context("w0 is registered")?;
        let lease = entry.lease.context("under a lease")?;
        self.registry.revoke(lease).await?;
        let revoked = Instant::now();
        self.until("w0 under another lease", async |all| {
            let entry = all.registry.get("workers/w0").await.ok().flatten();
            entry.is_some_and(|entry| entry.lease.is_some_and(|new| new != lease))
        })
        .await?;
        let back = revoked.elapsed();
        finish_undisturbed(tellings).await?;
        self.stands(before).await?;
        Ok(format!("registered again after {} ms", back.as_millis()))
    }

    /// Everything, or what happened since a copy was made.
    async fn etcd_forgets(&mut self, before: &Before, copy: Option<&str>) -> Result<String> {
        if let Some(copy) = copy {
            self.kill_etcd();
            self.processes.copy_data(copy)?;
            self.restart_etcd()?;
            self.stands(before).await?;
            for _ in 0..20 {
                let version = self.registry.get("chaos").await?.map(|entry| entry.version);
                self.registry.put_if("chaos", "2", version).await?;
            }
        }
        let revision = self.registry.list("").await?.revision;
        let tellings = self.begin().await?;
        self.kill_etcd();
        self.processes.restore_data(copy)?;
        self.restart_etcd()?;
        let up = Instant::now();
        self.stands(before).await?;
        let back = up.elapsed();
        finish_undisturbed(tellings).await?;
        let now = self.registry.list("").await?.revision;
        ensure!(now < revision, "it has forgotten nothing");
        Ok(format!(
            "revision {} -> {}, all as before after {} ms",
            revision.0,
            now.0,
            back.as_millis()
        ))
    }

    fn kill_etcd(&mut self) {
        self.processes
            .members
            .iter_mut()
            .for_each(|member| member.process.kill());
    }

    fn restart_etcd(&mut self) -> Result<()> {
        for member in &mut self.processes.members {
            member.restart()?;
        }
        self.processes.wait_for_etcd()
    }

    /// The longest checked-in answers, and how they go on.
    async fn learn(&mut self) -> Result<()> {
        let mut all: Vec<_> = moving::generations().into_iter().zip(moving::digests()).collect();
        all.sort_by_key(|(generation, _)| std::cmp::Reverse(generation.max_tokens));
        let client = self.client()?;
        let learnt = all.into_iter().take(STREAMS).map(|(generation, checked_in)| {
            let client = client.clone();
            async move {
                let checked_in_len = generation.max_tokens;
                let generation = Generation {
                    max_tokens: TOKENS_MAX,
                    ..generation
                };
                let whole = Telling::begin(&client, &generation).await.finish().await;
                Story {
                    generation,
                    checked_in_len,
                    checked_in,
                    whole,
                }
            }
        });
        self.stories = join_all(learnt).await;
        finish_undisturbed(self.begin().await?).await.map(drop)
    }

    fn client(&self) -> Result<Client> {
        let targets = self.processes.coordinators.iter().map(|one| Target::plain(&one.url));
        Ok(Client::new(targets.collect::<Result<Vec<_>, _>>()?)?)
    }

    /// All stories, being told.
    async fn begin(&self) -> Result<Vec<(Telling, Story)>> {
        let client = self.client()?;
        let begun = self.stories.iter().map(async |story| {
            let mut telling = Telling::begin(&client, &story.generation).await;
            telling.until(TOKENS).await;
            (telling, story.clone())
        });
        Ok(join_all(begun).await)
    }

    /// The same leads by the same term, the registry says so, and everybody is registered.
    async fn stands(&self, before: &Before) -> Result<()> {
        let name = &self.processes.coordinators[before.leader].name;
        self.until("everybody as before", async |all| {
            let Ok(listing) = all.registry.list("").await else {
                return false;
            };
            let count = |under: &str| listing.entries.keys().filter(|name| name.starts_with(under)).count();
            let counts = (count("workers/"), count("coordinators/"));
            let view = View {
                entries: listing.entries,
                ..View::default()
            };
            let leads = view
                .leader()
                .is_some_and(|leader| leader.name == *name && leader.term == before.status.leader_term);
            leads && counts == (all.processes.workers.len(), all.processes.coordinators.len()) && all.connected().await
        })
        .await
    }

    async fn nothing_changed(&mut self, before: &Before) -> Result<()> {
        let (leader, status) = self.leader().await.context("nobody leads")?;
        ensure!(leader == before.leader, "another coordinator leads");
        ensure!(
            status.leader_term == before.status.leader_term,
            "the term is another one"
        );
        let epochs = |status: &StatusResponse| {
            status
                .groups
                .iter()
                .map(|group| (group.term, group.epoch))
                .collect::<Vec<_>>()
        };
        ensure!(epochs(&status) == epochs(&before.status), "an epoch has ended");
        for counter in ["ranks_lost", "workers_refused", "conservation_violations"] {
            ensure!(
                status.counters.get(counter) == before.status.counters.get(counter),
                "{counter} has grown"
            );
        }
        ensure!(self.processes.pids() == before.pids, "a process was started anew");
        self.processes.ensure_running()?;
        self.no_split(before.looks)
    }

    fn no_split(&self, looks: u64) -> Result<()> {
        ensure!(
            self.splits.load(Ordering::Relaxed) == 0,
            "two coordinators led ranks at a time"
        );
        ensure!(self.looks.load(Ordering::Relaxed) > looks, "nobody looked");
        Ok(())
    }

    fn looked(&self, before: &Before) -> String {
        let looks = self.looks.load(Ordering::Relaxed) - before.looks;
        format!(
            "answers equal, one leader in {looks} looks, {} pids as before",
            before.pids.len()
        )
    }

    async fn leader(&self) -> Option<(usize, StatusResponse)> {
        for (index, admin) in self.admins.iter().enumerate() {
            if let Some(status) = status(admin).await.filter(|status| status.leader) {
                return Some((index, status));
            }
        }
        None
    }

    /// One leads, all groups serve with all workers, and the others stand by.
    async fn whole(&self) -> bool {
        let statuses = join_all(self.admins.iter().map(status)).await;
        let leads = statuses.iter().flatten().filter(|status| status.leader).count() == 1;
        let serve = |status: &StatusResponse| {
            let ranks: usize = status.groups.iter().map(|group| group.ranks.len()).sum();
            let all = status.groups.iter().all(|group| group.state == "serving");
            all && ranks == self.processes.workers.len() && !status.leader_name.is_empty()
        };
        leads && statuses.iter().all(|status| status.as_ref().is_some_and(serve)) && self.connected().await
    }

    /// All coordinators reach etcd.
    async fn connected(&self) -> bool {
        let statuses = join_all(self.admins.iter().map(status)).await;
        let is = |status: &Option<StatusResponse>| status.as_ref().is_some_and(|it| it.registry == "etcd, connected");
        statuses.iter().all(is)
    }

    /// Panics in the caller's name if that takes too long.
    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self).await {
            ensure!(Instant::now() < deadline, "waited in vain for {what}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// `None` while it does not answer.
async fn status(admin: &AdminClient<Channel>) -> Option<StatusResponse> {
    let mut admin = admin.clone();
    let asked = tokio::time::timeout(Duration::from_secs(2), admin.status(StatusRequest {}));
    Some(asked.await.ok()?.ok()?.into_inner())
}

/// Reads to the end. Errors if a bit is another one. Returns how often each was resumed.
async fn finish(tellings: Vec<(Telling, Story)>) -> Result<Vec<u32>> {
    let ended = tellings.into_iter().map(|(mut telling, story)| async move {
        let whole = telling.finish().await;
        let mut beginning = telling.answer.clone();
        beginning.tokens.truncate(story.checked_in_len);
        ensure!(
            parity::digest(&beginning.to_parity()) == story.checked_in,
            "an answer differs"
        );
        ensure!(whole == story.whole, "an answer goes on differently");
        Ok(telling.resumes)
    });
    join_all(ended).await.into_iter().collect()
}

/// Also not to be resumed. Returns how many there were.
async fn finish_undisturbed(tellings: Vec<(Telling, Story)>) -> Result<usize> {
    let resumes = finish(tellings).await?;
    ensure!(resumes.iter().all(|resumes| *resumes == 0), "a stream broke");
    Ok(resumes.len())
}

/// Looks at one, at the others, and at the first again: if it led ranks both times, and another one between, two did at once.
async fn watch_for_splits(admins: Vec<AdminClient<Channel>>, splits: Arc<AtomicU64>, looks: Arc<AtomicU64>) {
    async fn leads(admin: &AdminClient<Channel>) -> bool {
        let status = status(admin).await;
        status.is_some_and(|status| status.leader && status.groups.iter().any(|group| !group.ranks.is_empty()))
    }
    loop {
        for (index, admin) in admins.iter().enumerate() {
            let first = leads(admin).await;
            let mut others = false;
            for other in admins.iter().enumerate().filter(|(other, _)| *other != index) {
                others |= leads(other.1).await;
            }
            if first && others && leads(admin).await {
                splits.fetch_add(1, Ordering::Relaxed);
            }
            looks.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(POLL).await;
    }
}
