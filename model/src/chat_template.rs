//! Messages to a prompt, by the Jinja template that a model file carries.
//!
//! Templates come from files that strangers made: they run with a fuel limit, which bounds time and memory, and reach
//! nothing but the messages. Settings are those of Hugging Face, where the templates are written.

use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig};

const NAME: &str = "chat";
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// One unit of fuel is about an instruction or 64 bytes of text; real templates use tens per message.
const FUEL_BASE: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 1_000;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    #[error("the model file has no chat template (metadata \"tokenizer.chat_template\"); send a plain prompt instead")]
    Missing,
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

    /// The prompt, with special tokens as text: encode it with `parse_special`. `add_generation_prompt` opens the
    /// assistant's turn.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatTemplateError> {
        let fuel = fuel(messages);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment
            .get_template(NAME)
            .map_err(|source| ChatTemplateError::Compile { source })?;
        let rendered = template.render(context! {
            messages => messages.iter().map(message_value).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            // Templates ask `tools is not none`, which is true of an undefined variable.
            tools => Value::from(()),
            documents => Value::from(()),
        });
        rendered.map_err(|source| render_error(source, fuel))
    }
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

fn message_value(message: &ChatMessage) -> Value {
    context! { role => message.role.as_str(), content => message.content.as_str() }
}

/// Long conversations may cost more, in proportion.
fn fuel(messages: &[ChatMessage]) -> u64 {
    let bytes: usize = messages
        .iter()
        .map(|message| message.role.len() + message.content.len())
        .sum();
    FUEL_BASE + FUEL_PER_MESSAGE * messages.len() as u64 + bytes as u64
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
    fn a_long_conversation_has_fuel_enough() {
        let source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}";
        let messages = vec![ChatMessage::new("user", "x".repeat(1000)); 5000];
        assert_eq!(render(source, &messages).unwrap().len(), 5000 * (12 + 4 + 1 + 1000));
    }
}
