//! What every [`Store`] must do, as one suite that runs on each of them.
//!
//! A store that is added writes a [`Bed`] and calls [`run`].

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Batch, KEY_BYTES_MAX, Lsn, Op, Row, Space, Store, StoreEvent, SubmitError};

/// A store under test, and what the trait leaves to each store.
pub trait Bed {
    /// The store as it is open now.
    fn store(&self) -> Arc<dyn Store>;

    /// Returns when all that was submitted is durable.
    fn sync(&mut self);

    /// Runs `body` while nothing is synced, with a backlog of at most [`BACKLOG`] bytes.
    fn while_held(&mut self, body: &mut dyn FnMut(&dyn Store));

    /// Closes the store cleanly and opens it again. No other handle of it is alive then.
    fn reopen(&mut self);
}

/// The backlog that a bed gives its store.
pub const BACKLOG: usize = 4096;

/// Runs every case, each on a bed of its own.
///
/// # Panics
/// When the store does not do what [`Store`] promises.
pub fn run<B: Bed>(make: impl Fn() -> B) {
    what_was_synced_is_there(&mut make());
    numbers_count_up_from_one(&mut make());
    the_last_change_wins(&mut make());
    a_batch_reaches_every_space(&mut make());
    scans_keep_to_prefix_from_and_limit(&mut make());
    spaces_are_apart(&mut make());
    unstorable_keys_are_refused(&mut make());
    a_full_backlog_is_busy_and_recovers(&mut make());
    listeners_hear_rising_numbers(&mut make());
    rows_outlive_reopening(&mut make());
    large_values_are_kept(&mut make());
}

fn what_was_synced_is_there(bed: &mut impl Bed) {
    let lsn = bed
        .store()
        .submit(vec![put(Space::Retained, "plant/1", "20")])
        .expect("an empty store takes a batch");
    bed.sync();
    assert!(bed.store().synced() >= lsn);
    assert_eq!(get(bed, Space::Retained, "plant/1"), Some("20".into()));
    assert_eq!(get(bed, Space::Retained, "plant/2"), None);
    assert_eq!(get(bed, Space::Retained, ""), None, "the empty key is never there");
}

fn numbers_count_up_from_one(bed: &mut impl Bed) {
    assert_eq!(bed.store().synced(), Lsn(0));
    for n in 1..=5 {
        assert_eq!(bed.store().submit(vec![put(Space::Meta, "n", "x")]), Ok(Lsn(n)));
    }
    assert_eq!(bed.store().submit(Batch::new()), Ok(Lsn(6)), "an empty batch has a number as well");
    bed.sync();
    assert_eq!(bed.store().synced(), Lsn(6));
}

fn the_last_change_wins(bed: &mut impl Bed) {
    let store = bed.store();
    // In one batch, and across batches that may share a sync.
    let batch = vec![
        put(Space::Shadows, "put-put", "1"),
        put(Space::Shadows, "put-put", "2"),
        put(Space::Shadows, "put-delete", "1"),
        delete(Space::Shadows, "put-delete"),
        delete(Space::Shadows, "delete-put"),
        put(Space::Shadows, "delete-put", "2"),
    ];
    store.submit(batch).expect("taken");
    store.submit(vec![put(Space::Shadows, "later", "1")]).expect("taken");
    store.submit(vec![delete(Space::Shadows, "later")]).expect("taken");
    store.submit(vec![delete(Space::Shadows, "never there")]).expect("taken");
    drop(store);
    for _ in 0..2 {
        bed.sync();
        assert_eq!(get(bed, Space::Shadows, "put-put"), Some("2".into()));
        assert_eq!(get(bed, Space::Shadows, "put-delete"), None);
        assert_eq!(get(bed, Space::Shadows, "delete-put"), Some("2".into()));
        assert_eq!(get(bed, Space::Shadows, "later"), None);
        bed.reopen();
    }
}

fn a_batch_reaches_every_space(bed: &mut impl Bed) {
    bed.store()
        .submit(Space::ALL.map(|space| put(space, "key", space.name())).to_vec())
        .expect("taken");
    bed.sync();
    for space in Space::ALL {
        assert_eq!(get(bed, space, "key"), Some(space.name().into()));
    }
}

