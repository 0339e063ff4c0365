//! What `top` looks like, from 80 columns and 24 rows on.
//! Never says anything by colour alone, and never changes what it draws.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::state::{Board, Rate, accepted, denied};
use firewall_core::told::status::{ClientStatus, CounterStatus, State, Status};
use firewall_core::told::totals::problems;

/// Most names in trouble that are shown.
const MOST_NAMES: usize = 4;

/// Draws a board on the whole screen, with or without colours.
pub fn draw(frame: &mut Frame<'_>, board: &Board, colours: bool) {
    let painter = Painter { board, colours };
    let names = painter.names();
    let height = u16::try_from(names.len()).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(height),
        Constraint::Length(1),
    ]);
    let [title, state, _, main, trouble, help] = areas.areas(frame.area());
    frame.render_widget(Line::from(title_of(board.status())).style(Modifier::BOLD), title);
    frame.render_widget(painter.state(), state);
    match board.opened() {
        Some(client) => painter.client(frame, main, client),
        None => painter.clients(frame, main),
    }
    frame.render_widget(Paragraph::new(names), trouble);
    frame.render_widget(Line::from(help_of(board)), help);
}

struct Painter<'a> {
    board: &'a Board,
    colours: bool,
}

fn title_of(status: &Status) -> String {
    let count = |state| status.clients.iter().filter(|client| client.state == state).count();
    let [live, blocked, waiting] = [State::Live, State::Blocked, State::Waiting].map(count);
    format!(
        "firewall-agent {}, mode {}; clients: {live} live, {blocked} blocked, {waiting} waiting",
        status.agent.version,
        status.agent.mode.name()
    )
}

fn help_of(board: &Board) -> String {
    if board.is_typing {
        return format!("filter: {}_   Enter keep  Esc clear", board.filter);
    }
    if board.opened().is_some() {
        return "Up/Down move  Esc back  q quit".to_owned();
    }
    let filter = match board.filter.as_str() {
        "" => String::new(),
        filter => format!(" ({filter})"),
    };
    format!("Up/Down select  Enter rules  s sort ({})  / filter{filter}  q quit", board.sort.name())
}

