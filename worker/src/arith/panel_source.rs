//! Where a product's inputs come from: panels that are there, or that are computed from others on the way to where they
//! are wanted, so that nobody writes and reads them in between.

use super::{
    Kernels, LANES,
    elementwise::silu_mul,
    panels::{vectors, vectors_mut},
    simd::{Kernel, Simd},
};

/// Panels, `[cols / 16][tokens][16]`, as a kernel takes them: one vector after the other, panel by panel.
#[allow(private_bounds, private_interfaces)] // instruction sets are this module's own
pub trait PanelSource: Copy + Send + Sync {
    /// How many panels there are.
    fn num_panels(&self) -> usize;

    /// Rows of each panel.
    fn tokens(&self) -> usize;

    #[doc(hidden)]
    fn load<S: Simd>(&self, s: S, panel: usize, token: usize) -> S::F;
}

/// Rows that are normalized: `x * scale * weight`, with the scales of [`Kernels::rms_scales`].
#[derive(Clone, Copy, Debug)]
pub struct Normed<'a> {
    x: &'a [[f32; LANES]],
    scales: &'a [f32],
    weight: &'a [[f32; LANES]],
}

impl<'a> Normed<'a> {
    /// x: panels of `weight.len()` columns, a multiple of 16; scales: one of each token
    pub fn new(x: &'a [f32], scales: &'a [f32], weight: &'a [f32]) -> Self {
        assert_eq!(x.len(), weight.len() * scales.len());
        let (x, weight) = (vectors(x), vectors(weight));
        Self { x, scales, weight }
    }
}

#[allow(private_bounds, private_interfaces)]
impl PanelSource for Normed<'_> {
    fn num_panels(&self) -> usize {
        self.weight.len()
    }

    fn tokens(&self) -> usize {
        self.scales.len()
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, panel: usize, token: usize) -> S::F {
        let x = s.load(&self.x[panel * self.scales.len() + token]);
        s.mul(s.mul(x, s.splat(self.scales[token])), s.load(&self.weight[panel]))
    }
}

/// `(gate / (1 + exp(-gate))) * up` of each FFN unit, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a> {
    x: &'a [[f32; LANES]],
    places: &'a [GatedPanel],
    tokens: usize,
}

/// Which panels a gated one is made of.
#[derive(Clone, Copy, Debug)]
pub struct GatedPanel {
    gate: usize,
    up: usize,
}

impl GatedPanel {
    /// The panels of units whose gate and up follow each other.
    ///
    /// groups: row groups of each unit's gate, and of its up
    pub fn of_units(groups: impl Iterator<Item = usize>) -> Vec<Self> {
        let mut places = Vec::new();
        let mut first = 0;
        for groups in groups {
            places.extend((first..first + groups).map(|gate| Self {
                gate,
                up: gate + groups,
            }));
            first += 2 * groups;
        }
        places
    }
}

impl<'a> Gated<'a> {
    /// columns: panels that `places` are in, perhaps with more behind them
    pub fn new(columns: &'a [f32], places: &'a [GatedPanel], tokens: usize) -> Self {
        assert!(columns.len() >= 2 * places.len() * tokens * LANES);
        let x = vectors(columns);
        Self { x, places, tokens }
    }
}

#[allow(private_bounds, private_interfaces)]
impl PanelSource for Gated<'_> {
    fn num_panels(&self) -> usize {
        self.places.len()
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, panel: usize, token: usize) -> S::F {
        let GatedPanel { gate, up } = self.places[panel];
        let gate = s.load(&self.x[gate * self.tokens + token]);
        let up = s.load(&self.x[up * self.tokens + token]);
        silu_mul(s, gate, up)
    }
}

/// Rows of heads, which lie head by head and row by row. Panels are such heads, of 16 columns.
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    x: &'a [[f32; LANES]],
    /// Vectors of a row.
    width: usize,
    tokens: usize,
}

impl<'a> HeadRows<'a> {
    /// rows: `[heads][tokens][cols]`, cols a multiple of 16
    pub fn new(rows: &'a [f32], cols: usize, tokens: usize) -> Self {
        assert!(cols.is_multiple_of(LANES), "{cols} columns are not whole panels");
        let (x, width) = (vectors(rows), cols / LANES);
        assert!(x.len().is_multiple_of((width * tokens).max(1)));
        Self { x, width, tokens }
    }
}

#[allow(private_bounds, private_interfaces)]
impl PanelSource for HeadRows<'_> {
    fn num_panels(&self) -> usize {
        self.x.len().checked_div(self.tokens).unwrap_or(0)
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S, panel: usize, token: usize) -> S::F {
        let (head, at) = (panel / self.width, panel % self.width);
        s.load(&self.x[(head * self.tokens + token) * self.width + at])
    }
}

impl Kernels {
    /// Makes some of a source's panels, from `first_panel` on.
    ///
    /// out: `[panels][tokens][16]`
    pub fn store_panels(&self, source: impl PanelSource, first_panel: usize, out: &mut [f32]) {
        self.run(StorePanels {
            source,
            first_panel,
            out,
        });
    }
}

struct StorePanels<'a, P> {
    source: P,
    first_panel: usize,
    out: &'a mut [f32],
}

impl<P: PanelSource> Kernel for StorePanels<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tokens = self.source.tokens();
        let panels = vectors_mut(self.out).chunks_exact_mut(tokens.max(1));
        for (panel, out) in panels.enumerate() {
            for (token, out) in out.iter_mut().enumerate() {
                s.store(self.source.load(s, self.first_panel + panel, token), out);
            }
        }
    }
}
