//! What the template library's fuel does not pay for: values that hold other values many times.
//!
//! A list of twice the same list costs two slots, and thirty such steps make a list that would be a billion items
//! when written out. The library pays for writing after the fact, and for nested sums of lists not at all. So a
//! template is changed before it is compiled: what is built (a list, a map, a sum of lists) passes a filter that
//! charges for all it holds, however often; `~` and `*` refuse lists and maps, which no published template gives them.

use minijinja::{
    Error, ErrorKind, State, Value, filters,
    value::{Rest, ValueKind, ValueOrKwargs},
};
use minijinja_contrib::pycompat;

/// Names that templates do not use.
pub(crate) const BUILT: &str = "kvasir_built";
pub(crate) const ATOM: &str = "kvasir_atom";
pub(crate) const STORED: &str = "kvasir_stored";
const BYTES_PER_FUEL: usize = 64;
const DEPTH_MAX: usize = 64;
/// Functions whose results hold their arguments.
const BUILDERS: [&str; 3] = ["dict", "namespace", "zip"];

/// The filter behind what is built.
pub(crate) fn built(state: &State, value: Value) -> Result<Value, Error> {
    let mut pending = vec![(value.clone(), 0)];
    while let Some((value, depth)) = pending.pop() {
        let text_len = value.as_str().map_or(0, str::len);
        state.consume_fuel(1 + (text_len / BYTES_PER_FUEL) as u64)?;
        if !is_container(&value) {
            continue;
        }
        if depth > 0 && is_namespace(&value) {
            return Err(nested_namespace());
        }
        if depth == DEPTH_MAX {
            let reason = format!("values in a chat template may be nested {DEPTH_MAX} deep, not deeper");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            state.consume_fuel(1)?;
            if is_map {
                pending.push((value.get_item(&item)?, depth + 1));
            }
            pending.push((item, depth + 1));
        }
    }
    Ok(value)
}

/// The filter around what an attribute is set to: a namespace that held itself would have no end.
pub(crate) fn stored(value: Value) -> Result<Value, Error> {
    if is_namespace(&value) {
        return Err(nested_namespace());
    }
    Ok(value)
}

/// The filter around what must be neither a list nor a map.
pub(crate) fn atom(value: Value) -> Result<Value, Error> {
    if is_container(&value) {
        let reason = "~ and * do not take a list or a map in chat templates; write it with tojson or join";
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok(value)
}

fn is_namespace(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("Namespace"))
}

fn nested_namespace() -> Error {
    let reason = "a namespace cannot be part of another value in chat templates";
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Whether a value holds others.
pub(crate) fn is_container(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Plain
    )
}

/// Printf-style formatting.
pub(crate) fn format(state: &mut State, text: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    check_keys(text, "%(")?;
    filters::format(state, text, arguments)
}

