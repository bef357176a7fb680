//! The tensors of the Open Inference Protocol that a model of text takes and gives.

use std::collections::HashMap;

use kvasir_proto::{
    inference::{
        InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor,
    },
    v1,
};

use super::open_inference::Inferred;

pub const BYTES: &str = "BYTES";
pub const UINT32: &str = "UINT32";
pub const TEXT_INPUT: &str = "text_input";
/// Names and types, in the order in which they are given.
pub const OUTPUTS: [(&str, &str); 3] = [
    ("text_output", BYTES),
    ("finish_reason", BYTES),
    ("completion_tokens", UINT32),
];

/// OpenAI's default for completions.
const MAX_TOKENS: u32 = 16;
const PROMPTS_MAX: usize = 256;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InferError {
    #[error("input {found:?} is not known; the one input is {TEXT_INPUT:?}")]
    UnknownInput { found: String },
    #[error("{found} inputs named {TEXT_INPUT:?}; expected one")]
    Inputs { found: usize },
    #[error("input {TEXT_INPUT:?} has type {found:?}; expected {BYTES:?}")]
    Datatype { found: String },
    #[error(
        "input {TEXT_INPUT:?} has shape {shape:?} and {found} elements; expected [n] and n of them, 1 to {PROMPTS_MAX}"
    )]
    Shape { shape: Vec<i64>, found: usize },
    #[error("{found} raw contents for {expected} inputs")]
    RawContents { found: usize, expected: usize },
    #[error(
        "the raw contents of {TEXT_INPUT:?} end in the middle of an element; each begins with its length in 4 bytes"
    )]
    Torn,
    #[error("element {element} of {TEXT_INPUT:?} is not UTF-8")]
    NotUtf8 { element: usize },
    #[error("output {found:?} is not known; outputs are text_output, finish_reason and completion_tokens")]
    UnknownOutput { found: String },
    #[error("parameter {name:?} is not known")]
    UnknownParameter { name: String },
    #[error("parameter {name:?} is not {expected}")]
    Parameter { name: String, expected: &'static str },
}

/// The prompts.
pub fn text_input(request: &ModelInferRequest) -> Result<Vec<String>, InferError> {
    if let Some(unknown) = request.inputs.iter().find(|input| input.name != TEXT_INPUT) {
        let found = unknown.name.clone();
        return Err(InferError::UnknownInput { found });
    }
    let [input] = request.inputs.as_slice() else {
        let found = request.inputs.len();
        return Err(InferError::Inputs { found });
    };
    if input.datatype != BYTES {
        let found = input.datatype.clone();
        return Err(InferError::Datatype { found });
    }
    let elements = match request.raw_input_contents.as_slice() {
        [] => input.contents.clone().unwrap_or_default().bytes_contents,
        [raw] => split(raw).ok_or(InferError::Torn)?,
        raw => {
            let (found, expected) = (raw.len(), 1);
            return Err(InferError::RawContents { found, expected });
        }
    };
    let is_vector = matches!(input.shape.as_slice(), [n] if *n == elements.len() as i64);
    if !is_vector || elements.is_empty() || elements.len() > PROMPTS_MAX {
        let (shape, found) = (input.shape.clone(), elements.len());
        return Err(InferError::Shape { shape, found });
    }
    let text = |(element, bytes)| String::from_utf8(bytes).map_err(|_| InferError::NotUtf8 { element });
    elements.into_iter().enumerate().map(text).collect()
}

/// None if an element is torn.
fn split(mut raw: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        elements.push(element.to_vec());
        raw = rest;
    }
    Some(elements)
}

