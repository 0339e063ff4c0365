//! What the programs are made of, beside what the agent asks the kernel for when it starts.
//! Never goes by what the sources say: the object is read.

use std::collections::BTreeSet;

use anyhow::Result;
use aya_obj::Object;
use firewall_agent::edges::dataplane::floor::{self, EARLY, Feature, Linux, NEEDS, Need};
use firewall_tests::program::weight::object;

/// A call; a call of a function of the program's own is one with 1 as its source.
const CALL: u8 = 0x85;
/// An atomic operation on 8 bytes and on 4, and which one: addition, which is old, and exchange.
const ATOMIC: [u8; 2] = [0xdb, 0xc3];
const ADD: i32 = 0;
const EXCHANGE: i32 = 0xe1;

fn helpers(needs: &[Need]) -> BTreeSet<i32> {
    let number = |need: &Need| match need.feature {
        Feature::Helper(_, helper) => Some(helper as i32),
        _ => None,
    };
    needs.iter().filter_map(number).collect()
}

#[test]
fn what_the_programs_are_made_of_is_what_the_kernel_is_asked_for() -> Result<()> {
    let object = Object::parse(&object()?)?;
    let instructions = || object.functions.values().flat_map(|it| &it.instructions);
    let calls = instructions().filter(|it| it.code == CALL && it.src_reg() == 0);
    let calls: BTreeSet<i32> = calls.map(|it| it.imm).collect();
    let known = &helpers(&NEEDS) | &helpers(&EARLY);
    assert_eq!(calls, known, "numbers of functions");
    let atomic = instructions().filter(|it| ATOMIC.contains(&it.code));
    let atomic: BTreeSet<i32> = atomic.map(|it| it.imm).collect();
    assert_eq!(atomic, [ADD, EXCHANGE].into(), "atomic operations");
    let maps = object.maps.values().flat_map(|map| [Some(map.clone()), map.inner()]).flatten();
    let maps: BTreeSet<u32> = maps.map(|map| map.map_type()).collect();
    let known = NEEDS.iter().filter_map(|need| match need.feature {
        Feature::Map(kind) => Some(kind as u32),
        _ => None,
    });
    assert_eq!(maps, known.collect(), "kinds of maps");
    Ok(())
}

#[test]
fn the_kernel_that_runs_them_has_all_of_it_and_the_readme_names_the_oldest() -> Result<()> {
    floor::check()?;
    let oldest = NEEDS.iter().map(|need| need.since).max();
    assert_eq!(oldest, Some(Linux(5, 12)));
    let early = EARLY.iter().map(|need| need.since).max();
    assert_eq!(early, Some(Linux(5, 18)));
    let readme = include_str!("../../../README.md");
    assert!(readme.contains("5.12 is\nthe oldest kernel that can work"), "README.md");
    assert!(readme.contains("`--xdp` needs\n5.18"), "README.md");
    Ok(())
}
