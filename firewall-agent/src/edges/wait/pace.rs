//! Changes that come as fast as they like, and are told now and then.
//! Never loses the last change.

use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::time::Instant;

/// A stream of changes, of which only the fact counts that there was one.
pub struct Changes {
    stream: Box<dyn Stream<Item = ()> + Send + Unpin>,
    between: Duration,
    /// Whether a change came in that nobody was told of yet.
    pending: bool,
    told: Option<Instant>,
}

impl Changes {
    /// Changes are told no more often than once in `between`.
    pub fn new(stream: impl Stream<Item = ()> + Send + Unpin + 'static, between: Duration) -> Self {
        Self { stream: Box::new(stream), between, pending: false, told: None }
    }

    /// Waits for a change, and takes in all that are there already: the first is told at
    /// once. Whoever waits here may stop waiting; the change is not lost then.
    pub async fn next(&mut self) {
        if !self.pending && self.stream.next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.pending = true;
        if let Some(told) = self.told {
            tokio::time::sleep_until(told + self.between).await;
        }
        while let Some(Some(())) = self.stream.next().now_or_never() {}
        self.pending = false;
        self.told = Some(Instant::now());
    }
}
