//! Everything compared at rest: no thread is under way, so there is one right value for each word, by every
//! mapping, by read, and on the device itself, read without the library.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use daxpager::ExtentKind;

use super::{Hand, word_at};
use crate::op::Op;
use crate::oracle::{Access, Kind};
use crate::word::{SLOT_OFFSETS, SLOTS, WORD};

/// How long the pager's own threads may take to come to rest.
const AT_REST: Duration = Duration::from_secs(2);

impl Hand {
    /// Makes all files as long as they may become: where a mix begins.
    pub(crate) fn prepare(&mut self) {
        for file in 0..self.world.files.len() as u8 {
            self.truncate_to(file, self.world.mix.pages * self.page_bytes());
        }
    }

    /// Compares everything; how many words that were.
    pub(crate) fn compare_at_rest(&mut self) -> u64 {
        let mut compared = 0;
        for file in 0..self.world.files.len() as u8 {
            let on_device = self.blocks_of(file);
            compared += self.compare_reads(file, &on_device);
        }
        for place in 0..self.world.mappings.len() {
            compared += self.compare_mapping(place);
        }
        self.judge_blocks();
        compared
    }

    /// The place on the device of each page of a file that has written bytes.
    fn blocks_of(&self, file: u8) -> BTreeMap<u64, u64> {
        let size = self.page_bytes();
        let extents = self.world.files[file as usize].fiemap();
        let written = extents.iter().filter(|extent| extent.kind == ExtentKind::Written);
        written
            .flat_map(|extent| {
                (0..extent.len / size)
                    .map(move |page| (extent.offset / size + page, extent.device_offset + page * size))
            })
            .collect()
    }

    /// What a file shows to read_at, and what is on the device, up to the end of its last page.
    fn compare_reads(&mut self, file: u8, on_device: &BTreeMap<u64, u64>) -> u64 {
        let size = self.page_bytes();
        let pages = self.world.mix.pages;
        let access = Access { op: Op::FileRead, thread: self.id, file, page: 0, address: None };
        let begin = self.begin(&access);
        let mut bytes = vec![0; (pages * size) as usize];
        let read = self.world.files[file as usize].read_at(&mut bytes, 0);
        let span = self.end(&access, begin, read.is_err());
        let read = match read {
            Ok(read) => read as u64,
            Err(error) => {
                self.failed(&access, &error);
                0
            }
        };
        let mut compared = 0;
        for page in (0..pages).filter(|page| self.oracle.is_judged(*page)) {
            let access = Access { page, ..access };
            for (slot, offset) in SLOT_OFFSETS.iter().enumerate() {
                let at = page * size + offset;
                let mut word = [0; WORD as usize];
                let on_device =
                    on_device.get(&page).map(|block| self.world.device.read_exact_at(&mut word, block + offset));
                if let Some(Err(error)) = on_device {
                    self.failed(
                        &access,
                        &daxpager::Error::System {
                            call: "pread of the device",
                            errno: error.raw_os_error().unwrap_or(0),
                        },
                    );
                }
                if page < read.div_ceil(size) {
                    self.oracle.judge(&access, slot, u64::from_le_bytes(word), span);
                    compared += 1;
                }
                if at + WORD <= read {
                    self.oracle.judge(&access, slot, word_at(&bytes, at as usize), span);
                    compared += 1;
                }
            }
        }
        self.leave();
        compared
    }

    /// What a mapping shows, by loads: every page, also those past the end.
    fn compare_mapping(&mut self, place: usize) -> u64 {
        let Some(mapped) = self.world.mapped(place) else { return 0 };
        let mut compared = 0;
        for page in mapped.first_page..mapped.first_page + mapped.pages {
            if !self.oracle.is_judged(page) {
                continue;
            }
            for slot in 0..SLOTS {
                compared += u64::from(self.load(&mapped, page, slot).is_some());
            }
        }
        compared
    }

    /// No block is lost, and none has two owners. A worker that came second to a hole may still have a block to give
    /// back: that takes it a moment.
    fn judge_blocks(&mut self) {
        let until = Instant::now() + AT_REST;
        while let Some(found) = self.wrong_blocks() {
            if Instant::now() > until {
                let expected = "each block is free or one file's";
                return self.oracle.report_text(Kind::Blocks, Op::Inspect, self.id, expected, found);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wrong_blocks(&self) -> Option<String> {
        let size = self.page_bytes();
        let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
        let mut owned = 0;
        for (file, handle) in self.world.files.iter().enumerate() {
            owned += handle.blocks();
            for extent in handle.fiemap() {
                for block in extent.device_offset / size..(extent.device_offset + extent.len) / size {
                    if let Some(other) = owners.insert(block, file) {
                        return Some(format!("block {block} belongs to file {other} and to file {file}"));
                    }
                }
            }
        }
        let (used, free) = (self.world.volume.used_blocks(), self.world.volume.free_blocks());
        let all = self.world.mix.device_blocks();
        let listed = owners.len() as u64;
        let right = (used + free, owned, listed) == (all, used, used);
        (!right).then(|| {
            format!("{used} used and {free} free of {all}; files say that they own {owned}, and list {listed}")
        })
    }
}
