//! Messages to a prompt, by the Jinja template that a model file carries.
//!
//! Templates come from files that strangers made: they run with a fuel limit, which bounds time and memory, and reach
//! nothing but the messages, not even a clock. Settings are those of Hugging Face, where the templates are written.

use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value as Json};

use crate::{TokenizerError, TokenizerFiles, python_json, template_date, template_guard, tokenizer_files::parse};

const NAME: &str = "chat";
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// One unit of fuel is about an instruction or 64 bytes of text; real templates use tens per message.
const FUEL_BASE: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 1_000;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    #[error("the model file has no chat template (metadata \"tokenizer.chat_template\"); send a plain prompt instead")]
    Missing,
    #[error(
        "the model's folder has no chat template (chat_template.jinja, chat_template.json, or \"chat_template\" in tokenizer_config.json); send a plain prompt instead"
    )]
    NoneInFolder,
    #[error("the chat templates are named {found:?}, none of them \"default\"; send a plain prompt instead")]
    NoDefault { found: Vec<String> },
    #[error(transparent)]
    Files { source: TokenizerError },
    #[error("chat_template.jinja is not valid UTF-8")]
    NotUtf8,
    #[error("the chat template has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("cannot compile the chat template: {source}")]
    Compile { source: Error },
    /// The template itself objects to the messages: the client's mistake.
    #[error("the chat template refuses these messages: {message}")]
    Refused { message: String },
    #[error("the chat template does not end within {fuel} units of fuel")]
    OutOfFuel { fuel: u64 },
    #[error("cannot render the chat template: {source}")]
    Render { source: Error },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

impl ChatMessage {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Errors if `source` is not a template.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, ChatTemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(ChatTemplateError::TooLong {
                bytes: source.len(),
                bytes_max: SOURCE_BYTES_MAX,
            });
        }
        let environment = environment(source).map_err(|source| ChatTemplateError::Compile { source })?;
        Ok(Self {
            environment,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// The template in a model's folder: a file of its own goes before tokenizer_config.json, and of several the one
    /// named `default` counts. Errors if there is none.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self, ChatTemplateError> {
        let text = |role| files.special_text(role).map(Option::unwrap_or_default);
        let (bos_token, eos_token) = (text("bos_token")?, text("eos_token")?);
        Self::new(&source_in(files)?, &bos_token, &eos_token)
    }

    /// The prompt, with special tokens as text: encode it with `parse_special`. `add_generation_prompt` opens the
    /// assistant's turn.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatTemplateError> {
        let messages = messages.iter().map(message_value).collect();
        self.render_json(&messages, &Json::Null, &Map::new(), add_generation_prompt)
    }

    /// The same for messages with more than a role and a text (tool calls, their answers, parts), and with tools:
    /// a list of functions, or null. `arguments` are further variables; they replace none of the others.
    pub fn render_json(
        &self,
        messages: &Json,
        tools: &Json,
        arguments: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let arguments_bytes: u64 = arguments.values().map(text_bytes).sum();
        let fuel = FUEL_BASE + fuel(messages) + fuel(tools) + arguments_bytes;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment
            .get_template(NAME)
            .map_err(|source| ChatTemplateError::Compile { source })?;
        let rendered = template.render(context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            // Templates ask `tools is not none`, which is true of an undefined variable.
            tools => Value::from(Serde(tools)),
            documents => Value::from(()),
            ..Value::from(Serde(arguments))
        });
        rendered.map_err(|source| render_error(source, fuel))
    }
}

fn source_in(files: &TokenizerFiles) -> Result<String, ChatTemplateError> {
    if let Some(source) = &files.chat_template_jinja {
        return String::from_utf8(source.clone()).map_err(|_| ChatTemplateError::NotUtf8);
    }
    let json = parse("chat_template.json", files.chat_template_json.as_deref())?;
    let config = parse("tokenizer_config.json", files.tokenizer_config.as_deref())?;
    let found = [&json, &config].into_iter().find_map(|file| file.get("chat_template"));
    match found {
        Some(Json::String(source)) => Ok(source.clone()),
        Some(Json::Array(named)) => default_of(named),
        _ => Err(ChatTemplateError::NoneInFolder),
    }
}

fn default_of(named: &[Json]) -> Result<String, ChatTemplateError> {
    let text = |item: &Json, key: &str| item.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    match named.iter().find(|item| text(item, "name") == "default") {
        Some(item) => Ok(text(item, "template")),
        None => Err(ChatTemplateError::NoDefault {
            found: named.iter().map(|item| text(item, "name")).collect(),
        }),
    }
}

