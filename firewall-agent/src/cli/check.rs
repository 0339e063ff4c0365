//! `check`: mistakes in a file of rules, each with its place and what to write instead.
//! Never asks the agent or the kernel.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr as _;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use anyhow::{Context as _, Result};
use clap::Args;

use super::EXIT_PROBLEM;
use super::ask::print;
use super::colour::Colours;
use crate::edges::sources::rule_files;
use firewall_core::rules::lint::{Lint, lint, lint_in_gateway};
use firewall_core::rules::parse::{Entry, Parsed, parse};
use firewall_core::rules::problem::RulesetError;
use firewall_core::rules::{Family, Ruleset};
use firewall_core::told::SCHEMA;
use firewall_core::told::report::{Finding, Report, Severity};
use firewall_core::tor::{self, Access, Each};

/// What to check.
#[derive(Debug, Args)]
pub struct Check {
    /// The file of rules.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The client that the rules are for, by its address; by default the name of the file.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// Check them as those of a Whonix gateway whose option of that name says this; where this is
    /// one, `deny` by default.
    #[arg(long, value_name = "ACCESS", value_parser = Access::from_str)]
    pub tor_socks: Option<Access>,
    /// Print JSON instead of text; docs/json.md describes it.
    #[arg(long)]
    pub json: bool,
}

/// Runs `check`: prints all that was found in a file of rules.
pub fn check(Check { file, client, tor_socks, json }: &Check) -> Result<ExitCode> {
    let by_name = || file.file_name()?.to_str()?.parse().ok();
    let client = client.or_else(by_name).with_context(|| {
        format!(
            "whose rules are these? {} is not named by a client's address: add --client ADDRESS",
            file.display()
        )
    })?;
    let text =
        rule_files::read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
    let is_gateway = || Path::new("/").join(tor::MARKER).exists();
    let in_gateway = tor_socks.or_else(|| is_gateway().then(Access::default));
    let report = report(file, client, &text, in_gateway);
    let text = if *json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        rendered(&report, Colours::of_stdout())
    };
    print(&text)?;
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM) })
}

/// All that is to be found in the text of a file with the rules of a client; in a Whonix gateway, with
/// what clients may do there with SOCKS.
pub fn report(file: &Path, client: IpAddr, text: &str, in_gateway: Option<Access>) -> Report {
    let family = Family::from(client);
    let (entries, mut errors) = rule_files::entries(text);
    let Parsed { default, rules, errors: of_rules } = parse(family, &entries);
    errors.extend(of_rules);
    let lines: Vec<&str> = text.lines().collect();
    let mut findings: Vec<Finding> = errors.iter().map(|error| of_error(error, &lines)).collect();
    // Without a default, what the rules leave is of no interest here.
    let default = default.unwrap_or(firewall_core::rules::Action::Drop);
    let ruleset = Ruleset { default, rules: rules.into_values().collect() };
    let mut lints = lint(family, &ruleset);
    if let Some(socks) = in_gateway {
        let services = Each { socks, control: Access::Deny };
        lints.extend(lint_in_gateway(family, &ruleset, &services));
    }
    findings.extend(lints.into_iter().map(|lint| of_lint(lint, &ruleset, &entries, &lines)));
    findings.sort_by_key(|it| (it.line.unwrap_or(usize::MAX), it.place.start));
    let count = |severity| findings.iter().filter(|it| it.severity == severity).count();
    Report {
        schema: SCHEMA,
        file: file.display().to_string(),
        client,
        rules: ruleset.rules.len(),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        findings,
    }
}

fn of_error(error: &RulesetError, lines: &[&str]) -> Finding {
    let RulesetError { line, key, text: _, place, problem } = error;
    let start = usize::try_from(place.start).unwrap_or_default();
    let end = usize::try_from(place.end).unwrap_or_default();
    let before = key.as_ref().map_or(0, |key| key.len() + SEPARATOR);
    finding(
        Severity::Error,
        *line,
        before + start..before + end,
        lines,
        problem.to_string(),
        problem.hint(),
    )
}

/// Between a key and its value, ` = ` stands.
const SEPARATOR: usize = 3;

fn of_lint(lint: Lint, ruleset: &Ruleset, entries: &[Entry], lines: &[&str]) -> Finding {
    let Lint { rule, place, what, hint } = lint;
    let key = ruleset.rules.get(rule).map(|rule| format!("{:04}", rule.number));
    let entry = entries.iter().find(|entry| Some(&entry.key) == key.as_ref());
    let before = entry.map_or(0, |entry| entry.key.len() + SEPARATOR);
    let line = entry.and_then(|entry| entry.line);
    let place = before + place.start..before + place.end;
    finding(Severity::Warning, line, place, lines, what, hint)
}

fn finding(
    severity: Severity,
    line: Option<usize>,
    place: Range<usize>,
    lines: &[&str],
    what: String,
    hint: String,
) -> Finding {
    let text = line.and_then(|line| lines.get(line.checked_sub(1)?)).copied().unwrap_or_default();
    let start = place.start.min(text.len());
    let end = place.end.clamp(start, text.len());
    let column = line.map(|_| text.get(..start).unwrap_or_default().chars().count() + 1);
    Finding { severity, line, column, text: text.to_owned(), what, hint, place: start..end }
}

/// A report as text for people.
pub fn rendered(report: &Report, colours: Colours) -> String {
    let Report { file, rules, errors, warnings, .. } = report;
    let renderer = if colours.are_wanted() { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&renderer.render(&groups(file, finding)));
        text.push_str("\n\n");
    }
    let counted = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    let rules = counted(*rules, "usable rule");
    let (errors, warnings) = (counted(*errors, "error"), counted(*warnings, "warning"));
    let verdict = match (report.errors, report.warnings) {
        (0, 0) => "nothing to mend",
        (0, _) => "it can be used",
        (_, _) => "it would block its client",
    };
    format!("{text}{file}: {rules}, {errors}, {warnings}: {verdict}\n")
}

fn groups<'a>(file: &'a str, finding: &'a Finding) -> Vec<Group<'a>> {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(finding.what.as_str());
    let hint = Level::HELP.message(finding.hint.as_str());
    let Some(line) = finding.line else {
        return vec![Group::with_title(title).element(hint)];
    };
    let annotation = AnnotationKind::Primary.span(finding.place.clone());
    let snippet = Snippet::source(finding.text.as_str()).line_start(line).path(file);
    vec![title.element(snippet.annotation(annotation)).element(hint)]
}
