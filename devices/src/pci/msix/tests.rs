use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Route(u16, Msi),
    Fire(u16),
}

/// Remembers what it was told; refuses to route to address 0xbad.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Told>>);

impl MsixVectors for Recorder {
    fn route(&self, vector: u16, to: Msi) -> io::Result<()> {
        if to.address == 0xbad {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.lock().unwrap().push(Told::Route(vector, to));
        Ok(())
    }
    fn fire(&self, vector: u16) -> io::Result<()> {
        self.0.lock().unwrap().push(Told::Fire(vector));
        Ok(())
    }
}

impl Recorder {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn msix(count: u16) -> (Msix, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let vectors: Arc<dyn MsixVectors> = Arc::clone(&recorder) as _;
    (Msix::new(vectors, count), recorder)
}

const TO: Msi = Msi {
    address: 0xfee0_1000,
    data: 0x41,
};

fn write(msix: &mut Msix, vector: u64, word: u64, value: u32) {
    msix.table_write(vector * 16 + word * 4, &value.to_le_bytes());
}

fn set(msix: &mut Msix, vector: u64, to: Msi) {
    msix.table_write(vector * 16, &to.address.to_le_bytes());
    write(msix, vector, 2, to.data);
}

fn pending(msix: &Msix) -> u64 {
    let mut data = [0xff; 8];
    msix.pending_read(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn capability_tells_size_and_places() {
    let (msix, _) = msix(3);
    let place = |bar, offset| MsixPlace { bar, offset };
    let body = msix.capability(place(1, 0x2000), place(1, 0x3000));
    assert_eq!(body, [2, 0, 1, 0x20, 0, 0, 1, 0x30, 0, 0]);
    assert_eq!((msix.count(), msix.pending_len()), (3, 8));
    assert_eq!(Msix::new(Arc::new(Recorder::default()), 0).count(), 1);
    let most = Msix::new(Arc::new(Recorder::default()), u16::MAX);
    assert_eq!((most.count(), most.pending_len()), (2048, 256));
}

#[test]
fn vector_set_as_linux_does_is_routed_once_and_fires() {
    let (mut msix, recorder) = msix(2);
    let trigger = msix.trigger();
    msix.set_control(0xc000);
    set(&mut msix, 1, TO);
    write(&mut msix, 1, 3, 0);
    assert!(recorder.take().is_empty(), "all are still masked");
    msix.set_control(0x8000);
    assert_eq!(recorder.take(), [Told::Route(1, TO)]);
    trigger.trigger(1).unwrap();
    trigger.trigger(1).unwrap();
    assert_eq!(recorder.take(), [Told::Fire(1), Told::Fire(1)]);
    write(&mut msix, 1, 3, 1);
    write(&mut msix, 1, 3, 0);
    assert!(recorder.take().is_empty(), "the route is as it was");
}

#[test]
fn interrupt_of_a_masked_vector_is_pending_and_comes_once_when_unmasked() {
    let (mut msix, recorder) = msix(2);
    let trigger = msix.trigger();
    msix.set_control(0x8000);
    set(&mut msix, 1, TO);
    trigger.trigger(1).unwrap();
    trigger.trigger(1).unwrap();
    assert_eq!(pending(&msix), 0b10);
    assert!(recorder.take().is_empty());
    write(&mut msix, 1, 3, 0);
    assert_eq!(recorder.take(), [Told::Route(1, TO), Told::Fire(1)]);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn function_mask_and_disabling_hold_interrupts_back() {
    let (mut msix, recorder) = msix(1);
    let trigger = msix.trigger();
    set(&mut msix, 0, TO);
    write(&mut msix, 0, 3, 0);
    for held in [0x0000, 0xc000, 0x4000] {
        msix.set_control(held);
        recorder.take();
        trigger.trigger(0).unwrap();
        assert!(recorder.take().is_empty(), "{held:#x}");
        assert_eq!(pending(&msix), 1);
        msix.set_control(0x8000);
        assert_eq!(recorder.take().pop(), Some(Told::Fire(0)));
    }
}

#[test]
fn message_changed_while_masked_is_routed_when_unmasked() {
    let (mut msix, recorder) = msix(1);
    msix.set_control(0x8000);
    set(&mut msix, 0, TO);
    write(&mut msix, 0, 3, 0);
    recorder.take();
    write(&mut msix, 0, 3, 1);
    let other = Msi { data: 0x42, ..TO };
    set(&mut msix, 0, other);
    assert!(recorder.take().is_empty());
    write(&mut msix, 0, 3, 0);
    assert_eq!(recorder.take(), [Told::Route(0, other)]);
}

#[test]
fn vector_that_cannot_be_routed_stays_masked_and_pending() {
    let (mut msix, recorder) = msix(1);
    let bad = Msi {
        address: 0xbad,
        data: 0,
    };
    msix.set_control(0x8000);
    set(&mut msix, 0, bad);
    write(&mut msix, 0, 3, 0);
    msix.trigger().trigger(0).unwrap();
    assert_eq!(pending(&msix), 1);
    assert!(recorder.take().is_empty());
    write(&mut msix, 0, 0, 0xfee0_1000);
    let good = Msi {
        address: 0xfee0_1000,
        data: 0,
    };
    assert_eq!(recorder.take(), [Told::Route(0, good), Told::Fire(0)]);
}

#[test]
fn vector_that_does_not_exist_sends_nothing() {
    let (msix, recorder) = msix(2);
    for vector in [2, 0xffff] {
        msix.trigger().trigger(vector).unwrap();
    }
    assert!(recorder.take().is_empty());
}

#[test]
fn table_reads_back_and_reserved_control_bits_are_0() {
    let (mut msix, _) = msix(2);
    let mut data = [0; 8];
    msix.table_read(0x18, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0], "masked after reset");
    set(&mut msix, 1, TO);
    write(&mut msix, 1, 3, 0xffff_fffe);
    msix.table_read(0x10, &mut data);
    assert_eq!(data, TO.address.to_le_bytes());
    msix.table_read(0x18, &mut data);
    assert_eq!(data, [0x41, 0, 0, 0, 0, 0, 0, 0]);
    // Behind the table, unaligned, too small.
    for (offset, len) in [(0x20, 8), (0x11, 4), (u64::MAX - 3, 4), (0x10, 2)] {
        data = [0xee; 8];
        msix.table_write(offset, &data[..len]);
        msix.table_read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 8][..len], "{offset:#x}");
    }
}

#[test]
fn pending_interrupt_that_was_forgotten_does_not_come_and_the_next_one_does() {
    let (mut msix, recorder) = msix(2);
    let trigger = msix.trigger();
    msix.set_control(0x8000);
    set(&mut msix, 1, TO);
    trigger.trigger(1).unwrap();
    msix.forget_pending();
    assert_eq!(pending(&msix), 0);
    write(&mut msix, 1, 3, 0);
    assert_eq!(recorder.take(), [Told::Route(1, TO)]);
    trigger.trigger(1).unwrap();
    assert_eq!(recorder.take(), [Told::Fire(1)]);
}

#[test]
fn trigger_beside_masking_loses_no_interrupt() {
    // The device triggers and waits until that has been delivered; the guest masks and unmasks.
    const ROUNDS: usize = 2000;
    let (mut msix, recorder) = msix(1);
    let trigger = msix.trigger();
    msix.set_control(0x8000);
    set(&mut msix, 0, TO);
    let fired = |recorder: &Recorder| {
        let told = recorder.0.lock().unwrap();
        told.iter().filter(|told| **told == Told::Fire(0)).count()
    };
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            for round in 1..=ROUNDS {
                trigger.trigger(0).unwrap();
                let start = Instant::now();
                while fired(&recorder) < round {
                    let waited = start.elapsed();
                    assert!(waited < Duration::from_secs(10), "interrupt {round} lost");
                    thread::yield_now();
                }
            }
        });
        while !device.is_finished() {
            write(&mut msix, 0, 3, 1);
            write(&mut msix, 0, 3, 0);
        }
    });
    assert_eq!(fired(&recorder), ROUNDS);
}

proptest! {
    #[test]
    fn anything_written_keeps_the_table_in_bounds(
        writes in proptest::collection::vec(
            (0_u64..0x60, proptest::collection::vec(any::<u8>(), 1..9), any::<u16>()), 0..50),
    ) {
        let (mut msix, _) = msix(4);
        for (offset, data, control) in writes {
            msix.table_write(offset, &data);
            msix.set_control(control);
            let _ = msix.trigger().trigger(control % 6);
            let mut back = [0; 8];
            msix.table_read(offset, &mut back[..data.len()]);
            msix.pending_read(offset, &mut back);
        }
        prop_assert_eq!(msix.count(), 4);
    }
}
