//! What a buffer or a frame carries.

/// What a buffer or a frame carries: named in it, so that ranks that are in different calls notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Content {
    /// Sums of the whole piece; everybody sums all of it.
    Sums = 1,
    /// Sums of a slice, for the rank that sums this slice.
    Scattered = 2,
    /// Floats of the writer's slice.
    Rounded = 3,
    /// Bytes of a gather.
    Bytes = 4,
}
