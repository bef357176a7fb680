//! Where the tensors of a checkpoint lie. All of them are inside their file and none overlaps another.

use std::{collections::HashMap, ops::Range};

use safetensors::{Dtype, SafeTensors};

use crate::{CheckpointError, TensorView, WeightType, cursor::Cursor, mapped::MappedFile, weight_type::gguf_type_name};

/// Limit of the GGUF specification.
const NAME_BYTES_MAX: u64 = 64;
/// ggml has four; vectors and matrices are all that a llama model needs.
const DIMENSIONS_MAX: u32 = 4;

#[derive(Debug, Default)]
pub(crate) struct TensorDirectory {
    tensors: HashMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    /// Which of the checkpoint's files.
    file: usize,
    weight_type: WeightType,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

impl TensorDirectory {
    /// The shortest entry: name length, one letter, dimension count, one dimension, type, offset.
    pub(crate) const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;
    /// Thirty times what the largest models have.
    pub(crate) const LEN_MAX: u64 = 65_536;

    /// Reads `count` entries, which the caller has checked against the length of the file, and places them in the
    /// data that follows at the next multiple of `alignment`.
    pub(crate) fn parse(
        file_len: usize,
        cursor: &mut Cursor<'_>,
        count: u64,
        alignment: u32,
    ) -> Result<Self, CheckpointError> {
        let mut entries = Vec::new();
        for i in 0..count {
            entries.push(Entry::parse(cursor, i)?);
        }
        let start = (cursor.offset() as u64).next_multiple_of(u64::from(alignment));
        let available = (file_len as u64).saturating_sub(start);
        for entry in &entries {
            entry.check_place(u64::from(alignment), available)?;
        }
        check_overlap(&mut entries)?;
        let mut tensors = HashMap::new();
        for entry in entries {
            let place = entry.place(start);
            if tensors.contains_key(&entry.name) {
                return Err(CheckpointError::DuplicateTensor { tensor: entry.name });
            }
            tensors.insert(entry.name, place);
        }
        Ok(Self { tensors })
    }

