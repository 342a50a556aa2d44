//! Collecting what has been stored to where nobody was told of it.

use nix::errno::Errno;

use super::{Mapping, PROTECT_TRIES};
use crate::error::{Error, Result};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::sync;
use crate::units::PageRange;

impl Mapping {
    /// Takes the dirty pages of a range, as one step.
    ///
    /// ```text
    /// collect                                           store
    ///   L2 exclusive: nothing is installed or zapped
    ///     the kernel, page by page, under its own lock:
    ///                                                     makes the entry writable: it came before the
    ///                                                     caller looks at the bytes
    ///       writable? Reported, and protected
    ///                                                     makes it writable again: of the next collection
    ///   unlock
    /// ```
    pub(super) fn collect_asynchronously(&self, range: PageRange) -> Result<Vec<PageRange>> {
        let mut refused = Errno::EAGAIN;
        for _ in 0..PROTECT_TRIES {
            // As for exact tracking: keeps our own re-points away.
            let regions = self.core.regions.read();
            let mut change = self.inode.space.change();
            if !self.window.is_alive() {
                return Err(self.core.gone());
            }
            let taken = change.take_written(&self.window, range);
            change.commit(&self.inode.store);
            drop(regions);
            match taken {
                Ok(runs) if self.inode.broken(Rule::ForgetBeforeProtect) => {
                    self.inode.probe(Point::Collecting, range.start, None);
                    // Protected again, and what has been stored meanwhile is forgotten.
                    let mut change = self.inode.space.change();
                    let _ = change.take_written(&self.window, range);
                    change.commit(&self.inode.store);
                    return Ok(runs);
                }
                Ok(runs) => return Ok(runs),
                Err(errno @ (Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM)) => refused = errno,
                Err(errno) => return Err(Error::system("ioctl(PAGEMAP_SCAN)", errno)),
            }
            sync::back_off(std::time::Duration::from_micros(100));
        }
        Err(Error::system("ioctl(PAGEMAP_SCAN)", refused))
    }
}