fn scans_keep_to_prefix_from_and_limit(bed: &mut impl Bed) {
    let keys: [&[u8]; 7] = [b"a", b"b", b"b/1", b"b/2", b"b/3", b"c", b"\xFF\xFF\x01"];
    let batch = keys
        .iter()
        .map(|key| Op::Put(Space::Queues, Bytes::copy_from_slice(key), Bytes::from_static(b"v")));
    bed.store().submit(batch.collect()).expect("taken");
    bed.store().submit(vec![delete(Space::Queues, "b/2")]).expect("taken");
    bed.sync();
    let store = bed.store();
    let scan = |prefix: &[u8], from: &[u8], limit| {
        let rows: Vec<Row> = store.scan(Space::Queues, prefix, from, limit).expect("readable");
        let keys = store.scan_keys(Space::Queues, prefix, from, limit).expect("readable");
        assert!(rows.iter().map(|(key, _)| key).eq(&keys), "the same keys without their values");
        if from.is_empty() && limit == usize::MAX {
            let mut visited = Vec::new();
            let mut each = |key: &[u8], value: &[u8]| {
                visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            };
            store.visit(Space::Queues, prefix, &mut each).expect("readable");
            assert_eq!(visited, rows, "a visit sees what a scan without limits does");
        }
        keys
    };
    let all: [&[u8]; 6] = [b"a", b"b", b"b/1", b"b/3", b"c", b"\xFF\xFF\x01"];
    assert_eq!(scan(b"", b"", usize::MAX), all);
    assert_eq!(scan(b"b", b"", usize::MAX), all[1..4]);
    assert_eq!(scan(b"b", b"b/1", usize::MAX), all[2..4], "`from` itself belongs to it");
    assert_eq!(scan(b"b", b"b/2", usize::MAX), all[3..4]);
    assert_eq!(
        scan(b"b", b"a", usize::MAX),
        all[1..4],
        "a `from` below the prefix changes nothing"
    );
    assert_eq!(scan(b"b", b"c", usize::MAX), all[..0], "a `from` above the prefix leaves nothing");
    assert_eq!(scan(b"b", b"", 2), all[1..3]);
    assert_eq!(scan(b"", b"b/3", 2), all[3..5]);
    assert_eq!(scan(b"b", b"", 0), all[..0]);
    assert_eq!(scan(b"\xFF", b"", usize::MAX), all[5..]);
    assert_eq!(scan(b"\xFF\xFF", b"\xFF\xFF\xFF", usize::MAX), all[..0]);
    assert_eq!(scan(b"x", b"", usize::MAX), all[..0]);
}

fn spaces_are_apart(bed: &mut impl Bed) {
    bed.store()
        .submit(vec![put(Space::Messages, "key", "m"), put(Space::Queues, "key", "q")])
        .expect("taken");
    bed.store().submit(vec![delete(Space::Messages, "key")]).expect("taken");
    bed.sync();
    assert_eq!(get(bed, Space::Messages, "key"), None);
    assert_eq!(get(bed, Space::Queues, "key"), Some("q".into()));
    assert_eq!(bed.store().scan(Space::Messages, b"", b"", 10).expect("readable"), []);
}

fn unstorable_keys_are_refused(bed: &mut impl Bed) {
    let store = bed.store();
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for key in ["", long.as_str()] {
        let batch =
            vec![put(Space::Subscriptions, "good", "1"), put(Space::Subscriptions, key, "1")];
        assert_eq!(store.submit(batch), Err(SubmitError::Key { bytes: key.len() }));
        assert_eq!(
            store.submit(vec![delete(Space::Subscriptions, key)]),
            Err(SubmitError::Key { bytes: key.len() })
        );
    }
    let longest = &long[..KEY_BYTES_MAX];
    assert_eq!(store.submit(vec![put(Space::Subscriptions, longest, "1")]), Ok(Lsn(1)));
    drop(store);
    bed.sync();
    assert_eq!(
        get(bed, Space::Subscriptions, "good"),
        None,
        "nothing of a refused batch is written"
    );
    assert_eq!(get(bed, Space::Subscriptions, longest), Some("1".into()));
}

