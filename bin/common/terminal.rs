//! What a program prints for people.
#![allow(dead_code, reason = "each program uses its part")]

use std::io::{IsTerminal, Write};

/// Whether stdout is to have colours: as no-color.org has it, an empty variable is as good as none.
pub(crate) fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a line. Whoever has closed stdout does not want it, and gets the exit code all the same.
#[allow(unused_macros, reason = "each program uses its part")]
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::say_line(&format!($($text)*)) };
}
#[allow(unused_imports, reason = "each program uses its part")]
pub(crate) use say;

pub(crate) fn say_line(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
