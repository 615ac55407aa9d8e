// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters (of kvm_amd, all named tdx...) and the key ids that they count.
 *
 * A real host has a fixed number of private key ids (HKIDs), shared by all TDs:
 * tdx_guest_keyid_alloc() says ENOSPC when none is left. It can also limit TDs
 * through the misc cgroup, which says EBUSY.
 */
#include <linux/idr.h>
#include <linux/moduleparam.h>
#include "tdxe.h"

struct tdxe_params tdxe = {
	.enabled = true,
	.strict_ve = true,
	.tcg_irq_exit = true,
	.fms = 0x000806f8,		/* a 4th generation Xeon */
	.key_ids = 31,
	.fail_errno = EAGAIN,
};

#define PARAM(name, field, type, mode, text)			\
	module_param_named(name, tdxe.field, type, mode);	\
	MODULE_PARM_DESC(name, text)

PARAM(tdx, enabled, bool, 0444, "offer emulated TDX VMs (no security)");
PARAM(tdx_fms, fms, uint, 0444, "CPUID(1).EAX of a TD");

/* What there is to run out of. */
PARAM(tdx_key_ids, key_ids, uint, 0644, "private key ids of the host; INIT_VM says ENOSPC beyond");
PARAM(tdx_max_tds, max_tds, uint, 0644, "TDs that may be alive (0: no limit); INIT_VM says EBUSY beyond");
PARAM(tdx_max_vcpus, max_vcpus, uint, 0644, "vCPU limit of a TD (0: number of present CPUs)");

/* How strict the emulation is; the defaults are those of a real host. */
PARAM(tdx_strict_ve, strict_ve, bool, 0644, "#VE for non-native MSRs (else KVM handles them)");
PARAM(tdx_accept_2m, accept_2m, bool, 0644,
      "let a 2M PAGE.ACCEPT succeed (KVM maps 4K pages, so real hosts return size mismatch)");
PARAM(tdx_eoi_exits, eoi_exits, bool, 0644, "deliver KVM_EXIT_IOAPIC_EOI (a real TD never does)");

/* Fault injection. */
PARAM(tdx_fail_every, fail_every, uint, 0644,
      "INIT_MEM_REGION: fail before every N-th page of a TD (0: never)");
PARAM(tdx_fail_errno, fail_errno, uint, 0644, "errno of those failures (11 EAGAIN, 4 EINTR)");
PARAM(tdx_init_vm_eagain, init_vm_eagain, uint, 0644, "next N INIT_VM calls return EAGAIN");
PARAM(tdx_finalize_busy, finalize_busy, uint, 0644, "next N FINALIZE_VM calls return EBUSY");

/* Debugging, and the way round a defect of QEMU's TCG (see ops.c). */
PARAM(tdx_trace, trace, uint, 0644, "log the next N exits of TDs");
PARAM(tdx_tcg_irq_exit, tcg_irq_exit, bool, 0644,
      "exit right after each injected interrupt, in all VMs (works round a defect of QEMU's TCG)");

static DEFINE_IDA(key_ids);
static DEFINE_MUTEX(key_ids_lock);	/* key_ids_used, and what is decided by it */
static int key_ids_used;

/* Key id for a TD that comes alive; KVM keeps it until the VM is destroyed. */
int tdxe_key_alloc(struct tdxe_vm *td)
{
	int id;

	guard(mutex)(&key_ids_lock);
	if (!tdxe.key_ids)
		return -ENOSPC;
	id = ida_alloc_range(&key_ids, 1, tdxe.key_ids, GFP_KERNEL);
	if (id < 0)
		return id;
	/* KVM charges the cgroup once it has the key id (__tdx_td_init()). */
	if (tdxe.max_tds && key_ids_used >= tdxe.max_tds) {
		ida_free(&key_ids, id);
		return -EBUSY;
	}
	key_ids_used++;
	td->key_id = id;
	return 0;
}

void tdxe_key_free(struct tdxe_vm *td)
{
	guard(mutex)(&key_ids_lock);
	if (!td->key_id)
		return;
	ida_free(&key_ids, td->key_id);
	key_ids_used--;
	td->key_id = 0;
}

int tdxe_key_ids_used(void)
{
	guard(mutex)(&key_ids_lock);
	return key_ids_used;
}

/* Takes one from a parameter that counts down; false if there is none left. */
bool tdxe_take_one(uint *count)
{
	uint left = READ_ONCE(*count);

	while (left)
		if (try_cmpxchg(count, &left, left - 1))
			return true;
	return false;
}
