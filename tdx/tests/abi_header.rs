//! `abi` against the header of a kernel: every size, offset and number, as a C compiler sees them.
//!
//! Needs the user space headers of Linux 6.16 or later: `TDVMM_KERNEL_HEADERS` names a folder with
//! `linux/kvm.h` in it; `cargo xtask test` takes the testbed's. Ignored without them.

mod needs;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use tdvmm_tdx::abi::{
    self, kvm_cpuid_entry2, kvm_cpuid2, kvm_pre_fault_memory, kvm_tdx_capabilities, kvm_tdx_cmd,
    kvm_tdx_init_mem_region, kvm_tdx_init_vm,
};

/// An expression of C, and its value here.
type Item = (String, u64);
/// Items by the name of their test.
type Group = (&'static str, fn() -> Vec<Item>);

macro_rules! layout {
    ($items:ident, $name:ident { $($field:ident),* $(,)? }) => {
        $items.push((format!("sizeof(struct {})", stringify!($name)), size_of::<$name>() as u64));
        $($items.push((
            format!("offsetof(struct {}, {})", stringify!($name), stringify!($field)),
            offset_of!($name, $field) as u64,
        ));)*
    };
}

macro_rules! numbers {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), u64::from(abi::$name))),*]
    };
}

fn structures() -> Vec<Item> {
    let mut items = Vec::new();
    layout!(
        items,
        kvm_tdx_cmd {
            id,
            flags,
            data,
            hw_error
        }
    );
    layout!(
        items,
        kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            padding
        }
    );
    layout!(items, kvm_cpuid2 { nent, padding });
    layout!(
        items,
        kvm_tdx_capabilities {
            supported_attrs,
            supported_xfam,
            kernel_tdvmcallinfo_1_r11,
            user_tdvmcallinfo_1_r11,
            kernel_tdvmcallinfo_1_r12,
            user_tdvmcallinfo_1_r12,
            reserved,
            cpuid,
        }
    );
    layout!(
        items,
        kvm_tdx_init_vm {
            attributes,
            xfam,
            mrconfigid,
            mrowner,
            mrownerconfig,
            reserved,
            cpuid,
        }
    );
    layout!(
        items,
        kvm_tdx_init_mem_region {
            source_addr,
            gpa,
            nr_pages
        }
    );
    layout!(
        items,
        kvm_pre_fault_memory {
            gpa,
            size,
            flags,
            padding
        }
    );
    items
}

/// Structures of `kvm-bindings` that a launch passes to the kernel.
fn borrowed_structures() -> Vec<Item> {
    use kvm_bindings::{
        kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_userspace_memory_region2,
    };
    let mut items = Vec::new();
    layout!(
        items,
        kvm_create_guest_memfd {
            size,
            flags,
            reserved
        }
    );
    layout!(items, kvm_enable_cap { cap, flags, args });
    layout!(
        items,
        kvm_memory_attributes {
            address,
            size,
            attributes,
            flags
        }
    );
    layout!(
        items,
        kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd_offset,
            guest_memfd,
        }
    );
    items
}

