// SPDX-License-Identifier: GPL-2.0
/*
 * TDG.VP.VMCALL, the sub-functions that are TDX's own exits to user space: MapGPA,
 * ReportFatalError, and those of KVM_EXIT_TDX.
 */
#include "tdxe.h"

/* MapGPA reaches user space in pieces, so that it cannot hold up interrupts for long. */
#define MAP_CHUNK	SZ_2M

static int map_gpa_exit(struct kvm_vcpu *vcpu);

static int done_map_gpa(struct kvm_vcpu *vcpu)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);
	u64 status;

	switch (READ_ONCE(vcpu->run->hypercall.ret)) {
	case 0:
		tv->map_next += MAP_CHUNK;
		if (tv->map_next >= tv->map_end)
			return tdxe_vmc_ret(vcpu, VMC_OK);
		if (!kvm_vcpu_has_events(vcpu))
			return map_gpa_exit(vcpu);
		status = VMC_RETRY;
		break;
	case EAGAIN:
		status = VMC_RETRY;
		break;
	case EINVAL:
		status = VMC_INVALID;
		break;
	default:
		return -EINVAL;
	}
	REG(vcpu, R11) = tv->map_next;
	return tdxe_vmc_ret(vcpu, status);
}

static int map_gpa_exit(struct kvm_vcpu *vcpu)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);
	struct kvm_run *run = vcpu->run;

	atomic64_inc(&to_td(vcpu->kvm)->counts.map_gpa);
	run->exit_reason = KVM_EXIT_HYPERCALL;
	run->hypercall.nr = KVM_HC_MAP_GPA_RANGE;
	run->hypercall.ret = 0;
	run->hypercall.args[0] = tv->map_next & ~TDXE_SHARED;
	run->hypercall.args[1] = min_t(u64, tv->map_end - tv->map_next, MAP_CHUNK) / PAGE_SIZE;
	run->hypercall.args[2] = tv->map_next & TDXE_SHARED ? KVM_MAP_GPA_RANGE_DECRYPTED :
							      KVM_MAP_GPA_RANGE_ENCRYPTED;
	run->hypercall.flags = KVM_EXIT_HYPERCALL_LONG_MODE;
	vcpu->arch.complete_userspace_io = done_map_gpa;
	return 0;
}

int tdxe_vmc_map_gpa(struct kvm_vcpu *vcpu)
{
	u64 gpa = REG(vcpu, R12), size = REG(vcpu, R13), status;
	struct tdxe_vcpu *tv = to_tv(vcpu);

	if (!(vcpu->kvm->arch.hypercall_exit_enabled & BIT(KVM_HC_MAP_GPA_RANGE)))
		status = VMC_UNSUPP;
	else if (gpa + size <= gpa || !kvm_vcpu_is_legal_gpa(vcpu, gpa) ||
		 !kvm_vcpu_is_legal_gpa(vcpu, gpa + size - 1) ||
		 ((gpa ^ (gpa + size - 1)) & TDXE_SHARED))
		status = VMC_INVALID;
	else if (!PAGE_ALIGNED(gpa) || !PAGE_ALIGNED(size))
		status = VMC_ALIGN;
	else {
		tv->map_next = gpa;
		tv->map_end = gpa + size;
		return map_gpa_exit(vcpu);
	}
	REG(vcpu, R11) = gpa;
	return tdxe_vmc_ret(vcpu, status);
}

static int done_tdx(struct kvm_vcpu *vcpu)
{
	return tdxe_vmc_ret(vcpu, vcpu->run->tdx.unknown.ret);
}

static int done_get_info(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	REG(vcpu, R11) = run->tdx.get_tdvmcall_info.r11;
	REG(vcpu, R12) = run->tdx.get_tdvmcall_info.r12;
	REG(vcpu, R13) = run->tdx.get_tdvmcall_info.r13;
	REG(vcpu, R14) = run->tdx.get_tdvmcall_info.r14;
	return done_tdx(vcpu);
}

/* KVM_EXIT_TDX; the caller has filled in its part of run->tdx. */
static int tdx_exit(struct kvm_vcpu *vcpu, u64 nr, int (*done)(struct kvm_vcpu *vcpu))
{
	vcpu->run->exit_reason = KVM_EXIT_TDX;
	vcpu->run->tdx.flags = 0;
	vcpu->run->tdx.nr = nr;
	vcpu->arch.complete_userspace_io = done;
	return 0;
}

/* KVM: tdx_get_td_vm_call_info(): leaf 0 is KVM's, leaf 1 user space's. */
int tdxe_vmc_get_info(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 leaf = REG(vcpu, R12);

	if (leaf == 0) {
		REG(vcpu, R11) = REG(vcpu, R12) = REG(vcpu, R13) = REG(vcpu, R14) = 0;
		return tdxe_vmc_ret(vcpu, VMC_OK);
	}
	if (leaf != 1)
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	memset(&run->tdx, 0, sizeof(run->tdx));
	run->tdx.get_tdvmcall_info.ret = VMC_OK;
	run->tdx.get_tdvmcall_info.leaf = leaf;
	return tdx_exit(vcpu, TDVMCALL_GET_TD_VM_CALL_INFO, done_get_info);
}

/* KVM: tdx_get_quote(): refused unless user space says otherwise */
int tdxe_vmc_get_quote(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 gpa = REG(vcpu, R12);

	if (!(gpa & TDXE_SHARED))
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	memset(&run->tdx, 0, sizeof(run->tdx));
	run->tdx.get_quote.ret = VMC_UNSUPP;
	run->tdx.get_quote.gpa = gpa & ~TDXE_SHARED;
	run->tdx.get_quote.size = REG(vcpu, R13);
	return tdx_exit(vcpu, TDVMCALL_GET_QUOTE, done_tdx);
}

/* KVM: tdx_setup_event_notify_interrupt() */
int tdxe_vmc_event_notify(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 vector = REG(vcpu, R12);

	if (vector < 32 || vector > 255)
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	memset(&run->tdx, 0, sizeof(run->tdx));
	run->tdx.setup_event_notify.ret = VMC_UNSUPP;
	run->tdx.setup_event_notify.vector = vector;
	return tdx_exit(vcpu, TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT, done_tdx);
}

/*
 * ReportFatalError (KVM: tdx_report_fatal_error()): all registers that the guest
 * passes on go to user space in x86's order of register numbers.
 */
int tdxe_vmc_fatal(struct kvm_vcpu *vcpu)
{
	/* The text, in the order in which guests put it into registers. */
	u64 text[] = { REG(vcpu, R14), REG(vcpu, R15), REG(vcpu, RBX), REG(vcpu, RDI),
		       REG(vcpu, RSI), REG(vcpu, R8), REG(vcpu, R9), REG(vcpu, RDX) };
	struct kvm_run *run = vcpu->run;
	u64 *d = run->system_event.data, mask = REG(vcpu, RCX);
	int i;

	pr_info("guest fatal error %lx: %*pE\n", REG(vcpu, R12), (int)sizeof(text), (char *)text);
	to_td(vcpu->kvm)->end = "fatal error reported by the guest";
	run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
	run->system_event.type = KVM_SYSTEM_EVENT_TDX_FATAL;
	run->system_event.ndata = 16;
	memset(d, 0, 16 * sizeof(*d));
	d[1] = mask;		/* d[0]: the raw VP.ENTER status, 0 here */
	for (i = 2; i < 16; i++)
		if ((mask & BIT(i)) && i != VCPU_REGS_RSP && i != VCPU_REGS_RBP)
			d[i] = vcpu->arch.regs[i];
	return 0;
}
