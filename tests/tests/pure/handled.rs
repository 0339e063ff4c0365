//! When rules with names count as handled, and what writing them again asks.

use std::collections::BTreeSet;
use std::time::Duration;

use firewall_core::events::Event;
use firewall_core::names::answer::{Answer, Failure, Outcome, Remembered};
use firewall_core::rules::Family;
use firewall_core::rules::question::Question;
use firewall_core::time::Moment;

use super::names::CLIENT;
use super::stage::*;

const A: &str = "action=accept dsthost=a.example";
const B: &str = "action=accept dsthost=b.example";
const LITERAL: &str = "action=accept dst4=192.0.2.1";
const OTHER: &str = "10.137.0.2";

fn leads() -> Outcome {
    Ok(Answer { addresses: BTreeSet::from([address("192.0.2.2")]), ttl: seconds(60) })
}

fn no_answer() -> Outcome {
    Err(Failure::NoAnswer("no answer".to_owned()))
}

fn remembered(name: &str, at: Moment) -> Event {
    let question = Question { name: name.to_owned(), family: Family::V4 };
    let addresses = [address("192.0.2.7")].into();
    Event::Remembered(vec![Remembered { question, addresses, at, leaving: [].into() }])
}

/// Two clients that have settled.
fn two() -> Stage {
    let mut stage = Stage::new(&[CLIENT, OTHER]);
    stage.settle();
    stage
}

#[track_caller]
fn handled(stage: &mut Stage, expected: &[&str]) {
    stage.settle();
    let told = std::mem::take(&mut stage.handled);
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told, expected);
}

#[test]
fn rules_count_as_handled_when_each_name_that_matters_has_a_first_outcome() {
    let check = |rules: &[&str], outcomes: &[(&str, Outcome)]| {
        let mut stage = two();
        stage.rules(CLIENT, rules);
        for (name, outcome) in outcomes {
            handled(&mut stage, &[]);
            stage.outcome(name, outcome.clone());
        }
        handled(&mut stage, &[CLIENT]);
    };
    check(&[LITERAL], &[]);
    check(&[A], &[("a.example", leads())]);
    check(&[A], &[("a.example", no_answer())]);
    check(&[A], &[("a.example", Err(Failure::NoSuchName))]);
    check(&[LITERAL, A, B], &[("b.example", no_answer()), ("a.example", leads())]);
    // What nobody asks about is not waited for.
    check(&["action=accept", A], &[]);
}

#[test]
fn what_an_answer_changes_has_settled_before_rules_count_as_handled() {
    let mut stage = two();
    stage.rules(CLIENT, &[LITERAL]);
    handled(&mut stage, &[CLIENT]);
    stage.rules(CLIENT, &[A]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    assert!(stage.handled.is_empty(), "what the rule before it accepted has not ended");
    handled(&mut stage, &[CLIENT]);
}

#[test]
fn what_is_known_already_is_not_waited_for() {
    let mut stage = two();
    stage.rules(CLIENT, &[A]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[CLIENT]);
    stage.rules(OTHER, &[A]);
    handled(&mut stage, &[OTHER]);
    // Though a server is silent by now: rules go by what it said before.
    stage.pass(seconds(60));
    stage.fail("a.example");
    stage.pass(seconds(1));
    stage.rules(CLIENT, &[A]);
    handled(&mut stage, &[CLIENT]);
    // Nor is what an earlier agent knew.
    let mut stage = two();
    stage.step(remembered("a.example", stage.now));
    stage.rules(CLIENT, &[A]);
    handled(&mut stage, &[CLIENT]);
}

#[test]
fn rules_that_are_there_at_first_wait_for_their_names_as_well() {
    let mut stage = Stage::before_rules(&[CLIENT]);
    stage.all_rules(&[(CLIENT, &[A]), (OTHER, &[B])]);
    // The other one is not there: nobody asks about its names.
    handled(&mut stage, &[OTHER]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[CLIENT]);
}

#[test]
fn nobody_waits_longer_than_two_seconds_and_it_is_told_for_what() {
    let mut stage = two();
    stage.rules(CLIENT, &[A, B]);
    stage.answer("b.example", &["192.0.2.2"], 60);
    stage.pass(Duration::from_millis(1_999));
    handled(&mut stage, &[]);
    assert_eq!(stage.told.last().map(String::as_str), Some("b.example: +{192.0.2.2} -{}"));
    assert_eq!(stage.world.next_time(), Some(stage.now + Duration::from_millis(1)));
    stage.pass(Duration::from_millis(1));
    handled(&mut stage, &[CLIENT]);
    assert_eq!(stage.told.last().map(String::as_str), Some("no answer yet: a.example"));
    // An answer that comes later is no second time.
    stage.answer("a.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[]);
}

#[test]
fn each_time_that_rules_were_written_waits_for_itself() {
    let mut stage = two();
    stage.rules(CLIENT, &[A]);
    stage.pass(seconds(1));
    stage.rules(CLIENT, &[A]);
    stage.rules(CLIENT, &[A, B]);
    // The first one is two seconds old, and the others are not.
    stage.pass(seconds(1));
    handled(&mut stage, &[CLIENT]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[CLIENT]);
    stage.answer("b.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[CLIENT]);
    // Rules that take a name away, and a client that goes, wait no more.
    stage.rules(CLIENT, &["action=accept dsthost=c.example"]);
    stage.rules(OTHER, &["action=accept dsthost=d.example"]);
    stage.rules(CLIENT, &[LITERAL]);
    handled(&mut stage, &[CLIENT, CLIENT]);
    stage.links(&[CLIENT]);
    handled(&mut stage, &[OTHER]);
}

#[test]
fn what_failed_is_asked_again_when_rules_with_it_are_written_and_at_most_once_a_second() {
    let mut stage = two();
    stage.rules(CLIENT, &[A]);
    stage.rules(OTHER, &[B]);
    for _ in 0..5 {
        stage.fail("a.example");
        stage.fail("b.example");
        stage.pass(seconds(100));
    }
    stage.outcome("a.example", Err(Failure::NoSuchName));
    stage.fail("b.example");
    stage.pass(seconds(2));
    handled(&mut stage, &[CLIENT, OTHER]);
    stage.take_asked();
    let ask = |stage: &mut Stage, expected: &[&str]| assert_eq!(stage.take_asked(), expected);
    // Its own name, and no other, which waits for its time.
    stage.rules(CLIENT, &[A]);
    ask(&mut stage, &["a.example IPv4"]);
    handled(&mut stage, &[]);
    stage.outcome("a.example", Err(Failure::NoSuchName));
    handled(&mut stage, &[CLIENT]);
    // Whoever writes in a loop asks once a second, and waits for that.
    for _ in 0..10 {
        stage.rules(CLIENT, &[A]);
        ask(&mut stage, &[]);
    }
    stage.pass(Duration::from_millis(999));
    ask(&mut stage, &[]);
    handled(&mut stage, &[]);
    stage.pass(Duration::from_millis(1));
    ask(&mut stage, &["a.example IPv4"]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    handled(&mut stage, &[CLIENT; 10]);
    stage.check(CLIENT, &[("192.0.2.2", 80, true)]);
    // What works is not asked.
    stage.pass(seconds(2));
    stage.rules(CLIENT, &[A]);
    ask(&mut stage, &[]);
    // Nor is what failed, when all is read again, and nobody wrote anything.
    stage.all_rules(&[(CLIENT, &[A]), (OTHER, &[B])]);
    ask(&mut stage, &[]);
}
