//! The kernel that only reads, and the device's memory itself.

use super::{Host, random};
use crate::gpu::{
    device::{DeviceBuffer as _, GpuDevice as _, LaunchShape},
    kernel::{Kernel, ReadWordsArgs},
};

#[test]
fn every_word_is_read_once() {
    let (mut host, mut random) = (Host::new(), random());
    for (count, blocks) in [(1, 1), (255, 1), (256 * 8, 1), (5_000, 2), (20_001, 3)] {
        let words: Vec<u32> = (0..4 * count).map(|_| random.next() as u32).collect();
        let d_words = host.put(&words);
        let sums = host.put(&vec![0u32; blocks]);
        let args = ReadWordsArgs {
            words: d_words.address(),
            sums: sums.address(),
            count: count as u64,
        };
        host.run(Kernel::ReadWords, LaunchShape::new([blocks as u32, 1, 1], 256), &args);
        let sum = |words: &[u32]| words.iter().fold(0, |sum: u32, word| sum.wrapping_add(*word));
        assert_eq!(
            sum(&host.get::<u32>(&sums)),
            sum(&words),
            "{count} words, {blocks} blocks"
        );
    }
}

/// Longer than what is staged at a time, and not a multiple of anything.
#[test]
fn what_is_brought_to_the_device_and_moved_there_comes_back() {
    let (mut host, mut random) = (Host::new(), random());
    let len = 9_437_187;
    let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    let source = host.put(&bytes);
    let target = host.room::<u8>(len);
    host.0.copy(&source, 3, &target, 7, len - 11).unwrap();
    host.0.clear(&target, 100, 33).unwrap();
    let mut expected = bytes.clone();
    expected.fill(0xff);
    expected[7..len - 4].copy_from_slice(&bytes[3..len - 8]);
    expected[100..133].fill(0);
    assert!(host.get::<u8>(&target) == expected, "copied and cleared");
    let mut part = vec![0; 5_000_001];
    host.0.download(&source, 12_345, &mut part).unwrap();
    assert!(part == bytes[12_345..][..part.len()], "a part in the middle");
}