impl From<TokenizerError> for ChatTemplateError {
    fn from(source: TokenizerError) -> Self {
        Self::Files { source }
    }
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(template_guard::method);
    environment.add_filter(template_guard::BUILT, template_guard::built);
    environment.add_filter(template_guard::ATOM, template_guard::atom);
    environment.add_filter(template_guard::STORED, template_guard::stored);
    environment.add_filter("format", template_guard::format);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", template_date::strftime_now);
    environment.add_filter("tojson", python_json::to_json);
    // For people who debug; they write out whole values without a bound.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_template_owned(NAME, template_guard::guarded(source))?;
    Ok(environment)
}

fn message_value(message: &ChatMessage) -> Json {
    serde_json::json!({ "role": message.role, "content": message.content })
}

/// Long conversations may cost more, in proportion.
fn fuel(value: &Json) -> u64 {
    let length = value.as_array().map_or(0, Vec::len) as u64;
    FUEL_PER_MESSAGE * length + text_bytes(value)
}

fn text_bytes(value: &Json) -> u64 {
    match value {
        Json::String(text) => text.len() as u64,
        Json::Array(items) => items.iter().map(text_bytes).sum(),
        Json::Object(map) => map
            .iter()
            .map(|(key, value)| key.len() as u64 + text_bytes(value))
            .sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

/// What a template says when it does not like the messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

fn render_error(source: Error, fuel: u64) -> ChatTemplateError {
    if source.kind() == ErrorKind::OutOfFuel {
        return ChatTemplateError::OutOfFuel { fuel };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ChatTemplateError::Refused {
                message: message.clone(),
            };
        }
        cause = error.source();
    }
    ChatTemplateError::Render { source }
}

#[cfg(test)]
mod bounds;

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, ChatTemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages, true)
    }

    #[test]
    fn a_template_written_for_hugging_face_renders() {
        let source = "{{- bos_token }}\n{%- set ns = namespace(last=-1) %}\n{% for message in messages %}\n    \
            {% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}\n\
            {{ message.content.strip() ~ '|' ~ message['role'].title() }}{{ eos_token }}\n{% endfor %}\n\
            {% if tools is not none %}never{% endif %}\n\
            {% if add_generation_prompt %}{{ 'A' ~ ns.last }}{% endif %}\n";
        let messages = [ChatMessage::new("system", " be kind "), ChatMessage::new("user", "hi")];
        assert_eq!(
            render(source, &messages).unwrap(),
            "<s>be kind|System</s>\nhi|User</s>\nA1"
        );
    }

    #[test]
    fn text_is_not_escaped_and_not_executed() {
        let messages = [ChatMessage::new("user", "<b>&'\"{{ 1 + 1 }}</b>")];
        assert_eq!(
            render("{{ messages[0].content }}", &messages).unwrap(),
            messages[0].content
        );
    }

    #[test]
    fn what_the_template_objects_to_is_told_apart_from_its_faults() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(matches!(refused, ChatTemplateError::Refused { message } if message == "roles must alternate"));
        assert!(matches!(
            render("{{ messages[0].content.x.y }}", &[]),
            Err(ChatTemplateError::Render { .. })
        ));
        assert!(matches!(
            render("{% if %}", &[]),
            Err(ChatTemplateError::Compile { .. })
        ));
        let long = " ".repeat(SOURCE_BYTES_MAX + 1);
        assert!(matches!(render(&long, &[]), Err(ChatTemplateError::TooLong { .. })));
    }

    #[test]
    fn hostile_templates_end() {
        let loops = "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        let doubling = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
        let recursion = "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}";
        let product = "{{ 'x' * 99999999 }}";
        for source in [loops, doubling, recursion, product] {
            assert!(render(source, &[]).is_err(), "{source}");
        }
        let nested = "{{".to_owned() + &"(".repeat(100_000) + &")".repeat(100_000) + "}}";
        assert!(matches!(render(&nested, &[]), Err(ChatTemplateError::Compile { .. })));
    }

    #[test]
    fn a_format_with_keys_beyond_ascii_is_an_error() {
        for source in [
            "{{ '%(ké)s' | format(k=1) }}",
            "{{ 'é%(ü' | format }}",
            "{{ '{0[é]}'.format('x') }}",
        ] {
            let error = render(source, &[]).unwrap_err();
            assert!(matches!(error, ChatTemplateError::Render { .. }), "{source}: {error}");
        }
        let plain = "{{ 'é %(k)s' | format(k='ü') }} {{ 'é {} {}'.format('[', 'ü') }} {{ '%s é' | format('x') }}";
        assert_eq!(render(plain, &[]).unwrap(), "é ü é [ ü x é");
    }

    #[test]
    fn a_long_conversation_has_fuel_enough() {
        let source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}";
        let messages = vec![ChatMessage::new("user", "x".repeat(1000)); 5000];
        assert_eq!(render(source, &messages).unwrap().len(), 5000 * (12 + 4 + 1 + 1000));
    }

    #[test]
    fn tools_and_tool_calls_are_written_as_python_writes_them() {
        let source = "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}\
            {%- for m in messages[::-1] %}{%- if m.content is string %}{{ m.content[:2] }}{% endif %}\
            {%- for call in m.tool_calls %}{{ call.function.arguments | tojson(indent=1) }}{% endfor %}{% endfor %}\
            {{- strftime_now('%d %b %Y') }}";
        let messages = serde_json::json!([
            { "role": "assistant", "content": null,
              "tool_calls": [{ "function": { "name": "f", "arguments": { "z": 1, "a": "<é>" } } }] },
            { "role": "user", "content": "hello" },
        ]);
        let tools = serde_json::json!([{ "name": "f", "description": "a < b & 'c'\n", "list": [1, 2.5, true, null] }]);
        let template = ChatTemplate::new(source, "", "").unwrap();
        let expected = "{\"name\": \"f\", \"description\": \"a < b & 'c'\\n\", \"list\": [1, 2.5, true, null]}\n\
            he{\n \"z\": 1,\n \"a\": \"<é>\"\n}26 Jul 2024";
        assert_eq!(
            template.render_json(&messages, &tools, &Map::new(), true).unwrap(),
            expected
        );
    }

    #[test]
    fn sums_and_products_mean_what_they_did_before_they_were_guarded() {
        let source = "{% set n = namespace(t='', l=[]) %}{% for m in messages + messages %}{% set n.t = n.t + m.content ~ 1 + 1 %}\
            {% set n.l = n.l + [loop.index0 * 2 + 1] %}{% endfor %}{% set a, b = 3, '-' * 3 %}\
            {{ n.t }} {{ n.l[1] - 1 * a }} {{ b ~ a + 2 | string }} {{ 7 // 2 * 2 ** 2 }} {{ ('x', 'y')[1] }} {{ {'k': [1, 2]}.k[-1] }}";
        // Numbers are no text: the sum fails as it does in Python.
        assert!(render(source, &[ChatMessage::new("user", "m")]).is_err());
        let source = source
            .replace("~ 1 + 1", "~ 1 + '1'")
            .replace("b ~ a + 2 | string", "b ~ a + (2 | string)");
        let expected = "m11m11 0 ---32 12 y 2";
        assert_eq!(render(&source, &[ChatMessage::new("user", "m")]).unwrap(), expected);
    }

    #[test]
    fn a_folder_keeps_its_template_in_one_of_three_files() {
        let json = |text: &str| Some(text.as_bytes().to_vec());
        let mut files = TokenizerFiles {
            tokenizer_config: json(
                r#"{"bos_token": {"content": "<s>"}, "chat_template": [{"name": "tool_use", "template": "no"},
                    {"name": "default", "template": "config {{ bos_token }}{{ eos_token }}"}]}"#,
            ),
            special_tokens_map: json(r#"{"bos_token": "never", "eos_token": "</s>"}"#),
            ..TokenizerFiles::default()
        };
        let rendered = |files: &TokenizerFiles| ChatTemplate::from_files(files)?.render(&[], false);
        assert_eq!(rendered(&files).unwrap(), "config <s></s>");
        files.chat_template_json = json(r#"{"chat_template": "json"}"#);
        assert_eq!(rendered(&files).unwrap(), "json");
        files.chat_template_jinja = json("jinja");
        assert_eq!(rendered(&files).unwrap(), "jinja");
        files.chat_template_jinja = Some(vec![0xff]);
        assert!(matches!(rendered(&files), Err(ChatTemplateError::NotUtf8)));
        files.chat_template_jinja = None;
        files.chat_template_json = json(r#"{"chat_template": [{"name": "rag", "template": ""}]}"#);
        let error = rendered(&files).unwrap_err().to_string();
        assert!(
            error.starts_with("the chat templates are named [\"rag\"], none of them \"default\""),
            "{error}"
        );
        assert!(matches!(
            rendered(&TokenizerFiles::default()),
            Err(ChatTemplateError::NoneInFolder)
        ));
        files.chat_template_json = json("{");
        assert!(
            rendered(&files)
                .unwrap_err()
                .to_string()
                .starts_with("chat_template.json cannot be read: ")
        );
    }
}
