//! Ranks whose devices add among themselves, and the default model on the device.
//!
//! On the host's device nothing adds without the host; there these tests say so and check what is left. On a GPU
//! (`KVASIR_GPU`) a rank alone has to form its group in a build with NCCL, and two ranks of one GPU do where NCCL lets them.

#![allow(clippy::unwrap_used)]

use kvasir_kv::Transport;
use kvasir_tests::{
    parity::{self, Chunking, Configuration, Questions},
    whole_logits::collectives,
};
use kvasir_worker::{
    HAS_NCCL,
    arith::Kernels,
    collective::Collective,
    gpu::{device::GpuDevice as _, test_device},
};

const LEN: usize = 10_007;

/// What rank number `rank` brings. With the other ranks' the sum wraps around here and there.
fn brought(rank: usize) -> Vec<i64> {
    let value = |at: usize| (at as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) ^ rank as i64;
    (0..LEN).map(value).collect()
}

/// What the device makes of them; `None` if it leaves adding to the host.
fn add(rank: usize, collective: &mut dyn Collective) -> Option<Vec<i64>> {
    let mut device = test_device::open().unwrap();
    let joined = device.join(collective).unwrap();
    let mut bytes: Vec<u8> = brought(rank).iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let buffer = device.allocate("sums", bytes.len()).unwrap();
    device.upload(&bytes, &buffer, 0).unwrap();
    // A second time, as the next layer does.
    let added = [
        device.all_reduce(&buffer, LEN).unwrap(),
        device.all_reduce(&buffer, 1).unwrap(),
    ];
    assert_eq!(added, [joined; 2]);
    device.download(&buffer, 0, &mut bytes).unwrap();
    let (sums, _) = bytes.as_chunks::<8>();
    joined.then(|| sums.iter().map(|sum| i64::from_le_bytes(*sum)).collect())
}

/// Of each rank.
fn add_on(ranks: usize) -> Vec<Option<Vec<i64>>> {
    std::thread::scope(|scope| {
        let connects = collectives(ranks).into_iter().enumerate();
        let threads: Vec<_> = connects
            .map(|(rank, connect)| scope.spawn(move || add(rank, connect().as_mut())))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn check(sums: &[Option<Vec<i64>>], ranks: usize) {
    let mut expected = (0..ranks).map(brought).reduce(|mut sum, other| {
        sum.iter_mut()
            .zip(other)
            .for_each(|(sum, other)| *sum = sum.wrapping_add(other));
        sum
    });
    let first = &mut expected.as_mut().unwrap()[0];
    *first = first.wrapping_mul(ranks as i64);
    for sums in sums {
        assert_eq!(*sums, expected);
    }
}

#[test]
fn a_rank_alone_adds_on_its_gpu() {
    let sums = add_on(1);
    assert_eq!(sums[0].is_some(), test_device::is_gpu() && HAS_NCCL);
    if sums[0].is_some() {
        check(&sums, 1);
    }
}

#[test]
fn two_ranks_of_one_gpu_add_there_or_leave_it_to_the_host_together() {
    let sums = add_on(2);
    let joined = sums[0].is_some();
    println!("added by {}", if joined { "the GPU" } else { "the host" });
    assert_eq!(sums[1].is_some(), joined);
    if joined {
        check(&sums, 2);
    }
}

/// All answers on a GPU; on the host's device the first, which takes as long.
#[test]
fn the_default_model_gives_the_cpus_digests_on_the_device() {
    let count = if test_device::is_gpu() { usize::MAX } else { 1 };
    let model = "smollm2-135m";
    let configuration = Configuration {
        model: model.to_owned(),
        ranks: 1,
        transport: Transport::SharedMemory,
        threads: 1,
        together: true,
        chunking: Chunking::Random,
        block_size: 64,
        isa: Kernels::best().isa(),
    };
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = parity::open_model(model, folder.path());
    let found = configuration.run_on_device(Questions::Plain, count, &checkpoint);
    assert_eq!(found, Questions::Plain.read_digests()[model][..found.len()]);
}
