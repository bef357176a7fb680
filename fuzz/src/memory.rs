//! A limit on the memory that one input may take, so that an allocation beyond reason is a crash.
//!
//! libFuzzer's own limit of single allocations needs a sanitizer's runtime, which the stable toolchain has not.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What any input may take: compiled expressions and templates, a tokenizer's tables.
const BASE_BYTES: usize = 64 << 20;
/// What each byte of the input may take besides: a token or a message of two bytes becomes a struct.
const BYTES_PER_INPUT_BYTE: usize = 1024;

/// Runs `work` on an input of that length. Ends the process if it holds more memory at any time than the input
/// justifies.
pub fn bounded<T>(input_len: usize, work: impl FnOnce() -> T) -> T {
    let bytes_max = BASE_BYTES + input_len * BYTES_PER_INPUT_BYTE;
    set_limit(ALLOCATOR.allocated() + bytes_max);
    let done = work();
    set_limit(usize::MAX);
    done
}

fn set_limit(bytes: usize) {
    ALLOCATOR.set_limit(bytes).expect("the limit is above what is held");
}
