//! Runs a command, and shows it when it failed.

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// The cargo that runs xtask, in the workspace, with its target directory made absolute.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root()?).env("CARGO_TARGET_DIR", workspace::target_dir()?);
    Ok(command)
}

/// Runs a command; its output is shown as it comes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command for its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", line(command), output.status, errors.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", line(command)))
}

/// The command as one would type it, variables included.
fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.display(), quoted(&value.to_string_lossy())));
        }
    }
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|argument| quoted(&argument.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    // Cargo separates encoded flags by 0x1f; shown so that a shell takes it back.
    if word.contains('\u{1f}') {
        return format!("$'{}'", word.replace('\u{1f}', "\\x1f"));
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("gcc");
        command.args(["-o", "a b", "it's"]).env("LANG", "C").env_remove("CC");
        assert_eq!(super::line(&command), r"LANG=C gcc -o 'a b' 'it'\''s'");
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = super::run(&mut Command::new("false"));
        assert_eq!(
            error.map_err(|error| error.to_string()),
            Err("`false` failed: exit status: 1".to_owned())
        );
    }
}
