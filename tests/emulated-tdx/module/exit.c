// SPDX-License-Identifier: GPL-2.0
/*
 * SVM exits of a TD. What a module would handle or turn into #VE goes to the other
 * files here; what is left goes to kvm-amd's usual handlers.
 */
#include "tdxe.h"

static int handle_cpuid(struct kvm_vcpu *vcpu)
{
	u8 ve = to_tv(vcpu)->cpuidve & (tdxe_svm.get_cpl(vcpu) ? 2 : 1);
	u32 r[4];

	if (ve || !tdxe_cpuid_lookup(vcpu, REG(vcpu, RAX), REG(vcpu, RCX), r))
		return tdxe_ve_insn(vcpu, R_CPUID);
	REG(vcpu, RAX) = r[0];
	REG(vcpu, RBX) = r[1];
	REG(vcpu, RCX) = r[2];
	REG(vcpu, RDX) = r[3];
	return tdxe_skip_insn(vcpu);
}

/* The TD cannot go on: every later call on the VM is EIO. */
void tdxe_td_dies(struct kvm_vcpu *vcpu, const char *why)
{
	to_td(vcpu->kvm)->end = why;
	tdxe_dump(vcpu);
	kvm_vm_dead(vcpu->kvm);
}

/*
 * Nested page fault. Shared half: memory by KVM's usual way, everything else is MMIO
 * and #VE. Private half: by the page's state in the secure EPT.
 */
static int handle_npf(struct kvm_vcpu *vcpu)
{
	u64 ec = to_svm(vcpu)->vmcb->control.exit_info_1 & ~PFERR_SYNTHETIC_MASK;
	gpa_t gpa = to_svm(vcpu)->vmcb->control.exit_info_2;
	gfn_t gfn = gpa_to_gfn(gpa & ~TDXE_SHARED);
	struct kvm *kvm = vcpu->kvm;
	enum tdxe_sept_state state;

	++vcpu->stat.pf_taken;
	if (gpa & TDXE_SHARED) {
		if (!kvm_vcpu_is_visible_gfn(vcpu, gfn) && !kvm_mem_is_private(kvm, gfn)) {
			tdxe_ve_ept(vcpu, ec, gpa);
			return 1;
		}
		return kvm_mmu_page_fault(vcpu, gpa, ec, NULL, 0);
	}

	state = tdxe_sept_state(kvm, gfn);
	if (state == SEPT_BUSY)		/* another vCPU is accepting it: try again */
		return 1;
	if (state == SEPT_PENDING) {
		if (!(to_td(kvm)->attributes & TDXE_ATTR_SEPT_VE_DIS)) {
			tdxe_ve_ept(vcpu, ec, gpa);
			return 1;
		}
		pr_warn("Guest access before accepting 0x%llx on vCPU %d rip %lx\n", gpa,
			vcpu->vcpu_id, kvm_rip_read(vcpu));
		tdxe_td_dies(vcpu, "access to a page that was not accepted");
		return -EIO;
	}
	if (!kvm_vcpu_is_visible_gfn(vcpu, gfn))
		pr_info_ratelimited("vCPU %d: private access to %llx outside of all slots, error %llx rip %lx cr3 %llx\n",
			vcpu->vcpu_id, gpa, to_svm(vcpu)->vmcb->control.exit_info_1,
			kvm_rip_read(vcpu), to_svm(vcpu)->vmcb->save.cr3);
	return tdxe_private_fault(vcpu, gpa, ec);
}

/* #UD: TDCALL and VMCALL, which SVM does not know; else the guest's own. */
static int handle_ud_of_td(struct kvm_vcpu *vcpu)
{
	static const u8 tdcall[] = { 0x66, 0x0f, 0x01, 0xcc };
	u8 b[4];
	int n = tdxe_fetch(vcpu, b, 4);

	if (n == 4 && !memcmp(b, tdcall, 4)) {
		if (tdxe_svm.get_cpl(vcpu) || !is_64_bit_mode(vcpu)) {
			kvm_inject_gp(vcpu, 0);
			return 1;
		}
		return tdxe_tdcall(vcpu);
	}
	if (n >= 3 && b[0] == 0x0f && b[1] == 0x01 && b[2] == 0xc1) {
		tdxe_inject_ve(vcpu, R_VMCALL, 0, 3);
		return 1;
	}
	kvm_queue_exception(vcpu, UD_VECTOR);
	return 1;
}

static int handle_shutdown(struct kvm_vcpu *vcpu)
{
	pr_warn("vCPU %d triple fault\n", vcpu->vcpu_id);
	to_td(vcpu->kvm)->end = "triple fault";
	tdxe_dump(vcpu);
	tdxe_dump_walk(vcpu, to_svm(vcpu)->vmcb->save.cr2);
	tdxe_dump_walk(vcpu, kvm_rip_read(vcpu));
	vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
	return 0;
}

