//! The drawing of pages over time: a row for each page, a column for each moment.

use std::fmt::Write;

use crate::outcome::{PageLook, PageMap};
use crate::svg::{Anchor, Area, Svg, WIDTH, number, time_label};
use crate::units::{offset, thousands};

const TOP: f64 = 16.0;
const AXIS: f64 = 26.0;
const HEIGHT: f64 = 480.0;
/// Labels of the axes need about this much.
const LABEL_WIDTH: f64 = 96.0;
const LABEL_HEIGHT: f64 = 11.0;
/// With more runs than these, the hints would be most of the page.
const MOST_HINTS: usize = 3000;

const LOOKS: [(PageLook, &str); 4] =
    [(PageLook::Hole, "hole"), (PageLook::Clean, "clean"), (PageLook::Dirty, "dirty"), (PageLook::Sigbus, "SIGBUS")];

/// Neighbouring cells of a row that look the same.
struct Run {
    row: usize,
    from: usize,
    to: usize,
    look: PageLook,
}

/// The grid of cells on the drawing.
struct Grid<'a> {
    map: &'a PageMap,
    left: f64,
    cell: (f64, f64),
    columns: usize,
}

/// None if there is no cell.
pub(crate) fn draw(map: &PageMap) -> Option<String> {
    let columns = map.times.len().min(map.rows.iter().map(|row| row.looks.len()).max()?);
    if columns == 0 {
        return None;
    }
    let widest = map.rows.iter().map(|row| thousands(row.page).len()).max().unwrap_or(0).max(4);
    let left = 14.0 + 7.0 * widest as f64;
    // Few cells are no reason for large ones.
    let width = ((WIDTH - left - 40.0) / columns as f64).min(32.0);
    let height = (HEIGHT / map.rows.len() as f64).clamp(7.0, 22.0);
    let grid = Grid { map, left, cell: (width, height), columns };
    let mut svg = Svg::default();
    grid.cells(&mut svg);
    grid.pages(&mut svg);
    grid.times(&mut svg);
    grid.mark(&mut svg);
    Some(svg.finish(grid.bottom() + AXIS, "Pages over time"))
}

/// What the colours are, as HTML.
pub(crate) fn legend() -> String {
    let mut out = String::from("<p class=\"legend\">");
    for (index, (_, name)) in LOOKS.iter().enumerate() {
        let _ = write!(out, "<span><i class=\"look{index}\"></i>{name}</span> ");
    }
    out + "</p>\n"
}

fn runs(map: &PageMap, columns: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (row, page) in map.rows.iter().enumerate() {
        for (column, &look) in page.looks.iter().take(columns).enumerate() {
            match runs.last_mut() {
                Some(run) if run.row == row && run.look == look => run.to = column + 1,
                _ => runs.push(Run { row, from: column, to: column + 1, look }),
            }
        }
    }
    runs
}

