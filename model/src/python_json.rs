//! JSON as Python's `json.dumps` writes it, for chat templates: `tojson`.
//!
//! Differs from the template library's own filter in that no character is escaped for HTML, and in that a value
//! which is large because it holds itself many times is not written beyond what the fuel pays for.

use std::io;

use minijinja::{Error, ErrorKind, State, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Of output. The library charges as much.
const BYTES_PER_FUEL: u64 = 4;
const INDENT_MAX: usize = 64;

/// The filter `tojson`, with `indent`; other arguments of Python's change nothing that templates use.
pub(crate) fn to_json(state: &State, value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get("indent")?);
    for option in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(option)?;
    }
    options.assert_all_used()?;
    let (_, fuel) = state.fuel_levels().unwrap_or((0, u64::MAX / BYTES_PER_FUEL));
    let mut output = Bounded {
        bytes: Vec::new(),
        left: fuel.saturating_mul(BYTES_PER_FUEL),
    };
    let written = match indent {
        None => write(value, &mut output, Spaced),
        Some(indent) => {
            let indent = vec![b' '; indent.min(INDENT_MAX)];
            write(value, &mut output, PrettyFormatter::with_indent(&indent))
        }
    };
    // Runs out exactly when the output did.
    state.consume_fuel(output.bytes.len() as u64 / BYTES_PER_FUEL)?;
    written.map_err(|source| Error::new(ErrorKind::InvalidOperation, "cannot write as JSON").with_source(source))?;
    let text = String::from_utf8(output.bytes).expect("JSON is UTF-8");
    Ok(Value::from_safe_string(text))
}

fn write(value: &Value, output: &mut Bounded, formatter: impl Formatter) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(output, formatter))
}

struct Bounded {
    bytes: Vec<u8>,
    left: u64,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num_bytes = bytes.len() as u64;
        let left = self.left.checked_sub(num_bytes);
        self.left = left.ok_or_else(|| io::Error::other("the text is longer than the fuel allows"))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
