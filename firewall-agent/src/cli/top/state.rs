//! PURE: what `top` knows, and how keys and answers change it.
//! Never draws, asks or reads a clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use firewall_core::told::status::{ClientStatus, CounterStatus, NameStatus, Status};
use firewall_core::told::totals::Totals;

/// A client: address and interface index of its vif.
pub type Key = (IpAddr, Option<u32>);

/// How many rows a page key moves.
const PAGE: usize = 10;

/// By what clients are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// By address.
    Client,
    /// By packets accepted in a second.
    Accepted,
    /// By bytes accepted in a second.
    Bytes,
    /// By packets denied in a second.
    DeniedRate,
    /// By packets denied since the policy went into force.
    Denied,
}

impl Sort {
    /// The word on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Accepted => "accepted packets",
            Self::Bytes => "accepted bytes",
            Self::DeniedRate => "denied packets a second",
            Self::Denied => "denied packets",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Client => Self::Accepted,
            Self::Accepted => Self::Bytes,
            Self::Bytes => Self::DeniedRate,
            Self::DeniedRate => Self::Denied,
            Self::Denied => Self::Client,
        }
    }
}

/// How much is counted in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Packets in a second.
    pub packets: f64,
    /// Bytes in a second.
    pub bytes: f64,
}

impl Rate {
    /// What was counted in so many seconds.
    #[allow(clippy::cast_precision_loss)]
    fn of(now: CounterStatus, before: CounterStatus, seconds: f64) -> Self {
        let grown = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        if seconds <= 0.0 {
            return Self::default();
        }
        Self { packets: grown(now.packets, before.packets), bytes: grown(now.bytes, before.bytes) }
    }
}

/// What a key comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on, and draw.
    Draw,
    /// End the command.
    Quit,
}

/// Everything that is on the screen.
#[derive(Debug)]
pub struct Board {
    status: Status,
    before: BTreeMap<Key, ClientStatus>,
    /// Time between the last answer and the one before.
    elapsed: Duration,
    /// Why the last question was not answered; `None` if it was.
    pub unanswered: Option<String>,
    /// By what clients are sorted.
    pub sort: Sort,
    /// Only clients are shown that have this text in their address, vif or state.
    pub filter: String,
    /// Whether keys go into the filter.
    pub is_typing: bool,
    selected: Option<Key>,
    /// Whether the selected client is shown alone.
    is_open: bool,
    /// Index of the first rule that is shown of the client that is shown alone.
    pub scroll: usize,
}

impl Board {
    /// The board after the first answer, when there are no rates yet.
    pub fn new(status: Status) -> Self {
        Self {
            status,
            before: BTreeMap::new(),
            elapsed: Duration::ZERO,
            unanswered: None,
            sort: Sort::Client,
            filter: String::new(),
            is_typing: false,
            selected: None,
            is_open: false,
            scroll: 0,
        }
    }

    /// Takes in an answer, which came so long after the one before, or the reason why there is
    /// none.
    pub fn answered(&mut self, answer: Result<Status, String>, elapsed: Duration) {
        match answer {
            Ok(status) => {
                let before = std::mem::replace(&mut self.status, status);
                self.before =
                    before.clients.into_iter().map(|client| (key(&client), client)).collect();
                self.elapsed = elapsed;
                self.unanswered = None;
            }
            Err(why) => self.unanswered = Some(why),
        }
    }

