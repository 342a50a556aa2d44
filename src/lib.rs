//! A pager in user space: files whose blocks lie on a memory-like device, mapped straight into the
//! address space, every fault served through Linux userfaultfd, and truncate and hole punch that
//! are correct while other threads load and store.
//!
//! ```
//! # fn main() -> Result<(), daxpager::Error> {
//! use daxpager::{Device, Pager, Volume};
//!
//! let volume = Volume::format(Device::memfd("example", 1 << 20)?);
//! let file = volume.create("log")?;
//! file.write_at(b"hello", 0)?;
//!
//! let pager = Pager::builder().start()?;
//! let map = pager.map(&file, 0..1 << 20)?; // longer than the file
//! map.store(8, 42)?; // faults, and goes straight to the device
//! file.punch_hole(0, 4096)?; // while any number of threads use the mapping
//! assert_eq!(map.load(8)?, 0);
//! # Ok(())
//! # }
//! ```
//!
//! Start with [`Device`], [`Volume`], [`File`], [`Pager`] and [`Mapping`]. How it works, and why it is
//! safe, is in `docs/design.md` of the repository.
#![deny(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("daxpager runs on 64-bit Linux only: it is built on userfaultfd");

mod address;
mod blocks;
mod error;
mod file;
mod inode;
mod mapping;
mod options;
mod pager;
mod policy;
pub mod probe;
mod resolve;
#[cfg(feature = "inside")]
#[doc(hidden)]
pub mod sabotage;
#[cfg(not(feature = "inside"))]
mod sabotage;
mod space;
mod sync;
mod sys;
mod units;
mod volume;

pub use address::stats::{Kind, LatencySummary, Stats};
pub use blocks::device::Device;
pub use error::{BusError, Error, Result};
pub use file::{ExtentInfo, ExtentKind, File, PhysicalExtent};
pub use mapping::Mapping;
pub use mapping::accesses::Accesses;
pub use options::{Advice, Allocation, MapOptions, Resolve, Tracking};
pub use pager::{Pager, PagerBuilder};
#[cfg(feature = "inside")]
#[doc(hidden)]
pub use policy::Backing;
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub use sys::access::checked;
#[cfg(feature = "fake")]
#[doc(hidden)]
pub use sys::fake;
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub use sys::inject::Injection;
pub use sys::{Access, Calls};
pub use units::{BlockIndex, PageIndex};
#[cfg(feature = "shuttle")]
#[doc(hidden)]
pub use volume::invariants::Invariants;
pub use volume::{FileInfo, Volume};

/// The watchdog of the unit tests. Miri has no signals to keep from it.
#[cfg(all(test, not(miri)))]
#[path = "../tests/common/guard.rs"]
#[allow(unreachable_pub, reason = "the integration tests' own")]
mod guard;

/// The README's example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
