//! The shipped state machines of both ends, joined by a fake wire and fake disks, in a world
//! that goes wrong by seed.
//!
//! Leaves to others: real sockets and files (the loopback tests). Invariant:
//! a seed tells the whole story; `HAUL_SIM_SEED=n` plays only that one.

mod dials;
mod directed;
mod faults;
mod judge;
mod next;
mod planted;
mod receiving;
mod rng;
mod scenario;
mod sending;
mod stations;
mod wire;
mod world;

use planted::{BUGS, Bug};
use scenario::{Fault, PHASES, Phase};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Seeds of the ordinary run.
const SEEDS: u64 = 2000;
/// Seeds within which a planted bug has to be found.
const SEEDS_TO_FIND: u64 = 10_000;

type Pairs = BTreeMap<(Fault, Phase), u32>;

/// What became of one seed.
#[derive(Default)]
struct Played {
    findings: Vec<String>,
    /// Which faults met which phases.
    struck: BTreeSet<(Fault, Phase)>,
    /// Which deadlines passed.
    deadlines: BTreeSet<Fault>,
}

/// Plays one seed.
fn play(seed: u64, bug: Option<Bug>) -> Played {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, bug);
        world.play();
        Played {
            findings: world.judge(),
            struck: world.struck,
            deadlines: world.deadlines,
        }
    }));
    played.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        Played {
            findings: vec![format!("a panic: {}", said.unwrap_or_default())],
            ..Played::default()
        }
    })
}

/// True when the fault can take effect in that phase at all.
fn can_meet(fault: Fault, phase: Phase) -> bool {
    let over = matches!(phase, Phase::Reporting | Phase::Finishing);
    let deletes = phase == Phase::Deleting;
    match fault {
        // These touch runs, and while reports are exchanged no run is left.
        Fault::FlipPayload
        | Fault::FlipTable
        | Fault::FlipHeader
        | Fault::SwapChunks
        | Fault::WriteError
        | Fault::SettleError
        | Fault::DrainRun
        | Fault::SlowWrites
        | Fault::Vanishes => !over && !deletes,
        // The hands have nothing to do then.
        Fault::SlowHands => !over,
        // Everything else is over by then.
        Fault::DeletesTooMuch => deletes,
        // Nothing is answered without a proof.
        Fault::NoProof | Fault::NoReady => phase == Phase::Offering,
        _ => true,
    }
}

#[test]
fn every_seed_ends_well() {
    let one = std::env::var("HAUL_SIM_SEED").ok();
    let one = one.map(|seed| seed.parse::<u64>().expect("HAUL_SIM_SEED is a number"));
    let seeds = one.map_or(0..SEEDS, |seed| seed..seed + 1);
    let (mut pairs, mut bad) = (Pairs::new(), Vec::new());
    let mut deadlines = BTreeSet::new();
    for seed in seeds {
        let played = play(seed, None);
        if !played.findings.is_empty() {
            let findings = played.findings.join("; ");
            bad.push(format!("HAUL_SIM_SEED={seed}: {findings}"));
        }
        for pair in played.struck {
            *pairs.entry(pair).or_default() += 1;
        }
        deadlines.extend(played.deadlines);
    }
    assert!(bad.is_empty(), "{} seeds:\n{}", bad.len(), bad.join("\n"));
    if one.is_some() {
        return;
    }
    let never: Vec<_> = scenario::FAULTS
        .iter()
        .flat_map(|&fault| PHASES.map(|phase| (fault, phase)))
        .filter(|&(fault, phase)| can_meet(fault, phase) && !pairs.contains_key(&(fault, phase)))
        .collect();
    assert!(never.is_empty(), "these never met: {never:?}");
    let passed = scenario::DEADLINES.map(|fault| (fault, deadlines.contains(&fault)));
    assert!(
        passed.iter().all(|(_, passed)| *passed),
        "deadlines that passed: {passed:?}"
    );
}

#[test]
fn planted_bugs_are_found() {
    let unfound: Vec<Bug> = BUGS
        .into_iter()
        .filter(|&bug| (0..SEEDS_TO_FIND).all(|seed| play(seed, Some(bug)).findings.is_empty()))
        .collect();
    assert!(unfound.is_empty(), "not found: {unfound:?}");
}
