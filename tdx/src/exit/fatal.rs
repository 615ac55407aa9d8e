//! The last words of a TD: TDVMCALL ReportFatalError.
//!
//! GHCI, ReportFatalError: R12 holds a code, R13 an address if bit 63 of the code is set, and up to
//! 64 characters of text lie in registers. KVM hands over 16 words in the order of the processor's
//! register numbers; RCX says which registers the guest exposed, the others are not to be read. The
//! text is the guest's: only printable ASCII gets through, and never more than a page of it.

use std::fmt;

use tdvmm_arch::addr::{Gpa, PAGE_SIZE};

/// Number of words in the report.
pub(super) const REGISTERS: usize = 16;

const RCX: usize = 1;
const R12: usize = 12;
const R13: usize = 13;
/// R14, R15, RBX, RDI, RSI, R8, R9, RDX: where the text is, in this order.
const TEXT: [usize; 8] = [14, 15, 3, 7, 6, 8, 9, 2];
const ADDRESS_VALID: u64 = 1 << 63;
/// What marks an address as shared, for either width of addresses. The wider one comes first, as RAM may reach
/// beyond bit 47 with it. KVM hands the register over as it is.
const SHARED: [u64; 2] = [1 << 51, 1 << 47];

/// A fatal error as the guest reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalReport {
    /// The guest's code, without the bit that says that there is an address.
    pub code: u64,
    /// A shared page with more text, if the guest names one.
    pub page: Option<Gpa>,
    /// The text in registers, at most 64 characters.
    pub text: String,
    /// The text in the page, once [`FatalReport::with_page`] was given it.
    pub more: Option<String>,
}

impl FatalReport {
    pub(super) fn decode(registers: &[u64; REGISTERS]) -> Self {
        let register = |number: usize| registers.get(number).copied().unwrap_or(0);
        let exposed = |number: &usize| register(RCX) >> number & 1 != 0;
        let bytes: Vec<u8> = TEXT
            .iter()
            .filter(|number| exposed(number))
            .flat_map(|number| register(*number).to_le_bytes())
            .collect();
        let code = register(R12);
        let address = register(R13);
        let mark = SHARED.into_iter().find(|bit| address & bit != 0);
        let page = (code & ADDRESS_VALID != 0)
            .then_some(Gpa(address & !mark.unwrap_or(0)))
            .filter(|page| page.is_aligned(PAGE_SIZE));
        Self {
            code: code & !ADDRESS_VALID,
            page,
            text: printable(&bytes),
            more: None,
        }
    }

    /// The report with the text of its page, of which 4 KiB are read at most.
    #[must_use]
    pub fn with_page(self, content: &[u8]) -> Self {
        let page = usize::try_from(PAGE_SIZE).unwrap_or(4096);
        let more = printable(content.get(..page).unwrap_or(content));
        Self {
            more: (!more.is_empty()).then_some(more),
            ..self
        }
    }
}

/// Up to the first NUL; what is not printable ASCII becomes a dot.
fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| {
            if matches!(byte, b' '..=b'~') {
                char::from(*byte)
            } else {
                '.'
            }
        })
        .collect()
}

impl fmt::Display for FatalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest reports a fatal error, code {:#x}", self.code)?;
        if !self.text.is_empty() {
            write!(f, ": \"{}\"", self.text)?;
        }
        match (&self.more, self.page) {
            (Some(more), _) => write!(f, "; page text: \"{more}\""),
            (None, Some(page)) => write!(f, "; more at {page}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the registers that hold text, and R12 and R13.
    const ALL: u64 = 0xffcc;

    fn report(text: &[u8; 64], code: u64, address: u64) -> [u64; REGISTERS] {
        let mut registers = [0; REGISTERS];
        registers[RCX] = ALL;
        for (word, number) in text.as_chunks::<8>().0.iter().zip(TEXT) {
            registers[number] = u64::from_le_bytes(*word);
        }
        registers[R12] = code;
        registers[R13] = address;
        registers
    }

    #[test]
    fn text_is_read_in_the_order_of_the_registers() {
        let text = b"TD misconfiguration: SEPT_VE_DISABLE attribute must be set......";
        let got = FatalReport::decode(&report(text, 0, 0));
        assert_eq!(got.text.as_bytes(), text);
        assert_eq!(
            got.to_string(),
            "the guest reports a fatal error, code 0x0: \"TD misconfiguration: SEPT_VE_DISABLE \
             attribute must be set......\""
        );
    }

    #[test]
    fn registers_that_are_not_exposed_are_not_read() {
        let mut registers = report(&[b'a'; 64], 5, 0);
        registers[RCX] = 1 << 14;
        assert_eq!(FatalReport::decode(&registers).text, "aaaaaaaa");
    }

    #[test]
    fn control_characters_do_not_get_through() {
        let mut text = [0; 64];
        text[..6].copy_from_slice(b"a\x1b[2J\n");
        assert_eq!(FatalReport::decode(&report(&text, 0, 0)).text, "a.[2J.");
    }

    #[test]
    fn page_is_named_only_with_its_bit_and_aligned() {
        let page = |code, address| FatalReport::decode(&report(&[0; 64], code, address)).page;
        assert_eq!(page(ADDRESS_VALID | 3, 0x8000), Some(Gpa(0x8000)));
        assert_eq!(page(3, 0x8000), None);
        assert_eq!(page(ADDRESS_VALID, 0x8001), None);
    }

    #[test]
    fn page_is_named_without_the_mark_of_shared_memory() {
        let page = |address| FatalReport::decode(&report(&[0; 64], ADDRESS_VALID, address)).page;
        assert_eq!(page(1 << 47 | 0x8000), Some(Gpa(0x8000)));
        assert_eq!(
            page(1 << 51 | 1 << 47 | 0x8000),
            Some(Gpa(1 << 47 | 0x8000))
        );
    }

    #[test]
    fn page_text_ends_at_nul_and_at_the_page() {
        let report = FatalReport::decode(&report(&[0; 64], ADDRESS_VALID, 0x8000));
        let with = report.clone().with_page(b"panic: no init\0secret");
        assert_eq!(with.more.as_deref(), Some("panic: no init"));
        assert!(with.to_string().ends_with("page text: \"panic: no init\""));
        assert_eq!(report.with_page(&[b'x'; 9000]).more.unwrap().len(), 4096);
    }
}
