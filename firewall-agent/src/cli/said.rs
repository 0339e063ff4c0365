//! What the command line and dom0 say together: each key of QubesDB that sets an option counts as
//! arguments behind those of the command line, and is read by the same parser.
//! Never lets what is wrong in one key touch another.

use std::ffi::OsString;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Command as Parser, CommandFactory as _, FromArgMatches as _,
};
use firewall_core::introductions::{Introductions, split};
use firewall_core::options::{PREFIX, Said};
use firewall_core::told::options::{OptionFrom, OptionStatus};

use super::{Arguments, Command};
use crate::daemon::Heard;

/// Options that dom0 does not set in this way: where QubesDB is, is not to be asked there.
const NOT_SAID: [&str; 2] = ["root", "help"];
/// Options that dom0 sets by keys of their own, of which each change counts at once.
const LIVE: [&str; 3] = ["uplinks", "tor-socks", "tor-control"];

/// What is to be done, and how dom0's options were understood.
pub struct Merged {
    /// The command line, with the keys that count.
    pub command: Command,
    /// Which keys count, what is set, and what is wrong.
    pub heard: Heard,
}

/// Takes a command line, which is known to be good, together with what dom0 says. A key that is wrong,
/// by itself, or since `check` refuses what it comes to, changes nothing: its value `before` stays, if
/// there was one.
pub fn merge(
    line: &[OsString],
    said: &Said,
    before: &Said,
    check: impl Fn(Command) -> Result<()>,
) -> Result<Merged> {
    let all = Arguments::command();
    let matches = parse(line, &Said::new(), &all)?;
    let command = matches.subcommand_name().unwrap_or_default();
    let known = all.find_subcommand(command).unwrap_or(&all);
    let try_with = |good: &Said| -> Result<()> {
        check(Arguments::from_arg_matches(&parse(line, good, known)?)?.command)
    };
    let (introducing, said) = split(said);
    let introductions = Introductions::of(&introducing);
    let mut heard = Heard { introductions, ..Heard::default() };
    let mut add = |name: &String, value: &String| {
        heard.good.insert(name.clone(), value.clone());
        try_with(&heard.good).inspect_err(|_| drop(heard.good.remove(name)))
    };
    let mut wrong = Vec::new();
    let is_known = |name: &str| known.get_arguments().any(|arg| arg.get_long() == Some(name));
    // `prepare` has some options of `run`; what no command has, `run` tells.
    for (name, value) in said.iter().filter(|(it, _)| command == "run" || is_known(it)) {
        wrong.extend(add(name, value).is_err().then_some((name, value)));
    }
    // One may be good only together with others.
    for (name, value) in wrong {
        if let Err(error) = add(name, value) {
            let is_kept = before.get(name).is_some_and(|before| add(name, before).is_ok());
            let kept = if is_kept { "what it said before stays" } else { "it does not count" };
            heard.problems.push(format!("{PREFIX}{name}: {}; {kept}", first_line(&error)));
        }
    }
    let matches = parse(line, &heard.good, known)?;
    heard.options = set(&matches, known, &heard.good);
    Ok(Merged { command: Arguments::from_arg_matches(&matches)?.command, heard })
}

/// Parses a command line with the arguments that keys come to.
fn parse(line: &[OsString], said: &Said, known: &Parser) -> Result<ArgMatches> {
    let mut line = line.to_vec();
    for (name, value) in said {
        let arg = known.get_arguments().find(|arg| arg.get_long() == Some(name));
        let arg = arg.filter(|_| !NOT_SAID.contains(&name.as_str()));
        let arg = arg.ok_or_else(|| anyhow::anyhow!("dom0 sets no option of this name"))?;
        add_words(&mut line, arg, name, value).map_err(anyhow::Error::msg)?;
    }
    // The last one counts.
    Ok(Arguments::command().args_override_self(true).try_get_matches_from(line)?)
}

/// Adds the arguments that a value of a key comes to.
fn add_words(line: &mut Vec<OsString>, arg: &Arg, name: &str, value: &str) -> Result<(), String> {
    let option = format!("--{name}");
    match arg.get_action() {
        ArgAction::SetTrue => {
            line.retain(|word| *word != *option);
            match value.trim() {
                "1" | "on" | "yes" | "true" => line.push(option.into()),
                "" | "0" | "off" | "no" | "false" => {}
                other => return Err(format!("`{other}` is neither `1` nor `0`")),
            }
        }
        ArgAction::Append => {
            let values = value.split([',', ' ', '\n', '\t']).filter(|value| !value.is_empty());
            line.extend(values.map(|value| format!("{option}={value}").into()));
        }
        _ => line.push(format!("{option}={value}").into()),
    }
    Ok(())
}

/// The options that somebody set.
fn set(matches: &ArgMatches, known: &Parser, good: &Said) -> Vec<OptionStatus> {
    let Some((_, matches)) = matches.subcommand() else {
        return Vec::new();
    };
    let set = known.get_arguments().filter_map(|arg| {
        let (id, name) = (arg.get_id().as_str(), arg.get_long()?);
        let is_said = good.contains_key(name);
        let is_set = matches.value_source(id) == Some(ValueSource::CommandLine);
        if LIVE.contains(&name) || !(is_set || is_said) {
            return None;
        }
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        let raw = matches.get_raw(id).into_iter().flatten();
        let values: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
        let value = match is_flag {
            true if is_set => "on".to_owned(),
            true => "off".to_owned(),
            false => values.join(", "),
        };
        let from = if is_said { OptionFrom::Qubesdb } else { OptionFrom::Options };
        Some(OptionStatus { name: name.to_owned(), value, from })
    });
    set.collect()
}

/// What is wrong, without how the command is used.
fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
