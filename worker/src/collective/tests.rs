//! Whole groups: of threads in one process, and of processes.

mod abort_and_deadline;
mod group;
mod processes;
mod strangers;
mod sums;
