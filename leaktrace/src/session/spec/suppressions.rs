//! Rules for leaks that are not to be shown: LeakSanitizer's `leak:` lines and Valgrind's blocks.
//!
//! A file may hold both. Rules say nothing of kernel memory.

mod lsan;
mod valgrind;

use std::path::Path;

pub(crate) use self::valgrind::LINES_MOST;
use self::{lsan::Template, valgrind::Block};

/// The rules of all files, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suppressions {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The file that it stands in.
    pub file: String,
    /// Its first line, from 1 on.
    pub line: usize,
    /// What people call it: the line of LeakSanitizer's, or the name of Valgrind's block.
    pub name: String,
    /// What it matches.
    pub pattern: Pattern,
}

/// What a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// One line of LeakSanitizer's.
    Template(Template),
    /// One block of Valgrind's.
    Block(Block),
}

/// One frame of a stack, as rules look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The function's name as people write it; empty if unknown.
    pub name: &'a str,
    /// The function's name as the linker has it; empty if it is the same or unknown.
    pub linkage: &'a str,
    /// Path of the object; empty if unknown.
    pub object: &'a str,
    /// Source file; empty if unknown.
    pub file: &'a str,
    /// Line in it; 0 if unknown.
    pub line: u32,
    /// Whether it is the allocator's function itself.
    pub is_allocator: bool,
}

impl Suppressions {
    /// The rules of the files' texts.
    ///
    /// # Errors
    ///
    /// The first line that is none, with its file and number, and what it should be.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (path, text) in files {
            let file = path.display().to_string();
            parse(&file, text, &mut rules)
                .map_err(|(line, why)| format!("--suppressions {file}: line {line}: {why}"))?;
        }
        Ok(Self { rules })
    }

    /// The index of the rule that suppresses a stack, if one does: for LeakSanitizer's the first one
    /// that matches the innermost frame that any of them matches, for Valgrind's the first one that
    /// matches. `stacks` are several views of one stack.
    pub fn find(&self, stacks: &[Vec<Frame<'_>>]) -> Option<usize> {
        let templates = || {
            self.rules.iter().enumerate().filter_map(|(index, rule)| match &rule.pattern {
                Pattern::Template(template) => Some((index, template)),
                Pattern::Block(_) => None,
            })
        };
        // As it would see the stack: from the function that it replaces on.
        let by_line = stacks.last().and_then(|stack| {
            let mut texts = stack.iter().flat_map(lsan::texts);
            texts.find_map(|text| {
                templates().find(|(_, template)| template.matches(text)).map(|(index, _)| index)
            })
        });
        let by_block = self.rules.iter().position(|rule| match &rule.pattern {
            Pattern::Template(_) => false,
            Pattern::Block(block) => stacks.iter().any(|stack| block.matches(stack)),
        });
        // What stands first counts.
        by_line.into_iter().chain(by_block).min()
    }
}

/// Reads one file; the error is a line's number, and what is wrong with the line.
fn parse(file: &str, text: &str, rules: &mut Vec<Rule>) -> Result<(), (usize, String)> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    while let Some((number, line)) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let rule = |name: String, pattern| Rule { file: file.into(), line: number, name, pattern };
        if line == "{" {
            if let Some((name, block)) = valgrind::parse(number, &mut lines)? {
                rules.push(rule(name, Pattern::Block(block)));
            }
        } else if let Some(template) = line.strip_prefix("leak:") {
            let template = Template::new(template)
                .ok_or_else(|| (number, "`leak:` names nothing: write leak:NAME".to_owned()))?;
            rules.push(rule(line.to_owned(), Pattern::Template(template)));
        } else {
            let cause = "neither `leak:NAME`, the `{` of a block of Valgrind's, nor a comment (#)";
            return Err((number, format!("`{line}` is {cause}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