fn numbers() -> Vec<Item> {
    numbers![
        KVM_X86_TDX_VM,
        KVM_TDX_CAPABILITIES,
        KVM_TDX_INIT_VM,
        KVM_TDX_INIT_VCPU,
        KVM_TDX_INIT_MEM_REGION,
        KVM_TDX_FINALIZE_VM,
        KVM_TDX_GET_CPUID,
        KVM_TDX_CMD_NR_MAX,
        KVM_TDX_MEASURE_MEMORY_REGION,
        KVM_MEMORY_ATTRIBUTE_PRIVATE,
        KVM_MEM_GUEST_MEMFD,
        KVM_MEMORY_EXIT_FLAG_PRIVATE,
        KVM_EXIT_HYPERCALL,
        KVM_EXIT_SYSTEM_EVENT,
        KVM_EXIT_MEMORY_FAULT,
        KVM_EXIT_TDX,
        KVM_SYSTEM_EVENT_TDX_FATAL,
        KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        KVM_CAP_MAX_VCPUS,
        KVM_CAP_SPLIT_IRQCHIP,
        KVM_CAP_X2APIC_API,
        KVM_CAP_EXIT_HYPERCALL,
        KVM_CAP_VM_TSC_CONTROL,
        KVM_CAP_USER_MEMORY2,
        KVM_CAP_MEMORY_FAULT_INFO,
        KVM_CAP_MEMORY_ATTRIBUTES,
        KVM_CAP_GUEST_MEMFD,
        KVM_CAP_VM_TYPES,
        KVM_CAP_PRE_FAULT_MEMORY,
        KVM_CAP_X86_APIC_BUS_CYCLES_NS,
        KVM_MEMORY_ENCRYPT_OP,
        KVM_SET_CPUID2,
        KVM_SET_TSC_KHZ,
        KVM_PRE_FAULT_MEMORY,
        KVM_HC_MAP_GPA_RANGE,
        KVM_MAP_GPA_RANGE_ENCRYPTED,
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Where the answers of `exit` are read and written in `struct kvm_run`.
fn run_offsets() -> Vec<Item> {
    [
        ("offsetof(struct kvm_run, exit_reason)", 8),
        ("offsetof(struct kvm_run, hypercall.nr)", 32),
        ("offsetof(struct kvm_run, hypercall.args)", 40),
        ("offsetof(struct kvm_run, hypercall.ret)", 88),
        ("offsetof(struct kvm_run, memory_fault.flags)", 32),
        ("offsetof(struct kvm_run, memory_fault.gpa)", 40),
        ("offsetof(struct kvm_run, memory_fault.size)", 48),
        ("offsetof(struct kvm_run, system_event.type)", 32),
        ("offsetof(struct kvm_run, system_event.data)", 40),
        ("offsetof(struct kvm_run, tdx.flags)", 32),
        ("offsetof(struct kvm_run, tdx.nr)", 40),
        ("offsetof(struct kvm_run, tdx.unknown.ret)", 48),
        ("offsetof(struct kvm_run, tdx.get_quote.ret)", 48),
        ("offsetof(struct kvm_run, tdx.get_quote.gpa)", 56),
        ("offsetof(struct kvm_run, tdx.get_quote.size)", 64),
        ("offsetof(struct kvm_run, tdx.get_tdvmcall_info.ret)", 48),
        ("offsetof(struct kvm_run, tdx.get_tdvmcall_info.leaf)", 56),
        ("offsetof(struct kvm_run, tdx.get_tdvmcall_info.r11)", 64),
        ("offsetof(struct kvm_run, tdx.get_tdvmcall_info.r12)", 72),
        ("offsetof(struct kvm_run, tdx.setup_event_notify.ret)", 48),
        (
            "offsetof(struct kvm_run, tdx.setup_event_notify.vector)",
            56,
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn main() {
    let arguments = Arguments::from_args();
    let groups: [Group; 4] = [
        ("structures_of_tdx_equal_the_kernel_header", structures),
        (
            "structures_of_kvm_bindings_equal_the_kernel_header",
            borrowed_structures,
        ),
        ("numbers_equal_the_kernel_header", numbers),
        ("offsets_in_kvm_run_equal_the_kernel_header", run_offsets),
    ];
    let headers = headers();
    let trials = groups.into_iter().map(|(name, items)| match &headers {
        Ok(folder) => {
            let folder = folder.clone();
            Trial::test(name, move || compare(&folder, name, &items()))
        }
        Err(why) => needs::unmet(name, "headers", why),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// The folder with the headers, or why there is none.
fn headers() -> Result<PathBuf, String> {
    let folder = env::var_os("TDVMM_KERNEL_HEADERS").ok_or(
        "set TDVMM_KERNEL_HEADERS to the headers of Linux 6.16 or later; cargo xtask test does",
    )?;
    let folder = PathBuf::from(folder);
    let header = ["asm/kvm.h", "x86_64-linux-gnu/asm/kvm.h"]
        .iter()
        .find_map(|name| fs::read_to_string(folder.join(name)).ok());
    match header {
        Some(text) if text.contains("KVM_TDX_GET_CPUID") => Ok(folder),
        Some(_) => Err("the kernel headers are older than Linux 6.16".to_owned()),
        None => Err(format!(
            "TDVMM_KERNEL_HEADERS: no asm/kvm.h in {}",
            folder.display()
        )),
    }
}

fn compare(headers: &Path, name: &str, items: &[Item]) -> Result<(), Failed> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join(format!("{name}.c")), folder.join(name));
    let prints: String = items
        .iter()
        .map(|(c, _)| format!("P(\"{c}\", {c});\n"))
        .collect();
    fs::write(
        &source,
        format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n\
             #include <linux/kvm_para.h>\n\
             #define P(n, v) printf(\"%s=%llu\\n\", n, (unsigned long long)(v))\n\
             int main(void) {{\n{prints}return 0;\n}}\n"
        ),
    )?;
    let compiled = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .arg("-I")
        .arg(headers)
        .arg("-I")
        .arg(headers.join("x86_64-linux-gnu"))
        .arg("-o")
        .args([&program, &source])
        .output()?;
    if !compiled.status.success() {
        return Err(String::from_utf8_lossy(&compiled.stderr)
            .into_owned()
            .into());
    }
    let output = String::from_utf8(Command::new(&program).output()?.stdout)?;
    let told: HashMap<_, _> = output
        .lines()
        .filter_map(|line| line.rsplit_once('='))
        .collect();
    let differ: Vec<_> = items
        .iter()
        .filter(|(c, ours)| told.get(c.as_str()) != Some(&ours.to_string().as_str()))
        .map(|(c, ours)| format!("{c}: {ours} here, {:?} in the header", told.get(c.as_str())))
        .collect();
    if differ.is_empty() {
        Ok(())
    } else {
        Err(differ.join("\n").into())
    }
}
