//! One input cut into several texts or files, by a mark that survives insertions and deletions around it.

/// On a line of its own.
const MARK: &[u8] = b"\n====\n";

/// The sections of an input, in order; empty slices after the last one. What is behind `N` marks is ignored.
pub fn sections<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut rest = input;
    std::array::from_fn(|_| {
        let (section, after) = match rest.windows(MARK.len()).position(|window| window == MARK) {
            Some(start) => (&rest[..start], &rest[start + MARK.len()..]),
            None => (rest, &[][..]),
        };
        rest = after;
        section
    })
}

/// A section that may be absent: `None` if it is empty.
pub fn present(section: &[u8]) -> Option<&[u8]> {
    Some(section).filter(|section| !section.is_empty())
}
