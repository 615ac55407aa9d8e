//! The `tdvmm` program: command line in, exit code out.

#![expect(
    clippy::print_stdout,
    reason = "the plan is printed to standard output"
)]

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use tdvmm::cli::Cli;
use tdvmm::config::validate;
use tdvmm::ending::{BAD_ARGUMENTS, BAD_CONFIG, HOST_ERROR};
use tdvmm::machine::run::Prepared;
use tdvmm::observe::log;
use tdvmm::serial::terminal;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { BAD_ARGUMENTS } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    restore_terminal_on_panic();
    if let Err(error) = log::install(cli.verbose, cli.log_file.as_deref()) {
        let path = cli.log_file.unwrap_or_default();
        eprintln!(
            "tdvmm: --log-file {}: cannot be opened: {error}",
            path.display()
        );
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
            eprintln!("tdvmm: {ending}");
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
    match serde_json::to_string_pretty(&prepared.plan) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, HOST_ERROR),
    }
}

/// One line: what failed, and its causes after colons.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut line = format!("tdvmm: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("{line}");
    ExitCode::from(code)
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        report(panic);
    }));
}
