//! Opens a checkpoint and uses everything in it.

use std::path::Path;

use kvasir_model::{ChatMessage, Checkpoint, CheckpointError, Metadata};

use crate::tokenizer_use;

const TEXT: &str = "The <|im_start|> and\u{7} 12  é🦀\r\n\tA\u{30a} it's";

/// A file or a folder that is refused has passed too.
pub fn use_all(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    for name in checkpoint.tensors().names() {
        let tensor = checkpoint.tensor(name)?;
        let mut row = vec![0.0; tensor.cols];
        tensor.dequantize_row(tensor.rows - 1, &mut row);
    }
    let spec = checkpoint.spec();
    let roles = [spec.bos_token, spec.eos_token, spec.eot_token].into_iter().flatten();
    for token in roles.chain(spec.end_tokens.iter().copied()) {
        assert!(token.0 < spec.vocab_size, "{token:?} of {}", spec.vocab_size);
    }
    checkpoint.content_hash();
    if let Some(metadata) = checkpoint.metadata() {
        read_all(&metadata);
    }
    if let Ok(template) = checkpoint.chat_template() {
        let _ = template.render(&[ChatMessage::new("user", "hi")], true);
    }
    if let Ok(tokenizer) = checkpoint.tokenizer() {
        tokenizer_use::use_all(tokenizer, TEXT);
    }
    Ok(())
}

fn read_all(metadata: &Metadata<'_>) {
    for key in metadata.keys() {
        let _ = (
            metadata.get(key),
            metadata.u32(key),
            metadata.str(key),
            metadata.bool(key),
        );
        let _ = metadata.strings(key).map(|strings| strings.map(Iterator::count));
        let _ = metadata.integers(key).map(|integers| integers.map(Iterator::count));
        let _ = metadata.floats(key).map(|floats| floats.map(Iterator::count));
    }
}
