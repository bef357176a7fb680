//! The slots of a transfer on one host: what is agreed about them on the connection, and who has which.
//!
//! A source writes a cell into a slot and sends a header that names it; the target gives the slot back by its number, four
//! bytes on the same connection. A slot that is named while it is out, or does not exist, ends the transfer.

use std::{
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kvasir_runtime::tls::SharedStream;

use super::{slot_memory::SlotMemory, slot_memory::SlotView};
use crate::collective::SegmentFile;

/// Slots of a transfer: so many cells may be on their way. What a chunk of a prompt filled fits, so that it goes between
/// that chunk and the next one; more would only have to be made.
pub(super) const SLOTS: u32 = 16;
pub(super) const SLOTS_MIN: u32 = 8;
const GIVEN_BACK_TOGETHER: usize = 4;
/// A source that does not take back its slots is given up after so long: the rank's thread waits for it.
const GIVE_BACK_MAX: Duration = Duration::from_millis(2);

/// Where a source's slots are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotOffer {
    pub file: SegmentFile,
    pub count: u32,
}

/// What the bytes of a cell lie in at its source.
#[derive(Debug)]
pub(super) enum Buffer {
    Private(Vec<u8>),
    Slot { index: u32, memory: SlotMemory },
}

impl Buffer {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Private(bytes) => bytes,
            Self::Slot { memory, .. } => memory,
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Private(bytes) => bytes,
            Self::Slot { memory, .. } => memory,
        }
    }
}

/// The slots of a source that are with its target.
#[derive(Debug, Default)]
pub(super) struct SlotsOut(Mutex<Vec<(u32, SlotMemory)>>);

impl SlotsOut {
    pub fn lend(&self, index: u32, memory: SlotMemory) {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.push((index, memory));
    }

    /// The next slot that comes back; `None` at the end of the connection.
    pub fn come_back(&self, from: &mut impl Read) -> io::Result<Option<Buffer>> {
        let mut index = [0; 4];
        if from.read(&mut index[..1])? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut index[1..])?;
        let index = u32::from_le_bytes(index);
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = out.iter().position(|slot| slot.0 == index);
        let unknown = || {
            let reason = format!("slot {index} comes back and was not given");
            io::Error::new(io::ErrorKind::InvalidData, reason)
        };
        let (index, memory) = out.swap_remove(place.ok_or_else(unknown)?);
        Ok(Some(Buffer::Slot { index, memory }))
    }
}

/// The slots of a source, as its target has them.
#[derive(Debug)]
pub(super) struct SlotsIn {
    view: SlotView,
    state: Mutex<SlotsInState>,
}

#[derive(Debug)]
struct SlotsInState {
    /// Those that the source does not have.
    taken: Vec<bool>,
    /// Of these, those whose cells are in their place.
    done: Vec<u32>,
    connection: SharedStream,
}

impl SlotsIn {
    /// Errors if the slots cannot be opened here, or are not what they should be.
    pub fn open(offer: SlotOffer, cell_bytes: usize, connection: &SharedStream) -> io::Result<Arc<Self>> {
        if offer.count > SLOTS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} slots; {SLOTS} at most are taken", offer.count),
            ));
        }
        let view = SlotView::open(offer.file, offer.count, cell_bytes)?;
        let connection = connection.clone();
        connection.set_write_timeout(Some(GIVE_BACK_MAX))?;
        let taken = vec![false; offer.count as usize];
        Ok(Arc::new(Self {
            view,
            state: Mutex::new(SlotsInState {
                taken,
                done: Vec::new(),
                connection,
            }),
        }))
    }

    /// A header names this slot. Says why not, if it may not.
    pub fn take(self: &Arc<Self>, index: u32) -> Result<TakenSlot, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = state.taken.len();
        match state.taken.get_mut(index as usize) {
            None => Err(format!("slot {index} of {count}")),
            Some(true) => Err(format!("slot {index} was not given back yet")),
            Some(taken) => {
                *taken = true;
                let slots = Arc::clone(self);
                Ok(TakenSlot { slots, index })
            }
        }
    }

    /// Several together while there are more to come: each time wakes a thread at the source.
    fn give_back(&self, index: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done.push(index);
        let num_taken = state.taken.iter().filter(|taken| **taken).count();
        if state.done.len() == num_taken || state.done.len() >= GIVEN_BACK_TOGETHER {
            state.give_back();
        }
    }
}

impl SlotsInState {
    fn give_back(&mut self) {
        let mut message = Vec::with_capacity(4 * self.done.len());
        for index in self.done.drain(..) {
            self.taken[index as usize] = false;
            message.extend(index.to_le_bytes());
        }
        if self.connection.write_all(&message).is_err() {
            // Its thread finds out, and whoever ended the transfer knows.
            self.connection.cut();
        }
    }
}

/// A slot that holds a cell, until it is dropped: then it goes back to its source.
#[derive(Debug)]
pub(super) struct TakenSlot {
    slots: Arc<SlotsIn>,
    index: u32,
}

impl TakenSlot {
    /// Copies the cell; returns the checksum of the copy, which nobody else can change.
    pub fn copy(&self, bytes: &mut [u8]) -> u32 {
        self.slots.view.copy(self.index, bytes)
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        self.slots.give_back(self.index);
    }
}
