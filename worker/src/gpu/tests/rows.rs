//! Rows in and out of the layers, and what vocab units come to; what a launch refuses.

use super::{Host, random};
use crate::{
    arith::{
        reference,
        tests::inputs::{Style, assert_same_bits},
    },
    gpu::{
        device::{DeviceBuffer as _, GpuDevice as _, LaunchShape},
        kernel::{Arguments as _, EmbedRowsArgs, Kernel, SealSumsArgs, Summary, TakeRowsArgs, VocabSummariesArgs},
    },
};

#[test]
fn embedding_rows_become_integers_as_defined() {
    let (mut host, mut random) = (Host::new(), random());
    for style in Style::ALL {
        for (cols, tokens) in [(32, 1), (96, 5), (544, 2)] {
            let rows = random.floats(style, cols * tokens);
            let d_rows = host.put(&rows);
            let sums = host.room::<i64>(cols * tokens);
            let poison = host.put(&vec![0u32; tokens]);
            let args = EmbedRowsArgs {
                rows: d_rows.address(),
                sums: sums.address(),
                poison: poison.address(),
                cols: cols as u32,
                padding: 0,
            };
            host.run(Kernel::EmbedRows, LaunchShape::new([tokens as u32, 1, 1], 256), &args);
            let fixed: Vec<Option<i64>> = rows.iter().map(|x| reference::to_fixed(*x)).collect();
            let expected: Vec<i64> = fixed.iter().map(|fixed| fixed.unwrap_or(0)).collect();
            assert_eq!(host.get::<i64>(&sums), expected);
            let out_of_range = fixed.chunks(cols).map(|row| u32::from(row.contains(&None)));
            assert_eq!(host.get::<u32>(&poison), out_of_range.collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_heads_rows_are_those_asked_for_and_poison_goes_along() {
    let (mut host, mut random) = (Host::new(), random());
    let (cols, tokens) = (96, 7);
    let x = random.floats(Style::Ordinary, cols * tokens);
    let poison: Vec<u32> = (0..tokens as u32).map(|token| token % 2).collect();
    let rows = [6u32, 0, 3, 3];
    let (d_x, d_poison, d_rows) = (host.put(&x), host.put(&poison), host.put(&rows));
    let (taken, taken_poison) = (host.room::<f32>(cols * 4), host.room::<u32>(4));
    let args = TakeRowsArgs {
        x: d_x.address(),
        poison: d_poison.address(),
        rows: d_rows.address(),
        taken: taken.address(),
        taken_poison: taken_poison.address(),
        cols: cols as u32,
        padding: 0,
    };
    host.run(Kernel::TakeRows, LaunchShape::new([4, 1, 1], 256), &args);
    let expected: Vec<f32> = rows
        .iter()
        .flat_map(|row| x[*row as usize * cols..][..cols].to_vec())
        .collect();
    assert_same_bits(&host.get(&taken), &expected, "rows");
    assert_eq!(host.get::<u32>(&taken_poison), [0, 0, 1, 1]);

    let tail = host.room::<i64>(tokens);
    let args = SealSumsArgs {
        poison: d_poison.address(),
        tail: tail.address(),
        tokens: tokens as u32,
        padding: 0,
    };
    host.run(Kernel::SealSums, LaunchShape::new([1, 1, 1], 256), &args);
    let expected: Vec<i64> = poison.iter().map(|poison| i64::from(*poison) << 30).collect();
    assert_eq!(host.get::<i64>(&tail), expected);
}

#[test]
fn vocab_units_come_to_the_definitions_summaries() {
    let (mut host, mut random) = (Host::new(), random());
    for style in Style::ALL {
        for (units, tokens) in [(vec![0u32, 1], 1), (vec![0, 64, 128, 149], 3), (vec![0, 512, 1000], 2)] {
            let stride = *units.last().unwrap() as usize;
            let mut logits = random.floats(style, stride * tokens);
            if style == Style::Ordinary {
                // Equal largest logits: the first wins, whatever the sign of zero.
                logits.iter_mut().for_each(|logit| *logit = logit.min(-0.0));
            }
            let (d_logits, d_units) = (host.put(&logits), host.put(&units));
            let num_units = units.len() - 1;
            let summaries = host.room::<Summary>(num_units * tokens);
            let args = VocabSummariesArgs {
                logits: d_logits.address(),
                units: d_units.address(),
                summaries: summaries.address(),
                stride: stride as u32,
                num_units: num_units as u32,
            };
            let shape = LaunchShape::new([num_units as u32, tokens as u32, 1], 256).shared(4 * (1024 + 24));
            host.run(Kernel::VocabSummaries, shape, &args);
            let summaries = host.get::<Summary>(&summaries);
            for (at, summary) in summaries.iter().enumerate() {
                let (token, unit) = (at / num_units, at % num_units);
                let logits = &logits[token * stride..][units[unit] as usize..units[unit + 1] as usize];
                let finite = logits.iter().all(|logit| logit.is_finite());
                assert_eq!(summary.finite, u32::from(finite));
                if finite {
                    let (index, max) = reference::arg_max(logits);
                    assert_eq!((summary.argmax as usize, summary.max.to_bits()), (index, max.to_bits()));
                    let sum_exp = reference::sum_exp(logits, max);
                    assert_same_bits(&[summary.sum_exp], &[sum_exp], &format!("{style:?}"));
                }
            }
        }
    }
}

#[test]
fn a_launch_that_no_device_takes_is_refused_with_what_would_work() {
    let mut host = Host::new();
    let args = SealSumsArgs::default();
    let refused = |host: &mut Host, shape| {
        let error = args.launch(&mut host.0, Kernel::SealSums, shape).unwrap_err();
        error.to_string()
    };
    let no_blocks = refused(&mut host, LaunchShape::new([1, 0, 1], 256));
    assert!(
        no_blocks.ends_with("a grid is 1..2^31 by 1..65535 by 1..65535 blocks"),
        "{no_blocks}"
    );
    let odd = refused(&mut host, LaunchShape::new([1, 1, 1], 100));
    assert!(
        odd.ends_with("a block has whole warps of 32 threads, up to 1024"),
        "{odd}"
    );
    let large = refused(&mut host, LaunchShape::new([1, 1, 1], 32).shared(1 << 20));
    assert!(
        large.ends_with("a block has up to 232448 bytes of shared memory"),
        "{large}"
    );
    let foreign = args.launch(&mut host.0, Kernel::TakeRows, LaunchShape::new([1, 1, 1], 256));
    let foreign = foreign.unwrap_err().to_string();
    assert!(foreign.ends_with("its arguments are 48 bytes, not 24"), "{foreign}");
}

#[test]
fn rust_and_cuda_agree_on_the_size_of_every_kernels_arguments() {
    let mut host = Host::new();
    for &kernel in Kernel::ALL {
        let arguments = vec![0; kernel.argument_bytes() + 8];
        let error = host.0.launch_bytes(kernel, LaunchShape::new([1, 1, 1], 32), &arguments);
        let said = format!("the source says {} bytes", kernel.argument_bytes());
        assert!(error.unwrap_err().to_string().contains(&said), "{}", kernel.name());
    }
}
