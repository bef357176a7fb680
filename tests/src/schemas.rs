//! JSON schemas of bounded sizes, drawn by a seed, each with its own way to tell whether a value is of it.
//!
//! The check shares nothing with the grammar that the answers follow.

use serde_json::{Map, Value, json};

use crate::sim::dice::Dice;

const WORDS: [&str; 10] = ["red", "green", "été", "日本", "a b", "x\"y", "-", "Ω", "north", "🙂"];
const NAMES: [&str; 8] = ["name", "age", "tags", "kind", "ok", "größe", "at", "next"];
const DEPTH_MAX: u64 = 2;

/// What a value may be.
#[derive(Clone, PartialEq, Debug)]
pub enum Shape {
    Null,
    Bool,
    /// From the first to the last.
    Integer(i64, i64),
    /// Of so many characters at most.
    Text(usize),
    /// One of these.
    Words(Vec<&'static str>),
    /// Of so many items.
    List(Box<Shape>, usize, usize),
    /// By name; true of those that must be there.
    Object(Vec<(&'static str, Shape, bool)>),
    Either(Vec<Shape>),
}

impl Shape {
    /// An object, with others in it.
    pub fn draw(dice: &mut Dice) -> Self {
        Self::object(dice, 0)
    }

    fn object(dice: &mut Dice, depth: u64) -> Self {
        let first = dice.between(0, NAMES.len() as u64 - 1) as usize;
        let count = dice.between(1, 3) as usize;
        let names = NAMES.iter().cycle().skip(first).take(count);
        Self::Object(
            names
                .map(|name| (*name, Self::any(dice, depth + 1), dice.chance(70)))
                .collect(),
        )
    }

    fn any(dice: &mut Dice, depth: u64) -> Self {
        let simple = depth > DEPTH_MAX;
        match dice.between(0, if simple { 4 } else { 7 }) {
            0 => Self::Bool,
            1 => {
                let least = dice.between(0, 200) as i64 - 100;
                Self::Integer(least, least + dice.between(0, 1000) as i64)
            }
            2 => Self::Text(dice.between(0, 12) as usize),
            3 => {
                let first = dice.between(0, WORDS.len() as u64 - 1) as usize;
                let count = dice.between(1, 4) as usize;
                Self::Words(WORDS.iter().cycle().skip(first).take(count).copied().collect())
            }
            4 => Self::Null,
            5 => {
                let least = dice.between(0, 2) as usize;
                let most = least + dice.between(0, 2) as usize;
                Self::List(Box::new(Self::any(dice, depth + 1)), least, most)
            }
            6 => Self::object(dice, depth),
            _ => Self::Either(vec![Self::any(dice, DEPTH_MAX + 1), Self::Text(5)]),
        }
    }

    pub fn schema(&self) -> Value {
        match self {
            Self::Null => json!({"type": "null"}),
            Self::Bool => json!({"type": "boolean"}),
            Self::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
            Self::Text(most) => json!({"type": "string", "maxLength": most}),
            Self::Words(words) => json!({ "enum": words }),
            Self::List(item, least, most) => {
                json!({"type": "array", "items": item.schema(), "minItems": least, "maxItems": most})
            }
            Self::Object(fields) => {
                let properties: Map<String, Value> = fields
                    .iter()
                    .map(|(name, shape, _)| ((*name).to_owned(), shape.schema()))
                    .collect();
                let required: Vec<&str> = fields.iter().filter(|field| field.2).map(|field| field.0).collect();
                json!({
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
            Self::Either(shapes) => json!({ "anyOf": shapes.iter().map(Self::schema).collect::<Vec<_>>() }),
        }
    }

    pub fn accepts(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) | (Self::Bool, Value::Bool(_)) => true,
            (Self::Integer(least, most), value) => {
                let whole = value.as_i64();
                whole.is_some_and(|whole| (*least..=*most).contains(&whole))
            }
            (Self::Text(most), Value::String(text)) => text.chars().count() <= *most,
            (Self::Words(words), Value::String(text)) => words.contains(&text.as_str()),
            (Self::List(item, least, most), Value::Array(items)) => {
                (*least..=*most).contains(&items.len()) && items.iter().all(|value| item.accepts(value))
            }
            (Self::Object(fields), Value::Object(map)) => {
                let field = |name: &str| fields.iter().find(|field| field.0 == name);
                let all_fit = map
                    .iter()
                    .all(|(name, value)| field(name).is_some_and(|field| field.1.accepts(value)));
                all_fit && fields.iter().all(|field| !field.2 || map.contains_key(field.0))
            }
            (Self::Either(shapes), value) => shapes.iter().any(|shape| shape.accepts(value)),
            _ => false,
        }
    }
}
