//! One connection to QubesDB: questions, their answers, and what is told in between.
//! Never writes or removes a key that is not the agent's own.
//!
//! Events of watches come in between any two messages, also in the middle of a series; they
//! are kept in their order. After an error the connection is of no use any more, but for
//! [`ClientError::Refused`].

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::wire::{self, HEADER, Header, MAX_DATA, NotAPath, Path, Request, Response, WireError};

/// Most bytes of one series, paths and values: many times what dom0 ever writes.
const MAX_SERIES: usize = 32 << 20;

/// QubesDB cannot be talked to.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No daemon listens, or it went away.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The daemon ended the connection.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon does not answer in time.
    #[error("the daemon does not answer about `{path}`")]
    Silent {
        /// The path that it was asked about.
        path: Path,
    },
    /// The daemon says what no daemon says.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The daemon answers another question.
    #[error("asked about `{asked}`, the daemon says {response:?} about `{path}`")]
    Unexpected {
        /// The path that it was asked about.
        asked: String,
        /// The kind of answer that came.
        response: Response,
        /// The path that the answer is about.
        path: String,
    },
    /// A series of answers does not end.
    #[error("more than {MAX_SERIES} bytes below `{0}`")]
    Endless(Path),
    /// The daemon does not do what it is asked; the connection goes on.
    #[error("the daemon refuses `{0}`")]
    Refused(Path),
}

/// A key that belongs to the agent: nothing else is ever written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKey(Path);

impl OwnKey {
    /// The key `/qubes-firewall-handled/ADDRESS`, where it is counted how often rules of a client
    /// came into force.
    pub fn handled(client: IpAddr) -> Result<Self, NotAPath> {
        Path::new(format!("/qubes-firewall-handled/{client}")).map(Self)
    }

    /// The key `/dns/ADDRESS/NAME`, where the addresses of a name in a client's rules are told. An
    /// error if the name is too long for a path.
    pub fn name(client: IpAddr, name: &str) -> Result<Self, NotAPath> {
        Path::new(format!("/dns/{client}/{name}")).map(Self)
    }
}

/// Keys that belong to the agent: nothing else is ever removed. dom0 keeps a copy of all
/// keys; a removal of what is not there would end its daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTree(Path);

impl OwnTree {
    /// The keys below `/dns/ADDRESS/`: all names of a client.
    pub fn names(client: IpAddr) -> Result<Self, NotAPath> {
        Path::new(format!("/dns/{client}/")).map(Self)
    }
}

/// A connection to QubesDB's daemon.
pub struct Connection {
    stream: UnixStream,
    patience: Duration,
    /// What came and was not looked at yet.
    received: Vec<u8>,
    /// Events that came while something else was awaited.
    events: VecDeque<String>,
}

