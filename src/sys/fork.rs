//! Whether this is the process that made a handle, or one forked from it.
//!
//! A child has a copy of every handle, and nothing behind it: no thread of the pager, locks that are held for ever by threads
//! that it has not got, and at the addresses of the mappings (`MADV_DONTFORK`) whatever its next allocation put there. What it
//! shares is the device, its lock, and userfaultfds that change its *parent's* page table. So a handle asks whose process
//! this is before it takes a lock, touches an address or drops anything.
//!
//! The kernel tells: a page under `MADV_WIPEONFORK` reads as zeros in a child. It holds a number that no process has in which
//! handles of this one can be: a child takes the next one, from ordinary memory, when it makes a handle of its own.
//!
//! | who looks | the page | a handle of the parent, number 1 | a handle of its own |
//! |---|---|---|---|
//! | the parent | 1 | at home | – |
//! | a child | 0 | not | – |
//! | a child that has made a handle | 2 | not | 2: at home |
//! | its child | 0 | not | not, until it has made one: 3 |
//!
//! Siblings may have the same number: neither can get hold of the other's handles. vfork(2), and clone(2) with `CLONE_VM`, share
//! the page, and all else.
//!
//! No step here waits, so a fork between any two of them leaves nothing that a child could hang on.

use crate::error::{Error, Result};
use crate::sabotage::{Rule, broken_everywhere};
use crate::sync::plain::{AtomicPtr, AtomicU64, Ordering};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr;

/// The process that made a handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    word: &'static AtomicU64,
    number: u64,
}

/// The next number that a process takes. In a child it is larger than any number of a handle that the child has.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Home {
    /// This process.
    ///
    /// # Errors
    /// [`Error::System`] where there is no page to be had.
    pub(crate) fn here() -> Result<Self> {
        let word = word()?;
        let taken = match word.load(Ordering::Relaxed) {
            0 => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                word.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed)
                    .map_or_else(|now| now, |_| number)
            }
            number => number,
        };
        Ok(Self { word, number: taken })
    }

    #[inline]
    pub(crate) fn is_here(self) -> bool {
        self.word.load(Ordering::Relaxed) == self.number || broken_everywhere(Rule::ForkCheck)
    }

    /// # Errors
    /// [`Error::Forked`] in a child of the process.
    #[inline]
    pub(crate) fn check(self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Ends a child that leaves the scope of what this gives, also by a panic: an observer has forked in the middle of a call
    /// of the parent's, and there is nothing right that the rest of the call could do.
    #[inline]
    pub(crate) fn insist(self) -> impl Drop {
        struct Insist(Home);
        impl Drop for Insist {
            fn drop(&mut self) {
                if !self.0.is_here() {
                    // Not through std's lock, which another thread may have held.
                    let _ = nix::unistd::write(
                        std::io::stderr(),
                        b"daxpager: an observer forked, and came back in the child\n",
                    );
                    std::process::abort();
                }
            }
        }
        Insist(self)
    }

    pub(crate) fn keep<T>(self, kept: T) -> Kept<T> {
        Kept { home: self, kept: ManuallyDrop::new(kept) }
    }
}

/// The word that is zero in a child until it has taken a number.
#[cfg(not(any(miri, feature = "shuttle")))]
fn word() -> Result<&'static AtomicU64> {
    static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
    let page = match PAGE.load(Ordering::Acquire) {
        page if page.is_null() => {
            let made = make_page()?;
            match PAGE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => made,
                // Another thread's was first; ours stays, a page that nobody uses.
                Err(theirs) => theirs,
            }
        }
        page => page,
    };
    // SAFETY: `make_page` gave this address: aligned, zeroed by the kernel, never unmapped, and only atomics touch it. A
    // child has the page too, with zeros.
    Ok(unsafe { &*page })
}

/// A page of zeros that has zeros again in every child.
#[cfg(not(any(miri, feature = "shuttle")))]
fn make_page() -> Result<*mut AtomicU64> {
    let failed = |error: std::io::Error| Error::System { call: "mmap", errno: error.raw_os_error().unwrap_or(0) };
    let mut page = memmap2::MmapMut::map_anon(super::memory::base_page_bytes() as usize).map_err(failed)?;
    let start: *mut AtomicU64 = page.as_mut_ptr().cast();
    // SAFETY: the page has just been mapped, and holds nothing yet.
    let advised = unsafe { libc::madvise(start.cast(), page.len(), libc::MADV_WIPEONFORK) };
    nix::errno::Errno::result(advised).map_err(|errno| Error::system("madvise(MADV_WIPEONFORK)", errno))?;
    // Never unmapped.
    std::mem::forget(page);
    Ok(start)
}

