//! Writes GGUF files, sound ones and, on request, unsound ones: counts, types, offsets and dimensions can lie.

use std::{io, path::Path};

use kvasir_model::WeightType;

/// A metadata value.
#[derive(Clone, Debug)]
pub enum GgufValue {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value type and the bytes after it, which need not fit each other.
    Raw {
        type_id: u32,
        bytes: Vec<u8>,
    },
}

/// A tensor, fastest dimension first.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    pub bytes: Vec<u8>,
    /// What the file says where the data lies; `None` for the truth.
    pub offset: Option<u64>,
}

/// Plain data: tests change it before they write it.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    pub metadata: Vec<(String, GgufValue)>,
    pub tensors: Vec<GgufTensor>,
    /// What data is really aligned to; `general.alignment` is only metadata.
    pub alignment: usize,
    /// What the header says; `None` for the truth.
    pub num_metadata: Option<u64>,
    pub num_tensors: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            num_metadata: None,
            num_tensors: None,
        }
    }
}

impl GgufWriter {
    /// Sets a value, in place if the key is there.
    pub fn set(&mut self, key: &str, value: GgufValue) {
        match self.metadata.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    pub fn add_tensor(&mut self, name: &str, weight_type: WeightType, dimensions: &[u64], bytes: Vec<u8>) {
        self.tensors.push(GgufTensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            type_id: weight_type.gguf_id(),
            bytes,
            offset: None,
        });
    }

    /// Panics if there is no such tensor.
    pub fn tensor_mut(&mut self, name: &str) -> &mut GgufTensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        std::fs::write(path, self.to_bytes())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.num_metadata.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut file, key);
            put_value(&mut file, value);
        }
        self.put_tensor_infos(&mut file);
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.bytes);
        }
        file
    }

    fn put_tensor_infos(&self, file: &mut Vec<u8>) {
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(file, &tensor.name);
            file.extend((tensor.dimensions.len() as u32).to_le_bytes());
            for dimension in &tensor.dimensions {
                file.extend(dimension.to_le_bytes());
            }
            file.extend(tensor.type_id.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(self.alignment as u64);
        }
    }
}

fn put_string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn put_value(file: &mut Vec<u8>, value: &GgufValue) {
    file.extend(type_id(value).to_le_bytes());
    match value {
        GgufValue::U32(value) => file.extend(value.to_le_bytes()),
        GgufValue::U64(value) => file.extend(value.to_le_bytes()),
        GgufValue::I32(value) => file.extend(value.to_le_bytes()),
        GgufValue::F32(value) => file.extend(value.to_le_bytes()),
        GgufValue::Bool(value) => file.push(u8::from(*value)),
        GgufValue::Str(value) => put_string(file, value),
        GgufValue::Strings(values) => {
            put_array_head(file, 8, values.len());
            values.iter().for_each(|value| put_string(file, value));
        }
        GgufValue::I32s(values) => {
            put_array_head(file, 5, values.len());
            values.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        GgufValue::F32s(values) => {
            put_array_head(file, 6, values.len());
            values.iter().for_each(|value| file.extend(value.to_le_bytes()));
        }
        GgufValue::Raw { bytes, .. } => file.extend(bytes),
    }
}

fn put_array_head(file: &mut Vec<u8>, item_type_id: u32, len: usize) {
    file.extend(item_type_id.to_le_bytes());
    file.extend((len as u64).to_le_bytes());
}

fn type_id(value: &GgufValue) -> u32 {
    match value {
        GgufValue::U32(_) => 4,
        GgufValue::I32(_) => 5,
        GgufValue::F32(_) => 6,
        GgufValue::Bool(_) => 7,
        GgufValue::Str(_) => 8,
        GgufValue::Strings(_) | GgufValue::I32s(_) | GgufValue::F32s(_) => 9,
        GgufValue::U64(_) => 10,
        GgufValue::Raw { type_id, .. } => *type_id,
    }
}
