//! The prefix cache: full blocks findable by the hash of all tokens up to their end, and which of them goes first.
//!
//! A hash stands for a whole history, so equal hashes mean equal cells. A block that nobody references is *cached*: it
//! can be had again by its hash, or be evicted for its room, longest unused first and leaves before what they follow.
//! Which block is referenced, and when one may be committed, is the block pool's and the scheduler's matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{BlockId, NumericsId, TokenId};

/// A cryptographic hash over every token up to the end of a block, rooted in what else decides the cells' bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash([u8; 16]);

impl BlockHash {
    /// What the first block follows. Histories of other numerics or of another tenant share nothing.
    pub fn root(numerics_id: &NumericsId, tenant_salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kvasir v1 prefix cache");
        hasher.update(&numerics_id.0).update(tenant_salt);
        Self::take(&hasher)
    }

    /// The block of these tokens that follows this one.
    pub fn child(self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.0.to_le_bytes());
        }
        Self::take(&hasher)
    }

    fn take(hasher: &blake3::Hasher) -> Self {
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        Self(hash)
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: BlockHash,
    parent: BlockHash,
    /// When it was last given back, if nobody references it.
    unused_since: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    by_hash: BTreeMap<BlockHash, BlockId>,
    entries: BTreeMap<BlockId, Entry>,
    /// Cached blocks that follow a hash. Absent means none.
    cached_children: BTreeMap<BlockHash, u32>,
    /// Cached blocks that no cached block follows, longest unused first.
    leaves: BTreeSet<(u64, BlockId)>,
    num_cached: u32,
    clock: u64,
}

impl PrefixCache {
    /// Cached blocks. Each can be evicted, after those that follow it.
    pub fn num_cached(&self) -> u32 {
        self.num_cached
    }

