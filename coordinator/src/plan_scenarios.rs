//! What the scheduler plans, as text that a reviewer can read: arrivals in, plans out.
//!
//! A scenario is a list of lines. `arrive NAME PROMPT+ANSWER [tenant=T] [priority=P] [like=OTHER:N] [scored=N]` is a request of
//! so many tokens, `like` with the first N of another's prompt, `scored` one that wants its prompt's logprobs and has N. `plan` composes a step, `done` brings back the oldest one,
//! `step` is both, `run N` is N steps. `cancel NAME` is what it says.
//!
//! A plan names `sequence[start..end)`, `*` where it samples, `+` the blocks it allocates, `=` those it shares,
//! `?` the positions it scores.

use std::{collections::VecDeque, fmt::Write as _};

use kvasir_kv::{
    BlockId, CellLayout, Epoch, FinishReason, KvDtype, NumericsId, PromptLogprobs, Rank, Request, RequestId,
    SampledToken, Sampling, SequenceId, SequenceWork, StepOutput, StepPlan, StepTimes, TenantId, TokenId,
};

use crate::{
    ClusterConfig, Effect, Now, cluster_bench::scored_by, detector::Steady, scheduler::Scheduler, sequence::Sequence,
};

mod scored;

const BLOCK: u32 = 16;

struct Stage {
    scheduler: Scheduler,
    names: Vec<String>,
    prompts: Vec<Vec<TokenId>>,
    out: VecDeque<StepPlan>,
    preemptions: u64,
    log: String,
}

impl Stage {
    fn new(num_blocks: u32, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        let cell = CellLayout::new(1, 16, BLOCK, KvDtype::F16).unwrap();
        let mut config = ClusterConfig::new(1, cell);
        config.look_ahead = 0;
        change(&mut config);
        let mut scheduler = Scheduler::new(&config);
        scheduler.key_prefixes(&NumericsId([1; 16]));
        scheduler.start_epoch(Epoch { term: 1, number: 1 }, num_blocks, 1);
        Self {
            scheduler,
            names: Vec::new(),
            prompts: Vec::new(),
            out: VecDeque::new(),
            preemptions: 0,
            log: String::new(),
        }
    }

