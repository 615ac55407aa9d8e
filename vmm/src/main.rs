//! The `tdvmm` program: command line in, exit code out.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use tdvmm::cli::Cli;
use tdvmm::config::validate;
use tdvmm::ending::{BAD_ARGUMENTS, BAD_CONFIG, HOST_ERROR};
use tdvmm::heap;
use tdvmm::machine::run::Prepared;
use tdvmm::observe::log;
use tdvmm::serial::terminal;

fn main() -> ExitCode {
    heap::use_one_arena();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { BAD_ARGUMENTS } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    terminal::restore_on_panic();
    if let Err(error) = log::install(cli.verbose, cli.log_file.as_deref()) {
        let path = cli.log_file.unwrap_or_default();
        say(&format!(
            "--log-file {}: cannot be opened: {error}",
            path.display()
        ));
        return ExitCode::from(BAD_CONFIG);
    }
    let machine = match cli.model().and_then(|model| validate(&model)) {
        Ok(machine) => machine,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    let prepared = match Prepared::new(&machine) {
        Ok(prepared) => prepared,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    if cli.print_plan {
        return print_plan(&prepared);
    }
    match prepared.run() {
        Ok(ending) => {
            say(&ending.to_string());
            ExitCode::from(ending.exit_code())
        }
        Err(error) => {
            let code = if error.is_config() {
                BAD_CONFIG
            } else {
                HOST_ERROR
            };
            fail(&error, code)
        }
    }
}

fn print_plan(prepared: &Prepared) -> ExitCode {
    let text = serde_json::to_string_pretty(&prepared.plan).map_err(io::Error::from);
    match text.and_then(|text| writeln!(io::stdout(), "{text}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cannot print the plan: {error}"));
            ExitCode::from(HOST_ERROR)
        }
    }
}

/// One line: what failed, and its causes after colons.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    say(&line);
    ExitCode::from(code)
}

/// One line on standard error, written at once. Where it cannot be written, the exit code has to do.
fn say(line: &str) {
    let _ = io::stderr().write_all(format!("tdvmm: {line}\n").as_bytes());
}
