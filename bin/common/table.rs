//! Rows and columns: as text here, in a page by `html::push_table`.

use std::fmt::Write;

pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<String>>,
}

pub(crate) struct Column {
    pub(crate) name: String,
    /// Texts begin at the left, numbers end at the right.
    pub(crate) is_text: bool,
}

pub(crate) fn text(name: impl Into<String>) -> Column {
    Column { name: name.into(), is_text: true }
}

pub(crate) fn number(name: impl Into<String>) -> Column {
    Column { name: name.into(), is_text: false }
}

impl Table {
    /// A line for the names and one for each row, with columns of the same width.
    pub(crate) fn aligned(&self, indent: &str) -> String {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&names).chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let mut out = String::new();
        for line in lines {
            let mut text = indent.to_owned();
            for ((cell, column), &width) in line.iter().zip(&self.columns).zip(&widths) {
                let _ = match column.is_text {
                    true => write!(text, "{cell:<width$}  "),
                    false => write!(text, "{cell:>width$}  "),
                };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        let rows = vec![row(["× a", "1"]), row(["b", "10"])];
        let table = Table { title: String::new(), columns: vec![text(""), number("ns")], rows };
        assert_eq!(table.aligned("  "), "       ns\n  × a   1\n  b    10\n");
    }
}
