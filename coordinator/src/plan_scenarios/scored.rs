//! Prompts whose logprobs are wanted, as text: what the cache may save them, and what is scored again.

use super::Stage;

#[test]
fn a_prompt_that_is_to_be_scored_is_computed_whatever_the_cache_has_of_it() {
    let stage = Stage::new(30, |config| {
        config.chunk_tokens_max = 40;
        config.sequences_max = 1;
    });
    insta::assert_snapshot!(stage.play(
        "
        arrive first 64+1
        run 2
        arrive plain 64+1 like=first:64
        step
        step
        arrive scored 64+1 like=first:64 scored=0
        run 2
        arrive known 64+1 like=first:64 scored=63
        step
        arrive half 64+2 like=first:64 scored=20
        run 3
        arrive only 65+0 like=first:64 scored=0
        run 2
        "
    ), @r"
    arrive first 64+1
    run 2
        0: first[0..40) +0,1,2  | 27 free
        1: first[40..64)* +3  | 26 free
        first is done
    arrive plain 64+1 like=first:64
    step
        2: plain[48..64)* =0,1,2 +4  forget first  | 25 free, 1 cached
        plain is done, 48 of its prompt cached
    step
        no plan  | 26 free, 4 cached
    arrive scored 64+1 like=first:64 scored=0
    run 2
        3: scored[0..40)?1..41 +5,6,7  forget plain  | 23 free, 4 cached
        4: scored[40..64)*?41..64 +8  | 22 free, 4 cached
        scored is done
    arrive known 64+1 like=first:64 scored=63
    step
        5: known[48..64)* =0,1,2 +9  forget scored  | 25 free, 1 cached
        known is done, 48 of its prompt cached
    arrive half 64+2 like=first:64 scored=20
    run 3
        6: half[16..56)?21..57 =0 +10,11,12  forget known  | 23 free, 3 cached
        7: half[56..64)*?57..64  | 23 free, 3 cached
        8: half[64..65)* +13  | 22 free, 3 cached
        half is done, 16 of its prompt cached
    arrive only 65+0 like=first:64 scored=0
    run 2
        9: only[0..40)?1..41 +14,15,16  forget half  | 23 free, 4 cached
        10: only[40..64)?41..65 +17  | 22 free, 4 cached
        only is done
    ");
}

#[test]
fn a_scored_sequence_that_was_preempted_is_scored_from_where_it_was() {
    let stage = Stage::new(6, |config| config.chunk_tokens_max = 32);
    insta::assert_snapshot!(stage.play(
        "
        arrive scored 80+8 scored=0 priority=1
        step
        step
        arrive urgent 80+1
        step
        run 3
        step
        run 2
        "
    ), @r"
    arrive scored 80+8 scored=0 priority=1
    step
        0: scored[0..32)?1..33 +0,1  | 4 free
    step
        1: scored[32..64)?33..65 +2,3  | 2 free
    arrive urgent 80+1
    step
        2: urgent[0..32) +4,5  forget scored  | waiting scored  | 1 preempted  | 0 free, 4 cached
    run 3
        3: urgent[32..64) +3,2  | waiting scored  | 0 free, 2 cached
        4: urgent[64..80)* +1  | waiting scored  | 0 free, 1 cached
        urgent is done
        5: scored[16..48) =0 +1,2  forget urgent  | 0 free, 3 cached
    step
        6: scored[48..80)*?65..80 +3,5  | 0 free, 1 cached
    run 2
        7: scored[80..81)* +4  | 0 free
        8: scored[81..82)*  | 0 free
    ");
}