/// The parameters as a request without its prompt.
pub fn infer_parameters(parameters: &HashMap<String, InferParameter>) -> Result<v1::GenerateRequest, InferError> {
    let mut request = v1::GenerateRequest {
        max_tokens: Some(MAX_TOKENS),
        ..Default::default()
    };
    let mut sampling = v1::SamplingParams::default();
    for (name, parameter) in parameters {
        let value = Value { name, parameter };
        match name.as_str() {
            "max_tokens" => request.max_tokens = Some(value.count()?),
            "temperature" => sampling.temperature = Some(value.decimal()?),
            "top_p" => sampling.top_p = Some(value.decimal()?),
            "top_k" => sampling.top_k = Some(value.count()?),
            "min_p" => sampling.min_p = Some(value.decimal()?),
            "repetition_penalty" => sampling.repetition_penalty = Some(value.decimal()?),
            "presence_penalty" => sampling.presence_penalty = Some(value.decimal()?),
            "frequency_penalty" => sampling.frequency_penalty = Some(value.decimal()?),
            "seed" => sampling.seed = Some(value.seed()?),
            "stop" => request.stop = vec![value.text()?],
            "ignore_eos" => request.ignore_eos = value.flag()?,
            "tenant" => request.tenant = value.text()?,
            "priority" => {
                let priority = value.whole().and_then(|whole| i32::try_from(whole).ok());
                request.priority = priority.ok_or_else(|| value.wrong("an integer of 32 bits"))?;
            }
            _ => return Err(InferError::UnknownParameter { name: name.clone() }),
        }
    }
    request.sampling = Some(sampling);
    Ok(request)
}

struct Value<'a> {
    name: &'a str,
    parameter: &'a InferParameter,
}

impl Value<'_> {
    fn wrong(&self, expected: &'static str) -> InferError {
        InferError::Parameter {
            name: self.name.to_owned(),
            expected,
        }
    }

    fn whole(&self) -> Option<i128> {
        match self.parameter.parameter_choice.as_ref()? {
            ParameterChoice::Int64Param(whole) => Some(i128::from(*whole)),
            ParameterChoice::Uint64Param(whole) => Some(i128::from(*whole)),
            _ => None,
        }
    }

    fn count(&self) -> Result<u32, InferError> {
        let count = self.whole().and_then(|whole| u32::try_from(whole).ok());
        count.ok_or_else(|| self.wrong("an integer from 0 to 4294967295"))
    }

    fn seed(&self) -> Result<u64, InferError> {
        let whole = self.whole().ok_or_else(|| self.wrong("an integer of 64 bits"))?;
        Ok(whole as u64)
    }

    fn decimal(&self) -> Result<f32, InferError> {
        match self.parameter.parameter_choice {
            Some(ParameterChoice::DoubleParam(decimal)) => Ok(decimal as f32),
            _ => self
                .whole()
                .map(|whole| whole as f32)
                .ok_or_else(|| self.wrong("a number")),
        }
    }

    fn flag(&self) -> Result<bool, InferError> {
        match self.parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(flag)) => Ok(flag),
            _ => Err(self.wrong("a boolean")),
        }
    }

    fn text(&self) -> Result<String, InferError> {
        match &self.parameter.parameter_choice {
            Some(ParameterChoice::StringParam(text)) => Ok(text.clone()),
            _ => Err(self.wrong("a string")),
        }
    }
}

/// Which outputs are wanted, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requested(Vec<(&'static str, &'static str)>);

/// All, if none is named.
pub fn requested(request: &ModelInferRequest) -> Result<Requested, InferError> {
    let known = |name: &str| {
        let found = OUTPUTS.iter().find(|(known, _)| *known == name).copied();
        found.ok_or_else(|| InferError::UnknownOutput { found: name.to_owned() })
    };
    let named: Result<Vec<_>, _> = request.outputs.iter().map(|output| known(&output.name)).collect();
    Ok(Requested(match named? {
        named if named.is_empty() => OUTPUTS.to_vec(),
        named => named,
    }))
}

impl Requested {
    /// The tensors, and their contents apart where they are wanted raw.
    pub fn write(&self, inferred: &[Inferred], raw: bool) -> (Vec<InferOutputTensor>, Vec<Vec<u8>>) {
        let (mut tensors, mut raw_contents) = (Vec::new(), Vec::new());
        for (name, datatype) in &self.0 {
            let contents = contents(name, inferred);
            if raw {
                raw_contents.push(raw_bytes(&contents));
            }
            tensors.push(InferOutputTensor {
                name: (*name).to_owned(),
                datatype: (*datatype).to_owned(),
                shape: vec![inferred.len() as i64],
                contents: (!raw).then_some(contents),
                ..Default::default()
            });
        }
        (tensors, raw_contents)
    }
}

