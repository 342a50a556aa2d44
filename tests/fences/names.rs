//! What has no name outside.
#![forbid(unsafe_code)]
#![allow(unused_imports)]

use daxpager::Backing; //~ E0432 daxpager::Backing
use daxpager::Injection; //~ E0432 daxpager::Injection
use daxpager::Invariants; //~ E0432 daxpager::Invariants
use daxpager::checked; //~ E0432 daxpager::checked
use daxpager::fake; //~ E0432 daxpager::fake
use daxpager::policy; //~ E0603 `policy` is private
use daxpager::sabotage::Rule; //~ E0603 `sabotage` is private
use daxpager::sync; //~ E0603 `sync` is private
use daxpager::sys; //~ E0603 `sys` is private

fn main() {}