/* XSETBV is held to XFAM; what it allows, kvm-amd does. */
static int handle_xsetbv(struct kvm_vcpu *vcpu)
{
	u64 val = (u32)REG(vcpu, RAX) | REG(vcpu, RDX) << 32;

	if (!(u32)REG(vcpu, RCX) && !(val & ~to_td(vcpu->kvm)->xfam))
		return tdxe_svm.handle_exit(vcpu, EXIT_FASTPATH_NONE);
	kvm_inject_gp(vcpu, 0);
	return 1;
}

static int handle_msr(struct kvm_vcpu *vcpu)
{
	return tdxe_handle_msr(vcpu, to_svm(vcpu)->vmcb->control.exit_info_1);
}

static int inject_gp(struct kvm_vcpu *vcpu)
{
	kvm_inject_gp(vcpu, 0);
	return 1;
}

/* SVM's own instructions do not exist on the CPU that a TD sees. */
static int inject_ud(struct kvm_vcpu *vcpu)
{
	kvm_queue_exception(vcpu, UD_VECTOR);
	return 1;
}

/* What an SVM exit of a TD becomes; exits that are not listed are kvm-amd's. */
static const struct {
	u32 first, last;
	int (*handle)(struct kvm_vcpu *vcpu);
	u32 ve_reason;			/* without a handler: #VE with this reason */
} exits[] = {
	{ SVM_EXIT_NPF, SVM_EXIT_NPF, handle_npf },
	{ SVM_EXIT_EXCP_BASE + UD_VECTOR, SVM_EXIT_EXCP_BASE + UD_VECTOR, handle_ud_of_td },
	{ SVM_EXIT_CPUID, SVM_EXIT_CPUID, handle_cpuid },
	{ SVM_EXIT_IOIO, SVM_EXIT_IOIO, tdxe_ve_io },
	{ SVM_EXIT_MSR, SVM_EXIT_MSR, handle_msr },
	{ SVM_EXIT_READ_CR0, SVM_EXIT_READ_CR0 + 8, tdxe_handle_cr },
	{ SVM_EXIT_WRITE_CR0, SVM_EXIT_WRITE_CR0 + 8, tdxe_handle_cr },
	{ SVM_EXIT_CR0_SEL_WRITE, SVM_EXIT_CR0_SEL_WRITE, tdxe_handle_cr },
	{ SVM_EXIT_HLT, SVM_EXIT_HLT, NULL, R_HLT },
	{ SVM_EXIT_IDLE_HLT, SVM_EXIT_IDLE_HLT, NULL, R_HLT },
	{ SVM_EXIT_MONITOR, SVM_EXIT_MONITOR, NULL, R_MONITOR },
	{ SVM_EXIT_MWAIT, SVM_EXIT_MWAIT, NULL, R_MWAIT },
	{ SVM_EXIT_INVD, SVM_EXIT_INVD, NULL, R_INVD },
	{ SVM_EXIT_WBINVD, SVM_EXIT_WBINVD, NULL, R_WBINVD },
	{ SVM_EXIT_XSETBV, SVM_EXIT_XSETBV, handle_xsetbv },
	{ SVM_EXIT_RDPMC, SVM_EXIT_RDPMC, inject_gp },
	{ SVM_EXIT_VMRUN, SVM_EXIT_SKINIT, inject_ud },	/* VMMCALL, VMLOAD, VMSAVE, STGI, CLGI too */
	{ SVM_EXIT_INVLPGA, SVM_EXIT_INVLPGA, inject_ud },
	{ SVM_EXIT_RDPRU, SVM_EXIT_RDPRU, inject_ud },
	{ SVM_EXIT_SHUTDOWN, SVM_EXIT_SHUTDOWN, handle_shutdown },
};

/* Seen under TCG: the VMCB of a TD holds the state of the host at VMRUN. */
static void note_odd_state(struct kvm_vcpu *vcpu)
{
	struct vmcb_save_area *save = &to_svm(vcpu)->vmcb->save;

	/* A guest's page table may lie at the same number, its stack is not in this one. */
	if (likely(save->cr3 != (__read_cr3() & GENMASK_ULL(51, 12))) ||
	    save->rsp - (unsigned long)task_stack_page(current) >= THREAD_SIZE ||
	    to_tv(vcpu)->odd_state)
		return;
	to_tv(vcpu)->odd_state = true;
	pr_warn("vCPU %d: host state in the VMCB\n", vcpu->vcpu_id);
	tdxe_dump(vcpu);
}

int tdxe_handle_exit(struct kvm_vcpu *vcpu, fastpath_t fastpath)
{
	u32 code = to_svm(vcpu)->vmcb->control.exit_code;
	int i;

	if (!is_td_vcpu(vcpu) || fastpath != EXIT_FASTPATH_NONE)
		return tdxe_svm.handle_exit(vcpu, fastpath);

	tdxe_record_exit(vcpu);
	note_odd_state(vcpu);
	for (i = 0; i < ARRAY_SIZE(exits); i++) {
		if (code < exits[i].first || code > exits[i].last)
			continue;
		return exits[i].handle ? exits[i].handle(vcpu) :
					 tdxe_ve_insn(vcpu, exits[i].ve_reason);
	}
	return tdxe_svm.handle_exit(vcpu, fastpath);
}
