//! A mock quote generation service: speaks Intel's QGS message protocol on a unix socket and answers every request
//! with a quote that anybody can recognise as none.
//!
//! Messages (`qgs_msg_lib.h` of Intel's DCAP): a big-endian length, then a little-endian header of four words (version
//! major and minor as two halves, type, size, error), then the body. GET_QUOTE_REQ (0) carries report size, id list
//! size, report; GET_QUOTE_RESP (1) carries id size, quote size, quote.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const HEADER: usize = 16;
const REPORT: usize = 1024;
/// The mock quote: this text, padding to 76 bytes (the length of a quote's header and then some), the report.
const TEXT: &[u8] = b"MOCK QUOTE: anybody can make one";
const QUOTE: usize = 76 + REPORT;

/// Serves until the process ends.
///
/// # Errors
/// The socket cannot be made.
#[expect(
    clippy::print_stdout,
    reason = "tells the harness that it serves, and what it was asked"
)]
pub fn serve(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    println!("serving");
    for connection in listener.incoming() {
        // A client that breaks off is no reason to stop.
        match answer(connection?) {
            Ok(report_data) => println!("quote for {report_data}"),
            Err(error) => println!("no quote: {error}"),
        }
    }
    Ok(())
}

fn answer(mut client: UnixStream) -> io::Result<String> {
    let mut len = [0; 4];
    client.read_exact(&mut len)?;
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    if !(HEADER + 8 + REPORT..=8192).contains(&len) {
        return Err(io::Error::other(format!("a message of {len} bytes")));
    }
    let mut message = vec![0; len];
    client.read_exact(&mut message)?;
    let report = &message[HEADER + 8..HEADER + 8 + REPORT];
    client.write_all(&response(report))?;
    // REPORTDATA of REPORTMACSTRUCT.
    let data = &report[128..192];
    Ok(String::from_utf8_lossy(data)
        .trim_end_matches('\0')
        .to_owned())
}

fn response(report: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + 8 + QUOTE).unwrap_or(u32::MAX);
    let mut out = size.to_be_bytes().to_vec();
    let quote_size = u32::try_from(QUOTE).unwrap_or(u32::MAX);
    for word in [0x0001_0001, 1, size, 0, 0, quote_size] {
        out.extend(u32::to_le_bytes(word));
    }
    let quote = out.len();
    out.extend(TEXT);
    out.resize(quote + 76, 0);
    out.extend(report);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_tells_its_own_length_twice() {
        let out = response(&[7; REPORT]);
        let len = u32::from_be_bytes(out[..4].try_into().expect("4 bytes"));
        assert_eq!(out.len(), 4 + usize::try_from(len).expect("fits"));
        assert_eq!(out[4 + 8..4 + 12], len.to_le_bytes());
        assert_eq!(out[out.len() - REPORT..], [7; REPORT]);
    }
}
