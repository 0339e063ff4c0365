//! What `top` looks like on the smallest terminal, and what keys do.

use std::time::Duration;

use firewall_agent::cli::top::screen::draw;
use firewall_agent::cli::top::state::{Board, Next};
use firewall_core::rules::Family;
use firewall_core::told::status::{NameStatus, Status};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::metrics;

/// Names in trouble, and more of everything than before.
fn later() -> Status {
    let mut status = metrics::status();
    let client = &mut status.clients[0];
    client.rules[0].counter.packets += 25;
    client.rules[0].counter.bytes += 3_000_000;
    client.default_counter.packets += 3;
    status.clients[1].counters.get_mut("blocked").expect("a counter").packets += 20_000;
    let name = |name: &str, user: &str| NameStatus {
        name: name.to_owned(),
        family: Family::V4,
        addresses: Vec::new(),
        answered_seconds_ago: None,
        next_seconds_left: 5,
        failures: 2,
        refused: 0,
        problem: Some("no such name".to_owned()),
        users: [(user.parse().expect("an address"), vec![2])].into(),
    };
    status.names = vec![name("gti.example", "10.137.0.12"), name("moo.example", "10.137.0.13")];
    status
}

fn board() -> Board {
    let mut board = Board::new(metrics::status());
    board.answered(Ok(later()), Duration::from_secs(2));
    board
}

fn press(board: &mut Board, keys: &[KeyCode]) {
    for key in keys {
        assert_eq!(board.pressed(KeyEvent::from(*key)), Next::Draw, "{key}");
    }
}

fn typed(text: &str) -> Vec<KeyCode> {
    text.chars().map(KeyCode::Char).collect()
}

fn terminal(board: &Board, width: u16, height: u16, colours: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, board, colours)).expect("a picture");
    terminal
}

/// The lines of an 80 by 24 terminal.
fn lines(board: &Board) -> Vec<String> {
    let terminal = terminal(board, 80, 24, true);
    let cells = terminal.backend().buffer().content();
    let line = |cells: &[ratatui::buffer::Cell]| {
        cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
    };
    cells.chunks(80).map(line).collect()
}

#[track_caller]
fn check(board: &Board, expected: &str) {
    let lines = lines(board).join("\n") + "\n";
    assert_eq!(lines, expected, "\n{lines}");
}

#[test]
fn top_fits_on_80_columns_and_24_rows() {
    let mut board = board();
    check(&board, include_str!("top_clients.txt"));
    press(&mut board, &[KeyCode::Enter]);
    check(&board, include_str!("top_client.txt"));
}

#[test]
fn keys_select_sort_filter_open_and_quit() {
    let mut board = board();
    let selected = |board: &Board| board.selected().map(|it| it.address.to_string());
    let first = || Some("10.137.0.12".to_owned());
    assert_eq!(selected(&board), first());
    press(&mut board, &[KeyCode::Down]);
    assert_eq!(selected(&board), Some("10.137.0.14".to_owned()));
    press(&mut board, &[KeyCode::Down, KeyCode::Down, KeyCode::PageDown]);
    assert_eq!(selected(&board), Some("fd09::d".to_owned()));
    // What is selected stays so, wherever it goes.
    press(&mut board, &[typed("ssss"), vec![KeyCode::Home]].concat());
    assert_eq!(selected(&board), Some("fd09::d".to_owned()), "most denied");
    press(&mut board, &typed("s"));
    assert_eq!(board.selected_row(), Some(2));
    press(&mut board, &[typed("/10.137"), vec![KeyCode::Enter]].concat());
    assert_eq!(board.clients().len(), 2);
    // Who is not there any more is not selected.
    assert_eq!(selected(&board), first());
    press(&mut board, &[KeyCode::Enter]);
    assert!(board.opened().is_some());
    press(&mut board, &[KeyCode::Esc]);
    assert!(board.opened().is_none());
    press(&mut board, &[KeyCode::Esc]);
    assert_eq!(board.clients().len(), 3);
    // While a filter is typed, q is a letter.
    press(&mut board, &typed("/q"));
    assert_eq!(board.clients().len(), 0);
    press(&mut board, &[KeyCode::Enter, KeyCode::Enter, KeyCode::Down, KeyCode::Up]);
    assert!(board.opened().is_none());
    assert_eq!(board.pressed(KeyEvent::from(KeyCode::Char('q'))), Next::Quit);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut board, &typed("/"));
    assert_eq!(board.pressed(control_c), Next::Quit);
}

#[test]
fn a_new_policy_counts_from_zero_and_an_agent_that_is_gone_is_told() {
    let mut board = board();
    let mut replaced = metrics::status();
    replaced.clients[0].generation = Some(3);
    board.answered(Ok(replaced), Duration::from_secs(1));
    // 1 + 4 packets of accept rules since the new policy.
    let rate = board.rate(&board.clients()[0].clone(), |it| {
        firewall_core::told::totals::Totals::of(it).accepted
    });
    assert_eq!(rate.packets, 5.0);
    board.answered(Err("no agent answers".to_owned()), Duration::from_secs(1));
    assert_eq!(lines(&board)[1], "NOT UP TO DATE: no agent answers");
}

#[test]
fn without_colours_there_are_none_and_all_is_said_in_words() {
    for (colours, expected) in [(true, true), (false, false)] {
        let board = board();
        let terminal = terminal(&board, 80, 24, colours);
        let cells = terminal.backend().buffer().content();
        let is_coloured = cells.iter().any(|it| it.fg != Color::Reset || it.bg != Color::Reset);
        assert_eq!(is_coloured, expected);
        assert!(cells.iter().any(|it| it.modifier.contains(Modifier::REVERSED)));
    }
}

#[test]
fn top_draws_on_any_terminal() {
    let mut board = board();
    for opened in [false, true] {
        for (width, height) in [(1, 1), (10, 3), (80, 24), (300, 100)] {
            terminal(&board, width, height, true);
        }
        assert_eq!(board.opened().is_some(), opened);
        press(&mut board, &[KeyCode::Enter]);
    }
}
