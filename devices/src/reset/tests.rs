use super::*;
use crate::power::recorder::Recorder;

fn recorder() -> (Arc<Recorder>, Arc<dyn PowerSink>) {
    let recorder = Arc::new(Recorder::default());
    let sink: Arc<dyn PowerSink> = Arc::clone(&recorder) as _;
    (recorder, sink)
}

fn read(device: &mut impl BusDevice, offset: u64) -> u8 {
    let mut data = [0x55];
    device.read(offset, &mut data).unwrap();
    data[0]
}

#[test]
fn reset_control_resets_by_bit_2_and_keeps_the_kind_of_reset() {
    let (power, sink) = recorder();
    let mut control = ResetControl::new(sink);
    // What Linux and the FADT write.
    for (written, kept, resets) in [
        (0x02, 0x02, 0),
        (0x06, 0x02, 1),
        (0x0e, 0x0a, 1),
        (0xf1, 0, 0),
    ] {
        control.set(written);
        assert_eq!(control.value(), kept);
        let expected = vec![PowerEvent::Reset("port 0xcf9"); resets];
        assert_eq!(power.take(), expected, "{written:#x}");
    }
}

#[test]
fn i8042_resets_by_command_0xfe_only() {
    let (power, sink) = recorder();
    let mut i8042 = I8042::new(sink);
    for command in 0..=0xff {
        i8042.write(0, &[command]).unwrap();
        assert!(power.take().is_empty(), "data port");
        i8042.write(4, &[command]).unwrap();
        assert_eq!(power.take().len(), usize::from(command == 0xfe));
    }
    assert_eq!(read(&mut i8042, 4), 0xfd, "ready, and nobody there");
    assert_eq!(read(&mut i8042, 0), 0xff);
}

#[test]
fn port_b_has_no_reason_for_an_nmi_and_no_timer_to_wait_for() {
    let (power, sink) = recorder();
    let mut i8042 = I8042::new(sink);
    for value in [0, 0xfe, 0xff] {
        i8042.write(1, &[value]).unwrap();
        assert_eq!(read(&mut i8042, 1), 0x20);
    }
    assert!(power.take().is_empty());
}

#[test]
fn ports_between_those_of_the_i8042_are_not_there() {
    let (_, sink) = recorder();
    let mut i8042 = I8042::new(sink);
    let error = i8042.read(3, &mut [0]).unwrap_err();
    assert_eq!(error, AccessError::NoRegister(3));
    let error = i8042.write(2, &[0xfe]).unwrap_err();
    assert_eq!(error, AccessError::NoRegister(2));
    assert_eq!(i8042.write(4, &[0xfe, 0]), Err(AccessError::Size(2)));
}

#[test]
fn port92_keeps_the_gate_open_and_resets_by_bit_0() {
    let (power, sink) = recorder();
    let mut port = Port92::new(sink);
    assert_eq!(read(&mut port, 0), 0x02);
    port.write(0, &[0x02]).unwrap();
    port.write(0, &[0x00]).unwrap();
    assert_eq!(read(&mut port, 0), 0x02, "the gate cannot be closed");
    assert!(power.take().is_empty());
    port.write(0, &[0x03]).unwrap();
    assert_eq!(power.take(), [PowerEvent::Reset("port 0x92")]);
}
