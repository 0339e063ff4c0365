//! Directories in which something may change, and the means to wait for that.
//! Never tells what changed: whoever is woken looks.

use std::path::Path;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Directories that are watched.
pub struct Watching {
    changed: mpsc::Receiver<()>,
    watcher: RecommendedWatcher,
}

impl Watching {
    /// Watches no directory yet. `is_change` says which events count; an error among them (an
    /// overrun, say) can hide any event. An error if the kernel has no watches to give.
    pub fn new(
        is_change: impl Fn(&notify::Result<Event>) -> bool + Send + 'static,
    ) -> notify::Result<Self> {
        let (sender, changed) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event| {
            if is_change(&event) {
                // Full means that a wake-up is already waiting: nothing is lost.
                let _ = sender.try_send(());
            }
        })?;
        Ok(Self { changed, watcher })
    }

    /// Watches one more directory, without those in it; an error if that is not possible.
    pub fn add(&mut self, directory: &Path) -> notify::Result<()> {
        self.watcher.watch(directory, RecursiveMode::NonRecursive)
    }

    /// Waits until something changed.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
