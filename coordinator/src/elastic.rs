//! As many ranks as there are workers: those beyond what the groups are to have at least are dealt out, and the dealing is
//! looked at again whenever somebody joins, leaves or is lost. Growing and shrinking themselves are reshards, as ever.

use crate::Cluster;

impl Cluster {
    /// Says how many ranks each group is to have now.
    pub(crate) fn deal_workers(&mut self) {
        if !self.config.elastic {
            return;
        }
        let leaving = self.workers.leaving().len();
        let staying = self.workers.len().saturating_sub(leaving);
        let floors: Vec<u32> = self.groups.iter().map(|group| group.floor).collect();
        let sizes = deal(&floors, staying as u32);
        for (group, size) in self.groups.iter_mut().zip(sizes) {
            group.size = size;
        }
    }
}

/// One after the other to whichever group is the smallest, the first of them if there are several.
fn deal(floors: &[u32], workers: u32) -> Vec<u32> {
    let mut sizes = floors.to_vec();
    for _ in floors.iter().sum::<u32>()..workers {
        if let Some(smallest) = sizes.iter_mut().min_by_key(|size| **size) {
            *smallest += 1;
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_beyond_the_least_goes_to_the_smallest_group() {
        for (floors, workers, sizes) in [
            (vec![1, 2], 0, vec![1, 2]),
            (vec![1, 2], 3, vec![1, 2]),
            (vec![1, 2], 4, vec![2, 2]),
            (vec![1, 2], 6, vec![3, 3]),
            (vec![2], 5, vec![5]),
        ] {
            assert_eq!(deal(&floors, workers), sizes, "{floors:?} {workers}");
        }
    }
}
