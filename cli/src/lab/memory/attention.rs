//! What an attention keeps of every token: heads of K and V, a latent, or factors.
//!
//! Only grouped heads have cells in Kvasir; what is said of the others is their papers' arithmetic.

use kvasir_kv::HeadLayout;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    /// Each KV head serves a group of G query heads; G = 1 is multi-head attention, one KV head multi-query attention.
    Grouped(HeadLayout),
    /// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1, and table 1 for what is cached): a token
    /// keeps one latent of d_c for K and V of all heads, and one rotated key of d_h^R that they share.
    Latent {
        num_q_heads: u32,
        /// d_h, of the values: what the heads would have to keep without a latent.
        head_dim: u32,
        /// d_c, `kv_lora_rank`.
        latent_dim: u32,
        /// d_h^R, `qk_rope_head_dim`.
        rope_dim: u32,
    },
    /// Tensor product attention (arXiv:2501.06425): K of all heads is a sum of R_K outer products of a factor over heads
    /// and a factor over dimensions, V one of R_V; the factors are cached.
    TensorProduct {
        num_q_heads: u32,
        head_dim: u32,
        /// R_K.
        k_rank: u32,
        /// R_V.
        v_rank: u32,
    },
}

/// R_K and R_V of the models in the paper on tensor product attention.
const TPA_RANK: u32 = 2;

/// One attention that a model could have with the same query heads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variant {
    pub attention: Attention,
    /// The model has it.
    pub published: bool,
}

impl Attention {
    pub fn num_q_heads(&self) -> u32 {
        match self {
            Self::Grouped(heads) => heads.num_q_heads(),
            Self::Latent { num_q_heads, .. } | Self::TensorProduct { num_q_heads, .. } => *num_q_heads,
        }
    }

    fn head_dim(&self) -> u32 {
        match self {
            Self::Grouped(heads) => heads.head_dim(),
            Self::Latent { head_dim, .. } | Self::TensorProduct { head_dim, .. } => *head_dim,
        }
    }

    /// None of a latent and of factors.
    pub fn num_kv_heads(&self) -> Option<u32> {
        match self {
            Self::Grouped(heads) => Some(heads.num_kv_heads()),
            Self::Latent { .. } | Self::TensorProduct { .. } => None,
        }
    }

    /// Elements that a token keeps in each layer: `2 H_kv d_h`, `d_c + d_h^R` or `(R_K + R_V)(h + d_h)`.
    pub fn elements(&self) -> u64 {
        let wide = u64::from;
        match *self {
            Self::Grouped(heads) => 2 * wide(heads.num_kv_heads()) * wide(heads.head_dim()),
            Self::Latent {
                latent_dim, rope_dim, ..
            } => wide(latent_dim) + wide(rope_dim),
            Self::TensorProduct {
                num_q_heads,
                head_dim,
                k_rank,
                v_rank,
            } => (wide(k_rank) + wide(v_rank)) * (wide(num_q_heads) + wide(head_dim)),
        }
    }

    pub fn label(&self) -> String {
        match self {
            Self::Grouped(heads) if heads.group_size() == 1 => "MHA".to_owned(),
            Self::Grouped(heads) if heads.num_kv_heads() == 1 => "MQA".to_owned(),
            Self::Grouped(heads) => format!("GQA G={}", heads.group_size()),
            Self::Latent {
                latent_dim, rope_dim, ..
            } => format!("MLA {latent_dim}+{rope_dim}"),
            Self::TensorProduct { k_rank, v_rank, .. } => format!("TPA R={k_rank}+{v_rank}"),
        }
    }

    /// `cells`: bytes that Kvasir allocates. `analytic`: a formula; Kvasir has no such cells yet.
    pub fn basis(&self) -> &'static str {
        match self {
            Self::Grouped(_) => "cells",
            Self::Latent { .. } | Self::TensorProduct { .. } => "analytic",
        }
    }

    /// This attention, and beside it every group size that divides the query heads, a latent and factors.
    pub fn variants(self) -> Vec<Variant> {
        let (num_q_heads, head_dim) = (self.num_q_heads(), self.head_dim());
        let group_sizes = (1..=num_q_heads).filter(|group_size| num_q_heads.is_multiple_of(*group_size));
        let grouped = group_sizes
            .filter_map(|group_size| HeadLayout::new(num_q_heads, num_q_heads / group_size, head_dim).ok())
            .map(Self::Grouped);
        let mut attentions: Vec<Self> = grouped
            .chain([
                Self::latent_for(num_q_heads, head_dim),
                Self::factors_for(num_q_heads, head_dim),
            ])
            .collect();
        if !attentions.contains(&self) {
            attentions.push(self);
        }
        let variant = |attention| Variant {
            attention,
            published: attention == self,
        };
        attentions.into_iter().map(variant).collect()
    }

    /// As DeepSeek-V2 chose for its heads: d_c = 4 d_h, d_h^R = d_h / 2.
    fn latent_for(num_q_heads: u32, head_dim: u32) -> Self {
        Self::Latent {
            num_q_heads,
            head_dim,
            latent_dim: 4 * head_dim,
            rope_dim: head_dim / 2,
        }
    }

    fn factors_for(num_q_heads: u32, head_dim: u32) -> Self {
        Self::TensorProduct {
            num_q_heads,
            head_dim,
            k_rank: TPA_RANK,
            v_rank: TPA_RANK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped(num_q_heads: u32, num_kv_heads: u32) -> Attention {
        Attention::Grouped(HeadLayout::new(num_q_heads, num_kv_heads, 128).unwrap())
    }

    #[test]
    fn every_group_size_that_divides_is_compared_and_one_is_published() {
        let variants = grouped(28, 4).variants();
        let labels: Vec<String> = variants.iter().map(|variant| variant.attention.label()).collect();
        let expected = [
            "MHA",
            "GQA G=2",
            "GQA G=4",
            "GQA G=7",
            "GQA G=14",
            "MQA",
            "MLA 512+64",
            "TPA R=2+2",
        ];
        assert_eq!(labels, expected);
        let published: Vec<bool> = variants.iter().map(|variant| variant.published).collect();
        assert_eq!(published, [false, false, false, true, false, false, false, false]);
    }

    /// Table 1 of the paper: a latent of these sizes is what grouped attention of 2.25 groups keeps.
    #[test]
    fn a_latent_keeps_what_two_and_a_quarter_groups_keep() {
        let latent = Attention::latent_for(128, 128);
        assert_eq!(4 * latent.elements(), 9 * grouped(128, 1).elements());
    }

    #[test]
    fn a_model_of_factors_is_its_own_published_variant() {
        let factors = Attention::factors_for(78, 64);
        assert_eq!(factors.elements(), 4 * (78 + 64));
        let published: Vec<Attention> = factors
            .variants()
            .iter()
            .filter(|variant| variant.published)
            .map(|variant| variant.attention)
            .collect();
        assert_eq!(published, [factors]);
    }
}
