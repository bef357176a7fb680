//! The measurements of a GPU run on the host's device, in small: each gives numbers, and the bytes are those of the shape.

#![allow(clippy::unwrap_used)]

use kvasir_tests::gpu_bench::{self, Numbers};

fn measured(name: &str) -> Numbers {
    let numbers = gpu_bench::measure(name);
    for (number, value) in &numbers {
        assert!(value.is_finite() && *value > 0.0, "{name}: {number} is {value}");
    }
    numbers
}

#[test]
fn memory_has_a_rate() {
    let numbers = measured("roofline");
    assert_eq!(
        numbers.keys().map(String::as_str).collect::<Vec<_>>(),
        ["copy_gb_s", "read_gb_s"]
    );
}

#[test]
fn kv_bytes_go_with_the_number_of_kv_heads() {
    let numbers = measured("attention");
    let bytes = |group: u32| numbers[&format!("group_{group}_kv_bytes")];
    for group in [2, 4, 8, 16, 32] {
        assert_eq!(
            bytes(1),
            bytes(group) * f64::from(group),
            "{group} query heads for each KV head"
        );
    }
}

#[test]
fn steps_of_every_batch_are_timed() {
    assert!(measured("decode-fast").contains_key("batch_8_us"));
    let numbers = measured("decode-exact");
    let per_token = (numbers["batch_64_bytes"] - numbers["batch_1_bytes"]) / 63.0 / numbers["context_tokens"];
    // 2 layers of 2 KV heads of 32 dimensions, K and V, two bytes each.
    assert_eq!(per_token, f64::from(2 * 2 * 32 * 2 * 2));
}
