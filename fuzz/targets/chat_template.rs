//! A chat template and the messages that it renders: it ends, in bounded time and memory.
//!
//! The sections of an input are the template, the messages and the tools, both JSON. Messages that are no JSON are one
//! message with that text.

#![no_main]

use kvasir_fuzz::{memory, sections::sections};
use kvasir_model::ChatTemplate;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// What fuel lets a template write, and a message more.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

fuzz_target!(|input: &[u8]| {
    let [source, messages, tools] = sections(input);
    let messages = serde_json::from_slice(messages).unwrap_or_else(|_| user_message(messages));
    let tools = serde_json::from_slice(tools).unwrap_or(Value::Null);
    memory::bounded(input.len(), || {
        let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(source), "<s>", "</s>") else {
            return;
        };
        for add_generation_prompt in [true, false] {
            if let Ok(prompt) = template.render_json(&messages, &tools, &Default::default(), add_generation_prompt) {
                assert!(prompt.len() <= OUTPUT_BYTES_MAX, "a prompt of {} bytes", prompt.len());
            }
        }
    });
});

fn user_message(text: &[u8]) -> Value {
    json!([{ "role": "user", "content": String::from_utf8_lossy(text) }])
}
