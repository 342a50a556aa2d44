//! The specification once more, where the pages of files lie on single blocks: what `spec` says of files with windows.

#[path = "spec.rs"]
mod spec;
