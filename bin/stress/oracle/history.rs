//! What may be read from one word: decided from which operations had ended before a load began, and which
//! had not begun when it ended. Pure: it knows no clock and no lock.

/// The ticket of something that has not ended.
pub(crate) const UNDER_WAY: u64 = u64::MAX;
/// Events of one word that are kept; see [`History::judge`] for what happens beyond.
pub(crate) const EVENTS_MAX: usize = 128;
const PRUNE_FROM: usize = 12;

/// Something that gives the word a value. Begins and ends are tickets of one clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) value: u64,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// It has certainly taken effect, so it ends what was there before. Otherwise its value may be there.
    pub(crate) certain: bool,
    /// Not stored as one word, but byte by byte perhaps: a load beside it may see a part.
    pub(crate) copied: bool,
    /// Something else was under way beside it: of a copy a part may be left.
    pub(crate) mixed: bool,
    /// An invalidation, not a store.
    pub(crate) zeroes: bool,
}

/// What is wrong with a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    /// It was there before an invalidation that has ended.
    Stale,
    /// It was there before a store that has ended; or it is zero, and a store is gone.
    Lost,
    /// Nobody has stored it here.
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    Allowed,
    /// Too much has been forgotten to tell.
    Unjudged,
    /// With the values that were allowed.
    Wrong(Wrong, Vec<u64>),
}

