//! The README in step with the program: every command and option that it shows exists.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::Result;

use super::{Finding, Source};
use crate::command;

const README: &str = "README.md";

/// Compares the README's commands with the binary's help.
pub(super) fn check(
    sources: &[Source],
    binary: Option<&Path>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let path = Path::new(README);
    let Some(readme) = sources.iter().find(|source| source.path == path) else {
        findings.push(Finding::new(path, 1, "there is no README"));
        return Ok(());
    };
    let Some(binary) = binary else {
        let rule = "cannot be compared with --help: leaktrace is not built (cargo xtask build)";
        findings.push(Finding::new(path, 1, rule));
        return Ok(());
    };
    let mut help = Help::default();
    for shown in shown_commands(&readme.text) {
        for rule in check_command(&shown.words, &mut |verb| help.of(binary, verb))? {
            findings.push(Finding::new(path, shown.line, rule));
        }
    }
    Ok(())
}

/// The options of each verb, asked for once.
#[derive(Default)]
struct Help {
    /// By verb ("" for the program itself); none for a verb that the program does not know.
    options: BTreeMap<String, Option<Vec<String>>>,
}

impl Help {
    fn of(&mut self, binary: &Path, verb: &str) -> Result<Option<Vec<String>>> {
        if let Some(known) = self.options.get(verb) {
            return Ok(known.clone());
        }
        let mut help = Command::new(binary);
        if !verb.is_empty() {
            help.arg(verb);
        }
        let options = match command::output(help.arg("--help")) {
            Ok(text) => Some(options_in(&text)),
            // The verb is wrong, unless the program cannot even print its own help.
            Err(_) if !verb.is_empty() => None,
            Err(error) => return Err(error),
        };
        self.options.insert(verb.to_owned(), options.clone());
        Ok(options)
    }
}

/// Words of a help text that are options: `-p`, `--pid`.
fn options_in(help: &str) -> Vec<String> {
    help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with('-') && word.len() > 1)
        .map(str::to_owned)
        .collect()
}

/// What is wrong with one command; `options` answers for a verb.
fn check_command(
    words: &[String],
    options: &mut dyn FnMut(&str) -> Result<Option<Vec<String>>>,
) -> Result<Vec<String>> {
    let verb = words.iter().find(|word| !word.starts_with('-')).map_or("", String::as_str);
    let Some(known) = options(verb)? else {
        return Ok(vec![format!("`leaktrace {verb}` is no command")]);
    };
    let general = options("")?.unwrap_or_default();
    let exists = |option: &str| known.iter().chain(&general).any(|known| known == option);
    let mut wrong = Vec::new();
    // What follows `--` belongs to the traced command.
    for word in words.iter().take_while(|word| *word != "--") {
        let option = word.split('=').next().unwrap_or(word);
        // `-p1` and `-p 1` are the same; a letter's value may follow without a space.
        let option = if option.starts_with("--") { option } else { option.get(..2).unwrap_or("") };
        if option.starts_with('-') && !exists(option) {
            wrong.push(format!("`leaktrace {verb}` has no option `{option}`"));
        }
    }
    Ok(wrong)
}

/// A command line of the README.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    line: usize,
    /// What follows `leaktrace`.
    words: Vec<String>,
}

/// The leaktrace commands in fenced blocks, and in `code` spans that start with `leaktrace `.
fn shown_commands(readme: &str) -> Vec<Shown> {
    let mut shown = Vec::new();
    let mut in_block = false;
    let mut lines = readme.lines().enumerate();
    while let Some((index, text)) = lines.next() {
        if text.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            let mut whole = text.to_owned();
            while whole.ends_with('\\') {
                whole.pop();
                whole.push_str(lines.next().map_or("", |(_, next)| next));
            }
            shown.extend(command_in(&whole).map(|words| Shown { line: index + 1, words }));
        } else {
            let spans = text.split('`').skip(1).step_by(2);
            let commands =
                spans.filter(|span| span.starts_with("leaktrace ")).filter_map(command_in);
            shown.extend(commands.map(|words| Shown { line: index + 1, words }));
        }
    }
    shown
}

/// The words after `leaktrace`, if the line calls it: at its start, or behind a prompt, `sudo` or
/// a path. A comment or a pipe ends them; placeholders in brackets are opened.
fn command_in(line: &str) -> Option<Vec<String>> {
    // A report shown there begins with its own head: `leaktrace user: ...`.
    if line.split_whitespace().nth(1).is_some_and(|verb| verb.ends_with(':')) {
        return None;
    }
    let line = line.split(" #").next().unwrap_or(line);
    let mut words = line.split_whitespace().skip_while(|word| ["$", "#", "sudo"].contains(word));
    let program = words.next()?;
    if program != "leaktrace" && !program.ends_with("/leaktrace") {
        return None;
    }
    let words = words
        .take_while(|word| !["|", ">", "&&", ";", "&"].contains(word))
        .flat_map(|word| word.split(['[', ']', '(', ')', '|']))
        .filter(|word| !word.is_empty() && *word != "...")
        .map(str::to_owned);
    Some(words.collect())
}

#[cfg(test)]
mod tests {
    use super::{check_command, command_in, options_in, shown_commands};

    fn check(line: &str, expected: &[&str]) -> anyhow::Result<()> {
        let words = command_in(line).unwrap_or_default();
        let found = check_command(&words, &mut |verb| {
            Ok(match verb {
                "" => Some(options_in("  -h, --help  Print help\n  -V, --version")),
                "user" => {
                    Some(options_in("  -p, --pid <PID>\n  -d, --duration <TIME>  [default: 5s]"))
                }
                "run" => Some(options_in("      --error-exitcode <N>")),
                _ => None,
            })
        })?;
        assert_eq!(found, expected, "{line}");
        Ok(())
    }

    #[test]
    fn what_exists_passes() -> anyhow::Result<()> {
        check("$ sudo leaktrace user -p 12 --duration=5s | less -R", &[])?;
        check("target/dist/leaktrace user [-p PID]...  # --not-looked-at", &[])?;
        check("leaktrace run --error-exitcode 1 -- ls --color", &[])?;
        check("leaktrace --version", &[])?;
        check("cargo xtask run --release", &[])
    }

    #[test]
    fn what_does_not_exist_is_found() -> anyhow::Result<()> {
        check("leaktrace user --pids 1", &["`leaktrace user` has no option `--pids`"])?;
        check("leaktrace user -x", &["`leaktrace user` has no option `-x`"])?;
        check("leaktrace usr -p 1", &["`leaktrace usr` is no command"])
    }

    #[test]
    fn commands_are_found_in_blocks_and_spans() {
        let readme = "leaktrace is\n```sh\n# leaktrace user -p 1 \\\n  -d 5s\nls\n```\nSee `leaktrace run -- ls`, `leaktrace`.\n";
        let shown: Vec<_> = shown_commands(readme)
            .into_iter()
            .map(|shown| (shown.line, shown.words.join(" ")))
            .collect();
        assert_eq!(shown, [(3, "user -p 1 -d 5s".to_owned()), (7, "run -- ls".to_owned())]);
    }
}
