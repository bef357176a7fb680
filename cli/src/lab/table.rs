//! A table, for a terminal or as Markdown.

use owo_colors::{OwoColorize, Stream::Stdout};

pub struct Table {
    title: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: impl Into<String>, heads: impl IntoIterator<Item = String>) -> Self {
        Self {
            title: title.into(),
            heads: heads.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Panics if there are not as many cells as heads.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.heads.len(), "a row of {}", self.title);
        self.rows.push(cells);
    }

    /// In Markdown, below its title if it has one. All columns are aligned to the right.
    pub fn markdown(&self) -> String {
        let title = match self.title.as_str() {
            "" => String::new(),
            title => format!("{title}.\n\n"),
        };
        let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---:|".repeat(self.heads.len()));
        let rows: String = self.rows.iter().map(line).collect();
        format!("{title}{}{rule}{rows}", line(&self.heads))
    }

    /// For a terminal: lines under its title, with one free before. The first column is aligned to the left, all others to the
    /// right, each as wide as what is in it.
    pub fn text(&self) -> String {
        let title = self.title.if_supports_color(Stdout, |text| text.bold());
        format!("\n{title}\n{}\n", self.lines().join("\n"))
    }

    fn lines(&self) -> Vec<String> {
        let all = || std::iter::once(&self.heads).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cell = |(column, cell): (usize, &String)| match column {
                0 => format!("  {cell:<width$}", width = widths[0]),
                _ => format!("  {cell:>width$}", width = widths[column]),
            };
            let line: String = row.iter().enumerate().map(cell).collect();
            line.trim_end().to_owned()
        };
        all().map(line).collect()
    }
}

/// `-` where there is nothing to say.
pub fn or_dash(cell: Option<impl ToString>) -> String {
    cell.map_or_else(|| "-".to_owned(), |cell| cell.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new("title", ["model", "bytes"].map(str::to_owned));
        table.row(["a".to_owned(), "1048576 KiB".to_owned()]);
        table.row(["longer".to_owned(), or_dash(None::<u64>)]);
        let expected = [
            "  model         bytes",
            "  a       1048576 KiB",
            "  longer            -",
        ];
        assert_eq!(table.lines(), expected);
        assert_eq!(
            table.markdown(),
            "title.\n\n| model | bytes |\n|---:|---:|\n| a | 1048576 KiB |\n| longer | - |\n"
        );
        assert!(Table::new("", ["G".to_owned()]).markdown().starts_with("| G |\n"));
    }
}