fn a_full_backlog_is_busy_and_recovers(bed: &mut impl Bed) {
    let value = "x".repeat(BACKLOG / 3);
    let mut taken = BTreeSet::new();
    let mut refused = BTreeSet::new();
    bed.while_held(&mut |store| {
        for n in 0..10 {
            match store.submit(vec![put(Space::Messages, &format!("m{n}"), &value)]) {
                Ok(_) => taken.insert(n),
                Err(SubmitError::Busy { waiting_bytes }) => {
                    assert!((1..=BACKLOG).contains(&waiting_bytes), "{waiting_bytes} bytes wait");
                    refused.insert(n)
                }
                Err(other) => panic!("busy was expected, not: {other}"),
            };
        }
    });
    assert!(!taken.is_empty() && !refused.is_empty(), "taken {taken:?}, refused {refused:?}");
    bed.sync();
    let huge = "x".repeat(2 * BACKLOG);
    bed.store()
        .submit(vec![put(Space::Messages, "huge", &huge)])
        .expect("an idle store takes one batch of any size");
    bed.sync();
    for n in 0..10 {
        let there = get(bed, Space::Messages, &format!("m{n}")).is_some();
        assert_eq!(
            there,
            taken.contains(&n),
            "what was refused is not written, what was taken is: m{n}"
        );
    }
    assert_eq!(get(bed, Space::Messages, "huge"), Some(huge));
}

fn listeners_hear_rising_numbers(bed: &mut impl Bed) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        let ear = heard.clone();
        bed.store().listen(Arc::new(move |event| ear.lock().push(event)));
    }
    for n in 0..50 {
        bed.store().submit(vec![put(Space::Peers, "cursor", &n.to_string())]).expect("taken");
        if n % 7 == 0 {
            bed.sync();
        }
    }
    bed.sync();
    let numbers = |heard: &[StoreEvent]| -> Vec<u64> {
        let number = |event: &StoreEvent| match event {
            StoreEvent::Synced(lsn) => lsn.0,
            StoreEvent::Failed(why) => panic!("the store failed: {why}"),
            other => panic!("not on a sound disk: {other:?}"),
        };
        heard.iter().map(number).collect()
    };
    let heard = numbers(&heard.lock());
    assert!(heard.is_sorted(), "numbers rise: {heard:?}");
    assert!(
        heard.len() >= 4 && heard.last() == Some(&50),
        "both listeners hear of the last: {heard:?}"
    );
    for number in heard.iter().collect::<BTreeSet<_>>() {
        assert_eq!(
            heard.iter().filter(|other| *other == number).count(),
            2,
            "each hears {number} once: {heard:?}"
        );
    }
}

fn rows_outlive_reopening(bed: &mut impl Bed) {
    for round in 0..4 {
        for n in 0..20 {
            let key = format!("{round}/{n}");
            let lsn = bed.store().submit(vec![put(Space::Sessions, &key, "on")]).expect("taken");
            assert_eq!(lsn, Lsn(n + 1), "numbers begin anew with each open");
        }
        bed.store().submit(vec![delete(Space::Sessions, &format!("{round}/7"))]).expect("taken");
        bed.reopen(); // nobody called sync: a clean close does
        let rows = bed.store().scan(Space::Sessions, b"", b"", usize::MAX).expect("readable");
        assert_eq!(rows.len(), 19 * (round + 1));
        assert_eq!(bed.store().synced(), Lsn(0));
    }
}

fn large_values_are_kept(bed: &mut impl Bed) {
    // Beyond what a topic, a block or a buffer holds; repetitive, so that a compressing store compresses it.
    let values: Vec<String> =
        [0, 1, 4095, 4096, 65_536, 300_000].iter().map(|len| "ab".repeat(*len / 2 + 1)).collect();
    for (n, value) in values.iter().enumerate() {
        bed.store().submit(vec![put(Space::Shadows, &format!("thing {n}"), value)]).expect("taken");
        bed.sync();
    }
    bed.reopen();
    for (n, value) in values.iter().enumerate() {
        assert_eq!(get(bed, Space::Shadows, &format!("thing {n}")).as_ref(), Some(value));
    }
}

fn put(space: Space, key: &str, value: &str) -> Op {
    Op::Put(space, Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))
}

fn delete(space: Space, key: &str) -> Op {
    Op::Delete(space, Bytes::copy_from_slice(key.as_bytes()))
}

fn get(bed: &impl Bed, space: Space, key: &str) -> Option<String> {
    let value = bed.store().get(space, key.as_bytes()).expect("readable")?;
    Some(String::from_utf8(value.to_vec()).expect("the suite writes text"))
}
