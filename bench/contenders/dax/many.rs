//! The library with many mappings.

use daxpager::{File, Mapping};

use super::world::{World, map};
use crate::case::{Case, Options, Sample};
use crate::contenders::steps::{self, SMALL};
use crate::raw::{PAGE, View};

/// A page written and punched while there are so many small mappings: of parts of one file, or each of a file of its own.
pub(crate) fn punch_among(case: &Case, options: Options, mappings: u64, own_files: bool) -> anyhow::Result<Sample> {
    let bytes = SMALL * PAGE;
    let world = World::memfd(mappings * SMALL, options)?;
    let new_file = |name: u64, bytes: u64| -> anyhow::Result<File> {
        let file = world.volume.create(&name.to_string())?;
        file.truncate(bytes)?;
        Ok(file)
    };
    let shared = if own_files { None } else { Some(new_file(0, mappings * bytes)?) };
    let mut all: Vec<(File, u64, Mapping)> = Vec::new();
    for nth in 0..mappings {
        let (file, first) = match &shared {
            Some(file) => (file.clone(), nth * bytes),
            None => (new_file(nth, bytes)?, 0),
        };
        let map = map(&world.pager, &file, first..first + bytes, options)?;
        all.push((file, first, map));
    }
    let (file, first, map) = &all[all.len() / 2];
    let page_bytes = vec![1; PAGE as usize];
    let write = |page: u64| Ok(file.write_at(&page_bytes, first + page * PAGE).map(drop)?);
    let punch = |page: u64| Ok(file.punch_hole(first + page * PAGE, PAGE)?);
    steps::write_and_punch(View::of(map), case.pages, write, punch)
}
