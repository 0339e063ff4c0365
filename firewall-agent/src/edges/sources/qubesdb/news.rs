//! The two ends of what a task reads in QubesDB: events, and the options that dom0 sets.
//! Never loses an event; of options the last ones count.

use firewall_core::events::Event;
use firewall_core::options::Said;
use tokio::sync::{mpsc, watch};

/// Where a task tells what it reads.
pub struct Tell {
    /// News for the world.
    pub news: mpsc::Sender<Event>,
    options: watch::Sender<Option<Said>>,
}

/// Where that is heard.
pub struct News {
    news: mpsc::Receiver<Event>,
    options: watch::Receiver<Option<Said>>,
}

/// Both ends; as many events as there is room for may wait.
pub fn channel(room: usize) -> (Tell, News) {
    let (tell, news) = mpsc::channel(room);
    let (say, options) = watch::channel(None);
    (Tell { news: tell, options: say }, News { news, options })
}

impl Tell {
    /// Tells which options dom0 sets, if these are others than before.
    pub fn set_options(&self, options: Said) {
        self.options.send_if_modified(|before| {
            let is_other = before.as_ref() != Some(&options);
            *before = Some(options);
            is_other
        });
    }
}

impl News {
    /// Waits for the next event. Whoever waits may stop waiting; nothing is lost then.
    pub async fn next(&mut self) -> Event {
        match self.news.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Where the options are that dom0 sets, and where changes of them are told; `None`: not read yet.
    pub fn options(&self) -> watch::Receiver<Option<Said>> {
        self.options.clone()
    }
}
