//! The safety rules, as switches that break them: the list of all that can be broken on purpose.
//!
//! A test that never fails proves nothing. Each rule has a test that passes, and that fails
//! when the rule's switch is on. The switches are on a volume or a pager, so that tests beside each other
//! do not meet; [`Rule::ForkCheck`] is the process's. Without the feature `sabotage` every one is the constant `false`, with a single
//! exception: [`Rule::Revalidate`], which the demo breaks in a scratch volume to show what it is for. Without the feature `inside`,
//! which the demo requires, there is no exception, and nobody outside knows of any of this.

use crate::sync::{Ordering, Tally};

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A rule that can be broken on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[non_exhaustive]
        #[cfg_attr(not(feature = "inside"), expect(unreachable_pub, reason = "the feature makes it public"))]
        pub enum Rule { $($(#[$doc])* $name,)* }

        #[cfg(feature = "inside")]
        impl Rule {
            /// Every rule.
            pub const ALL: &[Rule] = &[$(Rule::$name,)*];

            /// The rule's name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    /// Broken: what was looked up before the lock is acted upon without looking again.
    Revalidate = "revalidate",
    /// Broken: look again under the lock, then drop it, then install.
    GuardThroughInstall = "guard-through-install",
    /// Broken: an invalidation takes the lock for each of its parts alone.
    InvalidateUnderLock = "invalidate-under-lock",
    /// Broken: zap first, and publish afterwards.
    PublishBeforeZap = "publish-before-zap",
    /// Broken: blocks go back to the allocator before the page tables are zapped.
    ZapBeforeFree = "zap-before-free",
    /// Broken: a new block is published with the bytes that it had.
    ZeroNewBlock = "zero-new-block",
    /// Broken: an unwritten block is made written with the bytes that it had.
    ZeroUnwritten = "zero-unwritten",
    /// Broken: truncate leaves the old bytes behind the new end.
    ZeroTailOnTruncate = "zero-tail-on-truncate",
    /// Broken: growth leaves what was stored past the old end.
    ZeroTailOnGrowth = "zero-tail-on-growth",
    /// Broken: growth zeroes from the start of the old last page.
    ZeroOnlyTheTail = "zero-only-the-tail",
    /// Broken: a write zeroes what was a hole before the lock was taken, and may be somebody's store by now (ext4's pre-zeroing).
    ZeroWhatIsAHole = "zero-what-is-a-hole",
    /// Broken: i_size is compared before the lock is taken, as the thread's patch proposed, and not again.
    SizeUnderLock = "size-under-lock",
    /// Broken: a write-protect fault does not look at i_size.
    SizeOnMkwrite = "size-on-mkwrite",
    /// Broken: a write-protect fault whose block is gone allocates another.
    MkwriteNeverAllocates = "mkwrite-never-allocates",
    /// Broken: the loser of two faults on one hole zeroes the winner's block.
    LoserLeavesBlock = "loser-leaves-block",
    /// Broken: a block is put under a hole, and the zeros in other mappings stay.
    ZapZerosOnAllocate = "zap-zeros-on-allocate",
    /// Broken: EEXIST ends the handling of a fault, and nobody is woken.
    WakeAfterEexist = "wake-after-eexist",
    /// Broken: a retry wakes nobody.
    WakeOnRetry = "wake-on-retry",
    /// Broken: a thread in a store that looks awake is woken, however often it comes back.
    ServeWhoInsists = "serve-who-insists",
    /// Broken: munmap waits for no fault, and a late install finds what was mapped there since.
    UnmapUnderLock = "unmap-under-lock",
    /// Broken: a range is re-pointed with the file's lock held.
    NoWaitUnderLock = "no-wait-under-lock",
    /// Broken: the reader waits for the locks that it finds taken.
    ReaderNeverBlocks = "reader-never-blocks",
    /// Broken: the user's buffer is touched with the file's lock held.
    NoCopyUnderLock = "no-copy-under-lock",
    /// Broken: a dead pager leaves its mappings registered, and the last close fills them with zeros.
    RevokeBeforeClose = "revoke-before-close",
    /// Broken: the addresses of a mapping go back to the kernel when the pager ends and nothing can be mapped in their place.
    RevokeInPlace = "revoke-in-place",
    /// Broken: the observer is told before a revoked mapping has left the map of regions, and its addresses go back first; after a panic of
    /// the observer it is revoked again.
    RevokeOnce = "revoke-once",
    /// Broken: a range that could not be pointed elsewhere for lack of address ranges is taken for somebody else's, and its mapping given up.
    MendWhatIsOurs = "mend-what-is-ours",
    /// Broken: the addresses of the fake page table are accessed as if they were real.
    #[cfg_attr(not(feature = "inside"), expect(dead_code, reason = "nobody keeps it: the table that is made up is for tests"))]
    MadeUpAddresses = "made-up-addresses",
    /// Broken: a child of fork(2) takes handles of its parent for its own. For the whole process.
    ForkCheck = "fork-check",
    /// Broken: zeros that a load has left are taken back without another look whether they have been stored to since.
    LookAgainAtZeros = "look-again-at-zeros",
    /// Broken: a page that is punched is not armed again, and stored to unnoticed when it is there once more.
    ArmWhatIsPunched = "arm-what-is-punched",
    /// Broken: a load leaves zeros in a hole that another mapping lets stores through to.
    PresentIsWritten = "present-is-written",
    /// Broken: a page that nobody has asked for is looked at, and taken back, while stores get through to it.
    KeepStoresOut = "keep-stores-out",
    /// Broken: dirty pages are protected first and forgotten afterwards.
    ForgetBeforeProtect = "forget-before-protect",
    /// Broken: a store through a mapping is not marked dirty.
    MarkDirty = "mark-dirty",
}

/// Which rules are broken.
#[derive(Default, Debug)]
pub(crate) struct Switches(Tally);

/// What is no pager's and no volume's.
static EVERYWHERE: Switches = Switches(Tally::new(0));

/// Whether a rule of the whole process is broken.
#[inline]
pub(crate) fn broken_everywhere(rule: Rule) -> bool {
    EVERYWHERE.broken(rule)
}

impl Switches {
    fn bit(rule: Rule) -> u64 {
        1 << rule as u32
    }

    /// Whether `rule` is broken. A constant unless a feature is on: the one for all, or the one for the demo's.
    #[inline]
    pub(crate) fn broken(&self, rule: Rule) -> bool {
        (cfg!(feature = "sabotage") || (cfg!(feature = "inside") && rule as u32 == Rule::Revalidate as u32))
            && self.0.load(Ordering::Relaxed) & Self::bit(rule) != 0
    }

    #[cfg(feature = "inside")]
    pub(crate) fn set(&self, rule: Rule, broken: bool) {
        if rule == Rule::ForkCheck && !std::ptr::eq(self, &EVERYWHERE) {
            return EVERYWHERE.set(rule, broken);
        }
        if broken {
            self.0.fetch_or(Self::bit(rule), Ordering::Relaxed);
        } else {
            self.0.fetch_and(!Self::bit(rule), Ordering::Relaxed);
        }
    }
}
