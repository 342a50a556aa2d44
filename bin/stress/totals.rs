//! What the worlds of a run have counted, added up.

use daxpager::{Kind, Stats};

use crate::op::Tallies;
use crate::outcome::{FaultKind, OperationCount, Outcome};
use crate::world::World;

/// Adds what one world's threads have done.
pub(crate) fn add_operations(sum: &mut Vec<OperationCount>, tallies: &Tallies) {
    for count in tallies.counts() {
        match sum.iter_mut().find(|have| have.name == count.name) {
            Some(have) => {
                have.done += count.done;
                have.refused += count.refused;
                if count.longest_ns > have.longest_ns {
                    (have.longest_ns, have.longest_thread) = (count.longest_ns, count.longest_thread);
                }
            }
            None => sum.push(count),
        }
    }
}

/// Adds what one world's pager has counted.
pub(crate) fn add_counters(outcome: &mut Outcome, world: &World) {
    let stats = world.pager.stats();
    for (name, value) in counters(&stats).into_iter().chain(injected(world)) {
        sum(&mut outcome.counters, name, value);
    }
    let calls = &stats.calls;
    let calls = [
        ("poll", calls.polls),
        ("read", calls.reads),
        ("install", calls.installs),
        ("wake", calls.wakes),
        ("zap", calls.zaps),
        ("re-point", calls.repoints),
    ];
    for (name, value) in calls {
        sum(&mut outcome.calls, name, value);
    }
}

/// Adds how long one world's faults took.
pub(crate) fn add_latencies(sum: &mut Vec<FaultKind>, world: &World) {
    for kind in Kind::ALL {
        let histogram = world.pager.latency_histogram(kind).unwrap_or_default();
        let max_ns = world.pager.latency(kind).map_or(0, |summary| summary.max_ns);
        let name = kind.name();
        let at = sum.iter().position(|have| have.name == name).unwrap_or_else(|| {
            sum.push(FaultKind { name: name.to_owned(), ..FaultKind::default() });
            sum.len() - 1
        });
        let have = &mut sum[at];
        have.max_ns = have.max_ns.max(max_ns);
        for (top, count) in histogram {
            have.faults += count;
            match have.histogram.binary_search_by_key(&top, |bucket| bucket.0) {
                Ok(at) => have.histogram[at].1 += count,
                Err(at) => have.histogram.insert(at, (top, count)),
            }
        }
    }
}

fn sum(list: &mut Vec<(String, u64)>, name: &str, value: u64) {
    match list.iter_mut().find(|(have, _)| have == name) {
        Some((_, have)) => *have += value,
        None => list.push((name.to_owned(), value)),
    }
}

fn counters(stats: &Stats) -> Vec<(&'static str, u64)> {
    vec![
        ("installs", stats.installs),
        ("zeros", stats.zeros),
        ("unprotects", stats.unprotects),
        ("allocations", stats.allocations),
        ("conversions", stats.conversions),
        ("retries", stats.retries),
        ("sigbus", stats.sigbus),
        ("re-points", stats.repoints),
        ("in their threads", stats.in_thread),
        ("handed over", stats.handed_over),
        ("rounds", stats.rounds),
        ("graces", stats.graces),
        ("unknown_addresses", stats.unknown_addresses),
        ("evictions", stats.evictions),
    ]
}

#[cfg(feature = "sabotage")]
fn injected(world: &World) -> Vec<(&'static str, u64)> {
    world.pager.injected()
}

#[cfg(not(feature = "sabotage"))]
fn injected(_world: &World) -> Vec<(&'static str, u64)> {
    Vec::new()
}

/// Quantiles of a histogram, to the width of its buckets.
pub(crate) fn quantiles(fault: &mut FaultKind) {
    let at = |share: f64| {
        let rank = (fault.faults as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = fault.histogram.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        bucket.map_or(0, |(top, _)| (*top).min(fault.max_ns))
    };
    (fault.p50_ns, fault.p99_ns, fault.p999_ns) = (at(0.5), at(0.99), at(0.999));
}
