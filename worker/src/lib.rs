//! Placeholder.

pub mod collective;
pub mod rank_books;
pub mod arith;