    fn play(mut self, scenario: &str) -> String {
        for line in scenario.lines().map(str::trim).filter(|line| !line.is_empty()) {
            writeln!(self.log, "{line}").unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["arrive", name, lengths, ..] => self.arrive(name, lengths, &words[3..]),
                ["plan"] => self.plan(),
                ["done"] => self.done(),
                ["step"] => self.step(),
                ["run", count] => (0..count.parse().unwrap()).for_each(|_| self.step()),
                ["cancel", name] => self.cancel(name),
                _ => panic!("`{line}` is not a line of a scenario"),
            }
            self.scheduler.check_invariants();
        }
        self.log
    }

    fn arrive(&mut self, name: &str, lengths: &str, options: &[&str]) {
        let (prompt_len, max_tokens) = lengths.split_once('+').unwrap();
        let prompt_len: u32 = prompt_len.parse().unwrap();
        let salt = 1000 * (self.names.len() as u32 + 1);
        let mut prompt: Vec<TokenId> = (0..prompt_len).map(|position| TokenId(salt + position)).collect();
        let (mut tenant, mut priority, mut prompt_logprobs) = (TenantId::default(), 0, None);
        for option in options {
            match option.split_once('=').unwrap() {
                ("tenant", value) => tenant = TenantId(value.to_owned()),
                ("priority", value) => priority = value.parse().unwrap(),
                ("like", value) => {
                    let (other, len) = value.split_once(':').unwrap();
                    let (other, len) = (self.id_of(other).0 as usize, len.parse().unwrap());
                    prompt[..len].copy_from_slice(&self.prompts[other][..len]);
                }
                ("scored", value) => {
                    let received = value.parse().unwrap();
                    prompt_logprobs = Some(PromptLogprobs { top: 0, received });
                }
                _ => panic!("`{option}` is not an option of a request"),
            }
        }
        let id = SequenceId(self.names.len() as u64);
        self.names.push(name.to_owned());
        self.prompts.push(prompt.clone());
        let request = Request {
            id: RequestId(name.to_owned()),
            prompt,
            generated: Vec::new(),
            sampling: Sampling::default(),
            max_tokens: max_tokens.parse().unwrap(),
            prompt_logprobs,
            stop_tokens: Vec::new(),
            tenant,
            priority,
        };
        self.scheduler
            .accept(Sequence::new(id, request, id.0, None, Now::default()));
    }

    fn id_of(&self, name: &str) -> SequenceId {
        SequenceId(self.names.iter().position(|other| other == name).unwrap() as u64)
    }

    fn name_of(&self, id: SequenceId) -> &str {
        &self.names[id.0 as usize]
    }

    fn cancel(&mut self, name: &str) {
        let mut effects = Vec::new();
        let id = self.id_of(name);
        self.scheduler.cancel(id, FinishReason::Cancelled, &mut effects);
    }

    fn step(&mut self) {
        self.plan();
        self.done();
    }

    fn plan(&mut self) {
        let Some(plan) = self.scheduler.next_plan(Steady::default()) else {
            let state = self.state();
            writeln!(self.log, "    no plan{state}").unwrap();
            return;
        };
        let mut parts: Vec<String> = plan.work.iter().map(|work| self.work(&plan, work)).collect();
        if !plan.retired.is_empty() {
            let names: Vec<&str> = plan.retired.iter().map(|id| self.name_of(*id)).collect();
            parts.push(format!("forget {}", names.join(" ")));
        }
        let state = self.state();
        writeln!(self.log, "    {}: {}{state}", plan.step, parts.join("  ")).unwrap();
        self.out.push_back(plan);
    }

    fn work(&self, plan: &StepPlan, work: &SequenceWork) -> String {
        let is_new = plan.admitted.iter().any(|admitted| admitted.sequence == work.sequence);
        let shared = if is_new { (work.start / BLOCK) as usize } else { 0 };
        let (shared, own) = work.new_blocks.split_at(shared);
        let list = |sign: &str, blocks: &[kvasir_kv::TaggedBlock]| match blocks {
            [] => String::new(),
            blocks => {
                let ids: Vec<String> = blocks.iter().map(|block| BlockId::to_string(&block.id)).collect();
                format!(" {sign}{}", ids.join(","))
            }
        };
        let scored = match &work.scored {
            scored if scored.is_empty() => String::new(),
            scored => format!("?{}..{}", scored.start, scored.end),
        };
        format!(
            "{}[{}..{}){}{scored}{}{}",
            self.name_of(work.sequence),
            work.start,
            work.start + work.num_tokens,
            if work.samples { "*" } else { "" },
            list("=", shared),
            list("+", own),
        )
    }

    /// Who waits, who gave way since the last plan, and what is left of the pool.
    fn state(&mut self) -> String {
        let waiting: Vec<&str> = self
            .scheduler
            .waiting()
            .map(|sequence| self.name_of(sequence.id))
            .collect();
        let preempted = self.scheduler.counters.preemptions - self.preemptions;
        let counts = self.scheduler.block_counts();
        let mut text = String::new();
        if !waiting.is_empty() {
            write!(text, "  | waiting {}", waiting.join(" ")).unwrap();
        }
        if preempted > 0 {
            write!(text, "  | {preempted} preempted").unwrap();
        }
        write!(text, "  | {} free", counts.free).unwrap();
        for (count, what) in [(counts.cached, "cached"), (counts.in_flight, "in flight")] {
            if count > 0 {
                write!(text, ", {count} {what}").unwrap();
            }
        }
        self.preemptions = self.scheduler.counters.preemptions;
        text
    }

    fn done(&mut self) {
        let Some(plan) = self.out.pop_front() else { return };
        let samples = plan.work.iter().filter(|work| work.samples);
        let output = StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            sampled: samples
                .map(|work| SampledToken {
                    sequence: work.sequence,
                    token: TokenId(7),
                    logprob: 0.0,
                    top_logprobs: Vec::new(),
                })
                .collect(),
            scored: scored_by(&plan),
            poisoned: Vec::new(),
            times: StepTimes::default(),
        };
        let mut effects = Vec::new();
        let done = self
            .scheduler
            .on_step_done(Rank(0), plan.step, Some(output), Steady::default(), &mut effects);
        assert!(done.is_ok(), "{done:?}");
        for effect in effects {
            if let Effect::Finished { sequence, usage, .. } = effect {
                let cached = match usage.cached_tokens {
                    0 => String::new(),
                    cached => format!(", {cached} of its prompt cached"),
                };
                let name = self.name_of(sequence).to_owned();
                writeln!(self.log, "    {name} is done{cached}").unwrap();
            }
        }
    }
}

