//! What a gRPC status of ours says besides its code: the keys of its metadata, for those who write it and those who read it.

/// What happened, in one word. A status without it did not come from a server of ours: the connection broke.
pub const ERROR_NAME: &str = "kvasir-error";
/// The name of a coordinator's answer to whoever takes it for the one that leads.
pub const NOT_LEADER: &str = "not_leader";
/// The name where there is none, or it cannot be reached.
pub const NO_LEADER: &str = "no_leader";
/// When it is worth trying again, in milliseconds. A header of HTTP as well.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Which field of the request is wrong.
pub const PARAM: &str = "kvasir-param";