/// The events of one word that still matter, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct History {
    events: Vec<Event>,
    /// The latest end of an event that was forgotten while it still mattered.
    forgotten: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        let zero = Event { value: 0, begin: 0, end: 0, certain: true, copied: false, mixed: false, zeroes: true };
        Self { events: vec![zero], forgotten: 0 }
    }

    /// Something begins that may give the word a value. Every load that is under way, and every later
    /// one, began after `horizon`.
    pub(crate) fn begin(&mut self, event: Event, horizon: u64) {
        if self.events.len() >= PRUNE_FROM {
            self.prune(horizon);
        }
        let mut mixed = false;
        for other in self.events.iter_mut().filter(|other| other.end == UNDER_WAY) {
            (other.mixed, mixed) = (true, true);
        }
        self.events.push(Event { mixed, ..event });
    }

    /// What began at `begin` has ended, with effect or perhaps without.
    pub(crate) fn end(&mut self, begin: u64, end: u64, certain: bool) {
        if let Some(event) = self.events.iter_mut().rev().find(|event| event.begin == begin) {
            (event.end, event.certain) = (end, certain);
        }
    }

    /// What began at `begin` has ended without effect.
    pub(crate) fn cancel(&mut self, begin: u64) {
        self.events.retain(|event| event.begin != begin);
    }

    /// Whether `event` has been overwritten for a load that began at `begin`, and by what.
    fn overwritten(&self, event: &Event, begin: u64) -> Option<&Event> {
        self.events.iter().find(|later| later.certain && later.begin > event.end && later.end < begin)
    }

    /// Forgets what no load can see any more. Of a word whose loads take too long, also the oldest of the rest.
    fn prune(&mut self, horizon: u64) {
        let last =
            self.events.iter().filter(|event| event.certain && event.end < horizon).map(|event| event.begin).max();
        if let Some(last) = last {
            self.events.retain(|event| event.end >= last);
        }
        if self.events.len() >= EVENTS_MAX {
            let (old, new) = self.events.split_at(EVENTS_MAX / 2);
            let ended = old.iter().filter(|event| event.end != UNDER_WAY);
            self.forgotten = ended.map(|event| event.end).fold(self.forgotten, u64::max);
            self.events = old.iter().filter(|event| event.end == UNDER_WAY).chain(new).copied().collect();
        }
    }

    /// Whether a load from `begin` to `end` may have given `value`.
    ///
    /// It may if an event with that value had begun before the load ended, unless another one has
    /// certainly come between: begun after the event had ended, and ended before the load began.
    pub(crate) fn judge(&self, value: u64, begin: u64, end: u64) -> Judgement {
        let began = |event: &&Event| event.begin < end;
        let allowed = |event: &&Event| self.overwritten(event, begin).is_none();
        let candidates = || self.events.iter().filter(began).filter(allowed);
        if candidates().any(|event| event.value == value) {
            return Judgement::Allowed;
        }
        let remembers = |event: &Event| event.certain && event.begin > self.forgotten && event.end < begin;
        if self.forgotten > 0 && !self.events.iter().any(remembers) {
            return Judgement::Unjudged;
        }
        let mut values: Vec<u64> = candidates().map(|event| event.value).collect();
        values.sort_unstable();
        values.dedup();
        let once = self.events.iter().rev().filter(began).find(|event| event.value == value);
        let wrong = match once.and_then(|event| self.overwritten(event, begin)) {
            Some(by) if by.zeroes => Wrong::Stale,
            Some(_) => Wrong::Lost,
            None if value == 0 => Wrong::Lost,
            None => Wrong::Unknown,
        };
        Judgement::Wrong(wrong, values)
    }

    /// Whether `value`, loaded from `begin` to `end`, may be a part of a copy: of one that was under way, of one that
    /// something else came between, or of one that ended halfway. Each byte must be one of a value that may have been there.
    ///
    /// A copy is repeated where it was interrupted, which may be in the middle of a word: its first bytes are taken
    /// away by a truncate, say, and the others follow. And it may end there: read(2) into a mapping whose thread resolves its own
    /// faults has done so many bytes where a page is write-protected under it, for a collection.
    /// A load that is not of one word either, `in_pieces`, may see parts of stores that were.
    pub(crate) fn may_be_torn(&self, value: u64, begin: u64, end: u64, in_pieces: bool) -> bool {
        let candidates: Vec<&Event> =
            self.events.iter().filter(|event| event.begin < end && self.overwritten(event, begin).is_none()).collect();
        let byte_of = |value: u64, at: u32| value >> (8 * at) & 0xff;
        let torn = |event: &&Event| match event.end > begin {
            true => event.copied || in_pieces,
            false => event.copied && (event.mixed || !event.certain),
        };
        candidates.iter().any(torn)
            && (0..8).all(|at| candidates.iter().any(|event| byte_of(event.value, at) == byte_of(value, at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(value: u64, begin: u64) -> Event {
        Event { value, begin, end: UNDER_WAY, certain: false, copied: false, mixed: false, zeroes: false }
    }

    fn punch(begin: u64) -> Event {
        Event { zeroes: true, ..store(0, begin) }
    }

    fn wrong(judgement: Judgement) -> Option<Wrong> {
        match judgement {
            Judgement::Wrong(wrong, _) => Some(wrong),
            Judgement::Allowed | Judgement::Unjudged => None,
        }
    }

    fn after(events: &[(Event, u64)]) -> History {
        let mut history = History::new();
        for (event, end) in events {
            history.begin(*event, 0);
            if *end != UNDER_WAY {
                history.end(event.begin, *end, true);
            }
        }
        history
    }

    #[test]
    fn a_store_that_has_ended_is_there_and_nothing_else() {
        let history = after(&[(store(7, 10), 12)]);
        assert_eq!(history.judge(7, 13, 14), Judgement::Allowed);
        assert_eq!(history.judge(0, 13, 14), Judgement::Wrong(Wrong::Lost, vec![7]));
        assert_eq!(wrong(history.judge(8, 13, 14)), Some(Wrong::Unknown));
        // beside the store, both
        assert_eq!(history.judge(0, 11, 14), Judgement::Allowed);
        assert_eq!(history.judge(7, 11, 14), Judgement::Allowed);
        // before it, only what was there
        assert_eq!(wrong(history.judge(7, 8, 9)), Some(Wrong::Unknown));
    }

    #[test]
    fn an_invalidation_that_has_ended_leaves_zero_or_what_was_stored_beside_it() {
        let history = after(&[(store(7, 10), 12), (punch(14), 20), (store(9, 16), 18)]);
        assert_eq!(wrong(history.judge(7, 21, 22)), Some(Wrong::Stale));
        assert_eq!(history.judge(0, 21, 22), Judgement::Allowed);
        assert_eq!(history.judge(9, 21, 22), Judgement::Allowed);
        assert_eq!(history.judge(7, 19, 22), Judgement::Wrong(Wrong::Lost, vec![0, 9]));
        assert_eq!(history.judge(7, 17, 22), Judgement::Allowed);
    }

    #[test]
    fn what_may_have_failed_ends_nothing() {
        let mut history = after(&[(store(7, 10), 12), (store(9, 14), UNDER_WAY)]);
        history.end(14, 16, false);
        assert_eq!(history.judge(7, 17, 18), Judgement::Allowed);
        assert_eq!(history.judge(9, 17, 18), Judgement::Allowed);
        history.cancel(14);
        assert_eq!(wrong(history.judge(9, 17, 18)), Some(Wrong::Unknown));
    }

    #[test]
    fn a_copy_that_was_cut_in_two_may_leave_half_a_word() {
        let copy = |value, begin| Event { copied: true, ..store(value, begin) };
        let word = 0x1122_3344_5566_7788;
        let half = 0x1122_3344_5566_0000;
        // The copy begins, the punch comes and goes, the copy goes on.
        let mut history = after(&[(copy(word, 10), UNDER_WAY), (punch(12), 14)]);
        history.end(10, 16, false);
        assert!(history.may_be_torn(half, 20, 21, false) && !history.may_be_torn(half ^ 1 << 60, 20, 21, false));
        // The next store ends that.
        history.begin(store(9, 30), 0);
        history.end(30, 32, true);
        assert!(!history.may_be_torn(half, 40, 41, false));
        // A copy that nothing came between is whole when it has ended, and not before.
        let history = after(&[(copy(word, 10), 14)]);
        assert!(history.may_be_torn(half, 12, 13, false) && !history.may_be_torn(half, 15, 16, false));
        // One that has ended halfway, with nothing beside it.
        let mut history = after(&[(copy(word, 10), UNDER_WAY)]);
        history.end(10, 16, false);
        assert!(history.may_be_torn(half, 20, 21, false) && !history.may_be_torn(half ^ 1 << 60, 20, 21, false));
    }

    #[test]
    fn forgetting_changes_no_judgement() {
        let (mut all, mut some) = (History::new(), History::new());
        for at in 1..2000u64 {
            let event = if at % 7 == 0 { punch(10 * at) } else { store(at, 10 * at) };
            all.events.push(Event { end: 10 * at + 4, certain: true, ..event });
            some.begin(event, 10 * at.saturating_sub(20));
            some.end(10 * at, 10 * at + 4, true);
            let (begin, end) = (10 * at - 2, 10 * at + 2);
            for value in at.saturating_sub(3)..=at + 1 {
                let same = (all.judge(value, begin, end) == Judgement::Allowed)
                    == (some.judge(value, begin, end) == Judgement::Allowed);
                assert!(same, "{value} at {at}");
            }
        }
        assert!(some.events.len() < 40);
    }

    #[test]
    fn a_word_that_is_stored_to_during_one_long_load_takes_little_memory() {
        let mut history = History::new();
        for at in 1..100_000u64 {
            history.begin(store(at, 10 * at), 5);
            history.end(10 * at, 10 * at + 4, true);
        }
        assert!(history.events.len() <= EVENTS_MAX);
        assert_eq!(history.judge(1, 5, 1_000_000), Judgement::Unjudged);
        assert_eq!(wrong(history.judge(1, 1_000_000, 1_000_001)), Some(Wrong::Unknown));
    }
}
