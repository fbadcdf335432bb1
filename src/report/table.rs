//! Tables for the terminal: aligned columns, two spaces between them, nothing else.

use std::fmt::Write as _;

/// Where a column's text sits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table under construction.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads. A head that ends in ">" is dropped to its text and its column aligned right.
    pub fn new(heads: &[&str]) -> Table {
        let column = |head: &&str| match head.strip_suffix('>') {
            Some(name) => (name.to_string(), Align::Right),
            None => (head.to_string(), Align::Left),
        };
        Table { columns: heads.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty. Panics on more cells than columns.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert!(row.len() <= self.columns.len(), "{} cells for {} columns", row.len(), self.columns.len());
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, one line a row, with the heads in bold if `styled` (a terminal).
    pub fn render(&self, styled: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].as_str());
            cells.chain([self.columns[column].0.as_str()]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>, bold: bool| {
            let mut out = String::new();
            for (index, cell) in cells.enumerate() {
                let gap = if index == 0 { "" } else { "  " };
                let width = widths[index];
                let _ = match self.columns[index].1 {
                    Align::Left => write!(out, "{gap}{cell:<width$}"),
                    Align::Right => write!(out, "{gap}{cell:>width$}"),
                };
            }
            let out = out.trim_end();
            let _ = if bold { writeln!(text, "\x1b[1m{out}\x1b[0m") } else { writeln!(text, "{out}") };
        };
        line(&mut self.columns.iter().map(|(name, _)| name.as_str()), styled);
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str), false);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(&["model", "accuracy>", "note"]);
        table.row(["dense", "0.8701", ""]);
        table.row(["Dual-CP é", "0.86", "ok"]);
        let expected = "model      accuracy  note\ndense        0.8701\nDual-CP é      0.86  ok\n";
        assert_eq!(table.render(false), expected);
        assert!(table.render(true).starts_with("\x1b[1mmodel"));
    }
}
