//! Panels, `[cols / 16][tokens][16]`: how a step's activations lie in memory.

use super::LANES;

/// One token's columns, plain.
///
/// panels: `[out.len() / 16][tokens][16]`, out: a multiple of 16 columns.
pub fn gather_token(panels: &[f32], tokens: usize, token: usize, out: &mut [f32]) {
    assert_eq!(panels.len(), out.len() * tokens);
    for (panel, out) in panels.chunks_exact(tokens * LANES).zip(out.chunks_exact_mut(LANES)) {
        out.copy_from_slice(&panel[token * LANES..][..LANES]);
    }
}

/// The inverse of [`gather_token`].
pub fn scatter_token(x: &[f32], panels: &mut [f32], tokens: usize, token: usize) {
    assert_eq!(panels.len(), x.len() * tokens);
    for (panel, x) in panels.chunks_exact_mut(tokens * LANES).zip(x.chunks_exact(LANES)) {
        panel[token * LANES..][..LANES].copy_from_slice(x);
    }
}

/// Rows of plain columns, `[tokens][cols]`, as panels.
pub fn from_rows(rows: &[f32], tokens: usize) -> Vec<f32> {
    let mut panels = vec![0.0; rows.len()];
    for token in 0..tokens {
        let cols = rows.len() / tokens;
        scatter_token(&rows[token * cols..][..cols], &mut panels, tokens, token);
    }
    panels
}

/// Panels as rows of plain columns, `[tokens][cols]`.
pub fn to_rows(panels: &[f32], tokens: usize) -> Vec<f32> {
    let mut rows = vec![0.0; panels.len()];
    for token in 0..tokens {
        let cols = panels.len() / tokens;
        gather_token(panels, tokens, token, &mut rows[token * cols..][..cols]);
    }
    rows
}

/// The fixed tree over 16 lanes: lane l takes lane l + 8, then + 4, + 2, + 1.
#[inline(always)]
pub(super) fn sum_tree(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// A slice as vectors; its length must be a multiple of 16.
#[inline(always)]
pub(super) fn vectors(x: &[f32]) -> &[[f32; LANES]] {
    let (vectors, rest) = x.as_chunks();
    assert!(rest.is_empty(), "{} values are not whole panels", x.len());
    vectors
}

/// As [`vectors`], mutable.
#[inline(always)]
pub(super) fn vectors_mut(x: &mut [f32]) -> &mut [[f32; LANES]] {
    assert!(x.len().is_multiple_of(LANES), "{} values are not whole panels", x.len());
    x.as_chunks_mut().0
}
