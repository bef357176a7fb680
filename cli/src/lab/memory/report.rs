//! All that is computed, as one JSON object, from which tables are printed too. Units are in the names.

use anyhow::Result;
use kvasir_kv::KvDtype;
use serde::Serialize;

use super::{
    Question,
    attention::{Attention, Variant},
    fit::{Fit, FitQuestion},
    gpus::MemoryClass,
    kv_cost::KvCost,
    model_sizes::ModelSizes,
};

#[derive(Debug, Serialize)]
pub struct Report {
    pub kvasir_version: &'static str,
    pub block_size_tokens: u32,
    /// Of each GPU, left aside.
    pub reserve_percent: f64,
    pub models: Vec<ModelReport>,
}

#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub model: String,
    pub source: String,
    pub parameters: u64,
    pub weights_stored_as: String,
    pub weight_bytes: u64,
    pub num_layers: u32,
    pub hidden_size: u32,
    pub num_q_heads: u32,
    /// `null` of a latent and of factors.
    pub num_kv_heads: Option<u32>,
    pub vocab_size: u32,
    /// What it was trained for.
    pub context_tokens: u32,
    pub kv: Vec<VariantReport>,
    /// Of the published variant, in the first dtype that can store it.
    pub fits_kv_dtype: Option<String>,
    /// `cells` or `analytic`.
    pub fits_basis: Option<&'static str>,
    pub fits: Vec<Fit>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct VariantReport {
    pub variant: String,
    pub published: bool,
    /// `cells` or `analytic`.
    pub basis: &'static str,
    pub num_kv_heads: Option<u32>,
    /// Of the dtypes that were asked for, those that can store it.
    pub by_dtype: Vec<KvReport>,
}

#[derive(Debug, Serialize)]
pub struct KvReport {
    pub kv_dtype: String,
    pub bytes_per_token: u64,
    pub by_context: Vec<RequestReport>,
    pub by_ranks: Vec<RankReport>,
}

/// One request, in whole blocks.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RequestReport {
    pub context_tokens: u32,
    pub allocated_tokens: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct RankReport {
    pub ranks: u32,
    /// On the rank that holds most.
    pub largest_rank_bytes_per_token: u64,
    /// `null` where an engine that wants equal heads on every rank does not start.
    pub replicating_rank_bytes_per_token: Option<u64>,
}

impl Report {
    pub fn new(question: &Question) -> Result<Self> {
        let models = question.models.iter().map(|model| ModelReport::new(model, question));
        Ok(Self {
            kvasir_version: env!("CARGO_PKG_VERSION"),
            block_size_tokens: question.block_size,
            reserve_percent: question.reserve_percent,
            models: models.collect::<Result<_>>()?,
        })
    }
}

impl ModelReport {
    fn new(model: &ModelSizes, question: &Question) -> Result<Self> {
        let contexts = question.contexts_of(model);
        let variant = |variant: Variant| VariantReport::new(variant, model, question, &contexts);
        let mut notes = model.notes.clone();
        let mut stored = None;
        for &dtype in &question.kv_dtypes {
            match KvCost::new(model.attention, model.num_layers, question.block_size, dtype) {
                Ok(cost) => stored = stored.or(Some((dtype, cost))),
                Err(error) => notes.push(error.to_string()),
            }
        }
        let too_long = question.contexts.iter().find(|&&context| context > model.context_len);
        if let Some(long) = too_long.filter(|_| question.contexts_given) {
            let trained = model.context_len;
            notes.push(format!(
                "{long} tokens are more than the {trained} that it was trained for: left out"
            ));
        }
        Ok(Self {
            model: model.name.clone(),
            source: model.source.clone(),
            parameters: model.parameters,
            weights_stored_as: model.weights.stored_as.clone(),
            weight_bytes: model.weights.bytes,
            num_layers: model.num_layers,
            hidden_size: model.hidden_size,
            num_q_heads: model.attention.num_q_heads(),
            num_kv_heads: model.attention.num_kv_heads(),
            vocab_size: model.vocab_size,
            context_tokens: model.context_len,
            kv: model.attention.variants().into_iter().map(variant).collect(),
            fits_kv_dtype: stored.map(|(dtype, _)| dtype.to_string()),
            fits_basis: stored.map(|_| model.attention.basis()),
            fits: stored.map_or_else(Vec::new, |(_, cost)| fits(model, cost, question, &contexts)),
            notes,
        })
    }

