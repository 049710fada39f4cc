//! Just enough of Rust's grammar for the rules: tokens without comments and literals, and the
//! paths that a file names.

/// A name, `::`, or one character of punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl<'a> Token<'a> {
    /// The tokens of a file; comments, strings, characters, lifetimes and spaces are left out.
    pub(super) fn scan(text: &'a str) -> Vec<Self> {
        let mut tokens = Vec::new();
        let mut rest = text;
        let mut line = 1;
        while let Some(first) = rest.chars().next() {
            let skipped = skip(rest);
            let length = if skipped > 0 {
                skipped
            } else if is_name(first) {
                rest.find(|c| !is_name(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, tail) = rest.split_at(length);
            if skipped == 0 && !first.is_whitespace() {
                tokens.push(Self { line, text: token });
            }
            line += token.matches('\n').count();
            rest = tail;
        }
        tokens
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the comment, literal or lifetime at the start; 0 if there is none.
fn skip(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    for prefix in ["r", "br", "cr"] {
        if let Some(rest) = text.strip_prefix(prefix)
            && let Some(length) = raw_string(rest)
        {
            return prefix.len() + length;
        }
    }
    for prefix in ["", "b", "c"] {
        if let Some(rest) = text.strip_prefix(prefix)
            && rest.starts_with('"')
        {
            return prefix.len() + quoted(rest, '"');
        }
    }
    if text.starts_with('\'') { character_or_lifetime(text) } else { 0 }
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of `#..#"..."#..#`, without the letter before it.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.bytes().take_while(|byte| *byte == b'#').count();
    let body = text.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)?;
    Some(hashes + 1 + length + end.len())
}

/// Length of a literal up to its closing quote; a backslash takes the next character with it.
fn quoted(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return at + 1;
        }
        if c == '\\' {
            characters.next();
        }
    }
    text.len()
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime: only the first have a closing quote.
fn character_or_lifetime(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    let second = characters.next().map(|(_, c)| c);
    let third = characters.next().map(|(_, c)| c);
    if second == Some('\\') || third == Some('\'') {
        return quoted(text, '\'');
    }
    let name = text.get(1..).unwrap_or_default();
    1 + name.find(|c| !is_name(c)).unwrap_or(name.len())
}

/// A path from the root of its crate, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedPath<'a> {
    pub(super) line: usize,
    pub(super) path: Vec<&'a str>,
}

/// Every path that starts with `crate`, `super` or `self`, in `use` items and elsewhere, resolved
/// for a file that is the module `module`; `use` trees are opened to their leaves.
pub(super) fn crate_paths<'a>(tokens: &[Token<'a>], module: &[&'a str]) -> Vec<NamedPath<'a>> {
    let mut found = Vec::new();
    // For each open brace, whether it is a module's.
    let mut braces: Vec<bool> = Vec::new();
    let mut inside = module.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        let text = tokens[at].text;
        let previous = if at > 0 { tokens[at - 1].text } else { "" };
        if text == "{" {
            let opens_module = at >= 2 && tokens[at - 2].text == "mod";
            if opens_module {
                inside.push(previous);
            }
            braces.push(opens_module);
        } else if text == "}" && braces.pop() == Some(true) {
            inside.pop();
        } else if ["crate", "super", "self"].contains(&text)
            && previous != "::"
            && text_at(tokens, at + 1) == "::"
        {
            let mut prefix = if text == "crate" { Vec::new() } else { inside.clone() };
            if text == "super" {
                prefix.pop();
            }
            at += 2;
            while text_at(tokens, at) == "super" && text_at(tokens, at + 1) == "::" {
                prefix.pop();
                at += 2;
            }
            leaves(tokens, &mut at, prefix, &mut found);
            continue;
        }
        at += 1;
    }
    found
}

/// Adds the leaves of a `use` tree, or the one path of an expression; `at` ends behind it.
fn leaves<'a>(
    tokens: &[Token<'a>],
    at: &mut usize,
    mut path: Vec<&'a str>,
    found: &mut Vec<NamedPath<'a>>,
) {
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        if token.text == "{" {
            while !["}", ""].contains(&text_at(tokens, *at)) {
                leaves(tokens, at, path.clone(), found);
                // `as NAME` and the comma.
                while !["}", ",", ""].contains(&text_at(tokens, *at)) {
                    *at += 1;
                }
                if text_at(tokens, *at) == "," {
                    *at += 1;
                }
            }
            *at += 1;
            return;
        }
        path.push(token.text);
        let goes_on = text_at(tokens, *at) == "::"
            && text_at(tokens, *at + 1).starts_with(|c| is_name(c) || c == '{' || c == '*');
        if !goes_on {
            found.push(NamedPath { line: token.line, path });
            return;
        }
        *at += 1;
    }
}

fn text_at<'a>(tokens: &[Token<'a>], at: usize) -> &'a str {
    tokens.get(at).map_or("", |token| token.text)
}

#[cfg(test)]
mod tests {
    use super::{Token, crate_paths};

    fn check_tokens(text: &str, expected: &[&str]) {
        let tokens: Vec<_> = Token::scan(text).iter().map(|token| token.text).collect();
        assert_eq!(tokens, expected);
    }

    fn check_paths(text: &str, expected: &[&str]) {
        let tokens = Token::scan(text);
        let paths: Vec<_> = crate_paths(&tokens, &["attach", "plan"])
            .iter()
            .map(|named| format!("{} {}", named.line, named.path.join("::")))
            .collect();
        assert_eq!(paths, expected);
    }

    #[test]
    fn comments_and_literals_are_no_tokens() {
        check_tokens("a // b\nc /* d /* e */ f */ g", &["a", "c", "g"]);
        check_tokens(r###"a "b\"c" d r#"e"f"# g b"h" i"###, &["a", "d", "g", "i"]);
        check_tokens(
            r"f('a', '\'', 'b: &'static str)",
            &["f", "(", ",", ",", ":", "&", "str", ")"],
        );
    }

    #[test]
    fn paths_are_resolved() {
        check_paths("use crate::host;\nfn f() { crate::bpf::load() }", &["1 host", "2 bpf::load"]);
        check_paths(
            "use super::Attached; use super::super::cli::X;",
            &["1 attach::Attached", "1 cli::X"],
        );
        check_paths("use self::a::b;", &["1 attach::plan::a::b"]);
        check_paths("crate::units::parse::<u64>(x)", &["1 units::parse"]);
        check_paths("pub(crate) fn f() {}", &[]);
    }

    #[test]
    fn use_trees_are_opened() {
        check_paths(
            "use crate::{\n  a::{self, B as C},\n  session::{spec::{X, Y}, Z},\n  d::*,\n};\nuse crate::e;",
            &[
                "2 a::self",
                "2 a::B",
                "3 session::spec::X",
                "3 session::spec::Y",
                "3 session::Z",
                "4 d::*",
                "6 e",
            ],
        );
    }

    #[test]
    fn super_in_an_inner_module_is_the_file() {
        check_paths(
            "mod tests { use super::*; fn f() { super::super::g() } }\nuse super::h;",
            &["1 attach::plan::*", "1 attach::g", "2 attach::h"],
        );
    }
}
