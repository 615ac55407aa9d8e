//! The `tdvmm` program: command line in, exit code out.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tdvmm::cli::{Cli, Command};
use tdvmm::config::validate;
use tdvmm::ending::{BAD_ARGUMENTS, BAD_CONFIG, Ending, HOST_ERROR, TDX_NOT_READY};
use tdvmm::machine::run::Prepared;
use tdvmm::observe::log;
use tdvmm::payload::{self, file::Limit};
use tdvmm::plan::secure_boot::Doubt;
use tdvmm::plan::td::unplaceable;
use tdvmm::serial::backend::StreamSink;
use tdvmm::serial::output::StandardStream;
use tdvmm::serial::terminal;
use tdvmm::{heap, host_check};
use tdvmm_devices::serial::SerialSink;
use tdvmm_firmware::image::Image;
use tdvmm_firmware::inspect::{self, InspectError};
use tdvmm_tdx::error::one_line;
use tdvmm_tdx::host::first_failure;

/// Of a file to inspect: firmware has the last 64 MiB below 4 GiB at the most.
const INSPECTED: Limit = Limit {
    bytes: 64 << 20,
    beyond: "is larger than 64 MiB, so it is no firmware image",
};

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
    match &cli.command {
        Some(Command::Inspect { file, json }) => return inspect(file, *json),
        Some(Command::Check { json }) => return check(*json),
        None => {}
    }
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
    let options = match cli.launch_options(&machine) {
        Ok(options) => options,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    let prepared = match Prepared::new(&machine, options) {
        Ok(prepared) => prepared,
        Err(error) => return fail(&error, error.exit_code()),
    };
    if cli.print_plan {
        return print_plan(&prepared);
    }
    let doubt = prepared.plan.secure_boot;
    match doubt {
        Some(doubt @ (Doubt::Unsigned | Doubt::NoSbat)) => {
            ::log::warn!("--kernel: {doubt}; {}", doubt.remedy());
        }
        Some(doubt) => ::log::info!("--kernel: {doubt}; {}", doubt.remedy()),
        None => {}
    }
    match prepared.run() {
        Ok(ending) => {
            // Firmware that has refused the kernel waits for a key, until somebody ends the machine.
            let given_up = matches!(ending, Ending::Signal(_) | Ending::Operator);
            match doubt.filter(|_| given_up) {
                Some(doubt) => say(&format!("{ending}; {}", doubt.in_hindsight())),
                None => say(&ending.to_string()),
            }
            ExitCode::from(ending.exit_code())
        }
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn print_plan(prepared: &Prepared) -> ExitCode {
    print_json(&prepared.plan).unwrap_or_else(|error| unprinted(&error))
}

fn inspect(file: &Path, json: bool) -> ExitCode {
    let bytes = match payload::file::read("inspect", file, INSPECTED) {
        Ok(bytes) => bytes,
        Err(error) => return fail(&error, BAD_CONFIG),
    };
    let image = match Image::parse(&bytes).map_err(InspectError::Refused) {
        Ok(image) => image,
        Err(error) => {
            say(&format!("inspect {}: {error}", file.display()));
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let mut report = inspect::report_of(&image);
    // Another VMM may have a place for it, and its MRTD is the same there.
    if let Some(problem) = unplaceable(&image) {
        let note = format!("tdvmm does not launch it: it {problem}");
        report.notes.push(note);
    }
    let printed = match json {
        true => print_json(&report),
        false => write!(io::stdout(), "{report}").map(|()| ExitCode::SUCCESS),
    };
    printed.unwrap_or_else(|error| unprinted(&error))
}

fn check(json: bool) -> ExitCode {
    let findings = host_check::findings();
    let printed = if json {
        print_json(&findings).map(drop)
    } else {
        host_check::write(&mut io::stdout(), &findings)
    };
    match (printed, first_failure(&findings)) {
        (Err(error), _) => unprinted(&error),
        (Ok(()), None) => ExitCode::SUCCESS,
        (Ok(()), Some(_)) => ExitCode::from(TDX_NOT_READY),
    }
}

fn print_json(value: &impl serde::Serialize) -> io::Result<ExitCode> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn unprinted(error: &io::Error) -> ExitCode {
    say(&format!("cannot print: {error}"));
    ExitCode::from(HOST_ERROR)
}

/// One line: what failed, and its causes after colons.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    say(&one_line(error));
    ExitCode::from(code)
}

/// One line on standard error, written at once. Where nobody reads it, the exit code has to do.
fn say(line: &str) {
    let mut stderr = StreamSink::new(StandardStream::of(io::stderr()));
    stderr.write(format!("tdvmm: {line}\n").as_bytes());
}
