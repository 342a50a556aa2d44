//! How a run is to be.

use std::time::Duration;

use daxpager::sabotage::Rule;

use crate::inject::Put;
use crate::manner::Pins;
use crate::mix::{Mix, Scenario};

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) operations_max: Option<u64>,
    pub(crate) threads: Option<usize>,
    pub(crate) device_bytes: Option<u64>,
    pub(crate) pins: Pins,
    pub(crate) put: Put,
    pub(crate) rules: Vec<Rule>,
    pub(crate) hang_after: Duration,
    /// The same for changes of files, if it is another.
    pub(crate) change_limit: Option<Duration>,
    pub(crate) mix_length: Duration,
    /// Bytes that zeros in holes may take, if that is not drawn.
    pub(crate) zeros_bytes: Option<u64>,
    /// The command that runs it again, but for the seed.
    pub(crate) again: String,
    /// Neither a bar nor lines while it runs.
    pub(crate) quiet: bool,
}

impl Config {
    pub(crate) fn mix(&self, seed: u64, page_bytes: u64) -> Mix {
        let scenario = self.scenario.of_mix(seed.wrapping_sub(self.seed));
        let mut mix = Mix::draw(scenario, seed, self.threads, &self.pins);
        mix.zeros_bytes = self.zeros_bytes.unwrap_or(mix.zeros_bytes);
        if let Some(bytes) = self.device_bytes {
            mix.set_device(bytes / page_bytes);
        }
        mix
    }
}