/// Refuses keys with letters beyond ASCII: the library walks through keys by bytes and panics inside of such a letter.
fn check_keys(text: &Value, start_of_key: &str) -> Result<(), Error> {
    let text = text.as_str().unwrap_or_default();
    match text.find(start_of_key).filter(|start| !text[*start..].is_ascii()) {
        Some(start) => {
            let reason = format!(
                "format with keys takes only ASCII from the first key on in chat templates, found {:?}",
                &text[start..]
            );
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
        None => Ok(()),
    }
}

/// Python's methods. `format` with anything but plain places is refused: a width is an allocation.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let is_wide = name == "format" && value.as_str().is_some_and(|text| text.contains(':'));
    if is_wide {
        let reason = "format with a format specification is not supported in chat templates; supported: \"{}\"";
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    if name == "format" {
        check_keys(value, "[")?;
    }
    pycompat::unknown_method_callback(state, value, name, arguments)
}

/// The template with these filters behind brackets and around operands.
pub(crate) fn guarded(source: &str) -> String {
    let mut output = String::with_capacity(source.len() + source.len() / 8);
    let mut rest = source;
    while let Some(start) = rest.find("{").filter(|start| rest.len() > start + 1) {
        let (text, tag) = rest.split_at(start);
        output.push_str(text);
        let len = match tag.as_bytes()[1] {
            b'#' => tag.find("#}").map_or(tag.len(), |end| end + 2),
            b'%' | b'{' => {
                let len = tag_len(tag);
                if is_raw(&tag[..len]) {
                    raw_len(tag, len)
                } else {
                    guard_sums(&tag[..len], &mut output);
                    rest = &tag[len..];
                    continue;
                }
            }
            _ => 1,
        };
        output.push_str(&tag[..len]);
        rest = &tag[len..];
    }
    output.push_str(rest);
    output
}

/// Up to the end of `tag`'s delimiters, which may stand in strings.
fn tag_len(tag: &str) -> usize {
    let end = if tag.starts_with("{{") { "}}" } else { "%}" };
    let mut depth = 0usize;
    let mut i = 2;
    while i < tag.len() {
        let rest = &tag[i..];
        // An inner map's brace comes before the tag's.
        if depth == 0 && rest.starts_with(end) {
            return i + 2;
        }
        match rest.as_bytes()[0] {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += token_len(rest);
    }
    tag.len()
}

fn is_raw(tag: &str) -> bool {
    let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
    tag.starts_with("{%") && inner.trim_matches(['-', '+']).trim() == "raw"
}

/// A raw block, up to the tag that ends it.
fn raw_len(block: &str, opening_len: usize) -> usize {
    let mut from = opening_len;
    while let Some(start) = block[from..].find("{%").map(|start| from + start) {
        let inner = block[start + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner.starts_with("endraw") {
            return start;
        }
        from = start + 2;
    }
    block.len()
}

/// Bytes of the string, or the character, that `rest` begins with.
fn token_len(rest: &str) -> usize {
    let first = rest.chars().next().expect("callers stop at the end");
    if first != '\'' && first != '"' {
        return first.len_utf8();
    }
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == first => return i + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Copies a tag.
fn guard_sums(tag: &str, output: &mut String) {
    Guard::new(tag, output).run();
}

/// What is done when a bracket or a right side ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Nothing,
    /// A filter behind a bracket.
    Filter,
    /// The same, and the end of what was opened before the bracket: so that what follows has it all.
    FilterAndParenthesis,
}

/// A right side that has not ended.
struct Side {
    depth: usize,
    filter: &'static str,
    /// Ends where its tag ends.
    is_whole: bool,
}

struct Guard<'t, 'o> {
    tag: &'t str,
    output: &'o mut String,
    /// For each open bracket.
    brackets: Vec<Closing>,
    sides: Vec<Side>,
    /// Names that a tag gives values to stand before its expression.
    in_expression: bool,
    starts_at_equals: bool,
    sets_attribute: bool,
    /// The parentheses of a macro's parameters are not built.
    has_parameters: bool,
    /// The word before, and the one before that.
    words: [&'t str; 2],
    last: char,
    /// What stood before the last word.
    before_word: char,
}

impl<'t, 'o> Guard<'t, 'o> {
    fn new(tag: &'t str, output: &'o mut String) -> Self {
        let statement = tag
            .strip_prefix("{%")
            .map(|inner| inner.trim_start_matches(['-', '+']).trim_start());
        let word = statement.map_or("", |inner| &inner[..word_len(inner).unwrap_or(0)]);
        Self {
            tag,
            output,
            brackets: Vec::new(),
            sides: Vec::new(),
            in_expression: !matches!(word, "for" | "set"),
            starts_at_equals: word == "set",
            sets_attribute: statement.is_some_and(sets_attribute),
            has_parameters: matches!(word, "macro" | "call"),
            words: [""; 2],
            last: ' ',
            before_word: ' ',
        }
    }

    fn run(mut self) {
        self.output.push_str(&self.tag[..2]);
        let mut i = 2;
        // `{%+` is not a sum.
        if let Some(sign @ (b'+' | b'-')) = self.tag.as_bytes().get(2) {
            self.output.push(char::from(*sign));
            i += 1;
        }
        while i < self.tag.len() {
            let rest = &self.tag[i..];
            let is_end = matches!(rest, "}}" | "%}" | "-}}" | "-%}" | "+%}" | "+}}");
            self.close_sides(i, is_end);
            if is_end {
                self.output.push_str(rest);
                return;
            }
            i += self.token(rest);
        }
    }

    fn close_sides(&mut self, i: usize, is_end: bool) {
        let closes = self.tag[i..].starts_with([')', ']', '}']);
        let depth = self.brackets.len();
        let ends = is_end || closes || ends_side(self.tag, i);
        while let Some(side) = self
            .sides
            .pop_if(|side| is_end || (side.depth == depth && ends && !side.is_whole))
        {
            self.output.push_str(")|");
            self.output.push_str(side.filter);
            self.output.push(' ');
        }
    }

    /// Copies one token; returns its length.
    fn token(&mut self, rest: &'t str) -> usize {
        if let Some(len) = word_len(rest) {
            self.word(&rest[..len], rest[len..].starts_with('('));
            return len;
        }
        let len = if rest.starts_with("**") || rest.starts_with("==") {
            2
        } else {
            token_len(rest)
        };
        let first = rest.as_bytes()[0];
        let is_operand = self.is_operand();
        // A star that nothing stands before is none of a product.
        let joins = matches!(&rest[..len], "~" | "*") && self.in_expression && !is_operand;
        if joins {
            self.filter(ATOM);
        }
        let sets =
            first == b'=' && len == 1 && self.brackets.is_empty() && self.starts_at_equals && !self.in_expression;
        if is_operand && self.in_expression && matches!(first, b'(' | b'[' | b'{') && !self.is_parameters() {
            self.output.push('(');
        }
        self.output.push_str(&rest[..len]);
        match &rest[..len] {
            "(" | "[" | "{" => self.open(&rest[..len], is_operand),
            ")" | "]" | "}" => self.close(),
            "+" => self.open_side(BUILT, false),
            "=" if sets => self.open_value(&rest[1..]),
            _ if joins => self.open_side(ATOM, false),
            _ => {}
        }
        if !rest[..len].trim().is_empty() {
            self.last = rest[..len].chars().next_back().unwrap_or(' ');
        }
        len
    }

    fn word(&mut self, word: &'t str, is_called: bool) {
        self.before_word = self.last;
        if is_called && self.in_expression && self.is_builder(word) {
            self.output.push('(');
        }
        self.output.push_str(word);
        self.in_expression |= word == "in" && self.brackets.is_empty();
        self.words = [self.words[1], word];
        self.last = 'w';
    }

    /// Whether a value may begin here.
    fn is_operand(&self) -> bool {
        match self.last {
            'w' => is_keyword(self.words[1]),
            c => !matches!(c, ')' | ']' | '}' | '\'' | '"'),
        }
    }

    fn open(&mut self, bracket: &str, is_operand: bool) {
        let is_call = bracket == "(" && self.last == 'w' && !is_keyword(self.words[1]);
        let is_value = is_operand && !self.is_parameters();
        self.brackets.push(match self.in_expression {
            true if is_value || (is_call && self.is_builder(self.words[1])) => Closing::FilterAndParenthesis,
            // Filters may repeat an argument: `map(attribute='a', default=x)`.
            true if is_call && self.before_word == '|' => Closing::Filter,
            _ => Closing::Nothing,
        });
    }

    fn close(&mut self) {
        match self.brackets.pop() {
            Some(Closing::Filter) => self.filter(BUILT),
            Some(Closing::FilterAndParenthesis) => {
                self.filter(BUILT);
                self.output.push(')');
            }
            Some(Closing::Nothing) | None => {}
        }
    }

    /// The first parentheses of a macro hold names.
    fn is_parameters(&self) -> bool {
        self.has_parameters && self.brackets.is_empty()
    }

    fn is_builder(&self, word: &str) -> bool {
        BUILDERS.contains(&word) && !matches!(self.before_word, '.' | '|')
    }

    /// The right side of `set x =`.
    fn open_value(&mut self, value: &str) {
        self.in_expression = true;
        if self.sets_attribute {
            self.open_side(STORED, true);
        }
        // Perhaps a list without brackets.
        if value.contains(',') {
            self.open_side(BUILT, true);
        }
    }

    fn open_side(&mut self, filter: &'static str, is_whole: bool) {
        self.output.push('(');
        let depth = self.brackets.len();
        self.sides.push(Side {
            depth,
            filter,
            is_whole,
        });
    }

    fn filter(&mut self, name: &str) {
        self.output.push('|');
        self.output.push_str(name);
        self.output.push(' ');
    }
}

/// Whether a statement sets an attribute: `set n.x = …`.
fn sets_attribute(statement: &str) -> bool {
    let target = statement.strip_prefix("set").and_then(|rest| rest.split('=').next());
    target.is_some_and(|target| target.contains('.'))
}

/// Words that a value may follow.
fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "and" | "or" | "not" | "in" | "is" | "if" | "elif" | "else" | "set" | "for" | "do" | "with"
    )
}

/// Whether what stands at `i` cannot be part of a product.
fn ends_side(tag: &str, i: usize) -> bool {
    let rest = &tag[i..];
    if rest.starts_with([',', '+', '-', '~', '*', '/', '%', '<', '>', ':'])
        || rest.starts_with("==")
        || rest.starts_with("!=")
    {
        return !(rest.starts_with('-') && is_sign(tag, i));
    }
    let word = &rest[..word_len(rest).unwrap_or(0)];
    matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "else" | "recursive")
}

/// A minus that has nothing on its left.
fn is_sign(tag: &str, i: usize) -> bool {
    tag[..i].trim_end().ends_with(['+', '-', '*', '/', '%', '('])
}

/// A name or number at the beginning of `rest`.
fn word_len(rest: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    (len > 0).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_and_joined_is_guarded_and_nothing_else() {
        for (source, expected) in [
            ("a + b {{ 'x + y' }} {# a + b #}", "a + b {{ 'x + y' }} {# a + b #}"),
            ("{{ a + b }}", "{{ a +( b )|B }}"),
            ("{{ a+b+c -}}", "{{ a+(b)|B +(c )|B -}}"),
            (
                "{%+ set x = a[1] + b.c(e) ~ g %}",
                "{%+ set x = a[1] +( b.c(e) )|B |A ~( g )|A %}",
            ),
            (
                "{{ f(a + b) + {'k': [1]} }}",
                "{{ f(a +( b)|B ) +( ({'k': ([1]|B )}|B ) )|B }}",
            ),
            (
                "{% if a + b in (c, d) and e %}",
                "{% if a +( b )|B in ((c, d)|B ) and e %}",
            ),
            (
                "{{ 'a}}' + \"b\\\"+\" }}+{{ x }}",
                "{{ 'a}}' +( \"b\\\"+\" )|B }}+{{ x }}",
            ),
            (
                "{% raw %}{{ a + b }}{% endraw %}{{ [] }}",
                "{% raw %}{{ a + b }}{% endraw %}{{ ([]|B ) }}",
            ),
            ("{{ a + -b - c }}", "{{ a +( -b )|B - c }}"),
            ("{{ x[1 + a:] }} { + } {", "{{ x[1 +( a)|B :] }} { + } {"),
            (
                "{% macro f(a, b=[1]) %}{% call f(*x) %}",
                "{% macro f(a, b=([1]|B )) %}{% call f(*x) %}",
            ),
            ("{% for (a, b) in [1] %}", "{% for (a, b) in ([1]|B ) %}"),
            ("{{ (a or b).c [d](e) }}", "{{ ((a or b)|B ).c [d](e) }}"),
            ("{{ x | map(y) | list is z(1) }}", "{{ x | map(y)|B  | list is z(1) }}"),
            (
                "{{ namespace(a=1) * 2 ** 3 }}",
                "{{ (namespace(a=1)|B ) |A *( 2 )|A ** 3 }}",
            ),
        ] {
            let found = guarded(source)
                .replace(BUILT, "B")
                .replace(ATOM, "A")
                .replace(STORED, "S");
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn a_template_that_does_not_end_is_kept() {
        for source in ["{{ a", "{{ 'a", "{% raw %}x", "{#", "{", "{{", "{%+", "{{ a -"] {
            assert!(guarded(source).starts_with(source), "{source}");
        }
    }
}
