//! How many files and connections a process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes as many as the system allows. The usual first limit, 1024, is less than the connections that a coordinator takes;
/// programs that wait with `select` need it, and none of ours does.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
