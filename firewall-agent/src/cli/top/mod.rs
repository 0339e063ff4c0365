//! `top`: clients, rates and trouble on a terminal, as they change.
//! Never leaves the terminal in another state than it was.

pub mod screen;
pub mod state;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use self::state::{Board, Next};
use super::colour::Colours;
use super::{DEFAULT_SOCKET, EXIT_NOT_RUNNING};
use crate::edges::control::{self, ControlError, Request};
use firewall_core::told::status::Status;

/// How soon a signal or an answer is noticed.
const PATIENCE: Duration = Duration::from_millis(100);

/// What to watch.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds between two questions to the agent.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every: u64,
    /// Control socket of the agent.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// An answer, and how long after the one before it came.
type Answer = (Result<Status, String>, Duration);

/// Runs `top` until it is told to end.
pub fn top(Top { every, socket }: &Top) -> Result<ExitCode> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; for scripts there is `firewall-agent status --json`");
    }
    let status = match control::ask(socket, &Request::Status) {
        Ok(status) => status,
        Err(error @ ControlError::NotRunning(_)) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(EXIT_NOT_RUNNING));
        }
        Err(error) => return Err(error.into()),
    };
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register(signal, Arc::clone(&is_over))?;
    }
    let answers = ask_again_and_again(socket, Duration::from_secs(*every));
    // It restores the terminal after a panic as well.
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, Board::new(status), &answers, &is_over);
    ratatui::try_restore()?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    terminal: &mut DefaultTerminal,
    mut board: Board,
    answers: &Receiver<Answer>,
    is_over: &AtomicBool,
) -> io::Result<()> {
    let colours = Colours::of_stdout().are_wanted();
    while !is_over.load(Ordering::Relaxed) {
        for (answer, elapsed) in answers.try_iter() {
            board.answered(answer, elapsed);
        }
        terminal.draw(|frame| screen::draw(frame, &board, colours))?;
        match event::poll(PATIENCE) {
            Ok(true) => {}
            Ok(false) => continue,
            // By a signal.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && board.pressed(key) == Next::Quit
        {
            break;
        }
    }
    Ok(())
}

/// Asks in a thread of its own: keys are not to wait for an agent that is slow.
fn ask_again_and_again(socket: &Path, every: Duration) -> Receiver<Answer> {
    let socket = socket.to_owned();
    let (sender, answers) = sync_channel(1);
    thread::spawn(move || {
        let mut last = Instant::now();
        loop {
            thread::sleep(every);
            let answer = control::ask(&socket, &Request::Status).map_err(|it| it.to_string());
            let now = Instant::now();
            let elapsed = now - last;
            if answer.is_ok() {
                last = now;
            }
            if sender.send((answer, elapsed)).is_err() {
                return;
            }
        }
    });
    answers
}
