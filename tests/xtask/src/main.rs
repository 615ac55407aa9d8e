//! Project chores: test lanes, checks, benches, the testbed's demo and lab.
//!
//! Plain Rust around cargo; what boots machines is in `tdvmm-tests` and is started from here.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod cargo;
mod check;
mod deny;
mod edges;
mod fuzz;
mod lanes;
mod load;
mod names;
mod no_std;
mod output;
mod unsafe_list;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::cargo::{cargo, run, testbed};
use crate::lanes::{Lane, Selection};
use crate::load::Load;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Project chores"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the test lanes and print a summary
    Test {
        /// Only this lane (repeatable)
        #[arg(long, value_enum)]
        lane: Vec<Lane>,
        /// Only tests whose name has this in it; in lanes L3 and L4 those of the tier, or the one whose whole name it is
        #[arg(long)]
        case: Option<String>,
        /// The whole matrix of lanes L3 and L4, not the representative part
        #[arg(long)]
        full: bool,
        /// Keep the logs of cases that pass, too
        #[arg(long)]
        keep_logs: bool,
    },
    /// Run one case of lane L3 again and again and count failures
    Soak {
        /// Name of the case
        case: String,
        /// How often
        #[arg(long, default_value_t = 20)]
        count: u32,
        /// Keep every processor of this machine busy meanwhile
        #[arg(long)]
        load: bool,
        /// Keep the logs of runs that pass, too
        #[arg(long)]
        keep_logs: bool,
    },
    /// Launch a TD with an unmodified Debian kernel under tdvmm and show what it measures
    Demo {
        /// An ordinary VM instead of a TD
        #[arg(long)]
        ordinary: bool,
    },
    /// Formatting, lints, crate graph, dependency reasons, modules with unsafe code, crates without std
    Check {
        /// Only this part
        part: Option<Part>,
    },
    /// Licences, advisories and sources of all dependencies
    Deny,
    /// Measure
    Bench {
        /// Which bench of tdvmm-tests
        name: String,
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Fuzz what parses foreign bytes, from the committed corpus
    Fuzz {
        /// Only these targets
        target: Vec<String>,
        /// How long each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// List the modules with unsafe code
    UnsafeList {
        /// Make this the reviewed list
        #[arg(long)]
        write: bool,
    },
    /// A shell in an L1 with KVM, QEMU, tdvmm, kernels and the shared folder /host
    Lab {
        /// Folder of this machine to share
        #[arg(long, default_value = ".")]
        share: String,
    },
    /// Fetch the testbed's packages into the cache
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Stable rustfmt
    Fmt,
    /// Clippy with warnings as errors
    Clippy,
    /// Crate graph and reasons for dependencies
    Edges,
    /// The list of modules with unsafe code is the reviewed one
    Unsafe,
    /// `firmware`, and so `arch`, for a target without std
    NoStd,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().task {
        Task::Test {
            lane,
            case,
            full,
            keep_logs,
        } => lanes::test(&Selection {
            lanes: lane,
            case,
            full,
            keep_logs,
        }),
        Task::Soak {
            case,
            count,
            load,
            keep_logs,
        } => {
            let load = load.then(Load::on_all_processors);
            let code = lanes::soak(&case, count, keep_logs);
            drop(load);
            code
        }
        Task::Demo { ordinary } => {
            let mut command = testbed("demo");
            command.arg(if ordinary { "ordinary" } else { "td" });
            run(command)
        }
        Task::Check { part } => check::check(part),
        Task::Deny => deny::deny(),
        Task::Bench { name, arguments } => {
            // The bench itself may be slow: it builds what it measures in release form.
            let bench = format!("{name}-bench");
            let mut command = cargo(["run", "--quiet", "--package", "tdvmm-tests"]);
            command.args(["--bin", &bench, "--"]).args(arguments);
            run(command)
        }
        Task::Fuzz { target, seconds } => fuzz::fuzz(&target, seconds),
        Task::UnsafeList { write } => unsafe_list::list(write),
        Task::Lab { share } => {
            let mut command = testbed("lab");
            command.arg(share);
            run(command)
        }
        Task::Fetch => run(testbed("fetch")),
    }
}
