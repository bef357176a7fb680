//! A Rust file split into what is code and what is comment, line by line; the inside of strings is neither.

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

pub struct Source<'a> {
    pub path: &'a str,
    pub text: &'a str,
    code: String,
    comments: String,
}

impl<'a> Source<'a> {
    pub fn new(path: &'a str, text: &'a str) -> Self {
        let kinds = classify(text);
        Self {
            path,
            text,
            code: only(text, &kinds, Kind::Code),
            comments: only(text, &kinds, Kind::Comment),
        }
    }

    pub fn num_lines(&self) -> usize {
        self.text.lines().count()
    }

    /// The code of every line, with its number.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.code)
    }

    pub fn comments(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.comments)
    }

    /// The code that is not there for tests alone: up to the test module at the end of the file, nothing of a test file.
    pub fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test_file =
            self.path.contains("/tests/") || self.path.contains("/examples/") || self.path.ends_with("/tests.rs");
        let end = if is_test_file {
            0
        } else {
            self.test_module_line().unwrap_or(usize::MAX)
        };
        self.code().take_while(move |(line, _)| *line < end)
    }

    fn test_module_line(&self) -> Option<usize> {
        let mut after_attribute = None;
        for (line, code) in self.code() {
            let opens_module = code.trim_start().starts_with("mod ") && code.trim_end().ends_with('{');
            if opens_module && after_attribute == Some(line - 1) {
                return after_attribute;
            }
            after_attribute = (code.trim() == "#[cfg(test)]").then_some(line);
        }
        None
    }
}

/// Whether a line of code holds a word or a path, and not merely a longer one that contains it.
pub fn holds_word(code: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(start, _)| {
        let before = code[..start].chars().next_back();
        let after = code[start + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn only(text: &str, kinds: &[Kind], wanted: Kind) -> String {
    let bytes = text
        .char_indices()
        .map(|(at, character)| match kinds[at] == wanted || character == '\n' {
            true => character,
            false => ' ',
        });
    bytes.collect()
}

/// The kind of each byte of the text. Delimiters of a literal count as code.
fn classify(text: &str) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let (kind, len) = piece(rest, at > 0 && is_identifier(text.as_bytes()[at - 1]));
        kinds[at..at + len].fill(kind);
        at += len;
    }
    kinds
}

/// The kind and length in bytes of the piece that starts here.
fn piece(rest: &str, inside_word: bool) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment_len(rest));
    }
    if rest.starts_with('"') {
        return (Kind::Literal, string_len(rest));
    }
    if !inside_word && let Some(len) = raw_string_len(rest) {
        return (Kind::Literal, len);
    }
    if !inside_word && let Some(len) = char_len(rest) {
        return (Kind::Literal, len);
    }
    (Kind::Code, rest.chars().next().map_or(1, char::len_utf8))
}

fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        let step = match here {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_len(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"..."`, `br#"..."#` and the like.
fn raw_string_len(rest: &str) -> Option<usize> {
    let after_prefix = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let num_hashes = after_prefix.bytes().take_while(|byte| *byte == b'#').count();
    let inside = after_prefix[num_hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(num_hashes));
    let len = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + len)
}

/// A character literal; a lifetime is none, it has no closing quote.
fn char_len(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if let Some(escaped) = inside.strip_prefix('\\') {
        let skipped = escaped.chars().next()?.len_utf8();
        return escaped[skipped..].find('\'').map(|at| 2 + skipped + at + 1);
    }
    let len = inside.chars().next()?.len_utf8();
    inside[len..].starts_with('\'').then_some(1 + len + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("a.rs", text)
            .code
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        assert_eq!(code(r#"let a = "unsafe \" still"; // unsafe"#), "let a = ;");
        assert_eq!(code("let a = r#\"unsafe \" still\"#; b"), "let a = ; b");
        assert_eq!(code("/* a /* nested */ unsafe */ b"), "b");
        assert_eq!(code(r"match c { '\'' => '/', '\u{7f}' => 'x' }"), "match c { => , => }");
    }

    #[test]
    fn a_lifetime_opens_no_literal() {
        assert_eq!(
            code("fn f<'a>(x: &'a str) -> &'a str { x }"),
            "fn f<'a>(x: &'a str) -> &'a str { x }"
        );
    }

    #[test]
    fn lines_keep_their_numbers() {
        let source = Source::new("a.rs", "//! doc\nlet é = \"a\nb\";\nlast");
        assert_eq!(source.code().last(), Some((4, "last")));
        assert_eq!(source.comments().next(), Some((1, "//! doc")));
    }

    #[test]
    fn product_code_ends_where_tests_begin() {
        let text = "a\n#[cfg(test)]\nmod snippets;\nb\n#[cfg(test)]\nmod tests {\nc\n}";
        let product = |path| {
            Source::new(path, text)
                .product_code()
                .map(|(_, code)| code.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(product("kv/src/a.rs"), ["a", "#[cfg(test)]", "mod snippets;", "b"]);
        assert!(product("kv/tests/a.rs").is_empty());
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        assert!(holds_word("a unsafe{", "unsafe") && holds_word("std::fs::read", "std::fs"));
        assert!(!holds_word("unsafe_op", "unsafe") && !holds_word("std::fsx", "std::fs"));
    }
}
