//! What the ranks of an epoch tell each other to decide, all alike, whether their GPUs can add among themselves.

/// NCCL's name of a group.
pub type UniqueId = [u8; 128];

/// What a rank tells the others.
pub struct Card {
    /// Of rank 0 it is the group's. `None` where this rank has no NCCL.
    pub id: Option<UniqueId>,
    pub gpu: [u8; 16],
    /// Its NCCL lets ranks share a GPU.
    pub shares_gpu: bool,
}

const CARD_BYTES: usize = 2 + 16 + 128;

impl Card {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.id.is_some()), u8::from(self.shares_gpu)];
        bytes.extend(self.gpu);
        bytes.extend(self.id.unwrap_or([0; 128]));
        bytes
    }

    /// `None` if these are not a card's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CARD_BYTES] = bytes.try_into().ok()?;
        Some(Self {
            id: (bytes[0] == 1).then(|| std::array::from_fn(|at| bytes[18 + at])),
            gpu: std::array::from_fn(|at| bytes[2 + at]),
            shares_gpu: bytes[1] == 1,
        })
    }
}

/// The group's id, if all can be in one.
pub fn common_id(cards: &[Card]) -> Option<UniqueId> {
    let all_can = cards.iter().all(|card| card.id.is_some());
    let all_share = cards.iter().all(|card| card.shares_gpu);
    let apart = |(index, card): (usize, &Card)| cards[..index].iter().all(|other| other.gpu != card.gpu);
    let apart = cards.iter().enumerate().all(apart);
    (all_can && (apart || all_share)).then(|| cards[0].id).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(gpu: u8, can: bool, shares_gpu: bool) -> Card {
        Card {
            id: can.then_some([gpu; 128]),
            gpu: [gpu; 16],
            shares_gpu,
        }
    }

    #[test]
    fn a_group_forms_where_all_can_and_none_share_a_gpu() {
        let id = |cards: &[Card]| common_id(cards).map(|id| id[0]);
        assert_eq!(id(&[card(5, true, false), card(6, true, false)]), Some(5));
        assert_eq!(id(&[card(5, true, false), card(6, false, false)]), None);
        assert_eq!(id(&[card(5, true, false), card(5, true, false)]), None);
        assert_eq!(id(&[card(5, true, true), card(5, true, true)]), Some(5));
        assert_eq!(id(&[card(5, true, true), card(5, true, false)]), None);
    }

    #[test]
    fn a_card_arrives_as_it_was() {
        let parsed = Card::parse(&card(7, true, true).to_bytes()).unwrap();
        assert_eq!(
            (parsed.id, parsed.gpu, parsed.shares_gpu),
            (Some([7; 128]), [7; 16], true)
        );
        assert!(Card::parse(&[1, 2, 3]).is_none());
    }
}
