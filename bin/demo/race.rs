//! The race of the thread, step by step, on scratch volumes of a few blocks: a store faults on a page, and
//! a punch takes the page's block away and another file gets it. Threads are held at the
//! worst moment by a probe, so every run is the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daxpager::probe::{Event, Point};
use daxpager::{Allocation, Backing, BlockIndex, Device, Error, File, Kind, Mapping, Pager, Volume};

use crate::machine::page_bytes;
use crate::stage::{Actor, CHANGER, PAGER_THREADS, Party, Stage};
use crate::table::{Checks, Columns, hex, paragraph, say, subheading};

const BLOCKS: u64 = 4;
/// The page of A that is raced for.
const X: u64 = 2;
/// What process 1 stores.
const STORED: [u8; 8] = *b"A's word";
/// What B is filled with.
const B_BYTES: [u8; 16] = *b"bytes of file B.";

/// Where that page begins.
fn at_x() -> u64 {
    X * page_bytes()
}

/// How act 2 and act 3 differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Kept,
    Broken,
}

/// A scratch volume with two files, and who watches it.
struct Scene {
    stage: Arc<Stage>,
    volume: Volume,
    pager: Pager,
    a: File,
    b: File,
    map_a: Arc<Mapping>,
    map_b: Mapping,
}

/// Plays the three acts.
pub(crate) fn play(checks: &mut Checks) {
    paragraph(&format!(
        "Scratch volumes of {BLOCKS} blocks, with two files. A has a block under page {X}. B is empty. Process 1 \
         stores to that page of A through a mapping. Process 2 punches the page out of A and writes to B, which gets \
         the block: the allocator hands out the block freed last first. A probe holds process 1's fault at \
         the worst moment, so nothing here is left to chance. L1 lets one change at a time into a file; L2 \
         guards its size and extents, shared by faults, exclusive for changes (XFS_MMAPLOCK in the mail); regions \
         is the pager's map of addresses."
    ));
    subheading("Act 1: the fault has looked and holds L2. The punch waits.");
    act(checks, "act 1", punch_waits);
    subheading("Act 2: the fault holds no lock. The punch passes, and the fault looks again.");
    act(checks, "act 2", |scene, checks| punch_passes(scene, checks, Rule::Kept));
    subheading("Act 3: the same, on a volume that does not look again. Never do this.");
    act(checks, "act 3", |scene, checks| punch_passes(scene, checks, Rule::Broken));
}

fn act(checks: &mut Checks, name: &str, script: impl FnOnce(&Scene, &mut Checks) -> anyhow::Result<()>) {
    let played = Scene::set().and_then(|scene| {
        let played = script(&scene, checks);
        if played.is_err() {
            // Some thread is stuck, and tidying up would wait for it.
            scene.stage.release();
            std::mem::forget(scene);
            return played;
        }
        scene.strike()
    });
    checks.check(&format!("{name}: played to its end, and every block came back"), played.is_ok(), || {
        played.err().map(|error| format!("{error:#}")).unwrap_or_default()
    });
}

impl Scene {
    fn set() -> anyhow::Result<Self> {
        let stage = Arc::new(Stage::default());
        let device = Device::memfd("daxpager-demo-race", BLOCKS * page_bytes())?;
        let volume = Volume::format_observed(device, Allocation::Blocks, stage.clone());
        let (a, b) = (volume.create("A")?, volume.create("B")?);
        // Page 0 keeps the block of page X from being block 0, which looks like nothing at all.
        a.write_at(&[b'.'; 8], 0)?;
        a.write_at(&vec![b'a'; page_bytes() as usize], at_x())?;
        let pager = Pager::builder().thread_name(PAGER_THREADS).start()?;
        let map_a = Arc::new(pager.map(&a, 0..at_x() + page_bytes())?);
        let map_b = pager.map(&b, 0..page_bytes())?;
        Ok(Self { stage, volume, pager, a, b, map_a, map_b })
    }

    /// Gives everything back, and looks whether it is all there.
    fn strike(self) -> anyhow::Result<()> {
        let Self { volume, pager, a, b, map_a, map_b, .. } = self;
        drop((map_a, map_b));
        pager.shutdown()?;
        volume.remove("A")?;
        volume.remove("B")?;
        drop((a, b));
        let used = volume.used_blocks();
        anyhow::ensure!(used == 0, "{used} blocks are still in use");
        Ok(())
    }

    fn store(&self) -> anyhow::Result<Actor<Result<(), Error>>> {
        let map = self.map_a.clone();
        Actor::start("process 1", move || map.store(at_x(), u64::from_ne_bytes(STORED)))
    }

    fn punch(&self) -> anyhow::Result<Actor<Result<(), Error>>> {
        let a = self.a.clone();
        Actor::start(CHANGER, move || a.punch_hole(at_x(), page_bytes()))
    }