#[test]
fn a_long_prompt_comes_in_chunks_and_others_go_on_meanwhile() {
    let stage = Stage::new(20, |config| {
        config.step_tokens_max = 64;
        config.chunk_tokens_max = 48;
        config.mixed_prefill_tokens_max = 24;
    });
    insta::assert_snapshot!(stage.play(
        "
        arrive short 10+6
        step
        arrive long 100+2
        run 6
        "
    ), @r"
    arrive short 10+6
    step
        0: short[0..10)* +0  | 19 free
    arrive long 100+2
    run 6
        1: short[10..11)*  long[0..24) +1,2  | 17 free
        2: short[11..12)*  long[24..48) +3  | 16 free
        3: short[12..13)*  long[48..72) +4,5  | 14 free
        4: short[13..14)*  long[72..96) +6  | 13 free
        5: short[14..15)*  long[96..100)* +7  | 12 free
        short is done
        6: long[100..101)*  forget short  | 13 free
        long is done
    ");
}

#[test]
fn a_step_is_sent_ahead_only_of_a_short_one() {
    let stage = Stage::new(20, |config| {
        config.look_ahead = 1;
        config.look_ahead_tokens_max = 8;
    });
    insta::assert_snapshot!(stage.play(
        "
        arrive a 30+5
        plan
        arrive b 20+5
        plan
        done
        plan
        done
        plan
        plan
        plan
        done
        "
    ), @r"
    arrive a 30+5
    plan
        0: a[0..30)* +0,1  | 18 free
    arrive b 20+5
    plan
        no plan  | waiting b  | 18 free
    done
    plan
        1: a[30..31)*  b[0..20)* +2,3  | 16 free
    done
    plan
        2: a[31..32)*  b[20..21)*  | 16 free
    plan
        3: a[32..33)* +4  b[21..22)*  | 15 free
    plan
        no plan  | 15 free
    done
    ");
}

#[test]
fn a_prompt_that_was_computed_is_not_computed_again() {
    let stage = Stage::new(8, |_| {});
    insta::assert_snapshot!(stage.play(
        "
        arrive a 40+2
        run 3
        arrive b 40+2 like=a:40
        arrive other-tenant 40+2 like=a:40 tenant=x
        run 3
        "
    ), @r"
    arrive a 40+2
    run 3
        0: a[0..40)* +0,1,2  | 5 free
        1: a[40..41)*  | 5 free
        a is done
        no plan  | 6 free, 2 cached
    arrive b 40+2 like=a:40
    arrive other-tenant 40+2 like=a:40 tenant=x
    run 3
        2: b[32..40)* =0,1 +3  other-tenant[0..40)* +4,5,6  forget a  | 2 free
        3: b[40..41)*  other-tenant[40..41)*  | 2 free
        b is done, 32 of its prompt cached
        other-tenant is done
        no plan  | 4 free, 4 cached
    ");
}

#[test]
fn when_blocks_run_out_the_newest_gives_way_and_comes_back() {
    let stage = Stage::new(4, |_| {});
    insta::assert_snapshot!(stage.play(
        "
        arrive a 14+20
        arrive b 14+20
        run 21
        "
    ), @r"
    arrive a 14+20
    arrive b 14+20
    run 21
        0: a[0..14)* +0  b[0..14)* +1  | 2 free
        1: a[14..15)*  b[14..15)*  | 2 free
        2: a[15..16)*  b[15..16)*  | 2 free
        3: a[16..17)* +2  b[16..17)* +3  | 0 free
        4: a[17..18)*  b[17..18)*  | 0 free
        5: a[18..19)*  b[18..19)*  | 0 free
        6: a[19..20)*  b[19..20)*  | 0 free
        7: a[20..21)*  b[20..21)*  | 0 free
        8: a[21..22)*  b[21..22)*  | 0 free
        9: a[22..23)*  b[22..23)*  | 0 free
        10: a[23..24)*  b[23..24)*  | 0 free
        11: a[24..25)*  b[24..25)*  | 0 free
        12: a[25..26)*  b[25..26)*  | 0 free
        13: a[26..27)*  b[26..27)*  | 0 free
        14: a[27..28)*  b[27..28)*  | 0 free
        15: a[28..29)*  b[28..29)*  | 0 free
        16: a[29..30)*  b[29..30)*  | 0 free
        17: a[30..31)*  b[30..31)*  | 0 free
        18: a[31..32)*  b[31..32)*  | 0 free
        19: a[32..33)* +3  forget b  | waiting b  | 1 preempted  | 0 free, 1 cached
        a is done
        20: b[16..33)* =1 +3,2  forget a  | 0 free, 1 cached
        b is done
    ");
}

#[test]
fn what_is_computed_again_is_not_charged_to_its_tenant() {
    let mut stage = Stage::new(4, |config| config.prefix_cache = false);
    stage.arrive("a", "14+20", &[]);
    stage.arrive("b", "14+20", &["tenant=x"]);
    (0..22).for_each(|_| stage.step());
    assert_eq!(stage.scheduler.counters.preemptions, 1);
    assert_eq!(stage.scheduler.counters.tokens_recomputed, 32);
    stage.arrive("c", "14+20", &["tenant=x"]);
    // 33 of b's positions, the last token is never computed; where nobody is left, the next one starts from there.
    assert_eq!(stage.scheduler.share.served(&TenantId("x".to_owned())), 33);
}

#[test]
fn the_oldest_cached_leaf_is_evicted_first() {
    let stage = Stage::new(4, |_| {});
    insta::assert_snapshot!(stage.play(
        "
        arrive a 32+1
        step
        arrive b 16+1
        step
        arrive c 30+1
        step
        arrive a-again 33+1 like=a:32
        step
        "
    ), @r"
    arrive a 32+1
    step
        0: a[0..32)* +0,1  | 2 free
        a is done
    arrive b 16+1
    step
        1: b[0..16)* +2  forget a  | 1 free, 2 cached
        b is done
    arrive c 30+1
    step
        2: c[0..30)* +3,1  forget b  | 0 free, 2 cached
        c is done
    arrive a-again 33+1 like=a:32
    step
        3: a-again[16..33)* =0 +1,2  forget c  | 0 free, 1 cached
        a-again is done, 16 of its prompt cached
    ");
}

#[test]
fn a_cancelled_sequence_gives_its_blocks_back_once_the_steps_that_name_it_are_done() {
    let stage = Stage::new(8, |config| config.look_ahead = 1);
    insta::assert_snapshot!(stage.play(
        "
        arrive a 20+9
        plan
        plan
        cancel a
        plan
        done
        plan
        done
        arrive b 20+1
        step
        "
    ), @r"
    arrive a 20+9
    plan
        0: a[0..20)* +0,1  | 6 free
    plan
        1: a[20..21)*  | 6 free
    cancel a
    plan
        no plan  | 6 free, 2 in flight
    done
    plan
        no plan  | 6 free, 2 in flight
    done
    arrive b 20+1
    step
        2: b[0..20)* +2,3  forget a  | 6 free
        b is done
    ");
}

#[test]
fn what_an_old_step_filled_says_nothing_of_the_blocks_that_came_after_a_preemption() {
    let stage = Stage::new(8, |config| {
        config.sequences_max = 1;
        config.chunk_tokens_max = 16;
        config.look_ahead = 3;
        config.look_ahead_tokens_max = 100;
    });
    // Block 2 is written by the third plan, which is not done when the first comes back: nothing is to be cached of it.
    insta::assert_snapshot!(stage.play(
        "
        arrive b 48+2
        plan
        arrive urgent 5+1 priority=-1
        plan
        cancel urgent
        plan
        done
        cancel b
        done
        done
        plan
        "
    ), @r"
    arrive b 48+2
    plan
        0: b[0..16) +0  | 7 free
    arrive urgent 5+1 priority=-1
    plan
        1: urgent[0..5)* +1  forget b  | waiting b  | 1 preempted  | 6 free, 1 in flight
    cancel urgent
    plan
        2: b[0..16) +2  forget urgent  | 5 free, 2 in flight
    done
    cancel b
    done
    done
    plan
        no plan  | 8 free
    ");
}

#[test]
fn a_lower_priority_value_goes_first_and_takes_a_place() {
    let stage = Stage::new(20, |config| config.sequences_max = 2);
    insta::assert_snapshot!(stage.play(
        "
        arrive a 10+4
        arrive b 10+4
        step
        arrive later 10+1 priority=5
        arrive urgent 10+2 priority=-1
        run 8
        "
    ), @r"
    arrive a 10+4
    arrive b 10+4
    step
        0: a[0..10)* +0  b[0..10)* +1  | 18 free
    arrive later 10+1 priority=5
    arrive urgent 10+2 priority=-1
    run 8
        1: a[10..11)*  urgent[0..10)* +2  forget b  | waiting b later  | 1 preempted  | 18 free
        2: urgent[10..11)*  a[11..12)*  | waiting b later  | 18 free
        urgent is done
        3: a[12..13)*  b[0..11)* +3  forget urgent  | waiting later  | 18 free
        a is done
        4: b[11..12)*  later[0..10)* +4  forget a  | 18 free
        later is done
        5: b[12..13)*  forget later  | 19 free
        b is done
        no plan  | 20 free
        no plan  | 20 free
        no plan  | 20 free
    ");
}

#[test]
fn a_tenant_with_many_requests_makes_way_for_one_with_few() {
    let stage = Stage::new(40, |config| config.sequences_max = 4);
    insta::assert_snapshot!(stage.play(
        "
        arrive a1 10+9 tenant=a
        arrive a2 10+9 tenant=a
        arrive a3 10+9 tenant=a
        arrive a4 10+9 tenant=a
        arrive a5 10+9 tenant=a
        run 2
        arrive b1 10+2 tenant=b
        arrive b2 10+2 tenant=b
        arrive b3 10+2 tenant=b
        run 6
        "
    ), @r"
    arrive a1 10+9 tenant=a
    arrive a2 10+9 tenant=a
    arrive a3 10+9 tenant=a
    arrive a4 10+9 tenant=a
    arrive a5 10+9 tenant=a
    run 2
        0: a1[0..10)* +0  a2[0..10)* +1  a3[0..10)* +2  a4[0..10)* +3  | waiting a5  | 36 free
        1: a1[10..11)*  a2[10..11)*  a3[10..11)*  a4[10..11)*  | waiting a5  | 36 free
    arrive b1 10+2 tenant=b
    arrive b2 10+2 tenant=b
    arrive b3 10+2 tenant=b
    run 6
        2: b1[0..10)* +4  forget a4  | waiting a4 a5 b2 b3  | 1 preempted  | 36 free
        3: a1[11..12)*  a2[11..12)*  a3[11..12)*  b1[10..11)*  | waiting a4 a5 b2 b3  | 36 free
        b1 is done
        4: a1[12..13)*  a2[12..13)*  a3[12..13)*  b2[0..10)* +5  forget b1  | waiting a4 a5 b3  | 36 free
        5: a1[13..14)*  a2[13..14)*  a3[13..14)*  b2[10..11)*  | waiting a4 a5 b3  | 36 free
        b2 is done
        6: a1[14..15)*  a2[14..15)*  a3[14..15)*  b3[0..10)* +6  forget b2  | waiting a4 a5  | 36 free
        7: a1[15..16)*  a2[15..16)*  a3[15..16)*  b3[10..11)*  | waiting a4 a5  | 36 free
        b3 is done
    ");
}

#[test]
fn tenants_beyond_their_share_let_a_prompt_of_another_pass_and_go_on() {
    let stage = Stage::new(40, |config| config.sequences_max = 4);
    insta::assert_snapshot!(stage.play(
        "
        arrive a1 10+9 tenant=a
        arrive a2 10+9 tenant=a
        arrive a3 10+9 tenant=a
        run 2
        arrive b1 200+4 tenant=b
        run 2
        arrive b2 40+2 tenant=b
        run 6
        "
    ), @r"
    arrive a1 10+9 tenant=a
    arrive a2 10+9 tenant=a
    arrive a3 10+9 tenant=a
    run 2
        0: a1[0..10)* +0  a2[0..10)* +1  a3[0..10)* +2  | 37 free
        1: a1[10..11)*  a2[10..11)*  a3[10..11)*  | 37 free
    arrive b1 200+4 tenant=b
    run 2
        2: b1[0..200)* +3,4,5,6,7,8,9,10,11,12,13,14,15  | 24 free
        3: a1[11..12)*  a2[11..12)*  a3[11..12)*  b1[200..201)*  | 24 free
    arrive b2 40+2 tenant=b
    run 6
        4: a1[12..13)*  a2[12..13)*  a3[12..13)*  b1[201..202)*  | waiting b2  | 24 free
        5: a1[13..14)*  a2[13..14)*  a3[13..14)*  b1[202..203)*  | waiting b2  | 24 free
        b1 is done
        6: a1[14..15)*  a2[14..15)*  a3[14..15)*  b2[0..40)* +16,17,18  forget b1  | 22 free, 12 cached
        7: a1[15..16)*  a2[15..16)*  a3[15..16)*  b2[40..41)*  | 22 free, 12 cached
        b2 is done
        8: a1[16..17)* +19  a2[16..17)* +20  a3[16..17)* +21  forget b2  | 20 free, 14 cached
        9: a1[17..18)*  a2[17..18)*  a3[17..18)*  | 20 free, 14 cached
        a1 is done
        a2 is done
        a3 is done
    ");
}

#[test]
fn whoever_is_next_and_too_large_is_not_overtaken() {
    let stage = Stage::new(6, |_| {});
    insta::assert_snapshot!(stage.play(
        "
        arrive a 30+20
        step
        arrive large 60+20
        arrive small 5+1
        run 3
        cancel a
        run 3
        "
    ), @r"
    arrive a 30+20
    step
        0: a[0..30)* +0,1  | 4 free
    arrive large 60+20
    arrive small 5+1
    run 3
        1: a[30..31)*  | waiting large small  | 4 free
        2: a[31..32)*  | waiting large small  | 4 free
        3: a[32..33)* +2  | waiting large small  | 3 free
    cancel a
    run 3
        4: large[0..60)* +3,4,5,2  small[0..5)* +1  forget a  | 0 free, 1 cached
        small is done
        5: large[60..61)*  forget small  | 1 free, 1 cached
        6: large[61..62)*  | 1 free, 1 cached
    ");
}