    /// Of the requests that are reported.
    pub fn contexts(&self) -> Vec<u32> {
        let requests = self.published().and_then(|variant| variant.by_dtype.first());
        let requests = requests.map_or(&[][..], |kv| &kv.by_context);
        requests.iter().map(|request| request.context_tokens).collect()
    }

    pub fn fits_on(&self, class: &MemoryClass) -> impl Iterator<Item = &Fit> {
        let of_class = |fit: &&Fit| fit.label == class.label && fit.memory_bytes == class.memory_bytes;
        self.fits.iter().filter(of_class)
    }

    pub fn published(&self) -> Option<&VariantReport> {
        self.kv.iter().find(|variant| variant.published)
    }
}

/// On the fewest of each kind of GPU, and on the numbers of ranks that were asked for.
fn fits(model: &ModelSizes, cost: KvCost, question: &Question, contexts: &[u32]) -> Vec<Fit> {
    let ask = FitQuestion {
        model,
        cost,
        reserve_percent: question.reserve_percent,
        contexts,
    };
    let of_class = |class| {
        let fewest = ask.on_fewest(class);
        let known = fewest.as_ref().map(|fit| fit.ranks);
        let others = question.ranks.iter().filter(move |&&ranks| Some(ranks) != known);
        let mut fits: Vec<Fit> = others.map(|&ranks| ask.on(class, ranks)).chain(fewest).collect();
        fits.sort_by_key(|fit| fit.ranks);
        fits
    };
    question.gpus.iter().flat_map(of_class).collect()
}

impl VariantReport {
    fn new(variant: Variant, model: &ModelSizes, question: &Question, contexts: &[u32]) -> Self {
        let Variant { attention, published } = variant;
        let by_dtype = |&dtype: &KvDtype| KvReport::new(attention, dtype, model, question, contexts);
        Self {
            variant: attention.label(),
            published,
            basis: attention.basis(),
            num_kv_heads: attention.num_kv_heads(),
            by_dtype: question.kv_dtypes.iter().filter_map(by_dtype).collect(),
        }
    }

    /// In this dtype, if it can be stored so.
    pub fn in_dtype(&self, dtype: KvDtype) -> Option<&KvReport> {
        self.by_dtype.iter().find(|kv| kv.kv_dtype == dtype.name())
    }
}

impl KvReport {
    /// `None` if the dtype cannot store it: the block size was checked before.
    fn new(
        attention: Attention,
        dtype: KvDtype,
        model: &ModelSizes,
        question: &Question,
        contexts: &[u32],
    ) -> Option<Self> {
        let cost = KvCost::new(attention, model.num_layers, question.block_size, dtype).ok()?;
        let request = |&context_tokens: &u32| RequestReport {
            context_tokens,
            allocated_tokens: cost.allocated_tokens(context_tokens),
            bytes: cost.request_bytes(context_tokens),
        };
        let rank = |&ranks: &u32| RankReport {
            ranks,
            largest_rank_bytes_per_token: cost.largest_rank_token_bytes(ranks),
            replicating_rank_bytes_per_token: cost.replicating_token_bytes(ranks),
        };
        Some(Self {
            kv_dtype: dtype.to_string(),
            bytes_per_token: cost.token_bytes(),
            by_context: contexts.iter().map(request).collect(),
            by_ranks: question.ranks.iter().map(rank).collect(),
        })
    }

    pub fn request(&self, context: u32) -> Option<&RequestReport> {
        self.by_context.iter().find(|request| request.context_tokens == context)
    }
}
