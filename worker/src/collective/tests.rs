//! Whole groups: of threads in one process, and of processes.

mod abort_and_deadline;
mod certificates;
mod encrypted;
mod group;
mod processes;
mod strangers;
mod sums;