impl Connection {
    /// Connects to the daemon's socket. Each single answer may take as long as `patience`.
    pub async fn open(socket: &std::path::Path, patience: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).await?;
        Ok(Self { stream, patience, received: Vec::new(), events: VecDeque::new() })
    }

    /// Has changes of a key told, or of all keys that begin with a prefix.
    pub async fn watch(&mut self, path: &Path) -> Result<(), ClientError> {
        self.command(Request::Watch, path, b"").await
    }

    /// The value of a key; `None` if there is no such key.
    pub async fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, ClientError> {
        self.send(Request::Read, path, b"").await?;
        let (header, data) = self.answer(path).await?;
        match header.response {
            Response::Read if header.path == path.as_str() => Ok(Some(data)),
            Response::NoEntry => Ok(None),
            _ => Err(unexpected(path, header)),
        }
    }

    /// All keys that begin with a prefix, with their values.
    pub async fn multiread(
        &mut self,
        prefix: &Path,
    ) -> Result<Vec<(String, Vec<u8>)>, ClientError> {
        self.series(Request::Multiread, Response::Multiread, prefix).await
    }

    /// Whether there is any key of the agent in a tree.
    pub async fn has_any(&mut self, tree: &OwnTree) -> Result<bool, ClientError> {
        Ok(!self.series(Request::List, Response::List, &tree.0).await?.is_empty())
    }

    /// Writes a key of the agent. Refused is a value with a NUL, or of [`MAX_DATA`] bytes and more.
    pub async fn write(&mut self, key: &OwnKey, value: &[u8]) -> Result<(), ClientError> {
        // The daemon takes no more, and no NUL.
        if value.len() >= MAX_DATA || value.contains(&0) {
            return Err(ClientError::Refused(key.0.clone()));
        }
        self.command(Request::Write, &key.0, value).await
    }

    /// The value of a key of the agent; `None` if there is no such key.
    pub async fn read_own(&mut self, key: &OwnKey) -> Result<Option<Vec<u8>>, ClientError> {
        self.read(&key.0).await
    }

    /// Removes all keys of the agent in a tree. There must be one: [`Self::has_any`].
    pub async fn remove(&mut self, tree: &OwnTree) -> Result<(), ClientError> {
        self.command(Request::Rm, &tree.0, b"").await
    }

    /// Waits for the next event of a watch: the path that changed. Whoever waits may stop waiting;
    /// nothing is lost then.
    pub async fn next_event(&mut self) -> Result<String, ClientError> {
        if let Some(path) = self.events.pop_front() {
            return Ok(path);
        }
        let (header, _) = self.message().await?;
        match header.response {
            Response::Watch => Ok(header.path),
            response => {
                let asked = "nothing".to_owned();
                Err(ClientError::Unexpected { asked, response, path: header.path })
            }
        }
    }

    async fn command(
        &mut self,
        request: Request,
        path: &Path,
        data: &[u8],
    ) -> Result<(), ClientError> {
        self.send(request, path, data).await?;
        let (header, _) = self.answer(path).await?;
        match header.response {
            Response::Ok => Ok(()),
            Response::Error | Response::NoEntry => Err(ClientError::Refused(path.clone())),
            _ => Err(unexpected(path, header)),
        }
    }

    async fn series(
        &mut self,
        request: Request,
        expected: Response,
        prefix: &Path,
    ) -> Result<Vec<(String, Vec<u8>)>, ClientError> {
        self.send(request, prefix, b"").await?;
        let mut found = Vec::new();
        let mut size = 0;
        loop {
            let (header, data) = self.answer(prefix).await?;
            if header.response != expected {
                return Err(unexpected(prefix, header));
            }
            if header.path.is_empty() {
                return Ok(found);
            }
            if !header.path.starts_with(prefix.as_str()) {
                return Err(unexpected(prefix, header));
            }
            size += HEADER + data.len();
            if size > MAX_SERIES {
                return Err(ClientError::Endless(prefix.clone()));
            }
            found.push((header.path, data));
        }
    }

    async fn send(
        &mut self,
        request: Request,
        path: &Path,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let bytes = wire::request(request, path, data);
        let sent = tokio::time::timeout(self.patience, self.stream.write_all(&bytes)).await;
        Ok(sent.map_err(|_| ClientError::Silent { path: path.clone() })??)
    }

    /// The next message that is no event.
    async fn answer(&mut self, path: &Path) -> Result<(Header, Vec<u8>), ClientError> {
        let patience = self.patience;
        let answer = async {
            loop {
                let (header, data) = self.message().await?;
                if header.response != Response::Watch {
                    return Ok((header, data));
                }
                self.events.push_back(header.path);
            }
        };
        let answer = tokio::time::timeout(patience, answer).await;
        answer.map_err(|_| ClientError::Silent { path: path.clone() })?
    }

    async fn message(&mut self) -> Result<(Header, Vec<u8>), ClientError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            self.received.reserve(HEADER + MAX_DATA);
            // What was read stays when somebody stops waiting here.
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    /// A whole message out of what came, if there is one.
    fn take_message(&mut self) -> Result<Option<(Header, Vec<u8>)>, ClientError> {
        let Some(bytes) = self.received.first_chunk() else {
            return Ok(None);
        };
        let header = wire::header(bytes)?;
        let end = HEADER + header.length;
        if self.received.len() < end {
            return Ok(None);
        }
        let data = self.received.drain(..end).skip(HEADER).collect();
        Ok(Some((header, data)))
    }
}

fn unexpected(asked: &Path, header: Header) -> ClientError {
    let Header { response, path, length: _ } = header;
    ClientError::Unexpected { asked: asked.to_string(), response, path }
}
