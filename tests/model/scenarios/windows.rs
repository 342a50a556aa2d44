//! Zeros that loads leave in holes of files with windows, and that are taken back.

use daxpager::sabotage::Rule;

use crate::world::{PAGE, Plan, join};

/// There may be one page of zeros. A load of another hole takes it back, while its own reader stores to it.
pub fn zeros(broken: Option<Rule>) {
    let world = Plan::blocks(4).build(broken);
    world.volume.set_zeros_max_even_one(PAGE);
    let file = world.volume.create("a").unwrap();
    file.truncate(3 * PAGE).unwrap();
    let view = world.map(&file, 3);
    assert_eq!(view.load(0, 0), Ok(0));
    let storer = view.spawn(|view| {
        view.store(0, 0, 0x10).unwrap();
        assert_eq!(view.load(0, 0), Ok(0x10), "the store is lost");
    });
    let loader = view.spawn(|view| {
        assert_eq!(view.load(1, 0), Ok(0));
        assert_eq!(view.load(2, 0), Ok(0));
    });
    join([storer, loader]);
    let mut word = [0; 8];
    file.read_at(&mut word, 0).unwrap();
    assert_eq!((u64::from_ne_bytes(word), view.load(0, 0)), (0x10, Ok(0x10)), "the store is lost");
    assert_eq!(file.blocks(), 1);
    drop((view, file));
    world.end();
}
