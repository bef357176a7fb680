//! What carries the bytes between ranks: the word is the books' own.

pub use kvasir_kv::Transport;
