//! The scenarios: who races whom, and what may come out. What must hold at every step is not theirs to ask: `hunt` does.

mod blocks;
mod ends;
mod pages;
mod trouble;
mod windows;

use daxpager::sabotage::Rule;

pub use ends::AGAIN;
pub use trouble::REFUSED;

/// One schedule of a scenario, with a rule broken or none.
pub type Run = fn(Option<Rule>);

pub struct Scenario {
    pub name: &'static str,
    pub run: Run,
}

pub const ALL: &[Scenario] = &[
    Scenario { name: "punch", run: pages::punch },
    Scenario { name: "mkwrite", run: pages::mkwrite },
    Scenario { name: "two stores", run: pages::two_stores },
    Scenario { name: "truncate", run: ends::truncate },
    Scenario { name: "past the end", run: ends::past_the_end },
    Scenario { name: "write_at", run: pages::write_at },
    Scenario { name: "store and write", run: pages::store_and_write },
    Scenario { name: "trade", run: blocks::trade },
    Scenario { name: "one block", run: blocks::one_block },
    Scenario { name: "unmap", run: ends::unmap },
    Scenario { name: "shutdown", run: ends::shutdown },
    Scenario { name: "full", run: blocks::full },
    Scenario { name: "dirty", run: pages::dirty },
    Scenario { name: "slow reader", run: trouble::slow_reader },
    Scenario { name: "moved", run: trouble::moved },
    Scenario { name: "restless", run: trouble::restless },
    Scenario { name: "injected", run: trouble::injected },
    Scenario { name: "progress", run: pages::progress },
    Scenario { name: "zeros", run: windows::zeros },
    Scenario { name: "armed", run: windows::armed },
    Scenario { name: "open", run: windows::open },
    Scenario { name: "ahead", run: windows::ahead },
];

pub fn named(name: &str) -> &'static Scenario {
    ALL.iter().find(|scenario| scenario.name == name).expect("a scenario's name")
}
