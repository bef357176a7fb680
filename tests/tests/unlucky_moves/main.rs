//! Ranks of real clusters are killed and stopped in every state of a migration and of a reshard, while sixteen streams
//! talk: no answer changes by a bit, the books say what became of the move, and nothing is left of it.
//!
//! No state is hit by luck: the rank to be struck and the coordinator run by turns (`Lockstep`), and what is under way is
//! looked at while the rank stands. `KVASIR_TEST_SEED` draws other ranks, sequences, and lengths of turns.

#![allow(clippy::unwrap_used)]

mod full_targets;
mod migrations;
mod reshards;
mod scene;
