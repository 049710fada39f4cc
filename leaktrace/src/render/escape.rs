//! Names from the kernel and from traced processes, made safe for a terminal.

use std::fmt::Write as _;

/// Escapes what could move the cursor, change colours or hide text: control characters, and
/// characters that change the direction of text or have no width.
pub(super) fn escape(name: &str) -> String {
    let mut safe = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '\0'..='\x1f' | '\x7f' => {
                // Writing to a String never fails.
                let _ = write!(safe, "\\x{:02x}", u32::from(character));
            }
            '\u{80}'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}' => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(character));
            }
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_or_hides_text_is_escaped() {
        for (name, safe) in [
            ("plain_name<T>", "plain_name<T>"),
            ("größe", "größe"),
            ("\x1b[2Jgone", "\\x1b[2Jgone"),
            ("two\nlines\t", "two\\x0alines\\x09"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("a\u{180e}b\u{3164}c\u{fe0f}", "a\\u{180e}b\\u{3164}c\\u{fe0f}"),
            ("a\u{200b}b\u{9b}31m", "a\\u{200b}b\\u{9b}31m"),
        ] {
            assert_eq!(escape(name), safe);
        }
    }
}