    pub fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.by_hash.get(&hash).copied()
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.entries.contains_key(&block)
    }

    /// Makes a referenced block findable. Of two with the same history the first stays.
    pub fn insert(&mut self, block: BlockId, hash: BlockHash, parent: BlockHash) {
        if self.contains(block) || self.by_hash.contains_key(&hash) {
            return;
        }
        self.by_hash.insert(hash, block);
        let unused_since = None;
        self.entries.insert(
            block,
            Entry {
                hash,
                parent,
                unused_since,
            },
        );
    }

    /// Nobody references this findable block any more.
    pub fn give_back(&mut self, block: BlockId) {
        self.clock += 1;
        let entry = self.entries.get_mut(&block).expect("only findable blocks are cached");
        assert!(
            entry.unused_since.replace(self.clock).is_none(),
            "{block} is cached twice"
        );
        let entry = *entry;
        self.num_cached += 1;
        self.note_leaf(block);
        *self.cached_children.entry(entry.parent).or_insert(0) += 1;
        if let Some(parent) = self.find(entry.parent) {
            self.note_leaf(parent);
        }
    }

    /// This cached block is referenced again.
    pub fn take(&mut self, block: BlockId) {
        let entry = self.entries.get_mut(&block).expect("it is cached");
        let since = entry.unused_since.take().expect("it is cached");
        let parent = entry.parent;
        self.num_cached -= 1;
        self.leaves.remove(&(since, block));
        let children = self.cached_children.get_mut(&parent).expect("it was counted");
        *children -= 1;
        if *children == 0 {
            self.cached_children.remove(&parent);
        }
        if let Some(parent) = self.find(parent) {
            self.note_leaf(parent);
        }
    }

    /// Forgets the cached leaf that was unused longest.
    pub fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.leaves.first().copied()?;
        self.take(block);
        let entry = self.entries.remove(&block).expect("it was cached");
        self.by_hash.remove(&entry.hash);
        Some(block)
    }

    /// Brings `leaves` in line with what is known of a findable block.
    fn note_leaf(&mut self, block: BlockId) {
        let entry = &self.entries[&block];
        let Some(since) = entry.unused_since else { return };
        if self.cached_children.contains_key(&entry.hash) {
            self.leaves.remove(&(since, block));
        } else {
            self.leaves.insert((since, block));
        }
    }

    /// # Panics
    /// If an index disagrees with the entries.
    pub fn check_invariants(&self) {
        let cached = || {
            self.entries
                .iter()
                .filter_map(|(block, entry)| Some((*block, entry, entry.unused_since?)))
        };
        assert_eq!(self.by_hash.len(), self.entries.len(), "hashes and blocks differ");
        assert_eq!(cached().count() as u32, self.num_cached, "cached blocks are miscounted");
        let followed: BTreeSet<_> = cached().map(|(_, entry, _)| entry.parent).collect();
        let leaves: BTreeSet<_> = cached()
            .filter(|(_, entry, _)| !followed.contains(&entry.hash))
            .map(|(block, _, since)| (since, block))
            .collect();
        assert_eq!(leaves, self.leaves, "the leaves are not what they should be");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> BlockHash {
        BlockHash::root(&NumericsId([1; 16]), b"")
    }

    fn tokens(tokens: &[u32]) -> Vec<TokenId> {
        tokens.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_hash_depends_on_every_token_before_on_the_numerics_and_on_the_tenant() {
        let of = |root: BlockHash, first: &[u32], second: &[u32]| root.child(&tokens(first)).child(&tokens(second));
        let hashes = [
            of(root(), &[1, 2], &[3, 4]),
            of(root(), &[1, 9], &[3, 4]),
            of(root(), &[1, 2], &[3, 9]),
            of(root(), &[3, 4], &[1, 2]),
            of(BlockHash::root(&NumericsId([2; 16]), b""), &[1, 2], &[3, 4]),
            of(BlockHash::root(&NumericsId([1; 16]), b"tenant"), &[1, 2], &[3, 4]),
        ];
        assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), hashes.len());
        assert_eq!(of(root(), &[1, 2], &[3, 4]), hashes[0]);
    }

    /// Block 0, followed by 1 and 2; 3 follows 1.
    fn tree() -> PrefixCache {
        let mut cache = PrefixCache::default();
        let first = root().child(&tokens(&[1]));
        let (second, other) = (first.child(&tokens(&[1])), first.child(&tokens(&[2])));
        cache.insert(BlockId(0), first, root());
        cache.insert(BlockId(1), second, first);
        cache.insert(BlockId(2), other, first);
        cache.insert(BlockId(3), second.child(&tokens(&[1])), second);
        cache
    }

    fn evict_all(cache: &mut PrefixCache) -> Vec<u32> {
        let evicted = std::iter::from_fn(|| {
            cache.check_invariants();
            cache.evict()
        });
        evicted.map(|block| block.0).collect()
    }

    #[test]
    fn the_longest_unused_goes_first_and_leaves_before_what_they_follow() {
        let mut cache = tree();
        for block in [0, 1, 3, 2] {
            cache.give_back(BlockId(block));
        }
        assert_eq!(evict_all(&mut cache), [3, 1, 2, 0]);
        assert_eq!(cache.find(root().child(&tokens(&[1]))), None);
    }

    #[test]
    fn use_makes_a_block_young_again() {
        let mut cache = tree();
        for block in [0, 1, 3, 2] {
            cache.give_back(BlockId(block));
        }
        for block in [0, 1, 3] {
            cache.take(BlockId(block));
        }
        cache.check_invariants();
        for block in [3, 1, 0] {
            cache.give_back(BlockId(block));
        }
        assert_eq!(evict_all(&mut cache), [2, 3, 1, 0]);
    }

    #[test]
    fn a_referenced_block_is_not_evicted_and_does_not_keep_the_one_before_it() {
        let mut cache = tree();
        cache.give_back(BlockId(0));
        cache.give_back(BlockId(2));
        assert_eq!(evict_all(&mut cache), [2, 0]);
        cache.give_back(BlockId(3));
        cache.give_back(BlockId(1));
        assert_eq!(evict_all(&mut cache), [3, 1]);
    }
}
