//! What the launches of a layer need to know of an epoch's weights: which lie where and go where, biases and norms. Made
//! once for an epoch.

use super::{
    dense_weights::{Dense, DensePhase, DenseWeights},
    device::DeviceBuffer,
    kernel::RowGroup,
    packed_rows::{GROUP_ROWS, PackedKind},
    table::{Place, TableDraft},
    unit_weights::{Matrix, Unit, UnitWeights},
};
use crate::weights::ReplicatedLayer;

/// Row groups of one kind: one launch.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    pub kind: PackedKind,
    pub groups: Place,
    pub count: u32,
}

/// A column-parallel product.
#[derive(Debug)]
pub struct ColumnsTable {
    pub weights: ColumnsWeights,
    /// Of the output.
    pub rows: u32,
}

#[derive(Debug)]
pub enum ColumnsWeights {
    /// A launch for each kind of weights among the matrices.
    Packed(Vec<Groups>),
    /// The address of one matrix.
    Dense(u64),
}

impl ColumnsTable {
    pub fn wants_int8(&self) -> bool {
        match &self.weights {
            ColumnsWeights::Packed(launches) => launches.iter().any(|groups| groups.kind.wants_int8()),
            ColumnsWeights::Dense(_) => false,
        }
    }

    fn dense<B: DeviceBuffer>(matrix: Option<&Dense<B>>) -> Self {
        match matrix {
            Some(matrix) => Self {
                weights: ColumnsWeights::Dense(matrix.address()),
                rows: matrix.rows,
            },
            None => Self {
                weights: ColumnsWeights::Packed(Vec::new()),
                rows: 0,
            },
        }
    }
}

/// A row-parallel product.
#[derive(Clone, Copy, Debug)]
pub struct PartialsTable {
    pub weights: PartialsWeights,
    /// Of the input.
    pub cols: u32,
}

