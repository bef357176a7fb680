//! Cells on their way from one rank to another.
//!
//! A source rank copies a cell out between two steps and hands it to a thread that sends it; at the target a thread takes
//! it, checks its sum and hands it to the rank, which puts it in its place between two steps. So the memory of the cells
//! is touched by rank threads alone. A receiver takes nothing without a ticket that its coordinator has announced, and no
//! cell that is not on the ticket's list.
//!
//! Whether what has come may be used is the books' matter (`rank_books`).

mod frame;
mod hub;
mod listener;
mod rank_transfers;
mod sender;
mod slot_memory;
mod slots;

pub use hub::TransferHub;
pub use listener::listen;
pub(crate) use rank_transfers::{RankTransfers, Side, Sides};

#[cfg(test)]
mod slot_tests;
#[cfg(test)]
mod tests;
