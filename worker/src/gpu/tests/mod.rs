//! Every kernel against the definition, bit for bit, on the host or on the GPU that `KVASIR_GPU` numbers.

#![allow(clippy::unwrap_used)]

mod attention;
mod cells;
mod elementwise;
mod fast;
mod matmul;
mod probe;
mod rows;

use bytemuck::Pod;

use super::{
    device::{GpuDevice, LaunchShape},
    kernel::{Arguments, Int8Rows, Kernel},
    test_device::{self, TestBuffer, TestDevice},
};
use crate::arith::tests::inputs::Random;

/// A seed that is new in every run, unless KVASIR_TEST_SEED names one; printed, so that a failure can be had again.
pub fn random() -> Random {
    let named = std::env::var("KVASIR_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = named.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    println!("KVASIR_TEST_SEED={seed}");
    Random(seed)
}

/// A device with short ways to put things there.
pub struct Host(pub TestDevice);

impl Host {
    pub fn new() -> Self {
        Self(test_device::open().unwrap_or_else(|error| panic!("{error}")))
    }

    pub fn put<T: Pod>(&mut self, values: &[T]) -> TestBuffer {
        let bytes = bytemuck::cast_slice(values);
        let buffer = self.0.allocate("test", bytes.len()).expect("memory");
        self.0.upload(bytes, &buffer, 0).expect("room");
        buffer
    }

    /// Of NaN, or of the largest integers.
    pub fn room<T: Pod>(&mut self, len: usize) -> TestBuffer {
        self.0.allocate("test", len * size_of::<T>()).expect("memory")
    }

    pub fn get<T: Pod>(&mut self, buffer: &TestBuffer) -> Vec<T> {
        use super::device::DeviceBuffer as _;
        let mut values = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
        self.0
            .download(buffer, 0, bytemuck::cast_slice_mut(&mut values))
            .expect("a whole buffer");
        values
    }

    pub fn run(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl Arguments) {
        arguments
            .launch(&mut self.0, kernel, shape)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Activations as int8 on the device.
pub struct DeviceInt8 {
    pub quants: TestBuffer,
    pub scales: TestBuffer,
    pub scaled_sums: TestBuffer,
}

impl DeviceInt8 {
    pub fn room(host: &mut Host, cols: usize, tokens: usize) -> Self {
        Self {
            quants: host.room::<i8>(cols * tokens),
            scales: host.room::<f32>(cols / 32 * tokens),
            scaled_sums: host.room::<f32>(cols / 32 * tokens),
        }
    }

    pub fn rows(&self) -> Int8Rows {
        use super::device::DeviceBuffer as _;
        Int8Rows {
            quants: self.quants.address(),
            scales: self.scales.address(),
            scaled_sums: self.scaled_sums.address(),
        }
    }
}