#[derive(Clone, Copy, Debug)]
pub enum PartialsWeights {
    Packed(Units),
    /// The address of one matrix.
    Dense(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Units {
    pub kind: PackedKind,
    pub units: Place,
    pub count: u32,
    /// Columns of each unit, and of the last.
    pub unit_cols: u32,
    pub last_cols: u32,
}

impl PartialsTable {
    pub fn wants_int8(&self) -> bool {
        match &self.weights {
            PartialsWeights::Packed(units) => units.kind.wants_int8(),
            PartialsWeights::Dense(_) => false,
        }
    }
}

/// One phase of a layer. `None` where this rank has no unit of it.
#[derive(Debug)]
pub struct PhaseTables {
    pub norm: Place,
    pub columns: ColumnsTable,
    pub biases: Option<Place>,
    pub partials: Option<PartialsTable>,
    /// Added after the reduce.
    pub end_bias: Option<Place>,
}

#[derive(Debug)]
pub struct LayerTables {
    pub attention: PhaseTables,
    pub ffn: PhaseTables,
    pub q_norm: Option<Place>,
    pub k_norm: Option<Place>,
}

/// Matrices with their addresses and first rows of the output.
#[derive(Default)]
struct Rows {
    matrices: Vec<(Matrix, u64, usize)>,
}

impl Rows {
    fn put(self, rows: usize, draft: &mut TableDraft) -> ColumnsTable {
        let of_kind = |kind: PackedKind| -> Vec<RowGroup> {
            let matrices = self.matrices.iter().filter(|(matrix, ..)| matrix.kind == kind);
            matrices
                .flat_map(|(matrix, address, first)| row_groups(matrix, *address, *first))
                .collect()
        };
        let kinds = PackedKind::ALL.into_iter().map(|kind| (kind, of_kind(kind)));
        let launches = kinds
            .filter(|(_, groups)| !groups.is_empty())
            .map(|(kind, groups)| Groups {
                kind,
                groups: draft.put(&groups),
                count: groups.len() as u32,
            });
        ColumnsTable {
            weights: ColumnsWeights::Packed(launches.collect()),
            rows: rows as u32,
        }
    }
}

fn row_groups(matrix: &Matrix, address: u64, first_row: usize) -> impl Iterator<Item = RowGroup> + use<> {
    let Matrix { kind, rows, cols, .. } = *matrix;
    (0..rows.div_ceil(GROUP_ROWS)).map(move |group| RowGroup {
        weights: address + (group * kind.group_bytes(cols)) as u64,
        out_row: (first_row + group * GROUP_ROWS) as u32,
        rows: GROUP_ROWS.min(rows - group * GROUP_ROWS) as u32,
    })
}

/// One for each layer.
pub fn layer_tables<B: DeviceBuffer>(
    weights: &UnitWeights<B>,
    replicated: &[ReplicatedLayer],
    draft: &mut TableDraft,
) -> Vec<LayerTables> {
    let layers = replicated.iter().enumerate();
    layers
        .map(|(layer, shared)| LayerTables {
            attention: PhaseTables {
                norm: draft.put(&shared.attention_norm),
                columns: attention_columns(weights, layer, draft),
                biases: attention_biases(weights, layer, draft),
                partials: partials(weights.attention.values(), layer, draft),
                end_bias: draft.put_some(&shared.attention_bias),
            },
            ffn: PhaseTables {
                norm: draft.put(&shared.ffn_norm),
                columns: ffn_columns(weights, layer, draft),
                biases: ffn_biases(weights, layer, draft),
                partials: partials(weights.ffn.values(), layer, draft),
                end_bias: draft.put_some(&shared.ffn_bias),
            },
            q_norm: draft.put_some(&shared.qk_norms[0]),
            k_norm: draft.put_some(&shared.qk_norms[1]),
        })
        .collect()
}

/// q, k and v of each head in turn.
fn attention_columns<B: DeviceBuffer>(weights: &UnitWeights<B>, layer: usize, draft: &mut TableDraft) -> ColumnsTable {
    let (mut rows, mut next) = (Rows::default(), 0);
    for unit in weights.attention.values() {
        for matrix in &unit.layers[layer].columns {
            rows.matrices.push((*matrix, unit.address(matrix), next));
            next += matrix.rows;
        }
    }
    rows.put(next, draft)
}

fn attention_biases<B>(weights: &UnitWeights<B>, layer: usize, draft: &mut TableDraft) -> Option<Place> {
    let units = weights.attention.values();
    let biases: Vec<f32> = units
        .flat_map(|unit| unit.layers[layer].biases.iter().copied())
        .collect();
    draft.put_some(&biases)
}

/// Gate of all units, then up of all units.
fn ffn_columns<B: DeviceBuffer>(weights: &UnitWeights<B>, layer: usize, draft: &mut TableDraft) -> ColumnsTable {
    let (mut rows, mut next) = (Rows::default(), 0);
    for part in 0..2 {
        for unit in weights.ffn.values() {
            let matrix = &unit.layers[layer].columns[part];
            rows.matrices.push((*matrix, unit.address(matrix), next));
            next += matrix.rows;
        }
    }
    rows.put(next, draft)
}

fn ffn_biases<B>(weights: &UnitWeights<B>, layer: usize, draft: &mut TableDraft) -> Option<Place> {
    let halves = |part: usize| {
        let layers = weights.ffn.values().map(move |unit| &unit.layers[layer]);
        layers.flat_map(move |layer| {
            let (gate, up) = layer.biases.split_at(layer.biases.len() / 2);
            [gate, up][part].iter().copied()
        })
    };
    draft.put_some(&halves(0).chain(halves(1)).collect::<Vec<_>>())
}

fn partials<'a, B: DeviceBuffer + 'a>(
    units: impl Iterator<Item = &'a Unit<B>> + Clone,
    layer: usize,
    draft: &mut TableDraft,
) -> Option<PartialsTable> {
    let matrices = units.clone().map(|unit| &unit.layers[layer].partials);
    let (first, last) = (matrices.clone().next()?, matrices.last()?);
    let addresses: Vec<u64> = units.map(|unit| unit.address(&unit.layers[layer].partials)).collect();
    let count = addresses.len() as u32;
    let units = Units {
        kind: first.kind,
        units: draft.put(&addresses),
        count,
        unit_cols: first.cols as u32,
        last_cols: last.cols as u32,
    };
    Some(PartialsTable {
        weights: PartialsWeights::Packed(units),
        cols: (count - 1) * units.unit_cols + units.last_cols,
    })
}

/// As [`layer_tables`], of the fast mode.
pub fn dense_layer_tables<B: DeviceBuffer>(
    weights: &DenseWeights<B>,
    replicated: &[ReplicatedLayer],
    draft: &mut TableDraft,
) -> Vec<LayerTables> {
    let layers = replicated.iter().zip(&weights.layers);
    layers
        .map(|(shared, layer)| LayerTables {
            attention: dense_phase(&layer.attention, &shared.attention_norm, &shared.attention_bias, draft),
            ffn: dense_phase(&layer.ffn, &shared.ffn_norm, &shared.ffn_bias, draft),
            q_norm: draft.put_some(&shared.qk_norms[0]),
            k_norm: draft.put_some(&shared.qk_norms[1]),
        })
        .collect()
}

fn dense_phase<B: DeviceBuffer>(
    phase: &Option<DensePhase<B>>,
    norm: &[f32],
    end_bias: &[f32],
    draft: &mut TableDraft,
) -> PhaseTables {
    let partials = phase.as_ref().map(|phase| PartialsTable {
        weights: PartialsWeights::Dense(phase.partials.address()),
        cols: phase.partials.cols,
    });
    PhaseTables {
        norm: draft.put(norm),
        columns: ColumnsTable::dense(phase.as_ref().map(|phase| &phase.columns)),
        biases: phase.as_ref().and_then(|phase| draft.put_some(&phase.biases)),
        partials,
        end_bias: draft.put_some(end_bias),
    }
}

/// As [`head_tables`], of the fast mode. units: rows of each.
pub fn dense_head_tables<B: DeviceBuffer>(
    weights: &DenseWeights<B>,
    units: impl Iterator<Item = u32>,
    draft: &mut TableDraft,
) -> (ColumnsTable, Place) {
    let mut begins = vec![0u32];
    for rows in units {
        begins.push(begins[begins.len() - 1] + rows);
    }
    (ColumnsTable::dense(weights.head.as_ref()), draft.put(&begins))
}

/// The rows of the output head, and where each unit begins among them: `[units + 1]`.
pub fn head_tables<B: DeviceBuffer>(weights: &UnitWeights<B>, draft: &mut TableDraft) -> (ColumnsTable, Place) {
    let (mut rows, mut begins) = (Rows::default(), vec![0u32]);
    let mut next = 0;
    for unit in weights.vocab.values() {
        rows.matrices.push((unit.matrix, unit.address(), next));
        next += unit.matrix.rows;
        begins.push(next as u32);
    }
    (rows.put(next, draft), draft.put(&begins))
}
