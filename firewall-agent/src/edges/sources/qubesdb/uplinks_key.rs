//! The netvm's own key that lists uplinks, for an agent whose rules do not come from QubesDB.
//! Never reads a rule, and never makes the agent wait: a task of its own talks to the daemon.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tracing::warn;

use super::client::Connection;
use super::wire;
use super::{Ended, Patience, UPLINKS, read_uplinks};
use firewall_core::events::Event;

/// The key, and its changes.
pub struct UplinksKey {
    news: mpsc::Receiver<Event>,
}

impl UplinksKey {
    /// Begins to talk to the daemon behind a socket, whether it is there already or not.
    /// Must be called inside a tokio runtime.
    pub fn start(socket: PathBuf, patience: Patience) -> Self {
        let (tell, news) = mpsc::channel(1);
        tokio::spawn(run(socket, patience, tell));
        Self { news }
    }

    /// Waits for [`Event::Uplinks`]: what the key says at first is news too. Whoever waits may stop
    /// waiting; nothing is lost then.
    pub async fn next(&mut self) -> Event {
        match self.news.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

async fn run(socket: PathBuf, patience: Patience, tell: mpsc::Sender<Event>) {
    let mut pause = patience.first_pause;
    loop {
        let mut has_worked = false;
        let Err(ended) = follow(&socket, patience, &tell, &mut has_worked).await;
        if matches!(ended, Ended::NobodyListens) {
            return;
        }
        if has_worked || pause == patience.first_pause {
            pause = patience.first_pause;
            let socket = socket.display();
            warn!(%socket, %ended, "{UPLINKS} cannot be read; it is tried again, and the list stays");
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(patience.last_pause);
    }
}

/// Tells what the key says whenever it was written.
async fn follow(
    socket: &Path,
    patience: Patience,
    tell: &mpsc::Sender<Event>,
    has_worked: &mut bool,
) -> Result<Infallible, Ended> {
    let mut watches = Connection::open(socket, patience.answer).await?;
    watches.watch(&wire::Path::new(UPLINKS)?).await?;
    // Events come on a connection of their own; commands have their answers for themselves.
    let mut commands = Connection::open(socket, patience.answer).await?;
    loop {
        let uplinks = read_uplinks(&mut commands).await?;
        tell.send(Event::Uplinks(uplinks)).await.map_err(|_| Ended::NobodyListens)?;
        *has_worked = true;
        watches.next_event().await?;
    }
}