impl Grid<'_> {
    fn x(&self, column: usize) -> f64 {
        self.left + self.cell.0 * column as f64
    }

    fn y(&self, row: usize) -> f64 {
        TOP + self.cell.1 * row as f64
    }

    fn bottom(&self) -> f64 {
        self.y(self.map.rows.len())
    }

    /// The time of a column for its label: from the violation if there is one, else from the start of the run.
    fn time(&self, column: usize) -> String {
        let time = self.map.times[column];
        match self.marked() {
            Some(marked) => offset(time - self.map.times[marked]),
            None => {
                let span = self.map.times[self.columns - 1] - self.map.times[0];
                let step = span / self.columns as f64;
                time_label(time, if step.is_finite() { step.clamp(1e-6, 1.0) } else { 1.0 })
            }
        }
    }

    fn marked(&self) -> Option<usize> {
        self.map.mark.map(|(_, column)| column).filter(|column| *column < self.columns)
    }

    /// One path for each look, as that is short, and invisible rectangles for the hints.
    fn cells(&self, svg: &mut Svg) {
        let runs = runs(self.map, self.columns);
        for (index, (look, _)) in LOOKS.iter().enumerate() {
            let mut path = String::new();
            for run in runs.iter().filter(|run| run.look == *look) {
                let (width, height) = (number(self.x(run.to) - self.x(run.from)), number(self.cell.1 - 1.0));
                let (x, y) = (number(self.x(run.from)), number(self.y(run.row)));
                let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
            }
            svg.path(&format!("look{index}"), &path);
        }
        if runs.len() > MOST_HINTS {
            return;
        }
        for run in runs {
            let (_, name) = LOOKS[run.look as usize];
            let page = thousands(self.map.rows[run.row].page);
            let (x, width) = (self.x(run.from), self.x(run.to) - self.x(run.from));
            let area = Area { x, y: self.y(run.row), width, height: self.cell.1 };
            let title = match run.to - run.from {
                1 => format!("page {page}, {}: {name}", self.time(run.from)),
                _ => format!("page {page}, {} … {}: {name}", self.time(run.from), self.time(run.to - 1)),
            };
            svg.rect("hover", area, &title);
        }
    }

    fn pages(&self, svg: &mut Svg) {
        let each = (LABEL_HEIGHT / self.cell.1).ceil() as usize;
        for (index, row) in self.map.rows.iter().enumerate().step_by(each.max(1)) {
            let y = self.y(index) + self.cell.1 / 2.0 + 3.5;
            svg.text("tick", (self.left - 6.0, y), Anchor::End, &thousands(row.page));
        }
        svg.text("tick", (self.left - 6.0, TOP - 5.0), Anchor::End, "page");
    }

    fn times(&self, svg: &mut Svg) {
        let each = (LABEL_WIDTH / self.cell.0).ceil() as usize;
        let first = self.marked().unwrap_or(0) % each;
        for column in (first..self.columns).step_by(each) {
            let x = self.x(column) + self.cell.0 / 2.0;
            svg.line("axis", (x, self.bottom()), (x, self.bottom() + 4.0));
            svg.text("tick", (x, self.bottom() + 16.0), Anchor::Middle, &self.time(column));
        }
    }

    fn mark(&self, svg: &mut Svg) {
        let (Some(column), Some((page, _))) = (self.marked(), self.map.mark) else { return };
        let middle = self.x(column) + self.cell.0 / 2.0;
        svg.pointer("violation", (middle, TOP - 2.0));
        svg.line("violation", (middle, TOP - 2.0), (middle, self.bottom() + 4.0));
        let title = format!("the violation: page {}, {}", thousands(page), seconds_since_start(self.map.times[column]));
        if let Some(row) = self.map.rows.iter().position(|row| row.page == page) {
            let (width, height) = (self.cell.0.max(6.0) + 4.0, self.cell.1 + 3.0);
            let area = Area { x: middle - width / 2.0, y: self.y(row) - 2.0, width, height };
            svg.rect("ring halo", area, "");
            svg.rect("ring violation", area, &title);
        }
    }
}

/// To the microsecond, as in the events.
fn seconds_since_start(seconds: f64) -> String {
    if seconds.is_finite() { format!("{seconds:.6} s") } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::PageRow;

    fn map(looks: &[&[PageLook]], times: usize) -> PageMap {
        let rows = looks.iter().enumerate().map(|(page, looks)| PageRow { page: page as u64, looks: looks.to_vec() });
        PageMap { times: (0..times).map(|index| index as f64).collect(), rows: rows.collect(), ..PageMap::default() }
    }

    #[test]
    fn equal_neighbours_are_one_run() {
        use PageLook::{Clean, Dirty};
        let map = map(&[&[Clean, Clean, Dirty], &[Dirty, Dirty, Dirty]], 3);
        let runs: Vec<_> = runs(&map, 3).iter().map(|run| (run.row, run.from, run.to)).collect();
        assert_eq!(runs, [(0, 0, 2), (0, 2, 3), (1, 0, 3)]);
    }

    #[test]
    fn names_are_those_of_the_looks() {
        for (index, (look, _)) in LOOKS.iter().enumerate() {
            assert_eq!(*look as usize, index);
        }
    }

    #[test]
    fn rows_and_times_that_do_not_fit() {
        assert!(draw(&PageMap::default()).is_none());
        assert!(draw(&map(&[&[]], 3)).is_none());
        assert!(draw(&map(&[&[PageLook::Hole]], 0)).is_none());
        let mut odd = map(&[&[PageLook::Hole], &[PageLook::Sigbus; 5]], 3);
        odd.mark = Some((77, 99));
        assert!(draw(&odd).is_some());
        odd.mark = Some((77, 1));
        odd.times = vec![f64::NAN; 3];
        let svg = draw(&odd).unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
