//! Metrics that are read off a snapshot of the cluster: at a scrape, or every now and then for a collector.

use std::sync::{Arc, Mutex, PoisonError};

use kvasir_runtime::telemetry;
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};

use super::counters;
use crate::{
    ClusterStatus,
    grpc::ModelFacts,
    status::{GroupPhase, GroupStatus, RankStatus},
};

/// What the instruments read.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub status: ClusterStatus,
    /// Of the door, by the reason's name.
    pub refusals: Vec<(&'static str, u64)>,
    pub uptime_s: f64,
    pub leads: bool,
    pub registry_connected: bool,
}

/// The instruments live as long as the process.
#[derive(Clone, Debug)]
pub struct Gauges(Arc<Mutex<Arc<Snapshot>>>);

type Shared = Arc<Mutex<Arc<Snapshot>>>;

pub(super) type Labels = Vec<KeyValue>;

impl Gauges {
    pub fn new(model: &ModelFacts) -> Self {
        let shared = Shared::default();
        let show = Show {
            meter: telemetry::meter(),
            shared: Arc::clone(&shared),
        };
        show.cluster(model);
        show.groups();
        show.ranks();
        counters::show(&show);
        Self(shared)
    }

    pub fn set(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

pub(super) struct Show {
    meter: Meter,
    shared: Shared,
}

fn read(shared: &Shared) -> Arc<Snapshot> {
    Arc::clone(&shared.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(super) fn label(name: &'static str, value: impl ToString) -> KeyValue {
    KeyValue::new(name, value.to_string())
}

impl Show {
    /// `read` lists values with their labels.
    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        values: impl Fn(&Snapshot) -> Vec<(f64, Labels)> + Send + Sync + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        let callback = move |observer: &dyn AsyncInstrument<f64>| {
            for (value, labels) in values(&read(&shared)) {
                observer.observe(value, &labels);
            }
        };
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit);
        gauge.with_description(description).with_callback(callback).build();
    }

    pub fn counter(
        &self,
        name: impl Into<std::borrow::Cow<'static, str>>,
        unit: &'static str,
        description: impl Into<std::borrow::Cow<'static, str>>,
        values: impl Fn(&Snapshot) -> Vec<(u64, Labels)> + Send + Sync + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        let callback = move |observer: &dyn AsyncInstrument<u64>| {
            for (value, labels) in values(&read(&shared)) {
                observer.observe(value, &labels);
            }
        };
        let counter = self.meter.u64_observable_counter(name).with_unit(unit);
        counter.with_description(description).with_callback(callback).build();
    }

    fn cluster(&self, model: &ModelFacts) {
        let one = |value: f64| vec![(value, Labels::new())];
        let sum = |of: fn(&GroupStatus) -> u32| {
            move |now: &Snapshot| one(f64::from(now.status.groups.iter().map(of).sum::<u32>()))
        };
        let info = vec![
            label("version", env!("CARGO_PKG_VERSION")),
            label("numerics_id", model.numerics_id),
            label("model", model.served_name()),
        ];
        self.gauge("kvasir.build_info", "", "What this is; always 1", move |_| {
            vec![(1.0, info.clone())]
        });
        self.gauge(
            "kvasir.requests.waiting",
            "",
            "Sequences that wait for their turn",
            sum(|group| group.waiting),
        );
        self.gauge(
            "kvasir.requests.running",
            "",
            "Sequences that are computed",
            sum(|group| group.running),
        );
        self.gauge(
            "kvasir.kv_cache.usage",
            "1",
            "Blocks that sequences hold, of all blocks; what is merely cached counts as free",
            move |now| one(usage(now)),
        );
        self.gauge(
            "kvasir.cache_config_info",
            "",
            "Blocks of all groups; always 1",
            |now| {
                let block_size = now.status.groups.first().map_or(0, |group| group.block_size);
                let num_blocks: u32 = now.status.groups.iter().map(|group| group.blocks.total).sum();
                vec![(
                    1.0,
                    vec![label("block_size", block_size), label("num_blocks", num_blocks)],
                )]
            },
        );
        self.gauge("kvasir.ready", "", "1 while a group serves", move |now| {
            one(f64::from(u8::from(now.status.is_ready())))
        });
        let flag = |of: fn(&Snapshot) -> bool| move |now: &Snapshot| one(f64::from(u8::from(of(now))));
        self.gauge(
            "kvasir.leader",
            "",
            "1 while this coordinator leads",
            flag(|now| now.leads),
        );
        self.gauge(
            "kvasir.registry_connected",
            "",
            "1 while the registry can be asked; always, without etcd",
            flag(|now| now.registry_connected),
        );
        self.gauge("kvasir.uptime", "s", "Since the coordinator's start", move |now| {
            one(now.uptime_s)
        });
        self.gauge(
            "kvasir.workers",
            "",
            "Workers that have joined, by what they are",
            |now| {
                let spares = now.status.workers.iter().filter(|worker| worker.rank.is_none()).count();
                let ranks = now.status.workers.len() - spares;
                vec![
                    (ranks as f64, vec![label("state", "rank")]),
                    (spares as f64, vec![label("state", "spare")]),
                ]
            },
        );
        self.gauge(
            "kvasir.transfers.active",
            "",
            "Transfers of KV cells under way, by reason",
            |now| {
                let reasons = ["order", "drain", "handoff", "room", "load", "prefix"];
                let count = |reason: &str| {
                    now.status
                        .transfers
                        .iter()
                        .filter(|transfer| transfer.reason == reason)
                        .count()
                };
                let counted = reasons
                    .iter()
                    .map(|reason| (count(reason) as f64, vec![label("reason", reason)]));
                counted.collect()
            },
        );
        self.gauge(
            "kvasir.reshards.active",
            "",
            "Groups on their way to other ranks",
            move |now| one(now.status.reshards.len() as f64),
        );
    }

    fn groups(&self) {
        let each = |of: fn(&GroupStatus) -> f64| {
            move |now: &Snapshot| {
                let groups = now.status.groups.iter();
                groups
                    .map(|group| (of(group), vec![label("group", group.id)]))
                    .collect()
            }
        };
        self.gauge(
            "kvasir.group.ready",
            "",
            "1 while the group serves",
            each(|group| f64::from(u8::from(group.phase == GroupPhase::Running))),
        );
        self.gauge(
            "kvasir.group.ranks",
            "",
            "Ranks that the group has",
            each(|group| group.ranks.len() as f64),
        );
        self.gauge(
            "kvasir.group.ranks_wanted",
            "",
            "Ranks that it is to have",
            each(|group| f64::from(group.workers_wanted)),
        );
        self.gauge(
            "kvasir.group.epoch",
            "",
            "Number of its epoch",
            each(|group| group.epoch.number as f64),
        );
        self.gauge(
            "kvasir.group.term",
            "",
            "Term of its epoch",
            each(|group| group.epoch.term as f64),
        );
        self.gauge(
            "kvasir.group.step_usual",
            "s",
            "How long its steps take, as it seems",
            each(|group| group.usual_step_ms / 1e3),
        );
        self.gauge(
            "kvasir.group.imbalance",
            "1",
            "Weights of its largest rank, by the mean of its ranks; 1 is even",
            each(imbalance),
        );
        self.gauge(
            "kvasir.blocks.unaccounted",
            "",
            "Blocks that are nowhere; anything but 0 is a fault",
            each(|group| group.blocks.unaccounted() as f64),
        );
        self.gauge("kvasir.group.sequences", "", "Its sequences, by state", |now| {
            let of = |group: &GroupStatus| {
                [("running", group.running), ("waiting", group.waiting)].map(|(state, count)| {
                    let labels = vec![label("group", group.id), label("state", state)];
                    (f64::from(count), labels)
                })
            };
            now.status.groups.iter().flat_map(of).collect()
        });
        self.gauge("kvasir.blocks", "", "KV blocks, by state", |now| {
            let of = |group: &GroupStatus| {
                let blocks = group.blocks;
                let states = [
                    ("free", blocks.free),
                    ("cached", blocks.cached),
                    ("held", blocks.held),
                    ("in_flight", blocks.in_flight),
                ];
                states.map(|(state, count)| (f64::from(count), vec![label("group", group.id), label("state", state)]))
            };
            now.status.groups.iter().flat_map(of).collect()
        });
        self.gauge(
            "kvasir.sequences.waiting",
            "",
            "Sequences that wait, by reason",
            waiting,
        );
    }

    fn ranks(&self) {
        let each = |of: fn(&RankStatus) -> f64| {
            move |now: &Snapshot| {
                let ranks = now.status.groups.iter().flat_map(|group| {
                    let ranks = group.ranks.iter();
                    ranks.map(|rank| {
                        let labels = vec![
                            label("group", group.id),
                            label("rank", rank.rank),
                            label("worker", &rank.worker),
                        ];
                        (of(rank), labels)
                    })
                });
                ranks.collect()
            }
        };
        self.gauge(
            "kvasir.rank.weight",
            "By",
            "Weights of the units of a rank",
            each(|rank| rank.weight_bytes as f64),
        );
        self.gauge(
            "kvasir.rank.kv",
            "By",
            "KV cells that a rank holds for the pool",
            each(|rank| rank.cell_bytes as f64),
        );
        self.gauge(
            "kvasir.rank.kv_heads",
            "",
            "KV heads of a rank",
            each(|rank| rank.share.attention.len() as f64),
        );
    }
}

fn usage(now: &Snapshot) -> f64 {
    let groups = now.status.groups.iter().map(|group| group.blocks);
    let (taken, total) = groups.fold((0, 0), |(taken, total), blocks| {
        (taken + blocks.held + blocks.in_flight, total + blocks.total)
    });
    if total == 0 {
        0.0
    } else {
        f64::from(taken) / f64::from(total)
    }
}

fn imbalance(group: &GroupStatus) -> f64 {
    let bytes: Vec<f64> = group.ranks.iter().map(|rank| rank.weight_bytes as f64).collect();
    let sum: f64 = bytes.iter().sum();
    if sum == 0.0 {
        return 1.0;
    }
    bytes.iter().copied().fold(0.0, f64::max) * bytes.len() as f64 / sum
}

/// Of each group, all reasons, so that a series does not come and go.
fn waiting(now: &Snapshot) -> Vec<(f64, Labels)> {
    let mut all = Vec::new();
    for group in &now.status.groups {
        let sequences = now.status.sequences.iter();
        let waiting = sequences.filter(|sequence| sequence.group == group.id && !sequence.running);
        let (again, first): (Vec<_>, Vec<_>) = waiting.partition(|sequence| sequence.preemptions > 0);
        let (new, no_group) = match group.phase {
            GroupPhase::Running => (first.len(), 0),
            _ => (0, first.len()),
        };
        for (reason, count) in [("new", new), ("preempted", again.len()), ("no_group", no_group)] {
            all.push((count as f64, vec![label("group", group.id), label("reason", reason)]));
        }
    }
    all
}
