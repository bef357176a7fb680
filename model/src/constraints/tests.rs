//! Masks of small grammars over a real vocabulary, and hostile grammars.

use std::path::PathBuf;

use super::*;
use crate::Checkpoint;

fn tokenizer() -> Tokenizer {
    let path = std::env::var_os("KVASIR_MODEL").expect("KVASIR_MODEL names the model: cargo xtask test sets it");
    Checkpoint::open(PathBuf::from(path)).unwrap().tokenizer().unwrap()
}

fn regex(text: &str) -> Constraint {
    Constraint::Regex(text.into())
}

/// Always the first token that is allowed.
fn follow(tokenizer: &Tokenizer, followed: &mut Followed, tokens_max: usize) -> String {
    let mut tokens = Vec::new();
    while tokens.len() < tokens_max {
        let mask = followed.allowed().unwrap();
        let vocabulary = (0..tokenizer.vocab_size() as u32).map(TokenId);
        let next = vocabulary.clone().find(|token| mask.allows(*token)).unwrap();
        if tokenizer.eos_ids().contains(&next) && mask.num_allowed() == tokenizer.eos_ids().len() {
            break;
        }
        // The end comes first by number; here the text is to go on.
        let mut text = vocabulary.filter(|token| !tokenizer.eos_ids().contains(token));
        let next = text.find(|token| mask.allows(*token)).unwrap();
        followed.push(next).unwrap();
        tokens.push(next);
    }
    tokenizer.decode(&tokens, false)
}

#[test]
fn a_constraint_leads_to_its_text_and_then_to_the_end() {
    let tokenizer = tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let mut followed = constraints.compile(&regex("(yes|no)!")).unwrap();
    let text = follow(&tokenizer, &mut followed, 20);
    assert!(["yes!", "no!"].contains(&text.as_str()), "{text}");
    let end = followed.allowed().unwrap();
    assert_eq!(end.num_allowed(), tokenizer.eos_ids().len());
    assert!(end.allows(tokenizer.eos_ids()[0]));
    // A step that was planned before the end was known.
    followed.push(tokenizer.eos_ids()[0]).unwrap();
    followed.push(TokenId(0)).unwrap();
    assert!(followed.allowed().unwrap().allows(tokenizer.eos_ids()[0]));
    let schema = Constraint::JsonSchema(r#"{"const": {"é": [1, true]}}"#.into());
    let text = follow(&tokenizer, &mut constraints.compile(&schema).unwrap(), 60);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        serde_json::json!({"é": [1, true]})
    );
}

#[test]
fn a_format_that_nobody_describes_is_no_constraint() {
    let tokenizer = tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let schema = r#"{"anyOf": [{"const": {"format": "path"}}, {"type": "string", "format": "path", "maxLength": 1}]}"#;
    let mut followed = constraints.compile(&Constraint::JsonSchema(schema.into())).unwrap();
    let told = tokenizer.encode(r#"{"format": "path"}"#, false).unwrap();
    told.iter().for_each(|token| followed.push(*token).unwrap());
    assert!(followed.allowed().unwrap().allows(tokenizer.eos_ids()[0]));
}

#[test]
fn a_state_is_a_function_of_the_tokens() {
    let tokenizer = tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let schema =
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}"#;
    let schema = Constraint::JsonSchema(schema.into());
    let text = tokenizer.encode(r#"{"name": "Ada"#, false).unwrap();
    let mut walked = constraints.compile(&schema).unwrap();
    for &token in &text {
        assert!(walked.allowed().unwrap().allows(token), "{token:?}");
        walked.push(token).unwrap();
    }
    let mut rebuilt = constraints.compile(&schema).unwrap();
    text.iter().for_each(|token| rebuilt.push(*token).unwrap());
    let all = |followed: &mut Followed| {
        let mask = followed.allowed().unwrap();
        (0..tokenizer.vocab_size() as u32)
            .filter(|token| mask.allows(TokenId(*token)))
            .collect::<Vec<_>>()
    };
    assert_eq!(all(&mut walked), all(&mut rebuilt));
}

#[test]
fn a_token_that_is_not_allowed_is_refused() {
    let tokenizer = tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let mut followed = constraints.compile(&regex("[0-9]+")).unwrap();
    let letter = tokenizer.encode("x", false).unwrap()[0];
    assert!(!followed.allowed().unwrap().allows(letter));
    assert!(matches!(followed.push(letter), Err(ConstraintError::Lost { .. })));
    assert!(!followed_mask_allows_outside(&constraints, &tokenizer));
}

fn followed_mask_allows_outside(constraints: &Constraints, tokenizer: &Tokenizer) -> bool {
    let mask = constraints.compile(&regex(".*")).unwrap().allowed().unwrap();
    mask.allows(TokenId(tokenizer.vocab_size() as u32 + 1_000_000))
}

#[test]
fn constraints_that_make_no_sense_are_refused() {
    let constraints = Constraints::new(&tokenizer()).unwrap();
    let deep = |open: &str| open.repeat(5_000);
    let cases = [
        Constraint::JsonSchema("{".into()),
        Constraint::JsonSchema(r#"{"type": "no such type"}"#.into()),
        Constraint::JsonSchema(r##"{"$ref": "#/nowhere"}"##.into()),
        Constraint::JsonSchema("false".into()),
        regex("("),
        regex(&deep("(")),
        regex(&deep("[")),
        Constraint::Lark("".into()),
        Constraint::Lark("start: nowhere".into()),
        Constraint::Lark(format!("start: {}", deep("(")).into()),
        Constraint::Lark("x".repeat(LARK_BYTES_MAX + 1).into()),
        Constraint::JsonSchema(format!("{{\"pattern\": \"{}\"}}", "a?".repeat(SCHEMA_TEXT_BYTES_MAX)).into()),
    ];
    for case in cases {
        let shown: String = case.source().chars().take(40).collect();
        let compiled = constraints.compile(&case).map(|_| ());
        assert!(compiled.is_err(), "{shown}");
    }
}

/// They may be followed, or be an error: in little time and memory, and without the end of the process.
#[test]
fn constraints_that_are_too_much_come_to_an_end() {
    let tokenizer = tokenizer();
    let constraints = Constraints::new(&tokenizer).unwrap();
    let cases = [
        regex("a{1000000000}"),
        regex("(((a{1000}){1000}){1000}){1000}"),
        regex(&"(a|b|ab)*".repeat(800)),
        regex(&"a?".repeat(REGEX_BYTES_MAX / 2)),
        regex(&"|".repeat(REGEX_BYTES_MAX)),
        regex(&"\\".repeat(4_001)),
        Constraint::JsonSchema(r##"{"$ref": "#"}"##.into()),
        Constraint::JsonSchema(r#"{"enum": []}"#.into()),
        Constraint::Lark("start: start".into()),
        Constraint::Lark("start: a start | a\na: start a | \"x\"".into()),
        Constraint::Lark(format!("start: {}", "!".repeat(10_000)).into()),
    ];
    for case in cases {
        let _ended = constraints.compile(&case).and_then(|mut followed| {
            for token in tokenizer.encode("aaaaaaaa", false).unwrap() {
                followed.allowed()?;
                followed.push(token)?;
            }
            followed.allowed().map(|_| ())
        });
    }
}
