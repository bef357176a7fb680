//! The reference outputs on the default model: 6 prompts, 64 greedy tokens each, from another engine in f32.

use kvasir_kv::TokenId;

/// One prompt and what the other engine made of it. The end-of-sequence token is ignored there.
#[derive(Clone, Debug)]
pub struct Golden {
    pub prompt: Vec<TokenId>,
    pub output: Vec<TokenId>,
    /// Logit of the first token less that of the second, per position.
    pub margins: Vec<f64>,
    /// At the first position: token and logprob, best first.
    pub top: Vec<(TokenId, f64)>,
}

pub fn read_goldens() -> Vec<Golden> {
    let path = crate::data_folder().join("golden/smollm2-135m.json");
    let text = std::fs::read_to_string(path).expect("the golden file is checked in");
    let golden: serde_json::Value = serde_json::from_str(&text).expect("the golden file is JSON");
    golden["prompts"]
        .as_array()
        .expect("a list of prompts")
        .iter()
        .map(parse)
        .collect()
}

fn parse(prompt: &serde_json::Value) -> Golden {
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    let token = |value: &serde_json::Value| TokenId(value.as_u64().expect("a token") as u32);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let f32_run = &prompt["f32"];
    Golden {
        prompt: list(&prompt["prompt_ids"]).iter().map(token).collect(),
        output: list(&f32_run["output_ids"]).iter().map(token).collect(),
        margins: list(&f32_run["top1_top2_logit_margin"]).iter().map(number).collect(),
        top: list(&f32_run["first_pos_top5"])
            .iter()
            .map(|top| (token(&top["id"]), number(&top["logprob"])))
            .collect(),
    }
}
