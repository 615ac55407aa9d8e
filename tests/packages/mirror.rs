//! An archive of Debian packages on a loopback address, that drops packages and connections when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

/// Of every file: apt goes on with a half one only if it is of this time still.
const TIME: &str = "Sat, 01 Nov 2025 12:00:00 GMT";

/// What the archive has and what was asked of it.
#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Connections end here in the middle of a package.
    cut: Option<usize>,
    /// Path of each request that began inside a file, and where.
    resumed: Vec<(String, usize)>,
}

/// The archive. Its thread ends with the process.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// For the list of sources.
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Mirror {
    /// Starts an archive with nothing in it.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mirror = Self {
            address: format!("http://{}", listener.local_addr()?),
            state: Arc::default(),
        };
        let served = mirror.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mirror = served.clone();
                // A client that goes away is none of our business.
                thread::spawn(move || mirror.serve(stream).ok());
            }
        });
        Ok(mirror)
    }

    /// Makes these, by name, version and content, all that the suite `test` has.
    pub fn offer(&self, packages: &[(&str, &str, &[u8])]) {
        let mut state = self.state();
        state.files.clear();
        let mut index = String::new();
        for (name, version, content) in packages {
            let path = format!("pool/{name}_{version}_amd64.deb");
            let (size, hash) = (content.len(), sha256(content));
            // Writing to a String cannot fail.
            let _ = write!(
                index,
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\n\
                 Filename: {path}\nSize: {size}\nSHA256: {hash}\nDescription: none\n\n"
            );
            state.files.insert(format!("/{path}"), content.to_vec());
        }
        let release = format!(
            "Suite: test\nCodename: test\nArchitectures: amd64\nComponents: main\nDate: {TIME}\n\
             SHA256:\n {} {} main/binary-amd64/Packages\n",
            sha256(index.as_bytes()),
            index.len()
        );
        let folder = "/dists/test";
        let files = [
            (format!("{folder}/Release"), release),
            (format!("{folder}/main/binary-amd64/Packages"), index),
        ];
        let files = files.map(|(path, text)| (path, text.into_bytes()));
        state.files.extend(files);
    }

    /// Where connections end in the middle of a package, if they do.
    pub fn cut(&self, at: Option<usize>) {
        self.state().cut = at;
    }

    /// Where in a package requests since the last time have begun, other than at its start.
    pub fn resumed(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state().resumed)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers requests until one is cut or the client leaves.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(request) = lines.next().transpose()? {
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut begin = 0;
            while let Some(header) = lines.next().transpose()?.filter(|h| !h.is_empty()) {
                if let Some(range) = header.strip_prefix("Range: bytes=") {
                    begin = range.trim_end_matches('-').parse().unwrap_or(0);
                }
            }
            let (head, body, whole) = self.answer(&path, begin);
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body)?;
            if !whole {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Head and body of an answer, and whether it is a whole one.
    fn answer(&self, path: &str, begin: usize) -> (String, Vec<u8>, bool) {
        let mut state = self.state();
        let Some(content) = state.files.get(path).cloned() else {
            let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            return (head.to_owned(), vec![], true);
        };
        let size = content.len();
        let begin = if begin < size { begin } else { 0 };
        let end = match state.cut {
            Some(cut) if path.starts_with("/pool") => size.min(cut.max(begin)),
            _ => size,
        };
        let status = if begin == 0 {
            "200 OK".to_owned()
        } else {
            state.resumed.push((path.to_owned(), begin));
            let last = size - 1;
            format!("206 Partial Content\r\nContent-Range: bytes {begin}-{last}/{size}")
        };
        let length = size - begin;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nLast-Modified: {TIME}\r\n\
             Accept-Ranges: bytes\r\n\r\n"
        );
        (head, content[begin..end].to_vec(), end == size)
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
