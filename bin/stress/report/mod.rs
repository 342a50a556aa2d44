//! What a person or a script sees of a run: a table on stdout, a JSON file, and an HTML page.

#[cfg(test)]
mod example;
mod html;
mod latency;
mod map;
#[cfg(test)]
mod output_tests;
mod rates;
mod tables;
mod text;

use crate::outcome::Outcome;
use crate::output::Output;
use crate::terminal::{has_colours, say_line};

/// Prints the tables, the verdict, and what has been found. A program whose output nobody can read has shown
/// nothing, so it ends there, as failed: files are to be written before.
pub(crate) fn print(outcome: &Outcome) {
    say_line(text::render(outcome, has_colours()).trim_end());
}

/// Writes the outcome as it is: the field names are those of [`Outcome`].
pub(crate) fn write_json(outcome: &Outcome, to: &Output) -> anyhow::Result<()> {
    to.write(&json(outcome)?)
}

/// Writes one HTML page that needs nothing beside it.
pub(crate) fn write_html(outcome: &Outcome, to: &Output) -> anyhow::Result<()> {
    to.write(html::page(outcome).as_bytes())
}

fn json(outcome: &Outcome) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(outcome)?;
    json.push(b'\n');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn json_has_each_field() {
        let outcome = example::rich();
        let value: Value = serde_json::from_slice(&json(&outcome).unwrap()).unwrap();
        assert_eq!(value["verdict"], "violation");
        assert_eq!(value["seed"].as_u64(), Some(outcome.seed));
        assert_eq!(value["options"][0][0], outcome.options[0].0);
        assert_eq!(value["operations"].as_array().unwrap().len(), outcome.operations.len());
        assert_eq!(value["faults"][0]["p50_ns"].as_u64(), Some(outcome.faults[0].p50_ns));
        assert_eq!(value["faults"][0]["histogram"][0][1].as_u64(), Some(outcome.faults[0].histogram[0].1));
        assert_eq!(value["samples"][5]["accesses"].as_u64(), Some(outcome.samples[5].accesses));
        assert_eq!(value["longest_wait"]["thread"], outcome.longest_wait.unwrap().thread);
        assert_eq!(value["map"]["rows"][0]["looks"][0], "hole");
        assert_eq!(value["map"]["mark"][0].as_u64(), outcome.map.unwrap().mark.map(|(page, _)| page));
        assert_eq!(value["violations"][0]["address"].as_u64(), outcome.violations[0].address);
        assert_eq!(value["violations"][0]["events"].as_array().unwrap().len(), outcome.violations[0].events.len());
        assert_eq!(value["violation_count"].as_u64(), Some(outcome.violation_count));
    }

    #[test]
    fn json_of_degenerate_outcomes_parses() {
        for outcome in example::degenerate() {
            let value: Value = serde_json::from_slice(&json(&outcome).unwrap()).unwrap();
            assert!(value["samples"].is_array());
        }
    }

    #[test]
    fn files_are_what_would_be_printed() {
        let directory = example::Directory::new();
        let (outcome, path) = (example::rich(), directory.path("report"));
        write_json(&outcome, &Output::check(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), json(&outcome).unwrap());
        write_html(&outcome, &Output::check(&path).unwrap()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("<!DOCTYPE html>"));
    }
}
