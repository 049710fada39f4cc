//! Turns arguments into what the user wants. No other module knows clap.
//!
//! There are two steps: what the user typed (clap's structs), and what it means (`session::spec`),
//! with every value checked.

mod groups;
mod kernel;
mod run;
#[cfg(test)]
mod tests;
mod user;

use std::{error::Error as _, ffi::OsString};

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};

use crate::{error::Error, session::spec::Spec};

/// What leaktrace is to do.
#[derive(Debug)]
pub enum Command {
    /// Trace something.
    Trace(Box<Spec>),
    /// Say what this host allows.
    Doctor {
        /// Whether to answer in JSON instead of text.
        json: bool,
    },
}

/// What the arguments asked for.
#[derive(Debug)]
pub enum Parsed {
    /// Something to do.
    Command(Command),
    /// `--help` or `--version`: a text to print.
    Help(String),
}

/// Tells which call site is leaking memory, in the kernel or in any process, while it runs.
#[derive(Debug, Parser)]
#[command(name = "leaktrace", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  leaktrace doctor                           will it work on this host?
  leaktrace user -p 1234                     what does this process not free?
  leaktrace run -- ./prog args               what has this command not freed at its end?
  leaktrace kernel -d 60s                    what has the kernel not freed within a minute?

Exit codes: 0 done; 2 bad usage or input; 3 the host does not allow it.";

#[derive(Debug, Subcommand)]
enum Verb {
    Kernel(kernel::Args),
    User(user::Args),
    Run(run::Args),
    Doctor(DoctorArgs),
}

/// Say what this host allows, what is lost without the rest, and how to mend it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  leaktrace doctor                            one line for each thing that is needed
  leaktrace doctor -f json                    the same for a script")]
struct DoctorArgs {
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = groups::FormatArg::Text)]
    format: groups::FormatArg,
}

/// Parses the arguments, the program's name first.
///
/// # Errors
///
/// [`Error::Usage`] in one line.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(refusal) => {
            return match refusal.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Parsed::Help(refusal.render().to_string()))
                }
                _ => Err(Error::Usage(one_line(&refusal, &help_of(&args)))),
            };
        }
    };
    let command = match cli.verb {
        Verb::Kernel(args) => Command::Trace(Box::new(args.spec()?)),
        Verb::User(args) => Command::Trace(Box::new(args.spec()?)),
        Verb::Run(args) => Command::Trace(Box::new(args.spec()?)),
        Verb::Doctor(args) => Command::Doctor { json: args.format == groups::FormatArg::Json },
    };
    Ok(Parsed::Command(command))
}

/// clap's refusal as one line: the cause, then how to mend it or where to read about that.
fn one_line(refusal: &clap::Error, help: &str) -> String {
    let context = |kind| refusal.get(kind).map(ToString::to_string);
    let (argument, value) =
        (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue).unwrap_or_default());
    let choice = context(ContextKind::ValidValue)
        .filter(|valid| !valid.is_empty())
        .map(|valid| format!(": write one of {valid}"))
        .unwrap_or_default();
    // `--top` of `--top <N>`
    let flag = argument.as_deref().and_then(|argument| argument.split(' ').next());
    let flag = flag.unwrap_or_default();
    let message = match (refusal.kind(), argument.as_deref()) {
        (ErrorKind::UnknownArgument, Some(argument)) if argument.starts_with('-') => {
            let suggested = context(ContextKind::SuggestedArg)
                .map(|suggested| format!(", did you mean `{suggested}`?"))
                .unwrap_or_default();
            format!("unknown option `{argument}`{suggested}")
        }
        (ErrorKind::UnknownArgument, Some(argument)) => {
            let mend = if help == "leaktrace run" { ": write `--` before the command" } else { "" };
            format!("unexpected argument `{argument}`{mend}")
        }
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            "no command given. Usage: leaktrace kernel|user|run|doctor [OPTIONS]".into()
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let verb = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let suggested = context(ContextKind::SuggestedSubcommand)
                .map(|suggested| format!(", did you mean `{suggested}`?"))
                .unwrap_or_else(|| ": write kernel, user, run or doctor".into());
            format!("unknown command `{verb}`{suggested}")
        }
        (ErrorKind::InvalidValue, Some(_)) if value.is_empty() => {
            format!("{flag} needs a value{choice}")
        }
        (ErrorKind::InvalidValue, Some(_)) => {
            format!("{flag} does not take `{value}`{choice}")
        }
        (ErrorKind::ValueValidation, Some(_)) => {
            let cause = refusal.source().map(ToString::to_string).unwrap_or_default();
            // What std and clap say of a number does not say what to write.
            if cause.contains("too large") {
                format!("{flag}: `{value}` is too large a number: write a smaller one")
            } else if cause.contains("digit") || cause.contains("integer") {
                format!("{flag}: `{value}` is not a whole number: write one such as 10")
            } else if cause.contains(" is not in ") {
                format!("{flag}: {cause}: write a number of that range")
            } else {
                format!("{flag}: {cause}")
            }
        }
        (ErrorKind::MissingRequiredArgument, Some(argument)) => match argument {
            "<COMMAND>..." => "no command to run: write `-- COMMAND [ARG...]`".into(),
            _ => format!("`{argument}` is missing: add it"),
        },
        (ErrorKind::ArgumentConflict, Some(argument))
            if context(ContextKind::PriorArg).is_none_or(|prior| prior == *argument) =>
        {
            format!("{flag} is given twice: write it once")
        }
        _ => first_lines(refusal),
    };
    format!("{message}; see `{help} --help`")
}

/// clap's own message without its usage and hints, which `--help` shows.
fn first_lines(refusal: &clap::Error) -> String {
    let text = refusal.render().to_string();
    let message: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let message = message.join(" ");
    message.strip_prefix("error: ").unwrap_or(&message).to_owned()
}

/// The command whose help has the answer: that of the verb, if the user typed one.
fn help_of(args: &[OsString]) -> String {
    let verb = args.get(1).and_then(|verb| verb.to_str()).unwrap_or_default();
    match Cli::command().find_subcommand(verb) {
        Some(verb) => format!("leaktrace {}", verb.get_name()),
        None => "leaktrace".into(),
    }
}
