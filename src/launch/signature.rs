//! Reads the entry points of a CUDA source: name, parameters, documentation.
//!
//! `build.rs` compiles this file too, and turns what it finds into the typed functions of [`super::kernels`]; here it
//! stands for its tests. The grammar is deliberately narrow: an entry point is written out literally, with plain
//! types only, and what is not understood is an error with its line, never left out.

/// A type that a parameter may have: its spelling in CUDA (qualifiers removed), in Rust, and whether it may be passed
/// by value.
const TYPES: [(&str, &str, bool); 13] = [
    ("float", "f32", true),
    ("double", "f64", true),
    ("bf16", "Bf16", false),
    ("f16", "F16", false),
    ("int", "i32", true),
    ("unsigned", "u32", true),
    ("unsigned int", "u32", true),
    ("u32", "u32", true),
    ("unsigned char", "u8", false),
    ("u8", "u8", false),
    ("unsigned long long", "u64", true),
    ("u64", "u64", true),
    ("long long", "i64", true),
];

/// A parameter of an entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the source.
    pub name: String,
    /// Element or value type, in Rust.
    pub rust: &'static str,
    /// Whether it is a pointer to that type.
    pub pointer: bool,
}

/// An `extern "C" __global__` function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Line of the source, from 1.
    pub line: usize,
    /// Text of the `///` comment over it, a line each.
    pub doc: Vec<String>,
    /// Its parameters in order.
    pub parameters: Vec<Parameter>,
}

/// What is wrong, and on which line of the source (from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// What was found and what was expected.
    pub message: String,
}

/// All entry points of `source`, in order.
pub fn entries(source: &str) -> Result<Vec<Entry>, Mistake> {
    let code = blank_comments(source);
    let lines: Vec<&str> = source.lines().collect();
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(offset) = code[from..].find("__global__") {
        let at = from + offset;
        let line = line_of(at);
        let wrong = |message: String| Mistake { line, message };
        if !code[..at].trim_end().ends_with("extern \"C\"") {
            return Err(wrong("an entry point is written `extern \"C\" __global__ void name(…)`".into()));
        }
        let start = code[..at].rfind("extern").unwrap_or(at);
        if code[code[..start].rfind('\n').map_or(0, |n| n + 1)..start].trim_start().starts_with('#') {
            return Err(wrong(
                "an entry point cannot come from a macro: its signature is read as text".into(),
            ));
        }
        let mut rest = code[at + "__global__".len()..].trim_start();
        // `void` and the launch bounds come in either order.
        loop {
            if let Some(after) = rest.strip_prefix("void") {
                rest = after.trim_start();
            } else if let Some(after) = rest.strip_prefix("__launch_bounds__") {
                let (_, after) = parenthesised(after.trim_start())
                    .ok_or_else(|| wrong("__launch_bounds__ without its parentheses".into()))?;
                rest = after.trim_start();
            } else {
                break;
            }
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = rest[..end].to_string();
        let (inside, after) = parenthesised(rest[end..].trim_start())
            .filter(|_| !name.is_empty())
            .ok_or_else(|| wrong("expected `name(parameters)` after `__global__ void`".into()))?;
        let parameters = inside
            .split(',')
            .filter(|_| !inside.trim().is_empty())
            .map(|text| parameter(text).map_err(|message| wrong(format!("{name}: {message}"))))
            .collect::<Result<_, _>>()?;
        found.push(Entry { name, line, doc: documentation(&lines, line_of(start)), parameters });
        from = code.len() - after.len();
    }
    Ok(found)
}

/// Replaces comments by spaces, keeping every line where it is.
fn blank_comments(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("/*").into_iter().chain(rest.find("//")).min() {
        code.push_str(&rest[..at]);
        let comment = &rest[at..];
        let end = if comment.starts_with("//") {
            comment.find('\n').unwrap_or(comment.len())
        } else {
            comment.find("*/").map_or(comment.len(), |end| end + 2)
        };
        code.extend(comment[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &comment[end..];
    }
    code.push_str(rest);
    code
}

/// Splits `(inside) after`.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (at > 0).then(|| (&text[1..at], &text[at + 1..]));
        }
    }
    None
}

fn parameter(text: &str) -> Result<Parameter, String> {
    let text = text.replace('*', " * ");
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.retain(|word| !matches!(*word, "const" | "__restrict__" | "volatile"));
    let name = words.pop().unwrap_or_default().to_string();
    let pointer = words.last() == Some(&"*");
    if pointer {
        words.pop();
    }
    let spelled = words.join(" ");
    let known = TYPES.iter().find(|(cuda, _, by_value)| *cuda == spelled && (pointer || *by_value));
    let Some(&(_, rust, _)) = known else {
        let star = if pointer { "*" } else { "" };
        return Err(format!("parameter `{name}` has the unknown type `{spelled}{star}`"));
    };
    if name == "grid" || !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return Err(format!("`{name}` cannot be a parameter's name"));
    }
    Ok(Parameter { name, rust, pointer })
}

/// The `///` lines right above line `line`.
fn documentation(lines: &[&str], line: usize) -> Vec<String> {
    let above = lines[..line - 1].iter().rev();
    let mut doc: Vec<String> =
        above.map_while(|l| l.trim().strip_prefix("///")).map(|l| l.trim().to_string()).collect();
    doc.reverse();
    doc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_signature_over_several_lines_with_bounds_comments_and_documentation() {
        let source = "// extern \"C\" __global__ void not_this(int a)\n/* nor\nthis */\n\n\
                      /// Normalises rows.\n/// One warp a row.\n\
                      extern \"C\" __global__ void __launch_bounds__(4 * (WARP), 2) layer_norm_bf16(\n    \
                      const bf16* __restrict__ x, // the input\n    int ld_x, float *y,\n    \
                      unsigned long long threshold, const unsigned char* keep) {\n}\n\
                      extern \"C\" __launch_bounds__(1)\n";
        let found = entries(source).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "layer_norm_bf16");
        assert_eq!(found[0].line, 7);
        assert_eq!(found[0].doc, ["Normalises rows.", "One warp a row."]);
        let of = |name: &str, rust, pointer| Parameter { name: name.into(), rust, pointer };
        let expected = [
            of("x", "Bf16", true),
            of("ld_x", "i32", false),
            of("y", "f32", true),
            of("threshold", "u64", false),
            of("keep", "u8", true),
        ];
        assert_eq!(found[0].parameters, expected);
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        let mistake = |source: &str| entries(source).unwrap_err();
        let unknown = mistake("\n\nextern \"C\" __global__ void k(half* x) {}");
        assert_eq!(unknown.line, 3);
        assert!(unknown.message.contains("k: parameter `x` has the unknown type `half*`"), "{unknown:?}");
        assert!(mistake("extern \"C\" __global__ void k(bf16 x) {}").message.contains("`bf16`"));
        assert!(mistake("__global__ void k(int x) {}").message.contains("extern \"C\""));
        assert!(mistake("#define K(n) extern \"C\" __global__ void k_##n(int x)").message.contains("macro"));
        assert!(mistake("extern \"C\" __global__ void k").message.contains("name(parameters)"));
        assert!(mistake("extern \"C\" __global__ void k(int grid) {}").message.contains("name"));
    }

    #[test]
    fn a_source_without_entries_has_none() {
        assert_eq!(entries("// nothing\n"), Ok(Vec::new()));
        assert_eq!(entries("extern \"C\" __global__ void k() {}").unwrap()[0].parameters, []);
    }
}
