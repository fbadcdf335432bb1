//! The few SVG elements the figures need. Everything that comes from outside is escaped here, nowhere else.
//!
//! Colours are CSS classes, so that a figure follows the light or dark scheme of the page it is in.

use std::fmt::{Display, Write as _};

/// Text made safe for element content and for attribute values in double quotes. Characters that XML cannot hold
/// become U+FFFD.
pub fn escape(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// A coordinate: two decimals, no tail of zeros.
pub fn number(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// An `<svg>` under construction.
#[derive(Debug)]
pub struct Svg {
    body: String,
    open: String,
}

impl Svg {
    /// A drawing of `width` × `height` user units that scales with the page. `label` is read out by screen readers.
    pub fn new(class: &str, width: f64, height: f64, label: &str) -> Svg {
        let open = format!(
            r#"<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">"#,
            escape(class),
            number(width),
            number(height),
            escape(label)
        );
        Svg { body: String::new(), open }
    }

    /// Lets the drawing take any aspect ratio.
    pub fn stretched(mut self) -> Svg {
        self.open.insert_str(self.open.len() - 1, r#" preserveAspectRatio="none""#);
        self
    }

    /// A rectangle; `title` is shown when the pointer rests on it.
    pub fn rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], title: &str) {
        let _ = write!(
            self.body,
            r#"<rect class="{}" x="{}" y="{}" width="{}" height="{}""#,
            escape(class),
            number(x),
            number(y),
            number(width.max(0.0)),
            number(height.max(0.0))
        );
        self.close_with_title("rect", title);
    }

    /// The same with an opacity from 0 to 1.
    pub fn shaded_rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], opacity: f64, title: &str) {
        let _ = write!(
            self.body,
            r#"<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}""#,
            escape(class),
            number(x),
            number(y),
            number(width.max(0.0)),
            number(height.max(0.0)),
            number(opacity.clamp(0.0, 1.0))
        );
        self.close_with_title("rect", title);
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let _ = write!(
            self.body,
            r#"<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>"#,
            escape(class),
            number(x1),
            number(y1),
            number(x2),
            number(y2)
        );
    }

    /// A line through points.
    pub fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let points: Vec<String> =
            points.iter().map(|[x, y]| format!("{},{}", number(*x), number(*y))).collect();
        let _ = write!(self.body, r#"<polyline class="{}" points="{}"/>"#, escape(class), points.join(" "));
    }

    /// A dot.
    pub fn dot(&mut self, class: &str, [x, y]: [f64; 2], radius: f64, title: &str) {
        let _ = write!(
            self.body,
            r#"<circle class="{}" cx="{}" cy="{}" r="{}""#,
            escape(class),
            number(x),
            number(y),
            number(radius)
        );
        self.close_with_title("circle", title);
    }

    /// Text; `anchor` is "start", "middle" or "end".
    pub fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: &str, text: impl Display) {
        let _ = write!(
            self.body,
            r#"<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>"#,
            escape(class),
            number(x),
            number(y),
            escape(anchor),
            escape(text)
        );
    }

    /// The finished element.
    pub fn finish(self) -> String {
        format!("{}{}</svg>", self.open, self.body)
    }

    /// The finished drawing as a file of its own, with its style.
    pub fn standalone(self, style: &str) -> String {
        let open = self.open.replacen("<svg", r#"<svg xmlns="http://www.w3.org/2000/svg""#, 1);
        format!("{open}<style>{style}</style>{}</svg>\n", self.body)
    }

    fn close_with_title(&mut self, element: &str, title: &str) {
        if title.is_empty() {
            self.body.push_str("/>");
        } else {
            let _ = write!(self.body, "><title>{}</title></{element}>", escape(title));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        assert_eq!(escape("<a href=\"x\">&'\u{0}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}");
        let mut svg = Svg::new("c", 10.0, 10.0, "\"><script>");
        svg.text("t", [0.0, 1.0], "end", "</text>");
        let text = svg.finish();
        assert!(!text.contains("<script>") && text.matches("</text>").count() == 1);
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        assert_eq!(number(1.0), "1");
        assert_eq!(number(0.126), "0.13");
        assert_eq!(number(-0.001), "0");
        assert_eq!(number(f64::NAN), "0");
    }
}
