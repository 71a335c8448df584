//! Bugs planted on purpose, to prove that the random schedules would find them. Outside this crate's tests there are none.

/// A bug, named after what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A node writing apart takes the owner's version numbers.
    ApartUsesOwnersNumbers,
    /// A node that took over uses the owner's numbers before the old owner gave them up.
    TakeoverUsesOwnersNumbers,
    /// A merge takes the higher of two numbers, whatever they stand for.
    MergeTakesHigherNumber,
    /// Writes of an epoch that is over are not replayed.
    LateWritesLost,
    /// A later write above does not keep an earlier one from coming back below it.
    AncestorIgnored,
    /// At one path the write that arrives last wins.
    ArrivalDecides,
    /// Tombstones go at once.
    TombstonesGoAtOnce,
    /// A shadow that was deleted elsewhere is not.
    DeleteMarkLost,
    /// `reported` is stamped without the home's term.
    TermLeftOut,
    /// A conditional update is accepted on any version.
    VersionNotCompared,
    /// A merge tells nobody.
    MergeIsSilent,
    /// A merge publishes `accepted` again.
    AcceptedTwice,
    /// A merge publishes the documents, and not what the device has still to do.
    MergedDeltaLeftOut,
    /// How old something is is asked of the wall clock.
    AgesFollowWallClock,
    /// Stamps say what the wall clock says.
    StampsFollowWallClock,
    /// What the time was is not known after a start.
    FloorLost,
    /// Not a bug of ours but a peer's skill: whatever it makes up has the right checksums, and nothing is deflated.
    ChecksumsIgnored,
    /// A shadow leaves memory before its row is durable.
    ForgetsUnsynced,
    /// Answers and messages leave before the disk has what they tell.
    SaysBeforeSync,
}

/// Is this one planted?
#[cfg(not(test))]
#[inline]
pub const fn is(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Is this one planted in this thread?
#[cfg(test)]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a bug in this thread, or takes it away.
#[cfg(test)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