impl Painter<'_> {
    fn style(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// Whether all is well.
    fn state(&self) -> Line<'static> {
        let status = self.board.status();
        if let Some(why) = &self.board.unanswered {
            return Line::from(format!("NOT UP TO DATE: {why}")).style(self.style(Color::Red));
        }
        let audited =
            status.clients.iter().filter(|client| client.audit_seconds_left.is_some()).count();
        match (problems(status), audited) {
            (0, _) => Line::from("all is well").style(self.style(Color::Green)),
            (count, 0) => {
                let text = format!("PROBLEMS: {count}; `firewall-agent status` lists them");
                Line::from(text).style(self.style(Color::Red))
            }
            (count, audited) => {
                let text = format!(
                    "PROBLEMS: {count}, with {audited} AUDITED; `firewall-agent status` lists them"
                );
                Line::from(text).style(self.style(Color::Red))
            }
        }
    }

    fn clients(&self, frame: &mut Frame<'_>, area: Rect) {
        let header = ["CLIENT", "VIF", "STATE", "ACC/s", "BYTES/s", "DEN/s", "DENIED"];
        let widths = [23, 9, 8, 8, 8, 8, 8].map(Constraint::Length);
        let rows = self.board.clients().into_iter().map(|client| {
            let accepted = self.board.rate(client, accepted);
            let denied_rate = self.board.rate(client, denied);
            let (state, colour) = state_of(client);
            Row::new([
                Cell::from(end_of(&client.address.to_string(), 23)),
                Cell::from(client.vif.clone().unwrap_or_else(|| "no vif".to_owned())),
                Cell::from(state).style(self.style(colour)),
                number(short(accepted.packets)),
                number(short(accepted.bytes)),
                number(short(denied_rate.packets)),
                number(short(total(denied(client).packets))),
            ])
        });
        let table = Table::new(rows, widths)
            .header(header_row(header, 3))
            .highlight_symbol("> ")
            .row_highlight_style(Modifier::REVERSED);
        let mut state = TableState::new().with_selected(self.board.selected_row());
        frame.render_stateful_widget(table, area, &mut state);
    }

    /// One client with its rules and counters.
    fn client(&self, frame: &mut Frame<'_>, area: Rect, client: &ClientStatus) {
        let (state, colour) = state_of(client);
        let vif = client.vif.as_deref().unwrap_or("no vif");
        let mut about = vec![
            Line::from(format!("{} on {vif}: {state}", client.address)).style(self.style(colour)),
        ];
        if let Some(problem) = &client.problem {
            about.push(Line::from(format!("{}: {}", problem.origin, problem.reason)));
        }
        if let Some(seconds) = client.audit_seconds_left {
            about.push(Line::from(format!("what its rules deny passes for {seconds} s more")));
        }
        let height = u16::try_from(about.len()).unwrap_or(u16::MAX);
        let areas = Layout::vertical([Constraint::Length(height), Constraint::Min(2)]);
        let [about_area, rules] = areas.areas(area);
        frame.render_widget(Paragraph::new(about).wrap(Wrap { trim: true }), about_area);
        let header = ["NO", "RULE OR REASON", "PACKETS", "PACK/s", "BYTES"];
        let widths = [
            Constraint::Length(4),
            Constraint::Min(20),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
        ];
        let row = |number_: String, text: String, counter: CounterStatus, rate: Rate| {
            Row::new([
                Cell::from(number_),
                Cell::from(text),
                number(short(total(counter.packets))),
                number(short(rate.packets)),
                number(short(total(counter.bytes))),
            ])
        };
        let of_rules = client.rules.iter().enumerate().map(|(index, rule)| {
            let of = move |it: &ClientStatus| {
                it.rules.get(index).map_or(CounterStatus::default(), |it| it.counter)
            };
            let text = rule.text.clone();
            row(format!("{:04}", rule.number), text, rule.counter, self.board.rate(client, of))
        });
        let of_default = client.default.iter().map(|default| {
            let rate = self.board.rate(client, |it| it.default_counter);
            row(
                "else".to_owned(),
                format!("action={}", default.name()),
                client.default_counter,
                rate,
            )
        });
        let of_reasons = client.counters.iter().map(|(reason, counter)| {
            let of = |it: &ClientStatus| it.counters.get(reason).copied().unwrap_or_default();
            row(String::new(), reason.to_string(), *counter, self.board.rate(client, of))
        });
        let rows = of_rules.skip(self.board.scroll).chain(of_default).chain(of_reasons);
        frame.render_widget(Table::new(rows, widths).header(header_row(header, 2)), rules);
    }

    /// Names in trouble, and how many more there are.
    fn names(&self) -> Vec<Line<'static>> {
        let names = self.board.names_in_trouble();
        let mut lines: Vec<Line<'_>> = Vec::new();
        for name in names.iter().take(MOST_NAMES) {
            let problem = name.problem.as_deref().unwrap_or_default();
            lines.push(Line::from(format!("NAME {}: {problem}", name.name)));
        }
        match names.len().saturating_sub(MOST_NAMES) {
            0 => {}
            more => lines.push(Line::from(format!("and {more} more names"))),
        }
        lines.into_iter().map(|line| line.style(self.style(Color::Yellow))).collect()
    }
}

/// The first columns are text, the others numbers.
fn header_row<const N: usize>(titles: [&'static str; N], text: usize) -> Row<'static> {
    let titles = titles.into_iter().enumerate().map(|(column, title)| {
        if column < text { Cell::from(title) } else { number(title.to_owned()) }
    });
    Row::new(titles).style(Modifier::UNDERLINED)
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn state_of(client: &ClientStatus) -> (&'static str, Color) {
    match (client.state, client.audit_seconds_left) {
        (State::Live, Some(_)) => ("AUDITED", Color::Magenta),
        (State::Live, None) => ("live", Color::Green),
        (State::Blocked, _) => ("BLOCKED", Color::Red),
        (State::Waiting, _) => ("waiting", Color::Yellow),
        (State::Absent, _) => ("absent", Color::Reset),
    }
}

/// The end of a text that is too long: addresses differ there.
fn end_of(text: &str, width: usize) -> String {
    match text.len().checked_sub(width) {
        None | Some(0) => text.to_owned(),
        Some(over) => format!("~{}", text.get(over + 1..).unwrap_or_default()),
    }
}

#[allow(clippy::cast_precision_loss)]
fn total(value: u64) -> f64 {
    value as f64
}

/// A number in at most six columns.
fn short(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 9_999.5 {
            let is_whole = value.fract() == 0.0 || value >= 99.95;
            return if is_whole {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}