    /// Process 2 fills page 0 of B; the block that B got. Nothing else has changed since, so its address tells.
    fn write_b(&self) -> anyhow::Result<BlockIndex> {
        let b = self.b.clone();
        Actor::start(CHANGER, move || b.write_at(&B_BYTES.repeat(page_bytes() as usize / B_BYTES.len()), 0))?
            .wait()??;
        self.map_b.load(0)?;
        block_at(&self.map_b, 0)
    }

    /// The first bytes of B, read without a mapping.
    fn b_bytes(&self) -> anyhow::Result<[u8; 16]> {
        let mut bytes = [0; 16];
        self.b.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Word 0 of page X of A: through the mapping, and read without it.
    fn a_word(&self) -> anyhow::Result<([u8; 8], [u8; 8])> {
        let mut read = [0; 8];
        self.a.read_at(&mut read, at_x())?;
        Ok((self.map_a.load(at_x())?.to_ne_bytes(), read))
    }
}

/// The block that an address points at.
fn block_at(map: &Mapping, offset: u64) -> anyhow::Result<BlockIndex> {
    match map.backing_at(offset) {
        Some(Backing::Block(block)) => Ok(block),
        other => anyhow::bail!("the address should point at a block, and points at {other:?}"),
    }
}

fn freed(event: Event) -> anyhow::Result<BlockIndex> {
    event.block.context("the punch took no block away")
}

/// Act 1: a write-protect fault (pfn_mkwrite) is held between its look and its answer.
fn punch_waits(scene: &Scene, checks: &mut Checks) -> anyhow::Result<()> {
    let stage = &scene.stage;
    scene.map_a.load(at_x())?;
    // The load's own fault is over: what is reported from here on is the store's.
    stage.reached(Party::Pager, Point::Answered, 0)?;
    let start = stage.now();
    let columns = Columns::new(&format!("process 1: store to A, page {X}"), &format!("process 2: punch A, page {X}"));
    stage.hold(Party::Pager, Point::Decided);
    let store = scene.store()?;
    let old = freed(stage.held()?)?;
    columns.left(&format!("page {X} is mapped read-only, block {}", old.0));
    columns.left("store: write-protect fault (pfn_mkwrite)");
    columns.left("  regions shared, L2 shared");
    columns.left(&format!("    page {X} is block {}, mapped as such", old.0));
    columns.left("    ** held here **");
    let punch = scene.punch()?;
    stage.reached(Party::Changer, Point::BeforeInvalidate, start)?;
    columns.right(&format!("punch_hole(A, page {X})"));
    columns.right("  L1 exclusive");
    columns.right("  L2 exclusive: waits");
    let waits = stage.stays_away(Party::Changer, Point::Published, start, Duration::from_millis(100));
    columns.right("  ** 100 ms later it still waits **");
    // Held once more before L2 is dropped, or the punch might be faster than the thread just woken.
    stage.hold(Party::Pager, Point::Answered);
    stage.release();
    stage.held()?;
    store.wait()??;
    columns.left("    ** goes on **");
    columns.left("    make the entry writable; wake");
    columns.left(&format!("    the store is repeated, into block {}", old.0));
    let waits = waits && stage.stays_away(Party::Changer, Point::Published, start, Duration::ZERO);
    stage.release();
    punch.wait()??;
    let (_, event) = stage.reached(Party::Changer, Point::Published, start)?;
    let taken = freed(event)?;
    columns.left("  unlock L2, regions");
    columns.right("  L2 exclusive: has it");
    columns.right(&format!("    publish: page {X} is a hole"));
    columns.right("    zap its entry");
    columns.right(&format!("  unlock L2, free block {}, unlock L1", taken.0));
    let got = scene.write_b()?;
    columns.right(&format!("write to B: it gets block {}", got.0));
    checks.check("act 1: the punch waited until the fault had been answered", waits, || "it did not".to_owned());
    checks.equal("act 1: it was a write-protect fault", scene.pager.stats().faults_of(Kind::WriteProtect), 1);
    checks.equal("act 1: the block went from A to B", [old, taken, got], [old; 3]);
    checks.equal("act 1: A reads as zeros there, by mapping and by read", scene.a_word()?, ([0; 8], [0; 8]));
    checks.equal("act 1: B has its own bytes", scene.b_bytes()?, B_BYTES);
    say("");
    paragraph("The store came before the punch, and is gone with the page, as it should be. B has its own bytes.");
    Ok(())
}

/// Acts 2 and 3: a fault is held with nothing but its preparation done, and loses its block meanwhile.
fn punch_passes(scene: &Scene, checks: &mut Checks, rule: Rule) -> anyhow::Result<()> {
    if rule == Rule::Broken {
        scene.volume.demonstrate_without_revalidation();
    }
    let columns = Columns::new(&format!("process 1: store to A, page {X}"), &format!("process 2: punch A, page {X}"));
    let stage = &scene.stage;
    stage.hold(Party::Pager, Point::Prepared);
    let start = stage.now();
    let store = scene.store()?;
    stage.held()?;
    let old = block_at(&scene.map_a, at_x())?;
    columns.left("store: fault, no entry; to a worker");
    columns.left("  regions shared, L2 shared");
    columns.left(&format!("    page {X} is block {}, the address is not", old.0));
    columns.left("  unlock L2, regions");
    columns.left("  regions exclusive");
    columns.left(&format!("    point the address at block {}", old.0));
    columns.left("  unlock regions");
    columns.left("  ** held here: no lock **");
    scene.punch()?.wait()??;
    let (_, event) = stage.reached(Party::Changer, Point::Published, start)?;
    let taken = freed(event)?;
    columns.right(&format!("punch_hole(A, page {X})"));
    columns.right("  L1 exclusive, L2 exclusive");
    columns.right(&format!("    publish: page {X} is a hole"));
    columns.right("    zap: no entry is there yet");
    columns.right(&format!("  unlock L2, free block {}, unlock L1", taken.0));
    let got = scene.write_b()?;
    let before = scene.b_bytes()?;
    anyhow::ensure!(before == B_BYTES, "B does not have what was written to it: {}", hex(&before));
    columns.right(&format!("write to B: it gets block {}", got.0));
    checks.equal(&format!("{}: the block went from A to B", rule.act()), [old, taken, got], [old; 3]);
    let again = stage.now();
    stage.release();
    columns.left("  ** goes on **");
    store.wait()??;
    let outcome = Outcome { old, before, after: scene.b_bytes()?, word: scene.a_word()? };
    match rule {
        Rule::Kept => looked_again(scene, checks, &columns, &outcome, again),
        Rule::Broken => did_not_look(checks, &columns, &outcome),
    }
}

impl Rule {
    fn act(self) -> &'static str {
        match self {
            Rule::Kept => "act 2",
            Rule::Broken => "act 3",
        }
    }
}

