//! The command line told to others: to shells as completions, to `man` as pages.
//! Never has a text of its own; all of it is in `--help`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Arguments, ask};

/// Which completions.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that is to know the commands.
    pub shell: Shell,
}

/// Where to write pages.
#[derive(Debug, Args)]
pub struct Manual {
    /// Directory for pages, which is made if it is not there.
    pub directory: PathBuf,
}

/// Runs `completions`: prints completions of the commands for a shell.
pub fn completions(Completions { shell }: &Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(*shell, &mut command, "firewall-agent", &mut text);
    ask::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `manual`: writes manual pages into a directory.
pub fn manual(Manual { directory }: &Manual) -> Result<ExitCode> {
    write_pages(directory).with_context(|| format!("cannot write to {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let parts = command.get_subcommands().filter(|part| !part.is_hide_set());
    for command in parts.chain([&command]).cloned() {
        // 8: the administrator's commands.
        let page = Man::new(command).section("8").manual("Qubes firewall");
        let mut file = fs::File::create(directory.join(page.get_filename()))?;
        page.render(&mut file)?;
        file.flush()?;
    }
    Ok(())
}
