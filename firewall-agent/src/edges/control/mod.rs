//! The control socket: a question as one line of JSON, the answer as JSON, and the end.
//! Never answers by itself; the daemon does.

pub mod feed;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use firewall_core::told::explanation::{Explanation, PacketStatus};
use firewall_core::told::own::{Aim, OwnStatus};
use firewall_core::told::status::{AuditStatus, Status};
use firewall_core::world::audits::NoAudit;

/// Longest question, in bytes.
const MAX_REQUEST: u64 = 4096;
/// How often it is looked whether somebody listens at the socket. A process that a killed agent was
/// about to start holds the agent's files, the socket among them, for a moment more.
const ATTEMPTS: u32 = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);
/// How long the daemon may take for an answer, and whoever asked to read it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a question may take, which is one line.
const PATIENCE_FOR_QUESTION: Duration = Duration::from_secs(10);
/// Most that ask at a time; whoever comes then waits in the kernel. Far fewer than a process
/// may have files open.
const MOST_ASKING: usize = 256;
/// Most readers of news.
const MOST_READERS: usize = 64;

/// A question to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "request")]
pub enum Request {
    /// Everything that the agent tells.
    Status,
    /// Everything that the agent tells, of clients only one.
    Show {
        /// The client's address.
        client: IpAddr,
    },
    /// News, a line of JSON each, for as long as both sides live.
    Monitor,
    /// Let what a client's rules deny pass for a while.
    Audit {
        /// The client's address.
        client: IpAddr,
        /// For how long, in seconds; 0 ends the audit.
        seconds: u64,
    },
    /// What becomes of a packet, and why.
    Explain {
        /// Address of the client that sends it.
        client: IpAddr,
        /// The packet.
        packet: PacketStatus,
    },
    /// What a qube may be told about itself.
    Own {
        /// Name of the qube, from whoever knows who asks.
        qube: String,
        /// Where a packet of the qube is to go, if one is asked about.
        aim: Option<Aim>,
    },
}

/// An answer of the agent. Whoever asked knows which one comes.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Request::Status`] and [`Request::Show`].
    Status(Box<Status>),
    /// To [`Request::Monitor`].
    #[serde(skip)]
    News(feed::Place),
    /// To [`Request::Audit`]: what came of the wish, or why there can be no audit.
    Audit(Result<AuditStatus, NoAudit>),
    /// To [`Request::Explain`]: for each vif that leads to the client.
    Explanations(Vec<Explanation>),
    /// To [`Request::Own`].
    Own(Box<OwnStatus>),
}

/// A question with the way to answer it.
pub type Question = (Request, oneshot::Sender<Answer>);

/// The agent cannot be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens at the socket.
    #[error("no agent answers at {0}: it is not running, or listens elsewhere (--socket)")]
    NotRunning(PathBuf),
    /// Somebody else listens at the socket already.
    #[error("another agent already listens at {0}")]
    AlreadyRunning(PathBuf),
    /// The socket is unusable.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What does not work.
        error: io::Error,
    },
    /// The agent's answer is not understood.
    #[error("the agent's answer is not understood, is it of another version? {0}")]
    Answer(#[from] serde_json::Error),
}

/// The agent's end of the control socket. Dropping it removes the socket.
pub struct Listener {
    path: PathBuf,
    questions: mpsc::Receiver<Question>,
}

impl Listener {
    /// Listens at a path. A socket that a dead agent left behind is replaced; an error if another
    /// agent listens there, or the socket cannot be made. Must be called inside a tokio runtime.
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |error| ControlError::Io { path: path.to_owned(), error };
        let mut attempts = 0;
        while is_listened_to(path).await {
            attempts += 1;
            if attempts == ATTEMPTS {
                return Err(ControlError::AlreadyRunning(path.to_owned()));
            }
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Rules name the places a user goes to: nobody else's business.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let (sender, questions) = mpsc::channel(16);
        tokio::spawn(listen(listener, sender));
        Ok(Self { path: path.to_owned(), questions })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next question.
    pub async fn question(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether somebody listens at a socket. One who is stuck has no room for whoever connects.
async fn is_listened_to(path: &Path) -> bool {
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

async fn listen(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let (asking, readers) =
        [MOST_ASKING, MOST_READERS].map(|most| Arc::new(Semaphore::new(most))).into();
    // Neither is ever closed.
    while let Ok(permit) = Arc::clone(&asking).acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Nobody answers any more.
            () = questions.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (questions, readers) = (questions.clone(), Arc::clone(&readers));
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, questions, permit, &readers).await {
                        debug!(%error, "a question was not answered");
                    }
                });
            }
            Err(error) => {
                debug!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    mut stream: tokio::net::UnixStream,
    questions: mpsc::Sender<Question>,
    asking: OwnedSemaphorePermit,
    readers: &Semaphore,
) -> io::Result<()> {
    let (sender, answer) = oneshot::channel();
    let request = timeout(PATIENCE_FOR_QUESTION, read_request(&mut stream)).await??;
    questions.send((request, sender)).await.map_err(io::Error::other)?;
    match timeout(PATIENCE, answer).await?.map_err(io::Error::other)? {
        Answer::News(place) => match readers.try_acquire() {
            Ok(_reader) => {
                drop(asking);
                place.pass_on(&mut stream).await
            }
            Err(_) => timeout(PATIENCE, place.refuse(&mut stream, MOST_READERS)).await?,
        },
        answer => {
            let answer = serde_json::to_vec(&answer)?;
            timeout(PATIENCE, stream.write_all(&answer)).await??;
            stream.shutdown().await
        }
    }
}

async fn read_request(stream: &mut tokio::net::UnixStream) -> io::Result<Request> {
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

fn cannot_connect(path: &Path, error: io::Error) -> ControlError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning(path)
        }
        _ => ControlError::Io { path, error },
    }
}

/// Asks a running agent, and waits for the answer. An error if no agent listens, if none answers
/// within a minute, or if the answer is not understood.
pub fn ask<T: DeserializeOwned>(path: &Path, request: &Request) -> Result<T, ControlError> {
    let failed = |error| ControlError::Io { path: path.to_owned(), error };
    let mut stream = UnixStream::connect(path).map_err(|error| cannot_connect(path, error))?;
    stream.set_read_timeout(Some(2 * PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed)?;
    if answer.is_empty() {
        return Err(failed(io::Error::other(
            "the agent ended, or took too long, before it answered",
        )));
    }
    Ok(serde_json::from_slice(&answer)?)
}
