//! A program to run in L1, with its arguments, variables and streams.

use super::protocol::Streams;

/// A program to run in L1.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) streams: Streams,
}

impl Program {
    /// A program by its path in L1.
    pub fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            args: vec![],
            env: vec![],
            streams: Streams::Pipes,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The program and its arguments, for a shell that runs it.
    pub fn words(&self) -> Vec<String> {
        std::iter::once(&self.path)
            .chain(&self.args)
            .cloned()
            .collect()
    }

    /// Gives it a pseudo terminal instead of pipes.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.streams = Streams::Terminal;
        self
    }

    /// A shell script.
    pub fn script(text: &str) -> Self {
        Self::new("/bin/busybox").args(["sh", "-c", text])
    }
}
