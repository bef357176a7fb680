//! The names that GGUF files give to the ways of splitting text into words.
//!
//! Converters invent a name for each vocabulary; many mean the same. Names that are not here stay unsupported even
//! where another project splits them alike, because their models differ in other ways.

use crate::{
    TokenizerError,
    normalizer::Normalizer,
    word_splitter::{DIGIT, GPT_2, LLAMA_3, QWEN_2, QWEN_35, TEKKEN, WordSplitter},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PreTokenizer {
    Gpt2,
    Smollm,
    Llama3,
    Qwen2,
    Qwen35,
    Tekken,
    /// Of files from before there were names.
    Unnamed,
}

use PreTokenizer::*;

const NAMES: [(&str, PreTokenizer); 32] = [
    ("default", Unnamed),
    ("gpt-2", Gpt2),
    ("phi-2", Gpt2),
    ("gigachat", Gpt2),
    ("a.x-4.0", Gpt2),
    ("mellum", Gpt2),
    ("exaone4", Gpt2),
    ("smollm", Smollm),
    ("starcoder", Smollm),
    ("refact", Smollm),
    ("command-r", Smollm),
    ("codeshell", Smollm),
    ("exaone", Smollm),
    ("minerva-7b", Smollm),
    ("mellum2", Smollm),
    ("llama-bpe", Llama3),
    ("llama3", Llama3),
    ("llama-v3", Llama3),
    ("falcon3", Llama3),
    ("falcon-h1", Llama3),
    ("pixtral", Llama3),
    ("midm-2.0", Llama3),
    ("lfm2", Llama3),
    ("jina-v5-nano", Llama3),
    ("qwen2", Qwen2),
    ("deepseek-r1-qwen", Qwen2),
    ("kormo", Qwen2),
    ("f2llmv2", Qwen2),
    ("megrez", Qwen2),
    ("qwen35", Qwen35),
    ("tekken", Tekken),
    // What some converters wrote for "no name".
    ("", Unnamed),
];

impl PreTokenizer {
    /// `None` is a file that names none.
    pub(crate) fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let Some(name) = name else { return Ok(Unnamed) };
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, found)| *found)
            .ok_or_else(|| TokenizerError::PreTokenizer {
                name: name.to_owned(),
                supported: supported(),
            })
    }

    pub(crate) fn splitter(self) -> WordSplitter {
        match self {
            Unnamed => WordSplitter::of_unnamed_files(),
            Gpt2 => WordSplitter::new(&[GPT_2]),
            Smollm => WordSplitter::new(&[DIGIT, GPT_2]),
            Llama3 => WordSplitter::new(&[LLAMA_3]),
            Qwen2 => WordSplitter::new(&[QWEN_2]),
            Qwen35 => WordSplitter::new(&[QWEN_35]),
            Tekken => WordSplitter::new(&[TEKKEN]),
        }
    }

    pub(crate) fn normalizer(self) -> Normalizer {
        match self {
            Qwen2 | Qwen35 => Normalizer::Nfc,
            Gpt2 | Smollm | Llama3 | Tekken | Unnamed => Normalizer::Keep,
        }
    }

    /// A word that is a token is that token.
    pub(crate) fn ignores_merges(self) -> bool {
        matches!(self, Llama3 | Tekken)
    }

    /// What holds where a file does not say whether prompts begin with a token of their own.
    pub(crate) fn adds_bos(self) -> bool {
        matches!(self, Llama3 | Tekken)
    }
}

fn supported() -> String {
    let names = NAMES.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_what_is_known() {
        let error = PreTokenizer::named(Some("viking")).unwrap_err().to_string();
        assert!(error.starts_with("pre-tokenizer \"viking\" is not supported yet; supported: default, gpt-2, "));
        assert!(error.ends_with("qwen35, tekken"), "{error}");
    }

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<_> = NAMES.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }

    #[test]
    fn a_file_without_a_name_is_older_than_names() {
        assert_eq!(PreTokenizer::named(None).unwrap(), Unnamed);
        assert_eq!(PreTokenizer::named(Some("default")).unwrap(), Unnamed);
    }
}
