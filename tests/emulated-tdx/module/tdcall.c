// SPDX-License-Identifier: GPL-2.0
/*
 * TDCALL: the leaves of the module that a guest can call.
 */
#include "tdxe.h"

/*
 * TDG.MEM.PAGE.ACCEPT. Returns 1: done, *ret is the status; 0: *ret is what the exit
 * handler shall return; -1: execute the TDCALL again.
 * Departs: an operand in unaccepted memory is OPERAND_INVALID in all leaves here; a
 * real TD gets an EPT violation.
 */
static int page_accept(struct kvm_vcpu *vcpu, u64 *ret)
{
	u64 arg = REG(vcpu, RCX), gpa = arg & GENMASK_ULL(51, 12);
	int level = arg & 7, npages = 1, i, r, tries;
	bool any = false;

	*ret = TDX_E_OPERAND_INVALID | OP_RCX;
	if (level > 1 || (arg & ~(GENMASK_ULL(51, 12) | 7)) || gpa >= TDXE_SHARED ||
	    (level && (gpa & (SZ_2M - 1))))
		return 1;
	if (level && tdxe.accept_2m)
		npages = 512;

	for (i = 0; i < npages; i++) {
		gfn_t gfn = gpa_to_gfn(gpa) + i;

		for (tries = 0; ; tries++) {
			enum tdxe_sept_state s = level && npages == 1 ?
				tdxe_sept_state(vcpu->kvm, gfn) : tdxe_sept_accept(vcpu->kvm, gfn);

			if (s == SEPT_PENDING) {
				any = true;
				break;
			}
			if (s == SEPT_MAPPED)
				break;
			if (s == SEPT_BUSY) {
				atomic64_inc(&to_td(vcpu->kvm)->counts.busy);
				*ret = TDX_E_OPERAND_BUSY | OP_RCX;
				return 1;
			}
			if (tries > 8)
				return -1;	/* re-execute the TDCALL */
			r = tdxe_private_fault(vcpu, gfn_to_gpa(gfn),
					       PFERR_GUEST_FINAL_MASK | PFERR_WRITE_MASK);
			if (r <= 0) {
				*ret = r;
				return 0;
			}
		}
		if ((i & 63) == 63)
			cond_resched();
	}
	/* KVM maps 4 KiB pages only, so a 2 MiB request meets a table. */
	if (level && npages == 1)
		*ret = TDX_E_SIZE_MISMATCH | level;
	else
		*ret = any ? 0 : TDX_E_ALREADY_ACCEPTED | level;
	return 1;
}

static u64 vp_info(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);

	REG(vcpu, RCX) = TDXE_GPAW;
	REG(vcpu, RDX) = td->attributes;
	REG(vcpu, R8) = (u64)atomic_read(&td->nr_vcpus) | (u64)vcpu->kvm->max_vcpus << 32;
	REG(vcpu, R9) = to_tv(vcpu)->index;
	REG(vcpu, R10) = 1;		/* SYS_RD available */
	REG(vcpu, R11) = 0;
	return 0;
}

static u64 cpuidve_set(struct kvm_vcpu *vcpu)
{
	if (REG(vcpu, RCX) & ~3ULL)
		return TDX_E_OPERAND_INVALID | OP_RCX;
	to_tv(vcpu)->cpuidve = REG(vcpu, RCX);
	return 0;
}

/* Leaves that answer with a status alone; VP.VMCALL and MEM.PAGE.ACCEPT see below. */
static const struct {
	u16 leaf;
	u8 versions;		/* highest version */
	u64 (*call)(struct kvm_vcpu *vcpu);
} leaves[] = {
	{ 1, 0, vp_info },			/* TDG.VP.INFO */
	{ 2, 0, tdxe_rtmr_extend },		/* TDG.MR.RTMR.EXTEND */
	{ 3, 0, tdxe_veinfo_get },		/* TDG.VP.VEINFO.GET */
	{ 4, 0, tdxe_mr_report },		/* TDG.MR.REPORT */
	{ 5, 0, cpuidve_set },			/* TDG.VP.CPUIDVE.SET */
	{ 7, 1, tdxe_vm_rd },			/* TDG.VM.RD */
	{ 8, 0, tdxe_vm_wr },			/* TDG.VM.WR */
	{ 11, 0, tdxe_sys_rd },			/* TDG.SYS.RD */
	{ 22, 0, tdxe_mr_verify },		/* TDG.MR.VERIFYREPORT */
};

enum { LEAF_VP_VMCALL = 0, LEAF_MEM_PAGE_ACCEPT = 6 };

static u64 call_leaf(struct kvm_vcpu *vcpu, u64 rax)
{
	int i;

	/* Leaf in bits 15:0, version in 23:16, the rest reserved. */
	for (i = 0; i < ARRAY_SIZE(leaves); i++)
		if ((rax & 0xffff) == leaves[i].leaf && rax >> 16 <= leaves[i].versions)
			return leaves[i].call(vcpu);
	return TDX_E_OPERAND_INVALID | OP_RAX;
}

static void finish(struct kvm_vcpu *vcpu, u64 status)
{
	REG(vcpu, RAX) = status;
	tdxe_advance(vcpu, 4);
}

int tdxe_tdcall(struct kvm_vcpu *vcpu)
{
	u64 rax = REG(vcpu, RAX), status;
	int r;

	switch (rax) {
	case LEAF_VP_VMCALL:
		/* RCX: which registers are passed on; RAX, RCX, RSP and RBP cannot be. */
		if (REG(vcpu, RCX) & (BIT(0) | BIT(1) | BIT(4) | BIT(5) | ~0xffffffffULL)) {
			finish(vcpu, TDX_E_OPERAND_INVALID | OP_RCX);
			return 1;
		}
		finish(vcpu, 0);
		return tdxe_vmcall(vcpu);
	case LEAF_MEM_PAGE_ACCEPT:
		r = page_accept(vcpu, &status);
		if (r == 0)
			return (int)status;	/* user exit; the TDCALL is repeated */
		if (r > 0)
			finish(vcpu, status);
		return 1;
	}
	finish(vcpu, call_leaf(vcpu, rax));
	return 1;
}
