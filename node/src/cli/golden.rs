//! Keeps generated pages of `docs/` equal to what the program says. `OUTPOST_BLESS=1 cargo test` writes them anew.

use std::path::Path;

/// Compares a page, named from the root of the workspace, with what it should be.
pub(crate) fn golden(page: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    if std::env::var_os("OUTPOST_BLESS").is_some() {
        std::fs::write(&file, expected).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some((number, (found, expected))) =
        found.lines().zip(expected.lines()).enumerate().find(|(_, (a, b))| a != b)
    {
        panic!(
            "{page}:{}:\n  it says   {found}\n  should be {expected}\n(OUTPOST_BLESS=1 writes it anew)",
            number + 1
        );
    }
    assert_eq!(
        found.lines().count(),
        expected.lines().count(),
        "{page} has too many or too few lines (OUTPOST_BLESS=1 writes it anew)"
    );
}
