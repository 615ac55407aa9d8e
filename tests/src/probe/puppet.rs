//! A TD that makes the TDVMCALLs it is told, one by one; the code that runs in it is
//! `tests/emulated-tdx/guest/puppet.c`.

use super::Failure;
use super::stress::{self, Orders};
use super::sys::{Errno, Mapping};
use super::td::{Kvm, Vm};

const ORDER: u64 = 0x600;
const ANSWER: u64 = 0x604;
/// What the guest has in XMM0 during a call.
const MARK: u64 = 0x6b72_616d_206d_6d78;
const EXIT_IO: u64 = 2;

/// It, and its only vCPU's `kvm_run`.
#[derive(Debug)]
pub struct Puppet {
    pub vm: Vm,
    run: Mapping,
}

/// What a call left in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u64,
    pub r11: u64,
}

/// How a call went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// KVM_RUN failed.
    Run(Errno),
    /// XMM0 was not what it was before.
    Xmm0(u64),
}

impl Puppet {
    pub fn launch(kvm: &Kvm, image: &str) -> Result<Self, Errno> {
        let orders = Orders {
            image: image.to_owned(),
            vcpus: 1,
            pages: 0,
            touch: false,
            soak: 0,
            puppet: true,
            seconds: 0,
        };
        let vm = stress::build(kvm, kvm.create(5)?, &orders)?;
        let run = Mapping::of_file(vm.vcpu(0)?, kvm.run_size());
        Ok(Self { vm, run })
    }

    /// Lets the guest make a call. Each exit that it causes, by number, is `serve`'s.
    pub fn call(
        &self,
        registers: [u64; 6],
        mut serve: impl FnMut(u64, &Mapping),
    ) -> Result<Answer, Wrong> {
        let halves = |value: u64| {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            [[a, b, c, d], [e, f, g, h]]
        };
        let mut orders = registers.into_iter().flat_map(halves);
        let mut answers = Vec::new();
        while answers.len() < 6 {
            self.vm.run(0).map_err(Wrong::Run)?;
            let exit = self.run.get(8, 4);
            let port = self.run.get(34, 2);
            if exit == EXIT_IO && [ORDER, ANSWER].contains(&port) {
                let at = usize::try_from(self.run.get(40, 8)).expect("inside of the mapping");
                if port == ORDER {
                    let order = orders.next().expect("it asks for 12 halves");
                    self.run.put(at, &order);
                } else {
                    answers.push(self.run.get(at, 4));
                }
            } else {
                serve(exit, &self.run);
            }
        }
        let whole = |i: usize| answers[i] | answers[i + 1] << 32;
        if whole(4) != MARK {
            return Err(Wrong::Xmm0(whole(4)));
        }
        Ok(Answer {
            status: whole(0),
            r11: whole(2),
        })
    }

    /// The same where the guest is answered without user space.
    pub fn quiet_call(&self, registers: [u64; 6]) -> Result<Answer, Failure> {
        let mut exits = Vec::new();
        let answer = self.call(registers, |exit, _| exits.push(exit));
        if exits.is_empty() {
            return answer.map_err(Failure::from);
        }
        Err(format!("{registers:x?} gave exits {exits:?}").into())
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Run(errno) => format!("KVM_RUN ended with {}", errno.name()).into(),
            Wrong::Xmm0(value) => format!("XMM0 of the guest became {value:#x}").into(),
        }
    }
}
