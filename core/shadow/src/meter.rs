//! The allocator of this crate's tests: mimalloc, which spares schedules a third of their time, and a meter for each thread.
#![allow(unsafe_code, reason = "only an allocator sees all allocations")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

struct Metered;

#[global_allocator]
static ALLOCATOR: Metered = Metered;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Begins anew in this thread.
pub fn reset() {
    LARGEST.set(0);
    LIVE.set(0);
    MOST.set(0);
}

/// The largest single allocation of this thread since, and the most that it held at once.
pub fn read() -> (usize, usize) {
    (LARGEST.get(), MOST.get().max(0) as usize)
}

fn note(bytes: usize, sign: isize) {
    let live = LIVE.get() + sign * bytes as isize;
    LIVE.set(live);
    if sign > 0 {
        LARGEST.set(LARGEST.get().max(bytes));
        MOST.set(MOST.get().max(live));
    }
}

// SAFETY: every call goes to mimalloc as it came; the meter only counts.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 1);
        // SAFETY: see above.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        note(layout.size(), -1);
        // SAFETY: see above.
        unsafe { MiMalloc.dealloc(place, layout) }
    }
}
