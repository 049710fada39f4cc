//! The leaktrace command: parse, run, exit code.

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use leaktrace::{
    attach::trial,
    cli::{self, Command, Parsed},
    error::{self, Error},
    history::History,
    host::{
        cgroup,
        doctor::{self, Check},
        features,
        modules::check_name,
        proc,
    },
    pipeline::{self, sink::Sink},
    render::{self, TextStyle},
    report::leaks::{self, Leaks},
    session::{
        self, Outcome, Told,
        spec::{Spec, Target},
    },
    snapshot::{Counts, Names},
    symbol::Symbolizer,
};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error::one_line(error.as_ref()));
            exit_code(&error)
        }
    }
}

/// Whether the error is a closed standard output, whose reader went away; that is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let output = match error.downcast_ref() {
        Some(Error::Output(output)) => Some(output),
        Some(_) => None,
        None => error.downcast_ref::<io::Error>(),
    };
    output.is_some_and(|output| output.kind() == io::ErrorKind::BrokenPipe)
}

/// The exit code of an error. An error of `main` itself is one of writing to standard output.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Error>() {
        Some(error) => error.exit_code(),
        None => ExitCode::from(2),
    }
}

/// The only writer to standard error.
fn tell(text: &str) {
    eprintln!("leaktrace: {}", render::line(text));
}

fn run() -> Result<ExitCode> {
    match cli::parse(env::args_os())? {
        Parsed::Help(text) => {
            io::stdout().write_all(text.as_bytes()).context("cannot print the help")?;
            Ok(ExitCode::SUCCESS)
        }
        Parsed::Command(Command::Doctor { json }) => {
            let facts = features::probe();
            let checks = doctor::checks(&facts, &trial::run(&facts));
            print_checks(&checks, json).context("cannot print what this host allows")?;
            Ok(ExitCode::SUCCESS)
        }
        Parsed::Command(Command::Trace(spec)) => trace(&spec).inspect_err(|error| {
            let refused = error.downcast_ref().and_then(Error::verifier);
            let words = refused.filter(|_| spec.trace.verbose > 0);
            for line in words.into_iter().flat_map(str::lines) {
                eprintln!("leaktrace: verifier: {line}");
            }
        }),
    }
}

fn print_checks(checks: &[Check], json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        return doctor::write_json(checks, &mut stdout);
    }
    let mut text = Vec::new();
    doctor::write_text(checks, &mut text)?;
    for line in String::from_utf8_lossy(&text).lines() {
        writeln!(stdout, "{}", render::line(line))?;
    }
    Ok(())
}

fn check_cgroups(paths: &[PathBuf]) -> Result<(), Error> {
    paths.iter().try_for_each(|path| cgroup::find(path).map(drop))
}

fn trace(spec: &Spec) -> Result<ExitCode> {
    match &spec.target {
        Target::Processes(wanted) => {
            let pids = wanted.pids.iter().try_for_each(|pid| proc::check_traceable(*pid));
            pids.and_then(|()| check_cgroups(&wanted.cgroups))
        }
        Target::Kernel { filters, .. } => {
            let pids = filters.pids.iter().try_for_each(|pid| proc::check_exists(*pid));
            let named =
                |flag, names: &[String]| names.iter().try_for_each(|name| check_name(flag, name));
            pids.and_then(|()| named("--module", &filters.modules))
                .and_then(|()| named("--not-module", &filters.not_modules))
                .and_then(|()| check_cgroups(&filters.cgroups))
        }
        Target::Command { .. } => Ok(()),
    }?;
    let mut sink = Some(Sink::open(spec.output.write.as_deref())?);
    let facts = features::probe();
    if !facts.is_root {
        let cause = "leaktrace must run as root: it loads BPF programs (try it with sudo)";
        return Err(Error::Host(cause.into()).into());
    }
    let style = TextStyle {
        color: sink.as_ref().is_some_and(Sink::is_terminal)
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let mut symbolizer = Symbolizer::new(&spec.debug_dirs);
    let mut names = Names::default();
    let mut history = History::default();
    // Of the last report: blocks that the program should have freed.
    let mut leaks = Leaks::Counted(0);
    let outcome = session::run(
        spec,
        &facts,
        &mut |told| {
            let snapshot = match told {
                Told::Counts(counts) => {
                    history.add(&counts);
                    return Ok(());
                }
                Told::Report(snapshot) => snapshot,
            };
            history.add(&Counts::of(&snapshot));
            symbolizer.resolve(&snapshot, &mut names);
            let mut report = Vec::new();
            let shown = pipeline::show(&snapshot, &names, &history, spec, &mut report, &style)?;
            if spec.output.gen_suppressions && shown.is_final {
                render::suppressions(&shown, &mut report)?;
            }
            if let Target::Command { leak_kinds, .. } = &spec.target {
                leaks = leaks::count(&shown, *leak_kinds);
            }
            sink = sink.take().map(|open| open.write(&report)).transpose()?;
            Ok(())
        },
        &mut |line| {
            if !spec.output.quiet {
                tell(line);
            }
        },
    )?;
    Ok(match (outcome, &spec.target) {
        (Outcome::CommandEnded { code }, Target::Command { error_exitcode: Some(error), .. }) => {
            ExitCode::from(match leaks {
                Leaks::Counted(0) => code,
                Leaks::Counted(_) => *error,
                Leaks::NotJudged(reason) => {
                    tell(&format!(
                        "the command was not judged, and keeps its exit code {code}: {reason}"
                    ));
                    code
                }
            })
        }
        (Outcome::CommandEnded { code }, _) => ExitCode::from(code),
        (Outcome::Done, _) => ExitCode::SUCCESS,
    })
}
