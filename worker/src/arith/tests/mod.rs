//! Every kernel of every instruction set of this machine against the definition, bit for bit.

mod attend;
mod elementwise;
mod exp;
pub(crate) mod inputs;
mod matmul;
mod quantize;