    /// Adds the tensors of a safetensors file, the checkpoint's number `file`.
    pub(crate) fn add_safetensors(&mut self, file: usize, bytes: &[u8]) -> Result<(), CheckpointError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|source| CheckpointError::SafeTensors { source })?;
        for (name, view) in tensors.iter() {
            let place = Place::of_view(file, bytes, name, &view)?;
            if self.tensors.insert(name.to_owned(), place).is_some() {
                return Err(CheckpointError::DuplicateTensor {
                    tensor: name.to_owned(),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn view<'a>(&'a self, files: &'a [MappedFile], name: &str) -> Option<TensorView<'a>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        let Place {
            file,
            weight_type,
            rows,
            cols,
            ref bytes,
        } = *place;
        Some(TensorView {
            name,
            weight_type,
            rows,
            cols,
            bytes: &files[file][bytes.clone()],
        })
    }

    /// Which of the checkpoint's files a tensor is in.
    pub(crate) fn file(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|place| place.file)
    }

    /// Rows and columns.
    pub(crate) fn shape(&self, name: &str) -> Option<(u64, u64)> {
        self.tensors
            .get(name)
            .map(|place| (place.rows as u64, place.cols as u64))
    }
}

impl Place {
    /// The library has checked that the tensor lies in the file and is as long as its shape says.
    fn of_view(
        file: usize,
        bytes: &[u8],
        name: &str,
        view: &safetensors::tensor::TensorView<'_>,
    ) -> Result<Self, CheckpointError> {
        let weight_type = match view.dtype() {
            Dtype::F32 => WeightType::F32,
            Dtype::F16 => WeightType::F16,
            Dtype::BF16 => WeightType::BF16,
            other => {
                return Err(CheckpointError::Dtype {
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        // Rows first, as opposed to GGUF.
        let dimensions: Vec<u64> = view.shape().iter().rev().map(|dimension| *dimension as u64).collect();
        let Some((rows, cols)) = rows_and_cols(&dimensions) else {
            return Err(CheckpointError::Dimensions {
                tensor: name.to_owned(),
                dimensions,
            });
        };
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        Ok(Self {
            file,
            weight_type,
            rows: rows as usize,
            cols: cols as usize,
            bytes: start..start + view.data().len(),
        })
    }
}

struct Entry {
    name: String,
    weight_type: WeightType,
    rows: u64,
    cols: u64,
    /// From the start of the data.
    offset: u64,
    /// Fits u128, whatever the file says: two u64 dimensions.
    bytes: u128,
}

impl Entry {
    fn parse(cursor: &mut Cursor<'_>, i: u64) -> Result<Self, CheckpointError> {
        let name = cursor
            .name(NAME_BYTES_MAX, &|| format!("the name of tensor {i}"))?
            .to_owned();
        let what = || format!("the description of tensor {name:?}");
        let num_dimensions = cursor.u32(&what)?;
        if num_dimensions > DIMENSIONS_MAX {
            return Err(CheckpointError::Count {
                what: format!("the dimensions of tensor {name:?}"),
                offset: cursor.offset() - 4,
                count: u64::from(num_dimensions),
                most: u64::from(DIMENSIONS_MAX),
            });
        }
        let dimensions = (0..num_dimensions)
            .map(|_| cursor.u64(&what))
            .collect::<Result<Vec<_>, _>>()?;
        let type_id = cursor.u32(&what)?;
        let offset = cursor.u64(&what)?;
        let Some((rows, cols)) = rows_and_cols(&dimensions) else {
            return Err(CheckpointError::Dimensions {
                tensor: name,
                dimensions,
            });
        };
        let Some(weight_type) = WeightType::from_gguf_id(type_id) else {
            return Err(CheckpointError::WeightType {
                tensor: name,
                found: gguf_type_name(type_id),
            });
        };
        let block_len = weight_type.block_len();
        if !cols.is_multiple_of(block_len as u64) {
            return Err(CheckpointError::CutBlock {
                tensor: name,
                cols,
                weight_type,
                block_len,
            });
        }
        let row_bytes = u128::from(cols / block_len as u64) * weight_type.block_bytes() as u128;
        // Saturation is far beyond any file, and refused as such.
        let bytes = row_bytes.saturating_mul(u128::from(rows));
        Ok(Self {
            name,
            weight_type,
            rows,
            cols,
            offset,
            bytes,
        })
    }

    fn check_place(&self, alignment: u64, available: u64) -> Result<(), CheckpointError> {
        let Self { offset, bytes, .. } = *self;
        if !offset.is_multiple_of(alignment) {
            return Err(CheckpointError::Misaligned {
                tensor: self.name.clone(),
                offset,
                alignment,
            });
        }
        if bytes.saturating_add(u128::from(offset)) > u128::from(available) {
            return Err(CheckpointError::OutOfBounds {
                tensor: self.name.clone(),
                offset,
                bytes,
                available,
            });
        }
        Ok(())
    }

    /// Call after `check_place`: from then on every number is within the length of a mapped file.
    fn place(&self, data_start: u64) -> Place {
        let start = (data_start + self.offset) as usize;
        Place {
            file: 0,
            weight_type: self.weight_type,
            rows: self.rows as usize,
            cols: self.cols as usize,
            bytes: start..start + self.bytes as usize,
        }
    }
}

/// GGUF names the fastest dimension first. Trailing dimensions of 1 are nothing.
fn rows_and_cols(dimensions: &[u64]) -> Option<(u64, u64)> {
    let (cols, rest) = dimensions.split_first()?;
    let (rows, rest) = rest.split_first().unwrap_or((&1, &[]));
    (*cols > 0 && *rows > 0 && rest.iter().all(|dimension| *dimension == 1)).then_some((*rows, *cols))
}

/// Call after `check_place`, so that the sums cannot overflow.
fn check_overlap(entries: &mut [Entry]) -> Result<(), CheckpointError> {
    entries.sort_by_key(|entry| entry.offset);
    for pair in entries.windows(2) {
        if u128::from(pair[0].offset) + pair[0].bytes > u128::from(pair[1].offset) {
            if pair[0].name == pair[1].name {
                return Err(CheckpointError::DuplicateTensor {
                    tensor: pair[0].name.clone(),
                });
            }
            return Err(CheckpointError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
            });
        }
    }
    Ok(())
}
