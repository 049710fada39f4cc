//! LeakSanitizer's lines: `leak:TEMPLATE` (lib/sanitizer_common/sanitizer_suppressions.cpp and
//! lib/lsan/lsan_common.cpp, LLVM 14 to 20).

use super::Frame;

/// A text that is looked for in names of objects, functions and source files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `^`, which only counts as the first character.
    Start,
    /// `*`
    Any,
    /// `$`
    End,
    Text(String),
}

impl Template {
    /// From the text behind `leak:`; `None` if there is none.
    pub(super) fn new(text: &str) -> Option<Self> {
        let (mut tokens, mut rest) = (Vec::new(), text);
        if let Some(behind) = rest.strip_prefix('^') {
            tokens.push(Token::Start);
            rest = behind;
        }
        while !rest.is_empty() {
            let length = rest.find(['*', '$']).unwrap_or(rest.len());
            let (token, length) = match rest.split_at(length) {
                ("", special) if special.starts_with('*') => (Token::Any, 1),
                ("", _) => (Token::End, 1),
                (text, _) => (Token::Text(text.to_owned()), length),
            };
            tokens.push(token);
            rest = rest.get(length..).unwrap_or_default();
        }
        (!text.is_empty()).then_some(Self { tokens })
    }

    /// Whether the template is found in a text. What has no name matches nothing.
    pub(super) fn matches(&self, text: &str) -> bool {
        if text.is_empty() {
            return false;
        }
        let (mut rest, mut is_at_start, mut was_any) = (text, false, false);
        for token in &self.tokens {
            match token {
                Token::Start => is_at_start = true,
                Token::Any => (is_at_start, was_any) = (false, true),
                // Whatever stands behind it.
                Token::End => return rest.is_empty() || was_any,
                Token::Text(wanted) => {
                    let Some(at) = rest.find(wanted.as_str()) else { return false };
                    if is_at_start && at != 0 {
                        return false;
                    }
                    rest = rest.get(at + wanted.len()..).unwrap_or_default();
                    (is_at_start, was_any) = (false, false);
                }
            }
        }
        true
    }
}

/// The texts of a frame that templates are looked for in, in their order.
pub(super) fn texts<'a>(frame: &Frame<'a>) -> [&'a str; 4] {
    let Frame { name, linkage, object, file, is_allocator, .. } = *frame;
    // There, the allocator's functions are those of the program that is linked with it.
    let object = match (object, is_allocator) {
        (_, true) => "",
        ("", false) => "<unknown module>",
        (object, false) => object,
    };
    [object, name, file, linkage]
}
