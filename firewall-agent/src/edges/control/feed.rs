//! News to whoever listens, each reader at its own pace.
//! Never waits for a reader, and keeps the same few lines for all of them: one that is too
//! slow is told how many it missed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{ControlError, Request};
use firewall_core::told::news::News;

/// How many lines are kept for slow readers.
pub const KEPT: usize = 1024;

/// Where the agent tells its news.
#[derive(Debug)]
pub struct Feed(broadcast::Sender<Arc<str>>);

/// A reader's place in a [`Feed`], with the line that the reader is told first.
#[derive(Debug)]
pub struct Place {
    hello: News,
    lines: broadcast::Receiver<Arc<str>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl Feed {
    /// Tells news to whoever listens now.
    pub fn tell(&self, news: &News) {
        if self.0.receiver_count() > 0
            && let Ok(line) = line(news)
        {
            // The last listener may just have gone.
            let _ = self.0.send(line.into());
        }
    }

    /// A place for a new reader, who is told `hello` first.
    pub fn place(&self, hello: News) -> Place {
        Place { hello, lines: self.0.subscribe() }
    }
}

impl Place {
    /// Tells a reader that there are too many already.
    pub(super) async fn refuse(self, stream: &mut UnixStream, readers: usize) -> io::Result<()> {
        let lines = [line(&self.hello)?, line(&News::Full { readers })?];
        stream.write_all(lines.concat().as_bytes()).await
    }

    /// Passes on all news until the reader goes.
    pub(super) async fn pass_on(self, stream: &mut UnixStream) -> io::Result<()> {
        let Self { hello, mut lines } = self;
        let (mut reading, mut writing) = stream.split();
        writing.write_all(line(&hello)?.as_bytes()).await?;
        let mut nothing = [0; 64];
        loop {
            tokio::select! {
                told = lines.recv() => match told {
                    Ok(line) => writing.write_all(line.as_bytes()).await?,
                    Err(RecvError::Lagged(lines)) => {
                        writing.write_all(line(&News::Missed { lines })?.as_bytes()).await?;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                // Whoever listens has nothing more to say, and ends by going.
                read = reading.read(&mut nothing) => if read? == 0 {
                    return Ok(());
                },
            }
        }
    }
}

fn line(news: &News) -> io::Result<String> {
    let mut line = serde_json::to_string(news)?;
    line.push('\n');
    Ok(line)
}

/// The news of a running agent.
#[derive(Debug)]
pub struct Followed(Lines<BufReader<UnixStream>>);

/// Listens to a running agent. An error if no agent listens at the socket. Must be called inside a
/// tokio runtime.
pub async fn follow(path: &Path) -> Result<Followed, ControlError> {
    let mut stream =
        UnixStream::connect(path).await.map_err(|error| super::cannot_connect(path, error))?;
    let mut question = serde_json::to_string(&Request::Monitor)?;
    question.push('\n');
    let failed = |error| ControlError::Io { path: path.to_owned(), error };
    stream.write_all(question.as_bytes()).await.map_err(failed)?;
    Ok(Followed(BufReader::new(stream).lines()))
}

impl Followed {
    /// The next line; `None` if the agent has ended. An error if the line is not understood.
    pub async fn next(&mut self) -> Result<Option<News>, ControlError> {
        match self.0.next_line().await {
            Ok(Some(line)) => Ok(Some(serde_json::from_str(&line)?)),
            Ok(None) | Err(_) => Ok(None),
        }
    }
}
