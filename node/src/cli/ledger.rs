//! `outpost ledger`: what came in, what became of it, and whether the sums hold.

use std::fmt::Write;

use clap::Args;

use super::api::Api;
use super::failure::Failure;
use super::output::{self, Paint};
use crate::http::LedgerPage;

/// Show what became of every message: delivered, queued, expired, or dropped and why
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost ledger\n  outpost ledger --json | jq .deliveries.dropped\n\nExit code 1 when the sums do not hold: that is a mistake in the node."
)]
pub struct Ledger {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl Ledger {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words, or when the sums do not hold.
    pub fn run(self) -> Result<(), Failure> {
        let body = self.api.get("/api/v1/ledger")?;
        let page: LedgerPage = serde_json::from_value(body.clone())
            .map_err(|why| Failure::new(format!("the node's answer is not known here: {why}")))?;
        if self.json {
            output::print(&format!("{body:#}\n"))?;
        } else {
            output::print(&table(&page, Paint::for_stdout()))?;
        }
        if page.adds_up {
            return Ok(());
        }
        Err(Failure::new(format!(
            "the ledger does not add up: {} deliveries are missing",
            page.deliveries.missing
        )))
    }
}

fn table(page: &LedgerPage, paint: Paint) -> String {
    let (messages, deliveries) = (&page.messages, &page.deliveries);
    let mut out = String::new();
    let mut rows = |title: &str, all: u64, parts: &[(&str, u64)]| {
        let _ = writeln!(out, "{}", paint.strong(&format!("{title:<28}{all:>14}")));
        for (name, count) in parts {
            let line = format!("  {name:<26}{count:>14}");
            let _ = writeln!(out, "{}", if *count == 0 { paint.faint(&line) } else { line });
        }
    };
    rows(
        "messages accepted",
        messages.accepted,
        &[
            ("wanted", messages.wanted),
            ("unwanted", messages.unwanted),
            ("kept as retained only", messages.kept),
            ("shadow requests", messages.requests),
        ],
    );
    let mut parts = vec![
        ("delivered".to_owned(), deliveries.delivered),
        ("queued".to_owned(), deliveries.queued),
        ("in outboxes".to_owned(), deliveries.outbox),
        ("expired".to_owned(), deliveries.expired),
    ];
    let dropped = deliveries.dropped.iter().filter(|(_, count)| **count > 0);
    parts.extend(dropped.map(|(why, count)| (format!("dropped: {why}"), *count)));
    let parts: Vec<(&str, u64)> = parts.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    rows("deliveries owed", deliveries.owed, &parts);
    rows(
        "never accepted",
        messages.refused + messages.held_back,
        &[("refused", messages.refused), ("held back", messages.held_back)],
    );
    let verdict = if page.adds_up {
        paint.good("every one is accounted for")
    } else {
        paint.bad(&format!("{} deliveries are missing", deliveries.missing))
    };
    let _ = writeln!(out, "{verdict}");
    out
}

#[cfg(test)]
mod tests {
    use outpost_actors::shard::ShardStats;

    use super::*;

    #[test]
    fn the_table_says_what_is_open_why_drops_happened_and_what_is_missing() {
        let mut stats = ShardStats { queued: 2, outbox: 1, held_back: 4, ..ShardStats::default() };
        stats.ledger.accept(true, false, false);
        stats.ledger.owed = 10;
        stats.ledger.delivered = 6;
        stats.ledger.drop(outpost_actors::ledger::Drop::SlowClient, 1);
        let page = LedgerPage::new(&stats);
        assert!(page.adds_up);
        let text = table(&page, Paint::off());
        for line in ["  dropped: slow_client                   1", "every one is accounted for"] {
            assert!(text.contains(line), "{text}");
        }
        stats.ledger.delivered = 5;
        let page = LedgerPage::new(&stats);
        assert!(!page.adds_up && table(&page, Paint::off()).contains("1 deliveries are missing"));
    }
}