/// What can be seen when the store is done.
struct Outcome {
    /// The block that A had, and B has.
    old: BlockIndex,
    before: [u8; 16],
    after: [u8; 16],
    /// A's word: through the mapping, and read.
    word: ([u8; 8], [u8; 8]),
}

impl Outcome {
    fn words(&self) -> [String; 2] {
        [hex(&self.word.0), hex(&self.word.1)]
    }

    fn show_b(&self) {
        say(format_args!("\n  B before the store: {}", hex(&self.before)));
        say(format_args!("  B after it:         {}\n", hex(&self.after)));
    }
}

fn looked_again(
    scene: &Scene,
    checks: &mut Checks,
    columns: &Columns,
    outcome: &Outcome,
    from: usize,
) -> anyhow::Result<()> {
    checks.equal("act 2: B's bytes are unchanged", hex(&outcome.after), hex(&B_BYTES));
    checks.equal("act 2: A has the stored word, by mapping and by read", outcome.words(), [hex(&STORED), hex(&STORED)]);
    let (_, allocated) = scene.stage.reached(Party::Pager, Point::Allocated, from)?;
    let (_, decided) = scene.stage.reached(Party::Pager, Point::Decided, from)?;
    let new = allocated.block.context("an allocation without a block")?;
    columns.left("  regions shared, L2 shared");
    columns.left(&format!("    looks again: page {X} is a hole"));
    columns.left("  unlock L2, regions");
    columns.left(&format!("  take block {}, zero it", new.0));
    columns.left("  L2 exclusive: publish it; unlock L2");
    columns.left("  regions exclusive");
    columns.left(&format!("    point the address at block {}", new.0));
    columns.left("  unlock regions");
    columns.left("  regions shared, L2 shared");
    columns.left(&format!("    looks again: page {X} is block {}", new.0));
    columns.left("    install it writable; wake");
    columns.left("  unlock L2, regions");
    columns.left(&format!("the store is repeated, into block {}", new.0));
    outcome.show_b();
    let place = (decided.block, block_at(&scene.map_a, at_x())?, new == outcome.old);
    checks.equal("act 2: A's store got a new block", place, (Some(new), new, false));
    checks.equal("act 2: A has two blocks, and B one", (scene.a.blocks(), scene.b.blocks()), (2, 1));
    paragraph("The store came after the punch, and has a block of its own. B has its own bytes.");
    Ok(())
}

fn did_not_look(checks: &mut Checks, columns: &Columns, outcome: &Outcome) -> anyhow::Result<()> {
    columns.left("  (no lock, and no second look)");
    columns.left("    install what it saw; wake");
    columns.left(&format!("the store is repeated, into block {}: B's", outcome.old.0));
    outcome.show_b();
    let mut corrupted = B_BYTES;
    corrupted[..STORED.len()].copy_from_slice(&STORED);
    checks.equal("act 3: without the second look, B is corrupted", hex(&outcome.after), hex(&corrupted));
    checks.equal(
        "act 3: A shows the word by mapping, and does not have it",
        outcome.words(),
        [hex(&STORED), hex(&[0; 8])],
    );
    paragraph(&format!(
        "This is the data corruption that the thread is about: process 1's word is in a file that process 1 never \
         opened. A's mapping still shows block {}, with B's bytes; A itself reads as zeros there.",
        outcome.old.0
    ));
    Ok(())
}
