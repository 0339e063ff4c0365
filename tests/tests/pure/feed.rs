//! Readers of news: quick ones, slow ones, and ones that go.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::control::feed::{Feed, Followed, KEPT, follow};
use firewall_agent::edges::control::{Answer, Listener, Request};
use firewall_core::told::SCHEMA;
use firewall_core::told::news::News;
use tokio::time::timeout;

use super::monitoring::denied;

const PATIENCE: Duration = Duration::from_secs(60);

/// One of many lines, by its number.
fn numbered(number: u32) -> News {
    let mut denied = denied("198.51.100.7", 6, 443);
    denied.suppressed = number;
    News::Denied(Box::new(denied))
}

async fn reader(path: &Path, listener: &mut Listener, feed: &Feed) -> Result<Followed> {
    let mut followed = follow(path).await?;
    let (request, answer) = listener.question().await;
    ensure!(matches!(request, Request::Monitor), "{request:?}");
    let hello =
        News::Hello { schema: SCHEMA, version: String::new(), pid: 0, records_per_second: 0 };
    let _ = answer.send(Answer::News(feed.place(hello.clone())));
    ensure!(followed.next().await? == Some(hello), "no hello");
    Ok(followed)
}

#[test]
fn a_slow_reader_is_told_what_it_missed_and_holds_up_nobody() -> Result<()> {
    let path = std::env::temp_dir().join(format!("firewall-feed-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listener = Listener::bind(&path).await?;
        let feed = Feed::default();
        let mut quick = reader(&path, &mut listener, &feed).await?;
        let mut slow = reader(&path, &mut listener, &feed).await?;
        let gone = reader(&path, &mut listener, &feed).await?;
        drop(gone);
        // Far more than sockets and the feed keep.
        let lines = 20 * u32::try_from(KEPT)?;
        for number in 0..lines {
            feed.tell(&numbered(number));
            let told = timeout(PATIENCE, quick.next()).await.context("held up")??;
            ensure!(told == Some(numbered(number)), "{told:?} instead of {number}");
        }
        let (mut heard, mut missed) = (0, 0);
        loop {
            match timeout(PATIENCE, slow.next())
                .await
                .context("no last line")??
                .context("an end")?
            {
                News::Missed { lines } => missed += lines,
                told => {
                    heard += 1;
                    if told == numbered(lines - 1) {
                        break;
                    }
                }
            }
        }
        ensure!(missed > 0, "nothing was missed");
        ensure!(heard + missed == u64::from(lines), "{heard} heard, {missed} missed");
        Ok(())
    })
}
