//! What man and shells are told about the commands.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use clap::CommandFactory as _;
use firewall_agent::cli::Arguments;
use firewall_tests::rig::agent::binary;

/// Names of the commands that people are told of.
fn commands() -> BTreeSet<String> {
    let command = Arguments::command();
    let told = command.get_subcommands().filter(|command| !command.is_hide_set());
    told.map(|command| command.get_name().to_owned()).collect()
}

#[test]
fn every_command_has_a_page_that_names_all_its_options() {
    let directory = std::env::temp_dir().join(format!("fwt-manual-{}", std::process::id()));
    let agent = binary().expect("an agent");
    let status = Command::new(agent).arg("manual").arg(&directory).status().expect("an end");
    assert!(status.success());
    let pages: BTreeSet<String> = fs::read_dir(&directory)
        .expect("a directory")
        .map(|page| page.expect("a page").file_name().to_string_lossy().into_owned())
        .collect();
    let mut expected: BTreeSet<String> =
        commands().iter().map(|command| format!("firewall-agent-{command}.8")).collect();
    expected.insert("firewall-agent.8".to_owned());
    assert_eq!(pages, expected);
    for command in Arguments::command().get_subcommands().filter(|it| !it.is_hide_set()) {
        let name = command.get_name();
        let page = fs::read_to_string(directory.join(format!("firewall-agent-{name}.8")));
        // troff would take a bare hyphen for one that may break a word.
        let page = page.expect("a page").replace("\\-", "-");
        for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{name} --{option}");
        }
    }
    fs::remove_dir_all(directory).expect("gone");
}

#[test]
fn shells_are_told_every_command() {
    for shell in ["bash", "fish", "zsh"] {
        let mut agent = Command::new(binary().expect("an agent"));
        let output = agent.args(["completions", shell]).output().expect("an end");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        for command in commands() {
            assert!(text.contains(&command), "{shell} {command}");
        }
    }
}
