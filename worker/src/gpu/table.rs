//! Small things that kernels find by address, laid side by side and brought to the device in one piece: norms, biases,
//! which weights lie where.

use bytemuck::Pod;

use super::device::{DeviceBuffer, GpuDevice, GpuError};

/// Each begins at such a multiple of bytes.
const ALIGNMENT: usize = 16;

/// Where in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

/// On the host, as long as it grows.
#[derive(Debug, Default)]
pub struct TableDraft {
    bytes: Vec<u8>,
}

impl TableDraft {
    pub fn put<T: Pod>(&mut self, values: &[T]) -> Place {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytemuck::cast_slice(values));
        Place(at as u64)
    }

    /// `None` for a vector that a model lacks.
    pub fn put_some(&mut self, values: &[f32]) -> Option<Place> {
        (!values.is_empty()).then(|| self.put(values))
    }

    pub fn upload<D: GpuDevice>(self, device: &mut D) -> Result<Table<D::Buffer>, GpuError> {
        let buffer = device.allocate("tables", self.bytes.len().max(ALIGNMENT))?;
        device.upload(&self.bytes, &buffer, 0)?;
        Ok(Table { buffer })
    }
}

#[derive(Debug)]
pub struct Table<B> {
    buffer: B,
}

impl<B: DeviceBuffer> Table<B> {
    pub fn address(&self, place: Place) -> u64 {
        self.buffer.address() + place.0
    }

    /// 0 where there is none: what kernels take for absence.
    pub fn address_or_none(&self, place: Option<Place>) -> u64 {
        place.map_or(0, |place| self.address(place))
    }
}
