//! What every HTML page here is made of: the frame with its style sheet, tables, names as words.
//!
//! A page needs nothing else: no network, no script; it follows the reader's light or dark scheme.

use std::fmt::{Display, Write as _};

use super::svg::escape;

const STYLE: &str = include_str!("style.css");

/// A page with this title and content.
pub(crate) fn page(title: impl Display, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// A table; heads that end in ">" are right-aligned columns.
pub(crate) fn table(out: &mut String, heads: &[&str], rows: &[Vec<impl Display>]) {
    let class = |column: usize| if heads[column].ends_with('>') { " class=\"r\"" } else { "" };
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    for (column, head) in heads.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(column), escape(head.trim_end_matches('>')));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(column), escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

/// "exact_match" as "Exact match".
pub(crate) fn words(name: &str) -> String {
    let spaced = name.replace('_', " ");
    let mut letters = spaced.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
