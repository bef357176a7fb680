//! What sets one architecture apart from another. A forward pass is built from these answers; no architecture has its own.
//!
//! All here are decoders of the same kind: RMS norms before attention and FFN, rotary positions, grouped-query attention, a
//! gated SiLU FFN. To add one that is: a line in `ALL`.

/// How the rotated dimensions of a head are paired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RotatedPairs {
    /// Dimensions 2i and 2i + 1.
    Adjacent,
    /// Dimension i of the first half of the rotated ones with i of the second.
    Halves,
}

impl RotatedPairs {
    /// The dimension that comes `index`-th when pairs lie side by side, of a head whose first `rope_dim` are rotated.
    pub fn source(self, index: usize, rope_dim: usize) -> usize {
        match self {
            Self::Halves if index < rope_dim => index % 2 * (rope_dim / 2) + index / 2,
            _ => index,
        }
    }
}

/// Whether a checkpoint has a kind of tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    Never,
    /// As the file has it.
    Either,
    Always,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Architecture {
    /// GGUF's `general.architecture`, which its keys begin with.
    pub name: &'static str,
    /// Hugging Face's `model_type`s.
    pub model_types: &'static [&'static str],
    /// Biases of the q, k and v projections.
    pub qkv_bias: Presence,
    /// Biases of the output projection and of the FFN.
    pub other_bias: Presence,
    /// A norm over each head of q and of k.
    pub qk_norm: Presence,
    /// In GGUF files; Hugging Face's folders have halves.
    pub gguf_pairs: RotatedPairs,
}

impl Architecture {
    pub const ALL: [Self; 3] = [
        Self {
            name: "llama",
            model_types: &["llama", "mistral"],
            qkv_bias: Presence::Either,
            other_bias: Presence::Either,
            qk_norm: Presence::Never,
            gguf_pairs: RotatedPairs::Adjacent,
        },
        Self {
            name: "qwen2",
            model_types: &["qwen2"],
            qkv_bias: Presence::Always,
            other_bias: Presence::Never,
            qk_norm: Presence::Never,
            gguf_pairs: RotatedPairs::Halves,
        },
        Self {
            name: "qwen3",
            model_types: &["qwen3"],
            qkv_bias: Presence::Either,
            other_bias: Presence::Never,
            qk_norm: Presence::Always,
            gguf_pairs: RotatedPairs::Halves,
        },
    ];

    pub fn of_gguf(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|architecture| architecture.name == name)
    }

    pub fn of_model_type(model_type: &str) -> Option<&'static Self> {
        Self::all()
            .iter()
            .find(|architecture| architecture.model_types.contains(&model_type))
    }

    fn all() -> &'static [Self] {
        static ALL: [Architecture; 3] = Architecture::ALL;
        &ALL
    }

    /// All names, for messages that say what would work.
    pub fn supported() -> String {
        Self::ALL.map(|architecture| architecture.name).join(", ")
    }

    /// All of Hugging Face's names.
    pub fn supported_model_types() -> String {
        let types: Vec<_> = Self::all().iter().flat_map(|one| one.model_types).copied().collect();
        types.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_come_side_by_side() {
        let order = |pairs: RotatedPairs| (0..8).map(|i| pairs.source(i, 6)).collect::<Vec<_>>();
        assert_eq!(order(RotatedPairs::Halves), [0, 3, 1, 4, 2, 5, 6, 7]);
        assert_eq!(order(RotatedPairs::Adjacent), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn an_architecture_is_found_by_either_name() {
        assert_eq!(Architecture::of_model_type("mistral").unwrap().name, "llama");
        assert_eq!(Architecture::of_gguf("qwen3").unwrap().qk_norm, Presence::Always);
        assert_eq!(Architecture::of_gguf("mistral"), None);
    }
}