/// There are no children under Miri and under the schedule checker.
#[cfg(any(miri, feature = "shuttle"))]
fn word() -> Result<&'static AtomicU64> {
    static WORD: AtomicU64 = AtomicU64::new(0);
    Ok(&WORD)
}

/// Something that a child of its process does not drop: it leaks there, on purpose.
pub(crate) struct Kept<T> {
    home: Home,
    kept: ManuallyDrop<T>,
}

impl<T> Kept<T> {
    pub(crate) fn home(&self) -> Home {
        self.home
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.kept
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.kept
    }
}

impl<T: Clone> Clone for Kept<T> {
    fn clone(&self) -> Self {
        self.home.keep(T::clone(&self.kept))
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if self.home.is_here() {
            // SAFETY: dropped here alone, and nobody uses it after its owner's drop, which this is.
            unsafe { ManuallyDrop::drop(&mut self.kept) };
        }
    }
}

/// A value of which each process has its own, from the first time that it asks: what a child has inherited may be locked by
/// threads that it has not got. It is never dropped.
pub(crate) struct PerProcess<T: 'static> {
    latest: AtomicPtr<(Home, T)>,
    make: fn() -> T,
}

impl<T: Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self { latest: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// This process's, if it has one. Allocates nothing and waits for nobody: for signal handlers.
    pub(crate) fn get(&self) -> Option<&'static T> {
        let latest = self.latest.load(Ordering::Acquire);
        // SAFETY: null, or a box that `get_or_make` has leaked, of this process or of one that it was forked from; what `get_or_make` frees was
        // never here.
        let (home, value) = unsafe { latest.as_ref() }?;
        home.is_here().then_some(value)
    }

    /// # Errors
    /// As [`Home::here`].
    pub(crate) fn get_or_make(&self) -> Result<&'static T> {
        let home = Home::here()?;
        let latest = self.latest.load(Ordering::Acquire);
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let made = Box::into_raw(Box::new((home, (self.make)())));
        if self.latest.compare_exchange(latest, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Another thread's was first.
            // SAFETY: made by `Box::into_raw` above, and not put where anybody else would see it: the exchange has failed.
            drop(unsafe { Box::from_raw(made) });
        }
        Ok(self.get().expect("a process has its own value once it has made one"))
    }
}

#[cfg(all(test, not(miri), not(feature = "shuttle")))]
mod tests {
    use std::rc::Rc;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Whether `body` holds in a child.
    fn in_a_child(body: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child allocates at most, which glibc sees to, and ends without destructors.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = i32::from(!body());
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0)),
        }
    }

    #[test]
    #[cfg_attr(emulated, ignore = "needs the kernel's MADV_WIPEONFORK")]
    fn children_and_grandchildren_are_told_apart() {
        let parents = Home::here().unwrap();
        assert!(parents.is_here());
        assert!(in_a_child(|| !parents.is_here() && parents.check() == Err(Error::Forked)));
        assert!(in_a_child(|| {
            let own = Home::here().unwrap();
            let own_again = Home::here().unwrap();
            own.is_here()
                && own_again.number == own.number
                && !parents.is_here()
                && in_a_child(|| {
                    let foreign = !own.is_here() && !parents.is_here();
                    let grandchilds = Home::here().unwrap();
                    foreign && grandchilds.is_here() && !own.is_here() && !parents.is_here()
                })
                && own.is_here()
        }));
        assert!(parents.is_here() && Home::here().unwrap().is_here());
    }

    #[test]
    #[cfg_attr(emulated, ignore = "needs the kernel's MADV_WIPEONFORK")]
    fn a_child_drops_nothing() {
        let value = Rc::new(());
        let kept = Home::here().unwrap().keep(value.clone());
        let copy = kept.clone();
        assert!(in_a_child(|| {
            drop(copy);
            Rc::strong_count(&value) == 3
        }));
        drop(kept);
        assert_eq!(Rc::strong_count(&value), 1);
    }

    #[test]
    #[cfg_attr(emulated, ignore = "needs the kernel's MADV_WIPEONFORK")]
    fn a_child_makes_its_own_value() {
        static VALUE: PerProcess<AtomicU64> = PerProcess::new(|| AtomicU64::new(5));
        assert!(VALUE.get().is_none());
        VALUE.get_or_make().unwrap().store(6, Ordering::Relaxed);
        assert!(in_a_child(|| {
            VALUE.get().is_none() && VALUE.get_or_make().unwrap().load(Ordering::Relaxed) == 5 && VALUE.get().is_some()
        }));
        assert_eq!(VALUE.get().unwrap().load(Ordering::Relaxed), 6);
    }
}
