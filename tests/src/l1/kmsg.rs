//! Which lines of L1's kernel log mean that the kernel is in trouble. Pure.

/// Text that starts or marks a report of the kernel against itself, or of the emulated TDX against the testbed.
const TROUBLES: [&str; 22] = [
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops:",
    "general protection fault",
    "Kernel panic",
    "INFO: task",
    "INFO: possible recursive locking",
    "INFO: rcu",
    "rcu: INFO:",
    "possible circular locking dependency",
    "suspicious RCU usage",
    "unreferenced object",
    "soft lockup",
    "hard LOCKUP",
    "UBSAN:",
    "KASAN:",
    // SLUB names the cache before the colon.
    "BUG kmalloc",
    "BUG kvm_",
    "Objects remaining",
    // Not L1's kernel: its agent, which was too slow to read what there was (agent.rs).
    "kernel log: records lost",
    // A defect of QEMU's TCG that the testbed is to keep out of TDs (emulated-tdx/module/exit.c).
    "host state in the VMCB",
];

/// Records of `/dev/kmsg` that are reports of trouble, as text without their prefix.
pub fn troubles(records: &[String]) -> Vec<String> {
    let texts = records.iter().map(|record| text(record));
    texts
        .filter(|t| TROUBLES.iter().any(|mark| t.contains(mark)))
        .map(str::to_owned)
        .collect()
}

/// The text of a record: `level,sequence,time,flags;text`, then lines of key and value.
pub fn text(record: &str) -> &str {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    text.split('\n').next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_that_names_its_subject_first_is_found() {
        let records = [
            "3,1,100,-;BUG kmalloc-64 (Tainted: G           OE      ): Poison overwritten",
            "3,2,100,-;BUG kvm_vcpu (Not tainted): Objects remaining on __kmem_cache_shutdown()",
            "4,0,0,-;kernel log: records lost",
            "4,4,100,-;tdx_emul: vCPU 1: host state in the VMCB",
        ];
        assert_eq!(troubles(&records.map(str::to_owned)).len(), records.len());
    }

    #[test]
    fn warning_is_found_and_plain_lines_are_not() {
        let records = [
            "6,1,100,-;Linux version 7.2.13".to_owned(),
            "4,2,200,-;WARNING: CPU: 1 PID: 9 at arch/x86/kvm/x86.c:1 x+0x1/0x2\n SUBSYSTEM=x"
                .into(),
            "4,3,300,-;kvm: some feature is disabled".to_owned(),
        ];
        let found = troubles(&records);
        assert_eq!(
            found,
            ["WARNING: CPU: 1 PID: 9 at arch/x86/kvm/x86.c:1 x+0x1/0x2"]
        );
    }
}
