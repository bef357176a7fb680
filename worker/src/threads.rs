//! A rank's team of threads: splits one phase of a step and waits until all parts are done.
//!
//! A phase takes microseconds, so the members spin briefly, then yield, then sleep on a futex: more members than cores
//! still works. Each member gets `&mut` to its own part, so no two threads share memory that either writes.
//! The split never changes a result: every output is computed whole by one member.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::thread::futex;

/// Spins before a waiter yields, and looks before it sleeps: about 2 us, then about 150 us. A step never leaves a member
/// without work for so long, and waking one costs more than what most parts of a step take.
const SPINS: u32 = 60;
const NAP_AFTER: u32 = SPINS + 500;
/// A sleeping waiter looks again after this long, whatever happened to the wake-up.
const NAP: Duration = Duration::from_millis(20);

/// A phase with its types erased: member `i` runs `call(data, i)`.
#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    call: unsafe fn(*const (), usize),
}

/// A word that some wait for and others change. Nobody is woken by a system call while nobody sleeps.
#[derive(Default)]
struct Signal {
    word: AtomicU32,
    sleepers: AtomicU32,
}

impl Signal {
    /// After a change of the word. The change and this look are in one order with a sleeper's count and its look at the
    /// word, so that one of both sees the other.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _ = futex::wake(&self.word, futex::Flags::PRIVATE, u32::MAX);
        }
    }

    /// Spins, yields or sleeps until the word may have changed from `value`.
    fn rest(&self, patience: &mut u32, value: u32) {
        *patience += 1;
        if *patience <= SPINS {
            std::hint::spin_loop();
        } else if *patience <= NAP_AFTER {
            std::thread::yield_now();
        } else {
            let nap = futex::Timespec {
                tv_sec: 0,
                tv_nsec: NAP.as_nanos() as i64,
            };
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // Woken, timed out or changed already: the caller looks at the word either way.
            let _ = futex::wait(&self.word, futex::Flags::PRIVATE, value, Some(&nap));
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct Shared {
    /// Grows by one per phase; members run a phase when they see it grow.
    phase: Signal,
    /// Members that have not finished the phase.
    pending: Signal,
    stop: AtomicBool,
    panicked: AtomicBool,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written by the leader only while `pending` is 0 (no member reads it) and read by members only after
// they acquired the `phase` that the leader released after writing. The data behind it is shared as `Sync` by `run`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only used while the phase that owns its data runs.
unsafe impl Send for Shared {}

/// The leader's handle. The leader is member 0 and works, too.
pub struct ThreadTeam {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for ThreadTeam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadTeam({})", self.len())
    }
}

impl ThreadTeam {
    /// A team of `threads` members, at least 1; `threads - 1` are started. Errors if the system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut team = Self::alone();
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&team.shared);
            let builder = std::thread::Builder::new().name(format!("kvasir-rank-{index}"));
            team.members.push(builder.spawn(move || shared.serve(index))?);
        }
        Ok(team)
    }

    /// The caller without members.
    pub fn alone() -> Self {
        let shared = Arc::new(Shared {
            phase: Signal::default(),
            pending: Signal::default(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        Self {
            shared,
            members: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.members.len() + 1
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Runs `f(i, &mut parts[i])` on member `i`, and returns when all are done. A single part is the caller's, and nobody
    /// waits: what takes a microsecond is done before another member would have begun.
    ///
    /// # Panics
    /// If there are neither one part nor as many as members, or if a member panicked.
    pub fn run<T: Send>(&mut self, parts: &mut [T], f: impl Fn(usize, &mut T) + Sync) {
        if let [part] = parts {
            return f(0, part);
        }
        assert_eq!(parts.len(), self.len(), "one part per member");
        let phase = Phase {
            parts: parts.as_mut_ptr(),
            f: &f,
        };
        let job = phase.job();
        // SAFETY: `pending` is 0 here: the last `run` waited for it, and members touch `job` only while it is above 0.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared
            .pending
            .word
            .store(self.members.len() as u32, Ordering::Relaxed);
        self.shared.phase.word.fetch_add(1, Ordering::SeqCst);
        self.shared.phase.wake();
        // The guard waits also if `f` panics here: members may still be using `parts` and `f`.
        let wait = WaitForMembers(&self.shared);
        phase.run(0);
        drop(wait);
        assert!(
            !self.shared.panicked.load(Ordering::Relaxed),
            "a thread of the team panicked"
        );
    }
}

impl Drop for ThreadTeam {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.phase.word.fetch_add(1, Ordering::SeqCst);
        self.shared.phase.wake();
        for member in self.members.drain(..) {
            let _ = member.join();
        }
    }
}

struct Phase<'a, T, F> {
    parts: *mut T,
    f: &'a F,
}

impl<T: Send, F: Fn(usize, &mut T) + Sync> Phase<'_, T, F> {
    fn job(&self) -> Job {
        Job {
            data: (&raw const *self).cast(),
            call: Self::call,
        }
    }

    /// # Safety
    /// `data` points to a live `Phase<T, F>`, `index` is below its number of parts, and no other thread runs `index`.
    unsafe fn call(data: *const (), index: usize) {
        // SAFETY: the caller's promise; `run` keeps the phase alive until every member is done.
        let phase = unsafe { &*data.cast::<Self>() };
        phase.run(index);
    }

    fn run(&self, index: usize) {
        // SAFETY: each index is run by one member, so this is the only reference to the part; `T: Send`.
        let part = unsafe { &mut *self.parts.add(index) };
        (self.f)(index, part);
    }
}

struct WaitForMembers<'a>(&'a Shared);

impl Drop for WaitForMembers<'_> {
    fn drop(&mut self) {
        let mut patience = 0;
        loop {
            match self.0.pending.word.load(Ordering::Acquire) {
                0 => return,
                pending => self.0.pending.rest(&mut patience, pending),
            }
        }
    }
}

struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed);
        }
        if self.0.pending.word.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.pending.wake();
        }
    }
}

impl Shared {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut patience = 0;
            loop {
                let phase = self.phase.word.load(Ordering::Acquire);
                if phase != seen {
                    seen = phase;
                    break;
                }
                self.phase.rest(&mut patience, seen);
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let done = Done(self);
            // SAFETY: the acquired phase makes the leader's write visible, and it writes again only after `done` drops.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: the leader keeps the job's data alive until `pending` is 0; this member alone has `index`.
                unsafe { (job.call)(job.data, index) };
            }
            drop(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_run_once_per_phase_by_its_member() {
        for threads in [1, 2, 3, 5] {
            let mut team = ThreadTeam::new(threads).unwrap();
            let mut parts: Vec<(usize, u64)> = vec![(usize::MAX, 0); threads];
            for _ in 0..2000 {
                team.run(&mut parts, |index, part| *part = (index, part.1 + 1));
            }
            assert_eq!(parts, (0..threads).map(|i| (i, 2000)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_team_that_slept_wakes_up() {
        let mut team = ThreadTeam::new(2).unwrap();
        let mut parts = [0, 0];
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(30));
            team.run(&mut parts, |_, part| *part += 1);
        }
        assert_eq!(parts, [3, 3]);
    }

    #[test]
    #[should_panic(expected = "a thread of the team panicked")]
    fn a_panic_in_a_member_reaches_the_leader() {
        let mut team = ThreadTeam::new(2).unwrap();
        team.run(&mut [0, 0], |index, _| assert_eq!(index, 0));
    }
}
