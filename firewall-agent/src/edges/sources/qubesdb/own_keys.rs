//! The netvm's own keys, uplinks and options, for an agent whose rules do not come from QubesDB.
//! Never reads a rule, and never makes the agent wait: a task of its own talks to the daemon.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tracing::warn;

use super::client::Connection;
use super::news::{News, Tell, channel};
use super::wire;
use super::{Ended, OWN, Own, Patience, read_own};
use firewall_core::events::Event;
use firewall_core::options::Said;

/// The keys, and their changes: of events there is [`Event::Uplinks`], which is told at first as well.
pub struct OwnKeys(News);

impl OwnKeys {
    /// Begins to talk to the daemon behind a socket, whether it is there already or not.
    /// Must be called inside a tokio runtime.
    pub fn start(socket: PathBuf, patience: Patience) -> Self {
        let (tell, news) = channel(1);
        tokio::spawn(run(socket, patience, tell));
        Self(news)
    }

    /// Where the options are that dom0 sets, and where changes of them are told; `None`: not read yet.
    pub fn options(&self) -> watch::Receiver<Option<Said>> {
        self.0.options()
    }

    /// Waits for the next event. Whoever waits may stop waiting; nothing is lost then.
    pub async fn next(&mut self) -> Event {
        self.0.next().await
    }
}

async fn run(socket: PathBuf, patience: Patience, tell: Tell) {
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
            warn!(%socket, %ended, "{OWN} cannot be read; it is tried again, and what it said stays");
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(patience.last_pause);
    }
}

/// Tells what the keys say whenever one was written.
async fn follow(
    socket: &Path,
    patience: Patience,
    tell: &Tell,
    has_worked: &mut bool,
) -> Result<Infallible, Ended> {
    let mut watches = Connection::open(socket, patience.answer).await?;
    watches.watch(&wire::Path::new(OWN)?).await?;
    // Events come on a connection of their own; commands have their answers for themselves.
    let mut commands = Connection::open(socket, patience.answer).await?;
    loop {
        let Own { uplinks, services: _, options } = read_own(&mut commands).await?;
        tell.set_options(options);
        tell.news.send(Event::Uplinks(uplinks)).await.map_err(|_| Ended::NobodyListens)?;
        *has_worked = true;
        watches.next_event().await?;
    }
}