    /// Takes in a key.
    pub fn pressed(&mut self, pressed: KeyEvent) -> Next {
        let is_control = pressed.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && pressed.code == KeyCode::Char('c') {
            return Next::Quit;
        }
        if self.is_typing {
            self.typed(pressed.code);
            return Next::Draw;
        }
        match pressed.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.go(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at, _| at + 1),
            KeyCode::PageUp => self.go(|at, _| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|at, _| at + PAGE),
            KeyCode::Home => self.go(|_, _| 0),
            KeyCode::End => self.go(|_, last| last),
            KeyCode::Enter | KeyCode::Right => {
                self.is_open = self.selected().is_some();
                self.scroll = 0;
            }
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace if self.is_open => {
                self.is_open = false;
            }
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') if !self.is_open => self.is_typing = true,
            _ => {}
        }
        Next::Draw
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(letter) => self.filter.push(letter),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_typing = false;
            }
            _ => {}
        }
    }

    /// Moves the selection, or the rules of the client that is shown alone.
    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        if let Some(client) = self.opened() {
            let last = client.rules.len().saturating_sub(1);
            self.scroll = to(self.scroll, last).min(last);
            return;
        }
        let keys: Vec<Key> = self.clients().into_iter().map(key).collect();
        let last = keys.len().saturating_sub(1);
        let at = to(self.selected_row().unwrap_or_default(), last).min(last);
        self.selected = keys.get(at).copied();
    }

    /// The agent's last answer.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Clients that pass the filter, sorted.
    pub fn clients(&self) -> Vec<&ClientStatus> {
        let passes = |client: &&ClientStatus| {
            let vif = client.vif.as_deref().unwrap_or_default();
            let text = format!("{} {vif} {}", client.address, client.state.name());
            text.contains(&self.filter)
        };
        let mut clients: Vec<&ClientStatus> = self.status.clients.iter().filter(passes).collect();
        let order = |client: &ClientStatus| match self.sort {
            Sort::Client => 0.0,
            Sort::Accepted => self.rate(client, accepted).packets,
            Sort::Bytes => self.rate(client, accepted).bytes,
            Sort::DeniedRate => self.rate(client, denied).packets,
            Sort::Denied => Rate::of(denied(client), CounterStatus::default(), 1.0).packets,
        };
        clients.sort_by(|a, b| order(b).total_cmp(&order(a)).then_with(|| key(a).cmp(&key(b))));
        clients
    }

    /// The selected client; the first one, if the one that was selected is gone; `None` if no
    /// client is shown.
    pub fn selected(&self) -> Option<&ClientStatus> {
        self.clients().get(self.selected_row()?).copied()
    }

    /// Index of the selected client among [`Self::clients`]; `None` if no client is shown.
    pub fn selected_row(&self) -> Option<usize> {
        let clients = self.clients();
        let selected = clients.iter().position(|client| Some(key(client)) == self.selected);
        selected.or((!clients.is_empty()).then_some(0))
    }

    /// The client that is shown alone; `None` if all are shown.
    pub fn opened(&self) -> Option<&ClientStatus> {
        self.selected().filter(|_| self.is_open)
    }

    /// Names that are not as they should be, in the rules of clients that are shown.
    pub fn names_in_trouble(&self) -> Vec<&NameStatus> {
        let is_mine = |name: &&NameStatus| {
            self.opened().is_none_or(|client| name.users.contains_key(&client.address))
        };
        let names = self.status.names.iter().filter(|name| name.problem.is_some());
        names.filter(is_mine).collect()
    }

    /// How fast a counter of a client, which `of` picks out, has grown since the answer before.
    pub fn rate(&self, client: &ClientStatus, of: impl Fn(&ClientStatus) -> CounterStatus) -> Rate {
        let Some(before) = self.before.get(&key(client)) else {
            return Rate::default();
        };
        // A new policy counts from zero.
        let is_same = before.generation == client.generation;
        let before = if is_same { of(before) } else { CounterStatus::default() };
        Rate::of(of(client), before, self.elapsed.as_secs_f64())
    }
}

fn key(client: &ClientStatus) -> Key {
    (client.address, client.vif_index)
}

/// What a client's rules accepted.
pub fn accepted(client: &ClientStatus) -> CounterStatus {
    Totals::of(client).accepted
}

/// What of a client's was denied.
pub fn denied(client: &ClientStatus) -> CounterStatus {
    Totals::of(client).denied
}