fn contents(name: &str, inferred: &[Inferred]) -> InferTensorContents {
    let texts = |text: fn(&Inferred) -> &str| inferred.iter().map(|one| text(one).as_bytes().to_vec()).collect();
    match name {
        "text_output" => InferTensorContents {
            bytes_contents: texts(|one| &one.text),
            ..Default::default()
        },
        "finish_reason" => InferTensorContents {
            bytes_contents: texts(|one| one.finish_reason),
            ..Default::default()
        },
        _ => InferTensorContents {
            uint_contents: inferred.iter().map(|one| one.completion_tokens).collect(),
            ..Default::default()
        },
    }
}

fn raw_bytes(contents: &InferTensorContents) -> Vec<u8> {
    let mut raw = Vec::new();
    for element in &contents.bytes_contents {
        raw.extend((element.len() as u32).to_le_bytes());
        raw.extend(element);
    }
    raw.extend(contents.uint_contents.iter().flat_map(|number| number.to_le_bytes()));
    raw
}

#[cfg(test)]
mod tests {
    use kvasir_proto::inference::model_infer_request::InferInputTensor;

    use super::*;

    fn request(shape: &[i64], texts: &[&[u8]]) -> ModelInferRequest {
        let contents = InferTensorContents {
            bytes_contents: texts.iter().map(|text| text.to_vec()).collect(),
            ..Default::default()
        };
        ModelInferRequest {
            inputs: vec![InferInputTensor {
                name: TEXT_INPUT.to_owned(),
                datatype: BYTES.to_owned(),
                shape: shape.to_vec(),
                contents: Some(contents),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn prompts_come_either_way() {
        let texts: [&[u8]; 2] = ["é".as_bytes(), b""];
        let mut asked = request(&[2], &texts);
        assert_eq!(text_input(&asked).unwrap(), ["é", ""]);
        let contents = asked.inputs[0].contents.take().unwrap();
        asked.raw_input_contents = vec![raw_bytes(&contents)];
        assert_eq!(text_input(&asked).unwrap(), ["é", ""]);
        asked.raw_input_contents[0].pop();
        asked.raw_input_contents[0].pop();
        assert_eq!(text_input(&asked), Err(InferError::Torn));
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        for (shape, texts) in [(&[1][..], &[][..]), (&[2], &[b"a".as_slice()]), (&[1, 1], &[b"a"])] {
            let refused = text_input(&request(shape, texts));
            assert!(matches!(refused, Err(InferError::Shape { .. })), "{shape:?}");
        }
        assert_eq!(
            text_input(&request(&[1], &[b"\xff"])),
            Err(InferError::NotUtf8 { element: 0 })
        );
        assert_eq!(
            text_input(&ModelInferRequest::default()),
            Err(InferError::Inputs { found: 0 })
        );
        let mut other = request(&[1], &[b"a"]);
        other.inputs[0].datatype = "FP32".to_owned();
        assert!(matches!(text_input(&other), Err(InferError::Datatype { .. })));
    }

    #[test]
    fn parameters_have_names_and_types() {
        let parameter = |choice| InferParameter {
            parameter_choice: Some(choice),
        };
        let of = |name: &str, choice| infer_parameters(&HashMap::from([(name.to_owned(), parameter(choice))]));
        assert_eq!(
            of("max_tokens", ParameterChoice::Int64Param(7)).unwrap().max_tokens,
            Some(7)
        );
        assert!(of("max_tokens", ParameterChoice::Int64Param(-1)).is_err());
        assert!(of("temperature", ParameterChoice::StringParam("hot".to_owned())).is_err());
        assert!(of("heat", ParameterChoice::BoolParam(true)).is_err());
    }
}
