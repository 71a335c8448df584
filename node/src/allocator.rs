//! The process's allocator, as far as anything but allocating is asked of it.

/// Gives what this thread has freed back to the system. The allocator does so by itself only while more is allocated, and
/// a node whose clients have left allocates little. With another allocator (in tests) nothing happens.
#[allow(unsafe_code, reason = "the allocator's C interface has no safe form")]
pub fn give_back() {
    // SAFETY: it takes no pointers and may be called at any time on any thread; what is in use is not touched.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
