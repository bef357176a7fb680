//! Tables in Markdown.

/// Columns of numbers: all are aligned to the right.
#[derive(Clone, Debug)]
pub struct MarkdownTable {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl MarkdownTable {
    pub fn new(heads: &[&str]) -> Self {
        Self {
            heads: heads.iter().map(|&head| head.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// As many cells as heads.
    pub fn add<const N: usize>(&mut self, row: [String; N]) {
        self.add_row(row.into());
    }

    pub fn add_row(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.heads.len(), "a row has a cell for each head");
        self.rows.push(row);
    }

    pub fn to_text(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---:|".repeat(self.heads.len()));
        let rows = self.rows.iter().map(|row| line(row));
        [line(&self.heads), rule].into_iter().chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_heads_a_rule_and_rows() {
        let mut table = MarkdownTable::new(&["G", "us"]);
        table.add(["1".to_owned(), "20".to_owned()]);
        assert_eq!(table.to_text(), "| G | us |\n|---:|---:|\n| 1 | 20 |\n");
    }
}
